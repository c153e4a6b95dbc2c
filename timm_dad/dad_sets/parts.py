"""A fixed split of a set: processes need to know nothing about each other."""

import re
from collections.abc import Mapping
from dataclasses import dataclass


class _Settled:
    """The part of ``Claims`` that is trivial if nobody else makes a process's shards."""

    pause = 0.0

    def take(self, name: str) -> bool:
        """Return True: nobody else makes it. Two processes may finish a set at once, with equal bytes."""
        return True

    def holds(self, name: str) -> bool:
        """Return True."""
        return True

    def let_go(self, name: str) -> None:
        """Do nothing: nothing was taken."""


@dataclass(frozen=True)
class Shards(_Settled):
    """Some shards by number; the ``Claims`` of a process that makes only these."""

    numbers: tuple[int, ...]

    def makes(self, shard: int) -> bool:
        """Return whether a shard is one of them."""
        return shard in self.numbers


@dataclass(frozen=True)
class Part(_Settled):
    """The shards ``index``, ``index + count``, ...; the ``Claims`` of a process that makes only these.

    Raises:
        ValueError: If there is no such part.
    """

    index: int
    count: int

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise ValueError(f'must be I/N with I from 0 to N - 1, got {self}')

    def __str__(self) -> str:
        """Format it like the flag's value."""
        return f'{self.index}/{self.count}'

    @classmethod
    def parse(cls, text: str, environ: Mapping[str, str]) -> 'Part':
        """Read ``I/N``, or, for ``auto``, take it from the environment that launchers set."""
        if text == 'auto':
            return _of_launcher(environ)
        found = re.fullmatch(r'([0-9]{1,9})/([0-9]{1,9})', text)
        if not found:
            raise ValueError(f'must be I/N, such as 0/4 for the first of 4 parts, or auto, got {text!r}')
        return cls(int(found[1]), int(found[2]))

    def makes(self, shard: int) -> bool:
        """Return whether a shard belongs to this part."""
        return shard % self.count == self.index


def _of_launcher(environ: Mapping[str, str]) -> Part:
    """Return the task of a Slurm array, a launcher's process (torchrun, accelerate), or the process in the task."""
    parts = [
        part(environ)
        for name, part in (('SLURM_ARRAY_TASK_ID', _array_task), ('RANK', _process))
        if environ.get(name) is not None
    ]
    if not parts:
        raise ValueError('auto needs SLURM_ARRAY_TASK_ID or RANK, but neither is set: give I/N')
    index, count = 0, 1
    for part in parts:
        index, count = index * part.count + part.index, count * part.count
    return Part(index, count)


def _array_task(environ: Mapping[str, str]) -> Part:
    names = ('ID', 'COUNT', 'MIN', 'MAX', 'STEP')
    number, count, first, last, step = _numbers(environ, [f'SLURM_ARRAY_TASK_{name}' for name in names])
    if step < 1 or (last - first) != (count - 1) * step or (number - first) % step or not first <= number <= last:
        raise ValueError(
            f'auto finds a Slurm array of {count} tasks, {first} to {last} by {step}, and task {number} of it, which '
            'do not go together: give I/N (also for a list such as --array=0,1,5)'
        )
    return Part((number - first) // step, count)


def _process(environ: Mapping[str, str]) -> Part:
    rank, world_size = _numbers(environ, ['RANK', 'WORLD_SIZE'])
    if not 0 <= rank < world_size:
        raise ValueError(f'auto finds RANK={rank} and WORLD_SIZE={world_size}, which do not go together: give I/N')
    return Part(rank, world_size)


def _numbers(environ: Mapping[str, str], names: list[str]) -> list[int]:
    for name in names:
        if not re.fullmatch(r'[0-9]{1,9}', environ.get(name, '')):
            raise ValueError(f'auto needs a number in {name}, got {environ.get(name, "nothing")!r}: give I/N')
    return [int(environ[name]) for name in names]
