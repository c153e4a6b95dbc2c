"""Leases: files that their holder rewrites regularly, for file systems whose locks are local to a machine."""

import os
import socket
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from timm_dad.dad_sets.manifest import WORK


class LeaseFile(Protocol):
    """The file of a lease, as its holder sees it."""

    def write(self, content: bytes) -> None:
        """Publish this as the content; raise ``OSError`` or ``ValueError`` if that fails."""

    def close(self) -> None:
        """Close the file: nothing more is written."""


class LeaseFiles(Protocol):
    """The place where the files of leases are kept."""

    def exists(self, name: str) -> bool:
        """Return whether a file exists."""

    def read(self, name: str) -> bytes:
        """Return the content of a file; raise ``FileNotFoundError`` if there is none."""

    def create(self, name: str, content: bytes) -> LeaseFile:
        """Create a file; raise ``FileExistsError`` if it exists, even if created at the same moment."""


class Leases:
    """A name is a file that its process rewrites regularly; it becomes free when that stops.

    The holder of a name is whoever created its file with the highest number: ``000012.3`` follows ``000012.2``. Files
    are created exclusively, so each number has one holder, and never removed, so a holder that returns from a long
    sleep sees that there is a newer one. Each process decides by its own clock, and only by the content, whether a file
    is still being rewritten: clocks of machines and file times need not agree.

    NOTE: not ``filelock.SoftFileLease``, which takes over by exchanging two files (``renameat2``) and so fails on NFS.

    Args:
        place: The folder of the set, or the object that keeps the files.
        interval: Seconds between two writes.
        missed: Number of writes that a process may miss before others take what it holds.
    """

    def __init__(self, place: Path | LeaseFiles, *, interval: float = 10.0, missed: int = 6) -> None:
        self._files = _FolderOfLeases(place / WORK / 'leases') if isinstance(place, Path) else place
        self._interval, self._patience = interval, missed * interval
        self.pause = interval / 5
        self._held: dict[str, _Lease] = {}
        self._last: dict[str, int] = {}  # name: number of its last file, as far as this process has looked
        self._seen: dict[str, tuple[int, bytes, float]] = {}  # name: that number, what was in its file, since when

    def makes(self, shard: int) -> bool:
        """Return True: any process may make any shard."""
        return True

    def take(self, name: str) -> bool:
        """Take a name, see ``Claims``."""
        last = self._look(name)
        if last >= 0 and not self._is_free(name, last):
            return False
        try:
            self._held[name] = _Lease(self._files, name, last + 1, self._interval)
        except FileExistsError:  # another process was faster
            return False
        return True

    def _exists(self, name: str, number: int) -> bool:
        return number >= 0 and self._files.exists(f'{name}.{number}')

    def _look(self, name: str) -> int:
        """Return the number of the last file of a name; -1 if there is none."""
        known = self._last.get(name, -1)
        number = known if self._exists(name, known) else -1  # all are gone if the work folder is
        step = 1
        while self._exists(name, number + step):  # none is missing before the last one
            number += step
            step *= 2
        while step > 1:
            step //= 2
            if self._exists(name, number + step):
                number += step
        self._last[name] = number
        return number

    def _is_free(self, name: str, number: int) -> bool:
        """Return whether the holder released it, or has not written since this process first looked at the content."""
        content, now = self._files.read(f'{name}.{number}'), time.monotonic()
        if self._seen.get(name, ())[:2] != (number, content):
            self._seen[name] = number, content, now
        return content.startswith(_FREE.encode()) or now - self._seen[name][2] > self._patience

    def holds(self, name: str) -> bool:
        """Return whether no other process has taken the name since, and the folder still exists."""
        number = self._held[name].number
        return self._exists(name, number) and not self._exists(name, number + 1)

    def let_go(self, name: str) -> None:
        """Release a name, see ``Claims``."""
        self._held.pop(name).end()


_FREE = 'free'  # in the place of `held`


class _Lease:
    """A file that a thread rewrites until the lease ends; ``FileExistsError`` if it exists."""

    def __init__(self, files: LeaseFiles, name: str, number: int, interval: float) -> None:
        self.number = number
        self._process, self._interval, self._ended = os.getpid(), interval, threading.Event()
        self._owner = f'{socket.gethostname()} {self._process} {uuid.uuid4().hex}'
        self._file = files.create(f'{name}.{number}', self._content(0))
        self._thread = threading.Thread(target=self._renew, daemon=True)
        self._thread.start()

    def _content(self, count: int, state: str = 'held') -> bytes:
        return f'{state} {self._owner} {count:012d}\n'.encode()

    def _renew(self) -> None:
        count = 0
        while not self._ended.wait(self._interval):
            count += 1
            with suppress(OSError, ValueError):  # if that lasts, others take over, and ``holds`` says so
                self._file.write(self._content(count))

    def end(self) -> None:
        if os.getpid() != self._process:  # a loader process has a copy of all this, and no thread
            return
        self._ended.set()
        self._thread.join()
        with suppress(OSError, ValueError):  # then it is free when others have waited for long enough
            self._file.write(self._content(0, _FREE))
        self._file.close()


class _FolderOfLeases:
    """Files of leases in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def exists(self, name: str) -> bool:
        return (self._folder / name).exists()

    def read(self, name: str) -> bytes:
        return (self._folder / name).read_bytes()

    def create(self, name: str, content: bytes) -> LeaseFile:
        self._folder.mkdir(parents=True, exist_ok=True)
        return _OpenFile(self._folder / name, content)


class _OpenFile:
    """An open file that was created exclusively."""

    def __init__(self, path: Path, content: bytes) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            self.write(content)
        except OSError:
            self.close()
            raise

    def write(self, content: bytes) -> None:
        """Write to the opened file: if another file has its name now, that one stays unchanged."""
        os.pwrite(self._file, content, 0)
        os.fsync(self._file)  # other machines see it from here on

    def close(self) -> None:
        os.close(self._file)
