"""Who makes what of a set: native locks, leases where locks hold on one machine alone, or a split fixed beforehand.

Bytes do not depend on it: a shard that two processes make at once has equal files. Claims save work.
"""

import errno
import logging
import os
import socket
import subprocess
import sys
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import psutil
from filelock import FileLock, Timeout

_logger = logging.getLogger(__name__)

WORK = '.work'  # of a set: what is unfinished, and who is at it
KINDS = ('auto', 'lock', 'lease')
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)
# File systems of one machine, where its locks are all that there are.
_LOCAL = frozenset(
    'apfs bcachefs btrfs ext2 ext3 ext4 f2fs hfs jfs ntfs3 overlay ramfs reiserfs tmpfs ufs xfs zfs'.split()
)
_TRY_LOCK = 'import fcntl, sys; fcntl.flock(open(sys.argv[1]), fcntl.LOCK_EX | fcntl.LOCK_NB)'


class Claims(Protocol):
    """Hands out names: those of shards, and of what one process does alone."""

    pause: float  # seconds to wait before a name that was not to be had is tried again

    def makes(self, shard: int) -> bool:
        """Whether a shard may become this process's at all."""

    def take(self, name: str) -> bool:
        """Take a name, without waiting; whether it is this process's now."""

    def holds(self, name: str) -> bool:
        """Whether a name that was taken is this process's still."""

    def let_go(self, name: str) -> None:
        """Let others have a name that was taken."""


class Locks:
    """A name is a file that is locked (``flock``); the operating system frees it when its process dies."""

    pause = 0.1

    def __init__(self, root: Path) -> None:
        self._root, self._held = root, dict[str, FileLock]()

    def makes(self, shard: int) -> bool:
        """Any process may make any shard."""
        return True

    def take(self, name: str) -> bool:
        """See ``Claims``; ``ValueError`` on a file system without locks."""
        folder = self._root / WORK / 'locks'
        folder.mkdir(parents=True, exist_ok=True)
        # A soft lock, which filelock falls back to, outlives its process. Any thread may let go of it.
        lock = FileLock(folder / f'{name}.lock', fallback_to_soft=False, thread_local=False)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return False
        except (NotImplementedError, OSError) as error:
            if getattr(error, 'errno', errno.ENOSYS) not in _NO_LOCKS:
                raise
            raise ValueError(
                f'{self._root} is on a file system without locks (flock): name a folder on another one, or give '
                'timm-dad generate --claim lease'
            ) from error
        self._held[name] = lock
        return True

    def holds(self, name: str) -> bool:
        """Always: no other process can take a lock away."""
        return True

    def let_go(self, name: str) -> None:
        """See ``Claims``."""
        self._held.pop(name).release()


class Leases:
    """A name is a file that its process writes to again and again; it is free when that ends.

    The holder of a name is whoever made the file of its highest number: ``000012.3`` follows ``000012.2``. Files are
    made by exclusive creation, so each number has one holder, and none is removed, so a holder that comes back from a
    long sleep sees that there is a next one. Whether a file is still written to each process sees by its own clock,
    and by the content alone: clocks of machines, and times of files, need not agree.

    NOTE: not ``filelock.SoftFileLease``, which takes over by exchanging two files (``renameat2``), and so not on NFS.

    Args:
        root: The folder of the set.
        interval: Seconds between two writes.
        missed: Writes that a process may miss before others take what it holds.
    """

    def __init__(self, root: Path, *, interval: float = 10.0, missed: int = 6) -> None:
        self._folder = root / WORK / 'leases'
        self._interval, self._patience = interval, missed * interval
        self.pause = interval / 5
        self._held: dict[str, _Lease] = {}
        self._last: dict[str, int] = {}  # name: number of its last file, as far as this process has looked
        self._seen: dict[str, tuple[Path, bytes, float]] = {}  # name: that file, what was in it, since when

    def makes(self, shard: int) -> bool:
        """Any process may make any shard."""
        return True

    def take(self, name: str) -> bool:
        """See ``Claims``."""
        self._folder.mkdir(parents=True, exist_ok=True)
        last = self._look(name)
        if last >= 0 and not self._is_free(name, last):
            return False
        try:
            self._held[name] = _Lease(self._path(name, last + 1), self._interval)
        except FileExistsError:  # another process was faster
            return False
        return True

    def _path(self, name: str, number: int) -> Path:
        return self._folder / f'{name}.{number}'

    def _look(self, name: str) -> int:
        """Number of the last file of a name; -1 if there is none."""
        known = self._last.get(name, -1)
        number = known if self._path(name, known).exists() else -1  # all are gone if the work folder is
        while self._path(name, number + 1).exists():
            number += 1
        self._last[name] = number
        return number

    def _is_free(self, name: str, number: int) -> bool:
        """Whether the holder let go, or has not written since this process first looked at what is there."""
        path, now = self._path(name, number), time.monotonic()
        content = path.read_bytes()
        if self._seen.get(name, ())[:2] != (path, content):
            self._seen[name] = path, content, now
        return content.startswith(_FREE) or now - self._seen[name][2] > self._patience

    def holds(self, name: str) -> bool:
        """Whether no other process has taken the name since, or the whole folder away."""
        lease = self._held[name]
        return lease.path.exists() and not self._path(name, lease.number + 1).exists()

    def let_go(self, name: str) -> None:
        """See ``Claims``."""
        self._held.pop(name).end()


