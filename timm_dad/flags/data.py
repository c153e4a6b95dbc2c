"""The flags about a data set that a command looks at, named as timm names them; ``create_dataset`` takes them."""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

# Data sets that a flag is for; timm passes them by elsewhere.
_DATA_FLAGS = {
    'train_num_samples': ('wds', 'tfds', 'hfids'),
    'input_key': ('hfds', 'hfids', 'wds', 'tfds'),
    'target_key': ('hfds', 'hfids', 'wds', 'tfds'),
    'dataset_download': ('torch', 'tfds', 'hfds', 'hfids'),
    'dataset_trust_remote_code': ('hfds', 'hfids'),
}


def add_data_args(parser: argparse.ArgumentParser, split: str, split_flag: str = '--split') -> Any:
    """Add the flags to a parser.

    Args:
        parser: The parser.
        split: Default of the split.
        split_flag: The flag that names it.

    Returns:
        Their group, for more of them.
    """
    group = parser.add_argument_group('Dataset')
    group.add_argument('--data-dir', metavar='DIR', help='path to dataset (root dir)')
    group.add_argument('--dataset', metavar='NAME', default='', help="timm's dataset type + name, or demo/STYLE")
    group.add_argument(split_flag, metavar='NAME', default=split, help='dataset split, or "" for a folder without')
    group.add_argument('--num-classes', type=int, metavar='N', help='classes of data without names of them')
    group.add_argument('--class-map', default='', metavar='FILENAME', help='class to index mapping file')
    group.add_argument('--dataset-download', action='store_true', help='let torch/ and tfds/ datasets download')
    group.add_argument('--dataset-trust-remote-code', action='store_true', help="run the dataset repository's own code")
    group.add_argument('--input-key', help='dataset key for input images')
    group.add_argument('--target-key', help='dataset key for target labels')
    # What create_dataset asks for and has one meaning here.
    parser.set_defaults(in_chans=3, input_img_mode='RGB', epoch_repeats=0, train_num_samples=None, val_num_samples=None)
    return group


def check_data_args(args: argparse.Namespace, given: Mapping[str, Any]) -> None:
    """Check the flags before anything is built.

    Args:
        args: All flags.
        given: The flags of the command line alone, which must not be ignored.

    Raises:
        ValueError: If a flag has a bad value, or would be ignored.
    """
    if args.num_classes is not None and args.num_classes < 2:
        raise ValueError(f'--num-classes must be 2 or more, got {args.num_classes}')
    kind = args.dataset.split('/')[0] if '/' in args.dataset else ''
    for name, kinds in _DATA_FLAGS.items():
        if name in given and kind not in kinds:
            flag = name.replace('_', '-')
            raise ValueError(f'--{flag} is for --dataset {"/, ".join(kinds)}/, got {args.dataset or "a folder"}')
    if 'class_map' in given and kind == 'demo':
        raise ValueError('--class-map is not for the demo: it has classes of its own')


def number_of_classes(args: argparse.Namespace, class_names: Sequence[str] | None) -> int:
    """Classes of the data: by their names, or by ``--num-classes``.

    Raises:
        ValueError: If neither says, or they differ.
    """
    if class_names is None and args.num_classes is None:
        raise ValueError('--num-classes must be given: the data does not name its classes')
    if class_names is not None and args.num_classes not in (None, len(class_names)):
        raise ValueError(f'--num-classes must be {len(class_names)}, the classes of the data, got {args.num_classes}')
    return len(class_names) if class_names is not None else int(args.num_classes)
