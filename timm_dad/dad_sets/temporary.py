"""A DAD set in a temporary folder, for one training (``--dad-cache``)."""

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from timm_dad.dad_sets.generate import generate
from timm_dad.dad_sets.maker import GenerateConfig
from timm_dad.dad_sets.manifest import FORMAT_VERSION
from timm_dad.dad_sets.read import DADSet
from timm_dad.data.images import Source
from timm_dad.method.augment import DADAugment


@contextmanager
def temporary_set(
    source: Source,
    augment: DADAugment,
    config: GenerateConfig,
    data: Mapping[str, Any],
    accelerator: Accelerator,
    *,
    workers: int,
) -> Iterator[DADSet]:
    """Make the views of all images in a folder that is removed afterwards; the processes of a machine share the work.

    Args:
        source: The images.
        augment: Makes the views.
        config: Settings of the views.
        data: Facts about the data that the set stores besides those that ``source`` knows.
        accelerator: Processes and device.
        workers: Number of loader processes.

    Raises:
        ValueError: If the folder cannot be written.
    """
    name = [uuid.uuid4().hex]
    broadcast_object_list(name)
    root = Path(tempfile.gettempdir(), f'timm_dad-cache-{name[0]}')
    facts = {
        'num_images': len(source),
        'class_names': source.class_names,
        'identified_by': source.identified_by,
        'listing': None,
        **data,
    }
    try:
        generate(
            source, augment, root, config, {'format_version': FORMAT_VERSION, 'data': facts},
            device=accelerator.device, rank=accelerator.local_process_index,
            world_size=int(os.environ.get('LOCAL_WORLD_SIZE', accelerator.num_processes)),
            workers=workers, progress=accelerator.is_main_process, one_thread=False,
        )  # fmt: skip
        yield DADSet(root)
    finally:
        # No barrier: the process group may be gone, or a process may have died of an error.
        if accelerator.is_local_main_process:
            shutil.rmtree(root, ignore_errors=True)