_FREE = b'free'  # in the place of `held`


class _Lease:
    """A file that a thread writes to until the lease ends; ``FileExistsError`` if there is one."""

    def __init__(self, path: Path, interval: float) -> None:
        self.path, self.number = path, int(path.suffix[1:])
        self._process, self._interval, self._ended = os.getpid(), interval, threading.Event()
        self._owner = f'held {socket.gethostname()} {self._process} {uuid.uuid4().hex}'
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            self._write(f'{self._owner} {0:012d}\n'.encode())
        except OSError:
            os.close(self._file)
            raise
        self._thread = threading.Thread(target=self._renew, daemon=True)
        self._thread.start()

    def _renew(self) -> None:
        count = 0
        while not self._ended.wait(self._interval):
            count += 1
            with suppress(OSError):  # if that lasts, others take over, and ``holds`` says so
                self._write(f'{self._owner} {count:012d}\n'.encode())

    def _write(self, content: bytes) -> None:
        """To the file that was opened: if another one has its name now, that stays as it is."""
        os.pwrite(self._file, content, 0)
        os.fsync(self._file)  # other machines see it from here on

    def end(self) -> None:
        if os.getpid() != self._process:  # a loader process has a copy of all this, and no thread
            return
        self._ended.set()
        self._thread.join()
        with suppress(OSError):  # then it is free when others have waited for long enough
            self._write(_FREE)
        os.close(self._file)


def open_claims(root: Path, kind: str = 'auto') -> Claims:
    """Find out how processes can share a folder, which need not be there yet.

    Args:
        root: The folder of the set.
        kind: ``lock`` or ``lease``, or ``auto``: locks where the file system is one of this machine alone and a second
            process is kept out of a lock, else leases, which do on any file system with exclusive creation.

    Raises:
        ValueError: If it is to be ``lock`` and locks do not work there.
    """
    if kind == 'lease':
        return Leases(root)
    system = file_system(root)
    if kind == 'auto' and system not in _LOCAL:
        _logger.info(
            '%s is on a file system (%s) where locks may hold on one machine alone: shards are claimed by leases, and '
            'those of a process that is killed come free after a minute', root, system or 'unknown',
        )  # fmt: skip
        return Leases(root)
    if locks_work(root):
        return Locks(root)
    if kind == 'lock':
        raise ValueError(
            f'--claim lock: {root} is on a file system ({system or "unknown"}) where a lock (flock) keeps no second '
            'process out: give --claim lease'
        )
    _logger.info('%s is on a file system without locks: shards are claimed by leases', root)
    return Leases(root)


def file_system(path: Path) -> str:
    """Type of the file system that a path is, or will be, on; empty where that cannot be told."""
    path = path.absolute().resolve()
    mounts = {Path(mount.mountpoint): mount.fstype for mount in psutil.disk_partitions(all=True)}  # the last one counts
    return next((mounts[folder] for folder in (path, *path.parents) if folder in mounts), '')


def locks_work(root: Path) -> bool:
    """Whether a second process is kept out of a lock that this one holds."""
    locks, name = Locks(root), f'test-{uuid.uuid4().hex}'
    try:
        locks.take(name)
    except ValueError:
        return False
    except (FileNotFoundError, FileExistsError):
        return True  # another process has just taken the work folder of a whole set away: nothing is left to share
    path = root / WORK / 'locks' / f'{name}.lock'
    try:
        child = [sys.executable, '-ISc', _TRY_LOCK, str(path)]
        said = subprocess.run(child, capture_output=True, text=True, check=False).stderr
        return 'BlockingIOError' in said or 'FileNotFoundError' in said  # or the folder is gone, as above
    finally:
        locks.let_go(name)
        path.unlink(missing_ok=True)
