"""The layouts of ImageNet-C and similar sets, ``CORRUPTION/SEVERITY/WNID/*``: images are not resized.

If parts or classes are missing, the rest is read with a warning: subsets are in use, but their means differ.
"""

import logging
import re
from collections.abc import Sequence
from pathlib import Path

from timm_dad.evaluation.corruptions import SEVERITIES
from timm_dad.evaluation.suites.class_folders import Place, class_folders, folders, imagenet_wnids, some
from timm_dad.evaluation.suites.suite import FolderImages, Part, Suite

_logger = logging.getLogger(__name__)

C_GROUPS = ('blur', 'noise', 'digital', 'weather')
C_BAR_CORRUPTIONS = (
    'blue_noise_sample', 'brownish_noise', 'caustic_refraction', 'checkerboard_cutout', 'cocentric_sine_waves',
    'inverse_sparkles', 'perlin_noise', 'plasma_noise', 'single_frequency_greyscale', 'sparkles',
)  # fmt: skip
THREE_D_CORRUPTIONS = (
    'near_focus', 'far_focus', 'fog_3d', 'flash', 'color_quant', 'low_light', 'xy_motion_blur', 'z_motion_blur',
    'iso_noise', 'bit_error', 'h265_abr', 'h265_crf',
)  # fmt: skip


def read_corruptions(place: Place, names: Sequence[str], normalizer: str | None = None) -> Suite:
    """Read ``[GROUP/]CORRUPTION/SEVERITY/WNID/*`` of the corruptions ``names``; ImageNet-C's ``extra`` is ignored.

    Severities are 1 to 5, or five numbers with two decimals, as written by ``make_imagenet_c_bar.py``.
    """
    parts: list[Part] = []
    absent: list[str] = []
    wnids = imagenet_wnids()
    fewest = len(wnids)
    for name in names:
        severities = _severities(_corruption_folder(place, name))
        for severity, folder in severities.items():
            labels = class_folders(place, folder, wnids, may_lack=True)
            fewest = min(fewest, len(labels))
            parts.append(Part(name=f'{name}/{severity}', dataset=FolderImages(folder, labels)))
        lacking = [f'{name}/{severity}' for severity in SEVERITIES if severity not in severities]
        absent += lacking if severities else [name]
    if not parts:
        raise place.error(
            f'it must contain one folder per corruption ({", ".join(names[:3])}, ...) with severities 1 to 5',
            f'it has {some(place.root)}',
            'unpack the archives here',
        )
    if absent:
        _logger.warning(
            '%s: %d of %d parts exist; means cover only these and are not comparable with published ones; missing: %s',
            place.name, len(parts), len(names) * len(SEVERITIES), ', '.join(absent),
        )  # fmt: skip
    if fewest < len(wnids):
        _logger.warning(
            '%s: parts have as few as %d of %d classes; numbers cover these', place.name, fewest, len(wnids)
        )
    return Suite(
        name=place.name, kind='corruption', parts=tuple(parts), resize=False, normalizer=normalizer,
        class_names=wnids, num_classes=len(wnids),
    )  # fmt: skip


def _corruption_folder(place: Place, name: str) -> Path:
    found = [path for path in (place.root / name, *(place.root / group / name for group in C_GROUPS)) if path.is_dir()]
    if len(found) > 1:
        raise place.error(f'{name} must exist once', f'got {found[0]} and {found[1]}', 'remove one')
    return found[0] if found else place.root / name


def _severities(folder: Path) -> dict[int, Path]:
    if not folder.is_dir():
        return {}
    by_name = {path.name: path for path in folders(folder)}
    decimals = sorted((name for name in by_name if re.fullmatch(r'\d+\.\d\d', name)), key=float)
    if len(decimals) == len(SEVERITIES):
        return {severity: by_name[name] for severity, name in zip(SEVERITIES, decimals, strict=True)}
    return {severity: by_name[str(severity)] for severity in SEVERITIES if str(severity) in by_name}
