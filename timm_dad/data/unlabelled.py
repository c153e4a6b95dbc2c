"""Data without labels: pictures in any folders or none, and unchanged streams of image-text shards."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from timm_dad.demo.data import DemoDataset

# What stands where a label would be, and nobody reads it: loaders, Mixup and stored logits take class indices alone.
NO_LABEL = 0


def drop_labels(dataset: Any) -> None:
    """Make a newly opened data set name no classes and return ``NO_LABEL`` for every image."""
    dataset.label_free = True
    if isinstance(dataset, DemoDataset):
        dataset.class_names, dataset.labels = None, np.full_like(dataset.labels, NO_LABEL)
        return
    reader = dataset.reader
    if hasattr(reader, 'split_info'):  # of shards, see read_without_labels
        reader.split_info.alt_label = ''
    elif hasattr(reader, 'targets'):  # of tars
        reader.class_name_to_idx, reader.targets = {}, np.full_like(reader.targets, NO_LABEL)
    else:
        reader.class_to_idx, reader.samples = {}, [(path, NO_LABEL) for path, _ in reader.samples]


def read_without_labels(reader: Any) -> None:
    """Make timm's reader of shards, in the process that reads, accept samples without ``.cls``.

    NOTE: it drops these, with a warning for each. Its last stages decode a sample and rename its parts.
    """
    if reader.ds is None:
        reader._lazy_init()
        reader.ds.pipeline.insert(-2, _with_labels)  # type: ignore[attr-defined]


def _with_labels(samples: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    return ({**sample, 'cls': str(NO_LABEL).encode()} for sample in samples)
