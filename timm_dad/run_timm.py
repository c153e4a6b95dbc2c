"""``timm-dad run``: timm's ``train.py`` as it is, with the flags ``--dad ...`` added from outside."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import timm
import torch
from torch import nn

from timm_dad.common.errors import user_errors
from timm_dad.method.task import DADTask
from timm_dad.timm_train import add_dad_args, check_args, create_task, pair_views

# What a train.py must have at module level: DAD comes in through these.
NAMES = (
    'parser',
    '_parse_args',
    'resolve_data_config',
    'create_loader',
    'ClassificationTask',
    'train_one_epoch',
    'main',
)


def main(argv: Sequence[str]) -> None:
    """Run a ``train.py``.

    Args:
        argv: Path of the script, then its flags and ``--dad ...``.

    Raises:
        SystemExit: If it is no ``train.py`` that DAD can be added to, or on a bad flag; one line says why.
    """
    parser = argparse.ArgumentParser(
        prog='timm-dad run',
        usage='%(prog)s path/to/train.py [its flags] [--dad ...]',
        description="timm's train.py, unchanged, with the flags --dad. After the path, --help is that of the script.",
    )
    parser.add_argument('script', type=Path, help="timm's train.py")
    script = parser.parse_args(argv[:1]).script.resolve()
    if not script.is_file():
        parser.error(f'the script must be a file, got {argv[0]!r}, which is none')
    sys.argv = [str(script), *argv[1:]]
    sys.path.insert(0, str(script.parent))
    with user_errors(script.name):
        import_timm_of(script, argv)
    module = load_script(script)
    with user_errors(script.name):
        DADFromOutside(module)
    module.main()


def import_timm_of(script: Path, argv: Sequence[str]) -> None:
    """Import the timm that lies beside the script, as ``python train.py`` does, and not another that is installed.

    timm is imported already when this is called, so it starts the command again, with ``PYTHONPATH`` set.

    Raises:
        ValueError: If ``PYTHONPATH`` is set so and timm still comes from elsewhere.
    """
    folder = str(script.parent)
    beside = script.parent / 'timm' / '__init__.py'
    if not beside.is_file() or beside.samefile(timm.__file__):
        return
    before = os.environ.get('PYTHONPATH', '')
    if folder in before.split(os.pathsep):
        raise ValueError(f'timm must be the one beside {script}, got {timm.__file__}; run it from another folder')
    os.environ['PYTHONPATH'] = os.pathsep.join(path for path in (folder, before) if path)
    os.execv(sys.executable, [sys.executable, '-m', 'timm_dad', 'run', *argv])


def load_script(path: Path) -> ModuleType:
    """The script as a module, without running its ``main`` and without writing a byte beside it."""
    module = ModuleType('timm_train_script')
    module.__file__ = str(path)
    sys.modules[module.__name__] = module
    exec(compile(path.read_bytes(), str(path), 'exec'), module.__dict__)
    return module


class DADFromOutside:
    """What the lines of ``patches/`` do in ``train.py``, done by replacing names of its module.

    Args:
        script: The module; changed.

    Raises:
        ValueError: If it lacks a name, or has the flags already.
    """

    def __init__(self, script: ModuleType) -> None:
        path = str(script.__file__)
        for name in NAMES:
            if not hasattr(script, name):
                raise ValueError(
                    f'{path} has no {name!r}, so it is no timm train.py of v1.0.28 or later, or an edited one'
                )
        if '--dad' in script.parser._option_string_actions:
            raise ValueError(f'{path} has the flags --dad already (patched?): start it with python')
        self.script = path
        self.original = {name: getattr(script, name) for name in NAMES}
        add_dad_args(script.parser)
        for name in ('_parse_args', 'resolve_data_config', 'create_loader', 'train_one_epoch'):
            setattr(script, name, getattr(self, name.removeprefix('_')))
        script.ClassificationTask = self.create_task  # type: ignore[attr-defined]

    def parse_args(self) -> Any:
        """Parse, and check the flags ``--dad ...``."""
        self.args, text = self.original['_parse_args']()
        check_args(self.args)
        return self.args, text

    def resolve_data_config(self, *args: Any, **kwargs: Any) -> Any:
        """Remember the size and normalization of the batches."""
        self.data_config = self.original['resolve_data_config'](*args, **kwargs)
        return self.data_config

    def create_loader(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """Give the training data a second view where the flags ask for it, and remember them."""
        if kwargs.get('is_training') and self.args.dad:
            collate = kwargs.get('collate_fn')
            dataset, kwargs['collate_fn'] = pair_views(self.args, dataset, self.data_config, collate)
            self.dataset_train = dataset
        return self.original['create_loader'](dataset, *args, **kwargs)

    def create_task(self, model: nn.Module, criterion: Any, device: torch.device, **kwargs: Any) -> Any:
        """The task of ``--dad``, in the place of timm's classification."""
        if not self.args.dad:
            return self.original['ClassificationTask'](model=model, criterion=criterion, device=device, **kwargs)
        return create_task(self.args, model, criterion, self.dataset_train, self.data_config, device)

    def train_one_epoch(self, epoch: int, *args: Any, task: Any, **kwargs: Any) -> Any:
        """Tell the task the epoch first."""
        if self.args.dad:
            with user_errors(Path(self.script).name):
                if not isinstance(task, DADTask):
                    raise ValueError(f'{self.script} creates its task in another way than timm: --dad had no effect')
            task.set_epoch(epoch)
        return self.original['train_one_epoch'](epoch, *args, task=task, **kwargs)
