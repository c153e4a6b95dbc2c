#!/usr/bin/env python3
"""Whether the commands of ``timm-dad`` write the same at two commits, for changes that are to change no behaviour.

``python benchmarks/same_outputs.py BASE [HEAD]`` runs the commands of ``output_commands.py`` on small pictures at both,
on the CPU with one thread, and compares all that they write. BASE and HEAD are commits, which get a temporary
worktree, or folders of checkouts; HEAD is this checkout by default. Ends with 1 if anything differs.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from output_commands import COMMANDS, with_needs
from output_facts import Values, differences, facts_of_folder, is_wording

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent

Facts = dict[str, dict[str, Values]]


@contextlib.contextmanager
def checkout(name: str) -> Iterator[Path]:
    """The folder of a checkout, or a temporary worktree of a commit."""
    if Path(name).is_dir():
        yield Path(name).resolve()
        return
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / 'tree'
        git = ('git', '-C', str(ROOT), 'worktree')
        done = subprocess.run([*git, 'add', '--detach', str(tree), name], capture_output=True, text=True)
        if done.returncode:
            sys.exit(f'{name} is neither a folder nor a commit: {done.stderr.strip()}')
        try:
            yield tree
        finally:
            subprocess.run([*git, 'remove', '--force', str(tree)], check=True)


def outputs(name: str, commands: Sequence[str], folder: Path) -> Facts:
    """Run commands at a commit.

    Args:
        name: The commit, or the folder of a checkout.
        commands: Names of commands.
        folder: Where their outputs go.

    Returns:
        Facts of every file, by command.
    """
    folder.mkdir(parents=True)
    with checkout(name) as tree, open(folder / 'log.txt', 'w') as log:
        environment = {
            **os.environ, 'PYTHONPATH': str(tree), 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': '',
            'TORCH_HOME': str(folder / 'cache'), 'HF_HUB_OFFLINE': '1',
        }  # fmt: skip
        driver = [sys.executable, str(HERE / 'output_commands.py'), str(folder), *with_needs(commands)]
        done = subprocess.run(driver, env=environment, stdout=log, stderr=log)
    if done.returncode:
        sys.exit(f'{name}: {(folder / "log.txt").read_text()[-2000:]}')
    return {command: facts_of_folder(folder / command) for command in commands}


def compare(command: str, base: Facts, head: Facts, folders: tuple[Path, Path] | None) -> list[str]:
    """Say how the outputs of a command differ, which ``folders`` hold if both are there; no lines if they are equal."""
    lines = []
    one, other = base.get(command, {}), head[command]
    for file in sorted(one.keys() | other.keys()):
        if file not in other or file not in one:
            lines.append(f'{file}: only in {"BASE" if file in one else "HEAD"}')
            continue
        files = folders and (folders[0] / command / file, folders[1] / command / file)
        lines += [f'{file}: {line}' for line in differences(one[file], other[file], files)]
    if 'failed.txt' in one and 'failed.txt' in other:
        lines.append(f'it fails at both: {other["failed.txt"]["text"].strip()}')
    return lines


def report(commands: Sequence[str], base: Facts, head: Facts, folders: tuple[Path, Path] | None) -> bool:
    """Print a line for each command, and one for each file that differs; returns whether all are equal."""
    all_equal = True
    for command in commands:
        lines = compare(command, base, head, folders)
        words = all(is_wording(line.partition(': ')[2]) for line in lines)
        verdict = ('other words' if words else 'differs') if lines else f'equal, {len(head[command])} files'
        sys.stdout.write('\n    '.join([f'{command:<16} {verdict}', *lines]) + '\n')
        all_equal = all_equal and not lines
    return all_equal


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse and check the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('base', nargs='?', help='commit or folder; none with --against')
    parser.add_argument('head', nargs='?', help='commit or folder (default: this checkout)')
    parser.add_argument('--only', nargs='+', choices=COMMANDS, default=list(COMMANDS), metavar='NAME',
                        help=f'commands to compare, of {", ".join(COMMANDS)}')  # fmt: skip
    parser.add_argument('--keep', type=Path, metavar='DIR', help='new folder where the outputs stay, as base and head')
    parser.add_argument('--save', type=Path, metavar='FILE', help='keep what is known of BASE, for --against')
    parser.add_argument('--against', type=Path, metavar='FILE', help='compare with this instead of running BASE')
    args = parser.parse_args(argv)
    if args.against and args.head is None:
        args.base, args.head = None, args.base
    if (args.base is None) == (args.against is None):
        parser.error('name BASE or --against FILE, one of them')
    if args.save and not args.base:
        parser.error('--save keeps what is known of BASE: name it')
    if args.keep and args.keep.exists():
        parser.error(f'--keep: {args.keep} exists; name a new folder')
    args.head = args.head or str(ROOT)
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run, compare and report; returns 1 if anything differs."""
    args = parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        folder = (args.keep or Path(temporary, 'outputs')).resolve()
        if args.against:
            base: Facts = json.loads(args.against.read_text())
        else:
            base = outputs(args.base, args.only, folder / 'base')
        if args.save:
            args.save.write_text(json.dumps(base))
        head = outputs(args.head, args.only, folder / 'head')
        folders = None if args.against else (folder / 'base', folder / 'head')
        return 0 if report(args.only, base, head, folders) else 1


if __name__ == '__main__':
    sys.exit(main())
