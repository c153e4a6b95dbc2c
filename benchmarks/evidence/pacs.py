"""Pictures of PACS at 32 px: students see photographs, other styles test them (Li et al. 2017, arXiv:1710.03077)."""

import shutil
import tarfile
import tempfile
from pathlib import Path

import numpy as np
from data import Style
from PIL import Image

from timm_dad.data.datasets import open_dataset

STYLES = ('photo', 'art_painting', 'cartoon', 'sketch')
TRAIN = 'photo'
UNSEEN = tuple(style for style in STYLES if style != TRAIN)
# Settings are chosen on these, which are reported nowhere; what is reported is of the test splits.
TUNING = ('photo/val', 'art_painting/val')
VQGAN_STYLES = ('photo', 'art_painting', 'cartoon')
CLASSES = ('dog', 'elephant', 'giraffe', 'guitar', 'horse', 'house', 'person')
SIZE = 32


def unpack(source: Path, work: Path) -> Path:
    """Folder of pictures ``SPLIT/STYLE/CLASS/NAME.png`` from the tars ``STYLE.tar``, made once.

    timm takes the innermost folder for the class, so ``train`` is the training split of all styles and ``train/photo``
    that of photographs. ``vqgan/train`` and ``vqgan/validation`` are links to what the VQGAN sees.
    """
    root = work / f'pacs{SIZE}'
    if root.is_dir():
        return root
    unfinished = Path(tempfile.mkdtemp(dir=work))
    try:
        for style in STYLES:
            with tarfile.open(source / f'{style}.tar') as tar:
                for member in tar:
                    if member.isfile():
                        _shrink(tar, member, unfinished, style)
        for split, name, styles in (('train', 'train', VQGAN_STYLES), ('val', 'validation', (TRAIN,))):
            links = unfinished / 'vqgan' / name
            links.mkdir(parents=True)
            for style in styles:
                (links / style).symlink_to(Path('..', '..', split, style))
        unfinished.rename(root)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return root


def _shrink(tar: tarfile.TarFile, member: tarfile.TarInfo, root: Path, style: str) -> None:
    split, label, name = Path(member.name).parts
    path = root / split / style / label / f'{Path(name).stem}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    file = tar.extractfile(member)
    assert file is not None
    with Image.open(file) as image:
        image.convert('RGB').resize((SIZE, SIZE), Image.Resampling.BOX).save(path)


def read_split(root: Path, split: str) -> Style:
    """Pictures of ``SPLIT/STYLE`` in the order of timm's reader, which is the trainer's."""
    dataset = open_dataset('', str(root), split, '--pacs')
    x = np.stack([np.asarray(image.convert('RGB')) for image, _ in dataset])
    y = np.array([label for _, label in dataset])
    keys = np.array(dataset.filenames(basename=True))
    return Style(x, y, np.full(len(x), split.partition('/')[0]), keys)


def test_sets(root: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Test splits by style, and the validation splits that choose settings."""
    splits = {style: f'test/{style}' for style in STYLES} | {name: f'val/{name.partition("/")[0]}' for name in TUNING}
    found = {name: read_split(root, split) for name, split in splits.items()}
    return {name: (style.x, style.y) for name, style in found.items()}
