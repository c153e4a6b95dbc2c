"""Object stores for tests: a real S3 server on this machine, and stores in memory that fail or lack something.

The server is moto's (``python -m moto.server``), which keeps its objects in memory.
"""

import contextlib
import socket
import subprocess
import sys
import threading
import time
import urllib.request

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from timm_dad.dad_sets.leases import Leases
from timm_dad.dad_sets.store import Store
from timm_dad.dad_sets.store_claims import _LeaseObjects


@contextlib.contextmanager
def s3_server():
    """Start a server of its own process; yields its address and the process."""
    for name in ('moto.server', 's3fs'):
        pytest.importorskip(name, reason=f'{name} is not installed (pip install "moto[s3]" flask flask-cors s3fs)')
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        address = f'127.0.0.1:{free.getsockname()[1]}'
    command = [sys.executable, '-m', 'moto.server', '-H', '127.0.0.1', '-p', address.rpartition(':')[2]]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_for(f'http://{address}/moto-api/', process)
        yield f'http://{address}', process
    finally:
        process.kill()
        process.wait()


def _wait_for(url, process):
    end = time.monotonic() + 60
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError):
            return urllib.request.urlopen(url, timeout=5).close()
        time.sleep(0.05)
    raise AssertionError(f'no server at {url}')


def contents(url):
    """All objects below a URL, and their bytes."""
    store = Store(url)
    try:
        names = list(store.objects())
    except FileNotFoundError:
        return {}
    return dict(zip(names, store.map(store.read, names), strict=True))


def quick_leases(url):
    """Leases that are free soon after their holder is gone."""
    return Leases(_LeaseObjects(Store(url)), interval=0.05, missed=4)


class Counted(MemoryFileSystem):
    """A store in memory, ``counted://``, that counts its requests, and may fail at one of them."""

    protocol = 'counted'
    store, pseudo_dirs = {}, ['']
    requests, fails, error, effect = [], range(0), None, False
    lock, inside = threading.Lock(), threading.local()

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.replace('counted://', 'memory://'))

    @classmethod
    def fail_at(cls, calls, error=None, effect=False):
        """Fail at requests of these numbers, from 0 on, with their effect or without."""
        cls.fails, cls.error, cls.effect = calls, error or OSError(5, 'QuotaExceeded'), effect
        cls.requests.clear()

    @classmethod
    def failed(cls):
        """Whether there was a request of the first of these numbers."""
        return len(cls.requests) > cls.fails.start

    def _request(self, name, path, *args, **kwargs):
        request = getattr(super(), name)
        if getattr(self.inside, 'a_request', False):
            return request(path, *args, **kwargs)
        with self.lock:
            fails = len(self.requests) in self.fails
            self.requests.append((name, path))
        if fails and not self.effect:
            raise self.error
        self.inside.a_request = True
        try:
            result = request(path, *args, **kwargs)
        finally:
            self.inside.a_request = False
        if fails:
            raise self.error
        return result

    def info(self, path, **kwargs):
        return self._request('info', path, **kwargs)

    def cat_file(self, path, *args, **kwargs):
        return self._request('cat_file', path, *args, **kwargs)

    def ls(self, path, *args, **kwargs):
        return self._request('ls', path, *args, **kwargs)

    def find(self, path, *args, **kwargs):
        return self._request('find', path, *args, **kwargs)

    def pipe_file(self, path, *args, **kwargs):
        return self._request('pipe_file', path, *args, **kwargs)

    def put_file(self, lpath, rpath, **kwargs):
        with open(lpath, 'rb') as file:
            return self._request('pipe_file', rpath, file.read())

    def get_file(self, rpath, lpath, **kwargs):
        with open(lpath, 'wb') as file:
            file.write(self.cat_file(rpath))

    def rm_file(self, path):
        return self._request('rm_file', path)


class Simple(Counted):
    """A store, ``simple://``, where an object is written whether there is one or not."""

    protocol = 'simple'
    store, pseudo_dirs = {}, ['']

    @classmethod
    def _strip_protocol(cls, path):
        return MemoryFileSystem._strip_protocol(path.replace('simple://', 'memory://'))

    def pipe_file(self, path, value, mode='overwrite', **kwargs):
        return super().pipe_file(path, value)


def empty_stores():
    """Let stores in memory be empty, and without faults."""
    for kind in (MemoryFileSystem, Counted, Simple):
        kind.store.clear()
        kind.pseudo_dirs[:] = ['']
    Counted.fail_at(range(0))


for kind in (Counted, Simple):
    fsspec.register_implementation(kind.protocol, kind, clobber=True)
