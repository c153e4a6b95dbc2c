"""Teacher's answers, stored: runs of one seed show it the same crops, whatever the student, temperature or second view.

What a trainer shows depends on (seed, epoch, picture), so the clean views of all rows are the same, and all views of
students that differ. Answers are found by the picture's content alone: what is shown anew is asked.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor, nn

from timm_dad.common.files import replacing
from timm_dad.teachers.features import Answer
from timm_dad.teachers.teacher import Teacher

KEY = np.dtype('<u8')


class StoredAnswers(nn.Module):
    """A teacher that is asked once about a picture; ``save`` adds what it said to a file that runs share.

    NOTE: networks round differently in batches of another size, so a run repeats to the bit with the same file alone.

    Args:
        teacher: Answers on pictures ``[B, 3, H, W]`` in [0, 1]; its features are kept after its logits.
        path: The file; there need not be one yet.
    """

    def __init__(self, teacher: Teacher, path: Path) -> None:
        super().__init__()
        self.teacher, self.path, self.feature_dim = teacher, path, teacher.feature_dim
        self.keys, self.answers = self._read()
        self.new: dict[int, Tensor] = {}

    def forward(self, x_pix: Tensor) -> Tensor:
        """Logits ``[B, K]``."""
        return self.answer(x_pix).logits

    def answer(self, x_pix: Tensor) -> Answer:
        """Logits ``[B, K]`` and, of a teacher with features, these ``[B, D]``."""
        rows = self._rows(x_pix)
        logits, features = rows.split([rows.shape[1] - self.feature_dim, self.feature_dim], dim=1)
        return Answer(logits, features if self.feature_dim else None)

    def _rows(self, x_pix: Tensor) -> Tensor:
        keys = [hashed(image) for image in x_pix.contiguous().numpy()]
        places = np.searchsorted(self.keys, np.array(keys, KEY)).clip(max=max(len(self.keys) - 1, 0))
        known = [len(self.keys) > 0 and self.keys[place] == key for place, key in zip(places, keys, strict=True)]
        unknown = [i for i, key in enumerate(keys) if not known[i] and key not in self.new]
        if unknown:
            answer = self.teacher.answer(x_pix[unknown])
            both = answer.logits if answer.features is None else torch.cat([answer.logits, answer.features], dim=1)
            self.new.update((keys[i], one) for i, one in zip(unknown, both, strict=True))
        rows = [
            torch.from_numpy(self.answers[place]) if found else self.new[key]
            for key, place, found in zip(keys, places, known, strict=True)
        ]
        return torch.stack(rows)

    def save(self) -> None:
        """Add the new answers to the file."""
        if not self.new:
            return
        with FileLock(self.path.with_suffix('.lock')):
            keys, answers = self._read()
            mine = torch.stack(list(self.new.values())).numpy()
            answers = np.concatenate([answers, mine]) if len(answers) else mine
            keys, first = np.unique(np.concatenate([keys, np.array(list(self.new), KEY)]), return_index=True)
            with replacing(self.path) as temporary:
                np.savez(temporary, keys=keys, answers=answers[first])

    def _read(self) -> tuple[np.ndarray, np.ndarray]:
        if not self.path.is_file():
            return np.empty(0, KEY), np.empty(0, np.float32)
        with np.load(self.path) as file:
            return file['keys'], file['answers']


def hashed(image: np.ndarray) -> int:
    """64 bits of a picture's content."""
    return int.from_bytes(hashlib.blake2b(image.tobytes(), digest_size=8).digest(), 'little')


def ask_once(create_task: Callable[..., Any], path: Path) -> tuple[Callable[..., Any], list[StoredAnswers]]:
    """The task factory, whose teacher answers from the file; and a list that holds this teacher once it is made."""
    made: list[StoredAnswers] = []

    def create(*args: Any, **kwargs: Any) -> Any:
        task, augment = create_task(*args, **kwargs)
        own = path.with_stem(f'{path.stem}-features') if task.teacher.feature_dim else path
        task.teacher = StoredAnswers(task.teacher, own)
        made.append(task.teacher)
        return task, augment

    return create, made
