"""Time on a device whose work is queued."""

import time

import torch


def clock(device: torch.device) -> float:
    """Return the time in seconds once the device has finished its queued work."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
    return time.perf_counter()
