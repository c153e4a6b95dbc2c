"""Files of weights from ``torch.save`` and safetensors: read without running code, and only if intact."""

import argparse
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

_KEEP_WEIGHTS = (
    "import torch; c = torch.load({source!r}, weights_only=False); c = c.state_dict() if hasattr(c, 'state_dict') else "
    "c; torch.save(next((c[k] for k in ('state_dict_ema', 'model_ema', 'state_dict', 'model') if c.get(k)), c), "
    '{target!r})'
)


class MoreThanWeightsError(ValueError):
    """A checkpoint contains objects besides plain data and tensors, which may run code when loaded.

    Args:
        path: The file.
        found: The first such object.
        fix: What to do about it; by default a command that keeps only the weights.
    """

    def __init__(self, path: Path, found: str, fix: str | None = None) -> None:
        self.path, self.found = path, found
        if fix is None:
            code = _KEEP_WEIGHTS.format(source=str(path), target=f'{path.stem.split(".")[0]}-weights.pth')
            fix = f'keep only its weights with: python -c "{code}"'
        super().__init__(
            f'{path} contains more than weights ({found}) and may run code when it is loaded. If you trust its source, '
            f'{fix}'
        )


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read all tensors of a file by name; raise ``ValueError`` if it is not a safetensors file."""
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f'{path} is not a safetensors file: {error}') from error


def read_checkpoint(path: str | Path, *, mmap: bool = False, trust: bool = False) -> Any:
    """Read a ``torch.save`` file with plain data, ``argparse.Namespace`` and tensors, without running code in it.

    The checksums of its parts are compared, unlike in ``torch.load``. A file in the format before torch 1.6 has none.

    Args:
        path: The file.
        mmap: Whether to leave the tensors on disk until they are used.
        trust: Unpickle whatever the file contains, which may run any code.

    Returns:
        The saved content, on the CPU.

    Raises:
        MoreThanWeightsError: If it needs ``trust``.
        ValueError: If there is no such file, it cannot be read, is truncated or damaged, or is not a checkpoint.
    """
    path = Path(path)
    try:
        is_zip = _check_start(path)
        if is_zip:
            _check_parts(path)
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location='cpu', weights_only=not trust, mmap=mmap and is_zip)
    except OSError as error:
        raise ValueError(f'{path} cannot be read: {error.strerror or error}') from error
    except pickle.UnpicklingError as error:
        found = _refused(error)
        if trust or found is None:
            raise ValueError(f'{path} is broken: {_first_line(error)}') from error
        raise MoreThanWeightsError(path, found) from error
    except ValueError:
        raise
    except Exception as error:  # torch raises what it likes on a broken file
        if trust and not isinstance(error, (EOFError, RuntimeError)):  # of the code that it runs
            raise
        raise ValueError(f'{path} is broken: {_first_line(error)}') from error


def _check_start(path: Path) -> bool:
    """Return whether a file is a ``torch.save`` zip; raise ``ValueError`` if it is not a pickle either."""
    if not path.exists():
        raise ValueError(f'there is no checkpoint {path}')
    with path.open('rb') as file:
        start = file.read(2)
    if not start:
        raise ValueError(f'{path} is empty')
    if start[:1] != b'\x80' and start != b'PK':  # a pickle, or torch's zip of one
        raise ValueError(f'{path} is not a PyTorch checkpoint: it begins with {start!r} (a page of a failed download?)')
    return start == b'PK'


def _check_parts(path: Path) -> None:
    """Compare the checksum of every part; without checksums, after ``set_crc32_options(False)``, all are 0."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip() if any(part.CRC for part in archive.infolist()) else None
    except OSError:
        raise
    except Exception as error:  # zipfile raises what it likes on a broken file
        raise ValueError(f'{path} is truncated or damaged ({error}): copy or write it again') from error
    if damaged is not None:
        raise ValueError(f'{path} is damaged: {damaged} does not match its checksum; copy or write it again')


def _refused(error: pickle.UnpicklingError) -> str | None:
    """Return what torch's ``weights_only`` refused; ``None`` if the error is something else."""
    name = re.search(r'GLOBAL ([\w.]+)', str(error))
    if name:
        return name[1]
    return next((line for line in str(error).splitlines() if line.startswith('Unsupported')), None)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else 'it ends early'
