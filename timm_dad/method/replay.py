"""Recent DAD views that are shown again, so that an image needs less than one fresh view."""

import torch
from torch import Tensor

from timm_dad.common.transfer import to_device


class ReplayCache:
    """The last ``size`` DAD views with the teacher's logits on them, on the device they were made on.

    A view needs neither its image nor its label: its distillation target is the teacher's answer on the view itself.

    Args:
        size: Number of views to keep; the oldest are dropped. Pixels are stored as bytes: 147 KiB per view of 224 px.

    Raises:
        ValueError: If the size is not positive.
    """

    def __init__(self, size: int) -> None:
        if size < 1:
            raise ValueError(f'replay must hold 1 view or more, got {size}')
        self.size = size
        self.clear()

    def __len__(self) -> int:
        """Return the number of views kept."""
        return min(self._added, self.size)

    def clear(self) -> None:
        """Forget all views."""
        self._added = 0
        self._parts: tuple[Tensor, ...] = ()

    def add(self, x_dad: Tensor, logits: Tensor, kept: Tensor, features: Tensor | None = None) -> None:
        """Add fresh views.

        Args:
            x_dad: DAD views ``[B, 3, H, W]``, range [0, 1].
            logits: Teacher's logits on them ``[B, K]``.
            kept: Where the teacher predicts the label ``[B]``, bool.
            features: Teacher's pooled features of them ``[B, D]``, for all views or for none.
        """
        parts = (x_dad.mul(255).round().byte(), logits, kept, *([] if features is None else [features]))
        if not self._parts:
            self._parts = tuple(part.new_empty((self.size, *part.shape[1:])) for part in parts)
        last = slice(-self.size, None)  # of a batch larger than the cache
        count = len(kept[last])
        places = torch.arange(self._added, self._added + count, device=kept.device) % self.size
        for own, part in zip(self._parts, parts, strict=True):
            own[places] = part[last]
        self._added += count

    def draw(self, count: int) -> tuple[Tensor, ...]:
        """Draw views at random, with pixels rounded to 8 bits; torch's CPU generator draws.

        Args:
            count: How many; a view may be drawn twice.

        Returns:
            ``x_dad`` ``[count, 3, H, W]``, ``logits`` ``[count, K]``, ``kept`` ``[count]``, and ``features``
            ``[count, D]`` if they were added.

        Raises:
            ValueError: If the cache is empty.
        """
        if not len(self):
            raise ValueError('there is no DAD view to show again: add some first')
        places = to_device(torch.randint(len(self), (count,)), self._parts[0].device)
        x_dad, *answers = (part[places] for part in self._parts)
        return x_dad.float() / 255, *answers
