"""Divide a set among processes: by native locks, by leases where locks are local to a machine, or by a fixed split.

The bytes do not depend on it: a shard that two processes make at once has equal files. Claims only save work.
"""

import errno
import logging
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Protocol

import psutil
from filelock import FileLock, Timeout

from timm_dad.dad_sets.leases import Leases
from timm_dad.dad_sets.manifest import WORK

_logger = logging.getLogger(__name__)

KINDS = ('auto', 'lock', 'lease')
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)
# File systems of one machine, where its locks are all that there are.
_LOCAL = frozenset(
    'apfs bcachefs btrfs ext2 ext3 ext4 f2fs hfs jfs ntfs3 overlay ramfs reiserfs tmpfs ufs xfs zfs'.split()
)
_TRY_LOCK = 'import fcntl, sys; fcntl.flock(open(sys.argv[1]), fcntl.LOCK_EX | fcntl.LOCK_NB)'


class Claims(Protocol):
    """Hands out names: those of shards, and of jobs for a single process."""

    pause: float  # seconds to wait before a name that was not to be had is tried again

    def makes(self, shard: int) -> bool:
        """Return whether this process may make a shard at all."""

    def take(self, name: str) -> bool:
        """Try to take a name without waiting; return whether this process holds it now."""

    def holds(self, name: str) -> bool:
        """Return whether this process still holds a name it took."""

    def let_go(self, name: str) -> None:
        """Release a name."""


class Locks:
    """A name is a locked file (``flock``); the operating system frees it when its process dies."""

    pause = 0.1

    def __init__(self, root: Path) -> None:
        self._root, self._held = root, dict[str, FileLock]()

    def makes(self, shard: int) -> bool:
        """Return True: any process may make any shard."""
        return True

    def take(self, name: str) -> bool:
        """Take a name, see ``Claims``; raise ``ValueError`` on a file system without locks."""
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
                f'{self._root} is on a file system without locks (flock): choose a folder on another one, or give '
                'timm-dad generate --claim lease'
            ) from error
        self._held[name] = lock
        return True

    def holds(self, name: str) -> bool:
        """Return True: no other process can take a lock away."""
        return True

    def let_go(self, name: str) -> None:
        """Release a name, see ``Claims``."""
        self._held.pop(name).release()


def open_claims(root: Path, kind: str = 'auto') -> Claims:
    """Find out how processes can share a folder, which need not exist yet.

    Args:
        root: The folder of the set.
        kind: ``lock``, ``lease`` or ``auto``: locks if the file system is local to this machine and a lock keeps a
            second process out, else leases, which work on any file system with exclusive creation.

    Raises:
        ValueError: If ``kind`` is ``lock`` and locks do not work there.
    """
    if kind == 'lease':
        return Leases(root)
    system = file_system(root)
    if kind == 'auto' and system not in _LOCAL:
        _logger.info(
            '%s is on a file system (%s) where locks may hold only on one machine: shards are claimed by leases, and '
            'those of a killed process become free after a minute', root, system or 'unknown',
        )  # fmt: skip
        return Leases(root)
    if locks_work(root):
        return Locks(root)
    if kind == 'lock':
        raise ValueError(
            f'--claim lock: {root} is on a file system ({system or "unknown"}) where a lock (flock) does not keep a '
            'second process out: give --claim lease'
        )
    _logger.info('%s is on a file system without locks: shards are claimed by leases', root)
    return Leases(root)


def file_system(path: Path) -> str:
    """Return the type of the file system that a path is or will be on; empty if it is unknown."""
    path = path.absolute().resolve()
    mounts = {Path(mount.mountpoint): mount.fstype for mount in psutil.disk_partitions(all=True)}  # the last one counts
    return next((mounts[folder] for folder in (path, *path.parents) if folder in mounts), '')


def locks_work(root: Path) -> bool:
    """Return whether a second process is kept out of a lock that this one holds."""
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
