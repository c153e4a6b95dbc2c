"""Make shards of a DAD set as Ray tasks: on any number of machines, retried by Ray if one is lost.

Ray distributes only the numbers of shards: each task reads images and writes shards itself, into the folder that all
machines see. So the bytes equal those of any other run.
"""

import logging
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError

from timm_dad.common.progress import progress as progress_bar
from timm_dad.dad_sets.claims import Claims
from timm_dad.dad_sets.manifest import SETTINGS, found_shards
from timm_dad.dad_sets.parts import Shards

_logger = logging.getLogger(__name__)

T = TypeVar('T')
Factory = Callable[[Path], Claims]

_MOST = 8  # shards of a task: within one, reading and writing go on beside the networks, but not from one to the next
_EACH = 4  # tasks for every process at least, where there are so many shards: then all end at about the same time
_LOOK = 2.0  # seconds between two looks at what is done
_ANSWER = 20.0  # seconds that a cluster has to answer
_PATIENCE = 90.0  # seconds until what other machines wrote must be seen here: network file systems cache folders
_ALL_GPUS = 'RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES'


class Work(Protocol):
    """Makes shards in a process of the cluster; a function of a module that every machine has."""

    def __call__(self, request: bytes, device: str, claims: Factory) -> object:
        """Make what ``claims`` selects of what ``request`` describes."""


@contextmanager
def connected() -> Iterator[None]:
    """Connect to a cluster: an existing one, as ``ray.init`` finds it, or one of this process.

    Raises:
        ValueError: If a cluster should exist but does not.
    """
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault('RAY_USAGE_STATS_ENABLED', '0')
    address = os.environ.get('RAY_ADDRESS', '')
    host, _, port = address.removeprefix('ray://').rpartition(':')
    try:
        if port.isdecimal():  # Ray itself tries for minutes
            socket.create_connection((host, int(port)), timeout=_ANSWER).close()
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, OverflowError, RuntimeError, ValueError) as error:
        why = getattr(error, 'strerror', None) or error
        raise ValueError(
            f'--engine ray cannot connect (RAY_ADDRESS: {address or "not set"}): {why}; RAY_ADDRESS=local starts a '
            'cluster on this machine'
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


@dataclass(frozen=True)
class Engine:
    """Makes sets with tasks of the connected cluster.

    Args:
        device: ``cuda`` if the cluster has GPUs: one task per GPU; or ``cpu``: one task per core, with one thread.
        workers: Number of processes that load images, per task.
        streams: Whether the images come as a stream, which each task reads completely.
        progress: Whether to show a progress bar.
    """

    device: str
    workers: int
    streams: bool = False
    progress: bool = True

    def run(
        self,
        here: Callable[[Factory], T | None],
        there: Work,
        request: bytes,
        root: Path,
        *,
        num_images: int,
        shard_size: int,
        desc: str,
    ) -> T:
        """Make what a folder lacks.

        Args:
            here: Begins or finishes the folder in this process; returns ``None`` while it is incomplete.
            there: Makes its shards in the cluster.
            request: The description that ``there`` gets.
            root: The folder.
            num_images: Number of images of the data set.
            shard_size: Number of images per shard.
            desc: Label of the progress bar.

        Raises:
            ValueError: If a task raised one, Ray has given up, or the machines see different folders.
        """
        result = here(_only(()))
        if result is not None:
            return result

        def images_done() -> int:
            return sum(min(shard_size, num_images - shard * shard_size) for shard in found_shards(root))

        done = found_shards(root)
        missing = [shard for shard in range(-(-num_images // shard_size)) if shard not in done]
        bar = progress_bar(total=num_images, initial=images_done(), unit='img', show=self.progress, desc=desc)
        with bar:
            self._make(there, request, root.absolute(), missing, lambda: bar.update(images_done() - bar.n))
        end = time.monotonic() + _PATIENCE
        while (result := here(_only(()))) is None:
            if time.monotonic() > end:
                raise ValueError(
                    f'{root} lacks shards that the tasks have made: --output must be a folder that all '
                    'machines of the cluster see (if shards were removed from it, start the same command again)'
                )
            time.sleep(_LOOK)
        return result

    def _make(self, there: Work, request: bytes, root: Path, shards: Sequence[int], look: Callable[[], object]) -> None:
        places, options = self._places()
        task = ray.remote(**options)(_make_shards)
        groups = self._groups(shards, max(places, 1))
        gpus = 'a GPU and ' if 'num_gpus' in options else ''
        _logger.info(
            'Ray: %d tasks, %d at a time, each with %sCPUs: %d', len(groups), places, gpus, options['num_cpus']
        )
        waiting = [task.remote(there, request, root, os.getcwd(), group) for group in groups]
        try:
            while waiting:
                done, waiting = ray.wait(waiting, timeout=_LOOK)
                ray.get(done)
                look()
        except RayTaskError as error:
            known = isinstance(error.cause, ValueError | ImportError | OSError)
            raise (error.cause if known else error) from None
        except RayError as error:
            raise ValueError(
                f'--engine ray: a task was lost more often than Ray retries it ({str(error).splitlines()[0]}): '
                'start the same command again to continue'
            ) from error
        finally:
            for each in waiting:
                ray.cancel(each, force=True)

    def _groups(self, shards: Sequence[int], places: int) -> list[Sequence[int]]:
        """Divide the shards among tasks."""
        count = places if self.streams else max(-(-len(shards) // _MOST), _EACH * places)
        return [shards[first::count] for first in range(min(count, len(shards)))]

    def _places(self) -> tuple[int, dict[str, Any]]:
        """Return how many tasks the cluster runs at a time, and the resources of each."""
        nodes = [node['Resources'] for node in ray.nodes() if node['Alive']]
        with_gpu = [node for node in nodes if node.get('GPU', 0) >= 1]
        if self.device == 'cpu' or not with_gpu:
            return sum(int(node.get('CPU', 0)) for node in nodes), {'num_cpus': 1}
        cpus = min(1 + self.workers, *(int(node.get('CPU', 0) // node['GPU']) for node in with_gpu))
        # A process is kept for the tasks that follow, which Ray does not do by itself where there are GPUs. They may
        # be given another GPU than it has its models on, so that it must see all.
        options = {'num_gpus': 1, 'num_cpus': cpus, 'max_calls': 0, 'runtime_env': {'env_vars': {_ALL_GPUS: '1'}}}
        return sum(int(node['GPU']) for node in with_gpu), options


def _only(shards: Sequence[int]) -> Factory:
    own = Shards(tuple(shards))
    return lambda root: own


def _make_shards(there: Work, request: bytes, root: Path, folder: str, shards: Sequence[int]) -> None:
    """Run the task, in a process of the cluster; an error states the machine."""
    try:
        if os.path.isdir(folder):  # where relative paths of flags begin
            os.chdir(folder)
        if not (root / SETTINGS).exists():
            raise ValueError(f'{root} does not exist: --output must be a folder that all machines of the cluster see')
        there(request, _device(), _only(shards))
    except (ValueError, ImportError, OSError) as error:
        raise ValueError(f'{error} (on {socket.gethostname()})') from error


def _device() -> str:
    """Return the device that Ray gave this task, by torch's name."""
    given = ray.get_runtime_context().get_accelerator_ids().get('GPU', [])
    if not given:
        return 'cpu'
    visible = [name for name in os.environ.get('CUDA_VISIBLE_DEVICES', '').split(',') if name]
    return f'cuda:{visible.index(given[0]) if visible else given[0]}'
