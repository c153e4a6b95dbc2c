"""Check that a DAD set matches the training data, student and teacher, and report what differs."""

from collections.abc import Sequence
from functools import lru_cache

from timm_dad.common.spread import spread
from timm_dad.dad_sets.read import DADSet
from timm_dad.data.images import Source
from timm_dad.teachers.teacher import Teacher
from timm_dad.vqgan.model import VQGAN

NUM_COMPARED = 32


def check_student(dad_set: DADSet, num_classes: int, size: tuple[int, int]) -> None:
    """Raise ``ValueError`` if the set was made for other classes or another ``(height, width)`` than the student's."""
    if dad_set.settings['data']['num_classes'] != num_classes:
        raise ValueError(
            f'it was made for {dad_set.settings["data"]["num_classes"]} classes, but the student has {num_classes}: '
            'set --num-classes, or make a set from this data'
        )
    if dad_set.size != size:
        (height, width), (here_height, here_width) = dad_set.size, size
        flag = f'--img-size {height}' if height == width else f'--input-size 3 {height} {width}'
        raise ValueError(
            f'its views are {height} x {width}, but the student takes {here_height} x {here_width}: set {flag}, or '
            'make a set of that size'
        )


def check_data(dad_set: DADSet, source: Source) -> None:
    """Raise ``ValueError`` if the set was made from other data, according to its records and some images.

    For a stream only class names are compared here: every image is looked up in the set later.
    """
    facts = dad_set.settings['data']
    _check_class_names(dad_set.class_names, source.class_names)
    if facts['identified_by'] != source.identified_by:
        raise ValueError(
            f'it identifies images by their {facts["identified_by"]}, but this kind of data set by their '
            f'{source.identified_by}: train on the data set it was made from, or make a set from this one'
        )
    if source.streams:
        return
    if len(source) != dad_set.num_images:
        raise ValueError(
            f'it was made from {dad_set.num_images} images, but the data set has {len(source)}: train on the split '
            'it was made from, or make a set from this one'
        )
    _check_images(dad_set, source)
    listing = source.listing() if facts['listing'] else None
    if listing not in (None, facts['listing']):
        raise ValueError(
            'names or labels of the images have changed since it was made (added, removed or renamed?): put '
            'them back, or make the set again'
        )


def _check_class_names(there: Sequence[str] | None, here: Sequence[str] | None) -> None:
    if there is None or here is None or list(there) == list(here):
        return
    if len(there) != len(here):
        raise ValueError(f'it was made for {len(there)} classes, but the data set has {len(here)}')
    label = next(label for label, names in enumerate(zip(there, here, strict=True)) if names[0] != names[1])
    raise ValueError(
        f'its classes differ: class {label} is {there[label]!r} there but {here[label]!r} here; train on the data '
        'set it was made from, or make a set from this one'
    )


def _check_images(dad_set: DADSet, source: Source) -> None:
    manifest = lru_cache(maxsize=1)(dad_set.manifest)  # indices rise
    for index in spread(dad_set.num_images, NUM_COMPARED):
        shard, row = divmod(index, dad_set.shard_size)
        item = manifest(shard).items[row]
        image = source.read(index)
        here = {
            'label': source.kept_label(image.label),
            'name': source.name(index, image.label),
            'source_sha256': image.sha256,
        }
        for fact, value in here.items():
            if item[fact] != value:
                raise ValueError(
                    f'image {index} differs: {fact} {item[fact]} there, {value} here; train on the data set it '
                    'was made from, or make the set again'
                )


def check_teacher(dad_set: DADSet, teacher: Teacher) -> None:
    """Raise ``ValueError`` if this is not the teacher that the views were made with."""
    made = dad_set.settings['teacher']
    if teacher.fingerprint() != made['fingerprint']:
        flags = {name: value for name, value in made['flags'].items() if value is not None}
        names = ' '.join(f'--{name.replace("_", "-")} {_words(value)}' for name, value in flags.items())
        raise ValueError(
            f'it was made with another teacher: {names or "the default one"}, with its files at that '
            'time. Leave --dad-teacher and its flags out to use that one, or make a set with this one'
        )


def _words(value: object) -> str:
    return ' '.join(str(each) for each in value) if isinstance(value, list) else str(value)


def check_decoder(dad_set: DADSet, vqgan: VQGAN) -> None:
    """Raise ``ValueError`` if this is not the VQGAN that the codes come from."""
    made = dad_set.settings['vqgan']
    if vqgan.fingerprint() != made['fingerprint']:
        raise ValueError(f'its codes come from another VQGAN: give the original {made["spec"]} with --dad-vqgan')
