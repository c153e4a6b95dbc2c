"""``timm-dad push``: upload a DAD set, or the student of a run, to the Hugging Face Hub, with a card."""

import argparse
import logging
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from timm_dad.commands.set_commands import generate_command, teacher_flags, train_command
from timm_dad.commands.student import CARD, Student, timm_use
from timm_dad.commands.upload import Repository
from timm_dad.common.errors import user_errors
from timm_dad.common.files import filling_folder, write_file
from timm_dad.common.hub import SCHEME, check_repo
from timm_dad.common.log import setup_logging
from timm_dad.dad_sets.card import Provenance, set_card
from timm_dad.dad_sets.manifest import INDEX, SETTINGS
from timm_dad.dad_sets.read import DADSet
from timm_dad.dad_sets.share import lay_out, open_whole, set_files
from timm_dad.dad_sets.store import is_url
from timm_dad.flags.moved import without_folder
from timm_dad.flags.parser import Parser
from timm_dad.flags.rules import check_new_output, check_rules, under_flag
from timm_dad.teachers.spec import DEFAULT_TEACHER

PROGRAM = 'timm-dad push'
_RUN = 'run:'
_MOST_FILES = 100_000  # https://huggingface.co/docs/hub/repositories-recommendations
_logger = logging.getLogger(__name__)


def create_parser() -> Parser:
    """Create the parser of ``timm-dad push``."""
    parser = Parser(
        prog=PROGRAM,
        usage='%(prog)s DIR|run:FOLDER --repo USER/NAME --license ID --data-license TEXT [flags]',
        description='Upload a DAD set, or the student of a run, to the Hugging Face Hub, with a card. Every byte of a '
        'set is first compared with its manifests, the logits of a student with those of the model that timm loads.',
    )
    parser.add_argument(
        'source', metavar='DIR|run:FOLDER',
        help='folder of a finished DAD set; run:FOLDER for the best checkpoint of a training; run:FILE for another one',
    )  # fmt: skip
    parser.add_argument('--repo', required=True, metavar='USER/NAME', help='the repository, created if missing')
    parser.add_argument(
        '--license', required=True, metavar='ID',
        help='licence under which you publish it, as an identifier of the hub, such as cc-by-4.0, mit or other',
    )  # fmt: skip
    parser.add_argument(
        '--data-license', required=True, nargs='+', metavar='TEXT',
        help='licences of the pictures it was made from or trained on, in your words; the card states them',
    )  # fmt: skip
    parser.add_argument('--private', action='store_true', help='make the repository private')
    parser.add_argument('--dry-run', action='store_true', help='write what would be uploaded to --output')
    parser.add_argument('--output', metavar='DIR', help='folder for --dry-run to write, new or empty')
    return parser


def _check_args(args: argparse.Namespace) -> None:
    with under_flag('--repo:'):
        check_repo(args.repo, 'USER/NAME', args.repo)
    rules = (
        (re.fullmatch('[a-z0-9][a-z0-9.-]*', args.license),
         f'--license must be an identifier of the hub, such as cc-by-4.0, mit or other, got {args.license!r}'),
        (all(text.strip() for text in args.data_license),
         f'--data-license must state the licences of the pictures, got {args.data_license}'),
        (not args.dry_run or args.output, '--dry-run needs --output, the folder to write'),
        (args.dry_run or not args.output, '--output is for --dry-run: without it, no folder is written'),
        (not (args.dry_run and args.private), '--private is for an upload: leave it out with --dry-run'),
        (not is_url(args.source), f'DIR must be a folder of this machine, got {args.source}'),
    )  # fmt: skip
    check_rules(rules)
    if args.output:
        check_new_output(Path(args.output))


def main(argv: Sequence[str]) -> None:
    """Run ``timm-dad push`` with its command line."""
    args = create_parser().parse_args(argv)
    setup_logging()
    with user_errors(PROGRAM):
        _check_args(args)
        is_run = args.source.startswith(_RUN)
        repository = None
        if not args.dry_run:  # a missing token or network is known before anything is compared
            repository = Repository(args.repo, 'model' if is_run else 'dataset', args.private)
        if is_run:
            student = Student(args.source.removeprefix(_RUN))
            _push_student(args, student, repository)
        else:
            _push_set(args, open_whole(Path(args.source), progress=True), repository)


def _push_student(args: argparse.Namespace, student: Student, repository: Repository | None) -> None:
    address = f'hf-hub:{args.repo}'
    with _folder(args) as folder:
        student.write(folder, args.license)
        card = student.card(
            args.repo.split('/')[-1], timm_use(address), library='timm', licenses=(args.license, args.data_license)
        )
        write_file(folder / CARD, card)
        _finish(repository, folder, args, f"timm.create_model('{address}', pretrained=True)")


def _push_set(args: argparse.Namespace, dad_set: DADSet, repository: Repository | None) -> None:
    paths, address = set_files(dad_set), f'{SCHEME}{args.repo}'
    if len(paths) > _MOST_FILES:
        _logger.warning(
            '%d files: the hub recommends fewer than %d per repository; --format wds and codes have one per shard',
            len(paths), _MOST_FILES,
        )  # fmt: skip
    if repository:
        repository.check_same(SETTINGS, dad_set.root / SETTINGS)
    settings = dad_set.settings
    teacher = teacher_flags(settings)['dad_teacher'] or DEFAULT_TEACHER
    told = Provenance(
        repo=args.repo,
        license=args.license,
        data_licenses=args.data_license,
        teacher=' '.join(teacher) if isinstance(teacher, list) else teacher,
        vqgan=without_folder(settings['vqgan']['spec']),
        made_by=generate_command(dad_set, dad_set.root.absolute().name),
        trained_by=train_command(dad_set, address),
    )
    card = set_card(dad_set, told, sum((dad_set.root / path).stat().st_size for path in paths))
    with _folder(args) as folder:
        lay_out(dad_set.root, paths, folder, shutil.copyfile if args.dry_run else _link)
        write_file(folder / CARD, card)
        _finish(repository, folder, args, f'timm-dad train --dad --dad-dir {address}', last=INDEX)


def _link(source: Path, target: Path) -> None:
    target.symlink_to(source)


def _finish(
    repository: Repository | None, folder: Path, args: argparse.Namespace, use: str, last: str | None = None
) -> None:
    if repository is None:
        return
    url = repository.upload(folder, last)
    print(f'{args.source} is at {url}; use it with: {use}')


@contextmanager
def _folder(args: argparse.Namespace) -> Iterator[Path]:
    """Yield a folder to fill: a temporary one, or one that is renamed to ``--output`` once it is complete."""
    if not args.dry_run:
        with tempfile.TemporaryDirectory(prefix='timm_dad-push-') as name:
            yield Path(name)
        return
    with filling_folder(Path(args.output)) as work:
        yield work
    print(f'{args.output} contains what would be uploaded to {args.repo}; nothing was uploaded')
