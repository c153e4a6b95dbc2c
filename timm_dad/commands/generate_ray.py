"""``timm-dad generate --engine ray``: the work of the command itself, and that of its tasks."""

import argparse
import pickle
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch

from timm_dad.commands.generate_job import Job, open_source
from timm_dad.common.errors import is_main_process
from timm_dad.dad_sets.claims import Claims
from timm_dad.dad_sets.manifest import REINFORCED
from timm_dad.dad_sets.parts import Shards
from timm_dad.dad_sets.ray_engine import Engine, connected
from timm_dad.data.images import Source


def make_with_ray(args: argparse.Namespace, source: Source) -> dict[str, Any]:
    """Make a set, and its answers, with tasks of a Ray cluster; return the summary."""
    root = Path(args.output).absolute()
    job = Job.open(args, source, torch.device('cpu'))  # the GPUs are for the tasks
    request = pickle.dumps(argparse.Namespace(**{**vars(args), 'output': str(root)}))  # with the temperature found
    job.make(lambda _: Shards(()), repair=args.repair, progress=args.repair)  # before a cluster: all but the shards
    engine = Engine(args.device, args.workers, streams=source.streams, progress=is_main_process())
    size = {'num_images': len(source), 'shard_size': job.config.shard_size}
    with connected():
        summary = engine.run(partial(job.make, progress=False), _make_shards, request, root, desc='DAD views', **size)
        if args.reinforce:
            answer = partial(job.answer, progress=False)
            engine.run(answer, _answer_shards, request, root / REINFORCED, desc='Answers', **size)
    return summary


def _make_shards(request: bytes, device: str, claims: Callable[[Path], Claims]) -> None:
    _open_job(request, device).make(claims, progress=False)


def _answer_shards(request: bytes, device: str, claims: Callable[[Path], Claims]) -> None:
    _open_job(request, device).answer(claims, progress=False)


@lru_cache(maxsize=1)
def _open_job(request: bytes, device: str) -> Job:
    """Open data and models, which a process keeps for later tasks."""
    args = pickle.loads(request)
    return Job.open(args, open_source(args, check=False), torch.device(device))
