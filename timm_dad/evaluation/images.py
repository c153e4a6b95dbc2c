"""Images of a part of a suite, cut for a model and in batches."""

from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.functional import pil_to_tensor

from timm_dad.evaluation.changed_suites import CorruptedPart
from timm_dad.evaluation.corruptions import CorruptedDataset
from timm_dad.evaluation.models import EvalModel
from timm_dad.evaluation.suite_data import Part, Suite


class PartImages(Dataset[Any]):
    """Images of a part, cut for a model: ``[3, H, W]`` uint8 and a label, or what is wrong with an image."""

    def __init__(self, model: EvalModel, suite: Suite, part: Part, seed: int) -> None:
        self.dataset = part.dataset
        self.cut = model.preprocess.transform() if suite.resize else None
        self.images: Any = _Cut(part.dataset, self.cut)
        if isinstance(part, CorruptedPart):
            self.images = CorruptedDataset(self.images, part.corruption, part.severity, seed)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, int] | str:
        try:
            image, label = self.images[index]
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            # Raised in a loader's process it would come with that process's traceback.
            name = self.dataset.filename(index)
            return str(error) if name in str(error) else f'{name}: {error}'
        return pil_to_tensor(image.convert('RGB')), int(label)


class _Cut(Dataset[Any]):
    def __init__(self, dataset: Any, cut: Any) -> None:
        self.dataset, self.cut = dataset, cut

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        image, label = self.dataset[index]
        return self.cut(image) if self.cut else image, label


def collate_images(items: list[tuple[Tensor, int] | str]) -> tuple[Tensor, Tensor] | str:
    """A batch ``[B, 3, H, W]`` uint8 and labels ``[B]``, or what is wrong with one of its images."""
    images: list[Tensor] = []
    labels: list[int] = []
    for item in items:
        if isinstance(item, str):
            return item
        images.append(item[0])
        labels.append(item[1])
    sizes = sorted({tuple(image.shape[:0:-1]) for image in images})
    if len(sizes) > 1:
        return f'images that go in as they are must have one size, got {sizes[0]} and {sizes[1]} (width, height)'
    return torch.stack(images), torch.tensor(labels)
