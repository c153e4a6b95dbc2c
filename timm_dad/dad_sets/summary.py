"""Summary of a finished DAD set: label-kept rate by class, distances, codebook usage, and a contact sheet."""

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from timm_dad.common.files import write_file
from timm_dad.dad_sets.formats import place_of, wds_info
from timm_dad.dad_sets.manifest import (
    INDEX,
    SETTINGS,
    ShardManifest,
    canonical_json,
    index_hash,
    manifest_path,
    read_json,
    sha256,
    sync_folders,
)
from timm_dad.dad_sets.read import DADSet, SetFolder
from timm_dad.dad_sets.shards import ShardedFolder
from timm_dad.dad_sets.table import table_shape, write_table
from timm_dad.data.images import Frame, Source, SourceImage
from timm_dad.method.augment import DADAugment

CONTACT_SHEET, CLASS_MAP = 'contact_sheet.png', 'class_map.txt'
_PAIRS, _COLUMNS, _CELL, _TEXT, _MARGIN = 24, 4, 112, 28, 8


def finish(folder: ShardedFolder, source: Source, frame: Frame, augment: DADAugment) -> dict[str, Any]:
    """Write a complete set's files outside its shards, ``index.json`` last, in one process; return the summary."""
    with folder.finishing() as first:
        if first:
            _write(folder, source, frame, augment)
    summary: dict[str, Any] = read_json(folder.root / INDEX)['summary']
    return summary


def _write(folder: ShardedFolder, source: Source, frame: Frame, augment: DADAugment) -> None:
    root, index = folder.root, begin_index(folder)
    whole = SetFolder(root, index=index)
    shape = table_shape(folder.num_images, whole.settings['views']['count'])
    totals = Totals(augment.vqgan.config.n_embed)  # of the same pass over the manifests
    index['files'] = [write_table(root, map(totals.add, whole.manifests()), shape, folder.work('finish'))]
    dad_set = DADSet(root, index=index)
    dad_set.decoder = augment.vqgan
    index['summary'] = totals.summary(dad_set)
    images = source.some(_PAIRS)
    folder.bring({dad_set.view_file(index, 0, source.name(index, image.label)) for index, image in images.items()})
    files = {CONTACT_SHEET: contact_sheet(dad_set, source, frame, images)}
    if source.one_class:
        count = len(source.class_names) if source.class_names is not None else dad_set.settings['data']['num_classes']
        class_map = ''.join(f'{source.folder(label)}\n' for label in range(count))
        files[CLASS_MAP] = class_map.encode(errors='surrogateescape')
    if dad_set.format == 'wds':
        split = str(dad_set.settings['data']['split'])
        if not split or 'tar' in split or '..' in split:  # no name, or what timm takes for names of files
            split = 'train'
        files['_info.json'] = wds_info(split, dad_set.num_views, [entry['items'] for entry in index['shards']])
    end_index(folder, index, files)


def begin_index(folder: ShardedFolder) -> dict[str, Any]:
    """Return what the index of a complete folder records about its shards."""
    shards = []
    for shard in range(folder.num_shards):
        path = manifest_path(folder.root, shard)
        entry = {'path': str(path.relative_to(folder.root)), 'sha256': sha256(path.read_bytes())}
        shards.append({**entry, 'items': len(folder.shard_range(shard))})
    return {'settings': folder.settings_id, 'items': folder.num_images, 'shards': shards, 'files': []}


def end_index(folder: ShardedFolder, index: dict[str, Any], files: dict[str, bytes]) -> None:
    """Write the files beside the shards, by name, and last the index, which marks the folder as complete."""
    root, work = folder.root, folder.work('finish')
    for name, data in files.items():
        write_file(root / name, data, sync=True, work=work)
    files = {**files, SETTINGS: (root / SETTINGS).read_bytes()}
    index['files'] += [place_of(name, data) for name, data in files.items()]
    index['sha256'] = index_hash(index)
    write_file(root / INDEX, canonical_json(index) + b'\n', sync=True, work=work)
    sync_folders(root, [root / INDEX])


