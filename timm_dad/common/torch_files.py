"""Files of weights, of ``torch.save`` and safetensors: read without running code, and only if they are whole."""

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
    """A checkpoint holds objects beside plain data and tensors, which may run code when they are loaded.

    Args:
        path: The file.
        found: The first such object.
        fix: What to do about it; by default a command that keeps the weights alone.
    """

    def __init__(self, path: Path, found: str, fix: str | None = None) -> None:
        self.path, self.found = path, found
        if fix is None:
            code = _KEEP_WEIGHTS.format(source=str(path), target=f'{path.stem.split(".")[0]}-weights.pth')
            fix = f'keep its weights alone with: python -c "{code}"'
        super().__init__(
            f'{path} holds more than weights ({found}) and may run code when it is loaded. If you trust its source, '
            f'{fix}'
        )


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read all tensors of a file by name; ``ValueError`` if it is none of safetensors."""
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f'{path} is no safetensors file: {error}') from error


def read_checkpoint(path: str | Path, *, mmap: bool = False, trust: bool = False) -> Any:
    """Read a file of ``torch.save`` with plain data, ``argparse.Namespace`` and tensors; nothing in it is run.

    The checksums of its parts are compared, which ``torch.load`` does not do. A file in the format from before
    torch 1.6 has none.

    Args:
        path: The file.
        mmap: Leave the tensors on the disk until they are used.
        trust: Unpickle whatever the file asks for, which may run anything.

    Returns:
        What was saved, on the CPU.

    Raises:
        MoreThanWeightsError: If it needs ``trust``.
        ValueError: If there is no such file, it cannot be read, is truncated or damaged, or is no checkpoint.
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
    """Whether a file is a zip as ``torch.save`` writes it; ``ValueError`` if it is no pickle either."""
    if not path.exists():
        raise ValueError(f'there is no checkpoint {path}')
    with path.open('rb') as file:
        start = file.read(2)
    if not start:
        raise ValueError(f'{path} is empty')
    if start[:1] != b'\x80' and start != b'PK':  # a pickle, or torch's zip of one
        raise ValueError(f'{path} is no checkpoint of PyTorch: it begins with {start!r} (a page of a failed download?)')
    return start == b'PK'


def _check_parts(path: Path) -> None:
    """Compare the checksum of every part; without any, after ``set_crc32_options(False)``, all are 0."""
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
    """What torch's ``weights_only`` stumbled on; ``None`` if it is none of its refusals."""
    name = re.search(r'GLOBAL ([\w.]+)', str(error))
    if name:
        return name[1]
    return next((line for line in str(error).splitlines() if line.startswith('Unsupported')), None)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else 'it ends early'
