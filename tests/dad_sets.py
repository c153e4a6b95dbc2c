"""Small DAD sets for tests, written with the parts that ``timm-dad generate`` writes with; every picture a colour."""

import json

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from timm_dad.common.files import write_files
from timm_dad.dad_sets.formats import (
    FormatConfig,
    Item,
    encode_image,
    lay_out,
    logits_path,
    pack_codes,
    place_of,
)
from timm_dad.dad_sets.logits import StoredLogits, encode_target, sparse_logits
from timm_dad.dad_sets.manifest import (
    FORMAT_VERSION,
    INDEX,
    SETTINGS,
    ShardManifest,
    canonical_json,
    index_hash,
    manifest_path,
    settings_id,
    sha256,
)
from timm_dad.dad_sets.read import DADSet
from timm_dad.data.images import Frame, Source
from timm_dad.flags.teacher import create_teacher
from timm_dad.flags.train import parse_args

NUM_IMAGES = 24
CLASSES = ('cat', 'dog', 'fish', 'tree')


def grey_of(index):
    """The grey of a picture."""
    return 10 * index


def colour_of(index, view):
    """The colour of its DAD view: which picture, and which view."""
    return 10 * index, 200, 60 * view + 40


def write_greys(root, split='train', count=NUM_IMAGES):
    """Write an image folder of one-coloured pictures of several sizes, equally many a class; returns the root."""
    for index in range(count):
        label, number = divmod(index, count // len(CLASSES))
        folder = root / split / CLASSES[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (40 + index % 3, 36), (grey_of(index),) * 3).save(folder / f'{number:02}.png')
    return root


def one_colour(index, view, image, size):
    """Pixels of a DAD view that say which it is."""
    return np.broadcast_to(np.uint8(colour_of(index, view)), (*size, 3)).copy()


def all_images(source):
    """Images of a data set or a stream, in order."""
    if source.streams:
        return [Source.of_pixels(image, label) for image, label in source.dataset]
    return [source.read(index) for index in range(len(source))]


def write_dad_set(
    root, dataset, *, num_views=1, size=(32, 32), format='folder', pixels=one_colour, shard_size=5, num_classes=4,
    teacher=None, teacher_flags=None, vqgan=None, vqgan_spec='demo', logits=None, temperature=4.0, crop_pct=1.0,
):  # fmt: skip
    """Write a DAD set of a data set.

    ``pixels(index, view, image, size)`` gives a view, of the format codes its codes; ``logits(image, views)`` the
    teacher's ``[1 + num_views, K]``, of which the largest 2 are stored. Returns the set.
    """
    source, config = Source(dataset), FormatConfig(format=format)
    images = all_images(source)
    none = dict.fromkeys(('dad_teacher', 'dad_teacher_weights', 'dad_teacher_checkpoint', 'dad_classnames',
                          'dad_templates', 'dad_class_map'))  # fmt: skip
    settings = {
        'format_version': FORMAT_VERSION,
        'data': {
            'dataset': '', 'split': 'train', 'num_images': len(images), 'num_classes': num_classes,
            'class_names': None if source.class_names is None else list(source.class_names),
            'listing': source.listing(), 'identified_by': source.identified_by,
        },
        'views': {'count': num_views, 'size': list(size), 'interpolation': 'bicubic', 'crop_pct': crop_pct, 'seed': 0},
        'teacher': {'fingerprint': teacher.fingerprint() if teacher else '', 'flags': none | (teacher_flags or {})},
        'vqgan': {'fingerprint': vqgan.fingerprint() if vqgan else '', 'spec': vqgan_spec, 'strict_size': False},
        'attack': {}, 'precision': 'fp32', 'batch_size': 4, 'shard_size': shard_size, 'files': config.settings,
        'logits': {'top_k': 2, 'temperature': temperature} if logits else None,
    }  # fmt: skip
    shards = []
    for shard, start in enumerate(range(0, len(images), shard_size)):
        items, stored = [], []
        for index in range(start, min(start + shard_size, len(images))):
            image = images[index]
            views = [pixels(index, view, image, size) for view in range(num_views)]
            encoded = [pack_codes(view, vqgan.config.n_embed) if format == 'codes' else encode_image(view, config)
                       for view in views]  # fmt: skip
            items.append(Item(index, source.name(index, image.label), image.label, image.sha256, encoded))
            if logits:
                stored.append(sparse_logits(logits(image, views), 2, temperature))
        contents, places, files = lay_out(shard, items, config)
        write_files({root / path: data for path, data in contents.items()}, root / 'work')
        if logits:
            values, classes, rest = (torch.stack(part) for part in zip(*stored, strict=True))
            parts = {'values': values, 'classes': classes, 'rest': rest}
            (root / 'logits').mkdir(exist_ok=True)
            save_file(
                {f'{kind}_{name}': (part[:, 0] if kind == 'clean' else part[:, 1:]).contiguous()
                 for name, part in parts.items() for kind in ('clean', 'dad')},
                root / logits_path(shard),
            )  # fmt: skip
            files = [*files, place_of(logits_path(shard), (root / logits_path(shard)).read_bytes())]
        lines = [
            {'index': item.index, 'name': item.name, 'label': item.label, 'source_sha256': item.source_sha256,
             'views': views}
            for item, views in zip(items, places, strict=True)
        ]  # fmt: skip
        manifest = ShardManifest({'shard': shard, 'first': start, 'items': len(items), 'files': files}, lines)
        path = manifest_path(root, shard)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(manifest.to_bytes())
        shards.append({'path': str(path.relative_to(root)), 'sha256': sha256(manifest.to_bytes()), 'items': len(items)})
    (root / SETTINGS).write_bytes(canonical_json(settings))
    index = {'settings': settings_id(settings), 'items': len(images), 'shards': shards, 'files': []}
    index['sha256'] = index_hash(index)
    (root / INDEX).write_bytes(canonical_json(index))
    return DADSet(root)


def write_taught_set(root, dataset, light=(0.7, 0.8)):
    """Write a DAD set of pictures of ``CLASSES`` with the demo's teacher and its logits; returns its folder.

    A view is the picture, times one of ``light``.
    """
    root.mkdir(parents=True, exist_ok=True)
    (root / 'names.txt').write_text('\n'.join(CLASSES))
    teacher_flags = {'dad_teacher': 'demo', 'dad_classnames': str(root / 'names.txt')}
    flags = [
        '--data-dir',
        'x',
        '--dad',
        '--dad-vqgan',
        'demo',
        '--dad-teacher',
        'demo',
        '--dad-classnames',
        teacher_flags['dad_classnames'],
    ]
    teacher = create_teacher(parse_args(flags), len(CLASSES), CLASSES)
    frame = Frame(size=(32, 32)).transform()

    def pixels(index, view, image, size):
        return (np.array(frame(image.image)) * light[view]).astype(np.uint8)

    @torch.no_grad()
    def logits(image, views):
        pictures = np.stack([np.array(frame(image.image)), *views])
        return teacher(torch.from_numpy(pictures).permute(0, 3, 1, 2) / 255)

    write_dad_set(root / 'set', dataset, num_views=len(light), pixels=pixels, teacher=teacher, logits=logits,
                  teacher_flags=teacher_flags)  # fmt: skip
    return root / 'set'


def change_settings(root, **changes):
    """Change ``section__name=value`` of a set that stays whole."""
    path, index_path = root / SETTINGS, root / INDEX
    settings, index = json.loads(path.read_bytes()), json.loads(index_path.read_bytes())
    for name, value in changes.items():
        section, _, key = name.partition('__')
        settings[section][key] = value
    path.write_bytes(canonical_json(settings))
    index['settings'] = settings_id(settings)
    index['sha256'] = index_hash(index)
    index_path.write_bytes(canonical_json(index))


def pixels_of(view):
    """One colour of a picture: PIL, uint8 array or tensor; ``None`` if it has several."""
    if isinstance(view, Image.Image):
        view = np.asarray(view).transpose(2, 0, 1)
    colours = np.unique(np.asarray(view).reshape(3, -1), axis=1)
    return tuple(colours[:, 0].tolist()) if colours.shape[1] == 1 else None


def stored_logits(dad_set, index, view):
    """Stored logits ``[K]`` of an image and of one of its views."""
    coded = torch.tensor(2 * [encode_target(index, view, dad_set.num_views, 0, 4)])
    return tuple(logits[0] for logits in StoredLogits.of_views(dad_set).read(coded))