class Totals:
    """The counts for the summary of a set, from one manifest after the other; its VQGAN has ``n_embed`` codes."""

    def __init__(self, n_embed: int) -> None:
        self.count, self.size, self.l2 = 0, 0, 0.0
        self.by_class: dict[int, list[int]] = {}
        self.used = np.zeros(n_embed, bool)

    def add(self, manifest: ShardManifest) -> ShardManifest:
        """Count the views of a shard; return its manifest."""
        codes = np.frombuffer(base64.b64decode(manifest.header['codes_used']), np.uint8)
        self.used |= np.unpackbits(codes)[: len(self.used)] == 1
        for item in manifest.items:
            of_class = self.by_class.setdefault(item['label'], [0, 0])
            for view in item['views']:
                self.count, self.size, self.l2 = self.count + 1, self.size + view['bytes'], self.l2 + view['l2']
                of_class[0] += view['kept']
                of_class[1] += 1
        return manifest

    def summary(self, dad_set: DADSet) -> dict[str, Any]:
        """Return the summary of the set whose manifests were added.

        Returns:
            ``images``, ``views``, ``teacher_kept`` (fraction of the views on which the teacher predicts the label),
            ``l2`` (mean distance of a view from its image, over the whole ``[3, H, W]`` tensor in [0, 1] pixel units),
            ``codebook_used`` (fraction of the codes), ``bytes_per_view``, and ``kept_by_class``, empty without labels.
        """
        names = dad_set.class_names
        return {
            'images': dad_set.num_images,
            'views': self.count,
            'teacher_kept': sum(kept for kept, _ in self.by_class.values()) / self.count,
            'l2': self.l2 / self.count,
            'codebook_used': float(self.used.mean()),
            'bytes_per_view': self.size / self.count,
            'kept_by_class': {
                names[label] if names else str(label): kept / total
                for label, (kept, total) in sorted(self.by_class.items())
            }
            if dad_set.one_class
            else {},
        }


def format_summary(summary: dict[str, Any], place: Path | str) -> str:
    """Format the summary for the terminal."""
    worst = sorted(summary['kept_by_class'].items(), key=lambda entry: entry[1])[:5]
    least = f', least for {", ".join(f"{name} {kept:.1%}" for name, kept in worst)}' if worst else ''
    return '\n'.join(
        (
            f'{place}: {summary["views"]} DAD views of {summary["images"]} images, '
            f'{summary["bytes_per_view"]:.0f} bytes each',
            f'teacher keeps {"the label " if worst else "its answer"} {summary["teacher_kept"]:.1%}{least}',
            f'mean L2 of x_dad - x     {summary["l2"]:.3f}',
            f'codes of the VQGAN used  {summary["codebook_used"]:.1%}',
            f'contact sheet            {place}/{CONTACT_SHEET}',
        )
    )


def contact_sheet(dad_set: DADSet, source: Source, frame: Frame, images: Mapping[int, SourceImage]) -> bytes:
    """Return a PNG of images beside their first DAD view."""
    transform = frame.transform()
    names, font = source.class_names, ImageFont.load_default(10)
    step_x, step_y = 2 * _CELL + _MARGIN + 4, _CELL + _TEXT
    size = (_MARGIN + min(len(images), _COLUMNS) * step_x, _MARGIN + -(-len(images) // _COLUMNS) * step_y)
    sheet = Image.new('RGB', size, 'white')
    draw = ImageDraw.Draw(sheet)
    for place, (index, image) in enumerate(images.items()):
        left, top = _MARGIN + place % _COLUMNS * step_x, _MARGIN + place // _COLUMNS * step_y
        dad_image = dad_set.image(index, 0, source.name(index, image.label))
        for offset, picture in ((0, transform(image.image)), (_CELL + 4, dad_image)):
            sheet.paste(picture.resize((_CELL, _CELL), Image.Resampling.NEAREST), (left + offset, top))
        caption = f'image {index}'
        if dad_set.one_class:
            caption = names[image.label] if names else f'class {image.label}'
        draw.text((left, top + _CELL + 2), f'{caption}: x, x_dad', 'black', font)
    with io.BytesIO() as file:
        sheet.save(file, 'png')
        return file.getvalue()
