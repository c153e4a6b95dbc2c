"""Where a host would wait for a GPU, counted without one: tensors are on the device ``meta``, which holds no values."""

import contextlib
from collections.abc import Sequence
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

META = torch.device('meta')
# What is answered in place of a value, so that the code goes on: a number that every check of a range accepts.
ANSWERS = {
    'item': lambda _: 0.5,
    '__float__': lambda _: 0.5,
    '__int__': lambda _: 1,
    '__index__': lambda _: 1,
    '__bool__': lambda _: True,
    'tolist': lambda tensor: torch.zeros_like(tensor, device='cpu').tolist(),
    'cpu': lambda tensor: torch.zeros_like(tensor, device='cpu'),
    'numpy': lambda tensor: torch.zeros_like(tensor, device='cpu').numpy(),
    'equal': lambda *_: False,
    'nonzero': lambda tensor: torch.zeros(1, tensor.ndim, dtype=torch.long, device=META),
    'unique': lambda tensor, **_: (torch.zeros(1, dtype=tensor.dtype, device=META), torch.zeros_like(tensor)),
}


class Waits(TorchFunctionMode):
    """Notes each call of torch that waits for the device.

    Attributes:
        found: Names of the functions, in order; whoever uses it may clear the list.
    """

    def __init__(self):
        super().__init__()
        self.found = []
        # There is no autocast on meta; here it is only ever switched off.
        self._autocast = patch.object(torch, 'autocast', lambda device, **_: contextlib.nullcontext())

    def __enter__(self):
        self._autocast.start()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self._autocast.stop()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(func, '__name__', '')
        tensors = [value for value in args if isinstance(value, Tensor)]
        if any(tensor.is_meta for tensor in tensors):
            if name in ANSWERS:
                self.found.append(name)
                return ANSWERS[name](*args, **kwargs)
            if name in ('__getitem__', '__setitem__') and _has_mask(args[1]):
                self.found.append('mask')
                raise AssertionError('an index of booleans waits for the device')
            if name == 'to' and 'cpu' in map(str, (*args[1:], kwargs.get('device'))):
                self.found += [] if kwargs.get('non_blocking') else ['to cpu']
                return torch.zeros_like(tensors[0], device='cpu')
        elif name in ('tensor', 'as_tensor') and kwargs.get('device') == META:
            self.found.append(name)
        elif name == 'to' and META in (*args[1:], kwargs.get('device')) and not kwargs.get('non_blocking'):
            self.found.append('to device')
        return func(*args, **kwargs)


def _has_mask(index):
    parts = index if isinstance(index, Sequence) else [index]
    return any(isinstance(part, Tensor) and part.dtype == torch.bool for part in parts)
