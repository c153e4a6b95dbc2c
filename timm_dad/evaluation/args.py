"""The flags of ``timm-dad evaluate``."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from timm_dad.evaluation.attacks import ATTACKS, EvalAttackConfig
from timm_dad.evaluation.corruptions import CORRUPTIONS, SEVERITIES
from timm_dad.evaluation.models import ModelOptions, parse_models
from timm_dad.evaluation.predict import EvalConfig
from timm_dad.evaluation.report.bootstrap import RESAMPLES
from timm_dad.evaluation.suites.open import PUBLISHED
from timm_dad.flags.config import add_config_arg, parse_checked
from timm_dad.flags.execution import add_ema_arg, add_execution_args, device_rule
from timm_dad.flags.fields import from_flags
from timm_dad.flags.parser import Parser, add_alias
from timm_dad.flags.rules import check_file_args, check_output, check_rules, describe_flags, under_flag
from timm_dad.frozen.prepare import PRECISIONS
from timm_dad.method.attack import NORMS
from timm_dad.teachers.classes import read_class_file
from timm_dad.teachers.spec import members
from timm_dad.teachers.zero_shot import check_templates

PROGRAM = 'timm-dad evaluate'


def _number(text: str) -> float:
    """Parse ``0.0157`` or ``4/255``."""
    numerator, _, denominator = text.partition('/')
    try:
        return float(numerator) / float(denominator or 1)
    except (ArithmeticError, ValueError) as error:
        raise argparse.ArgumentTypeError(f'must be a number such as 0.0157 or 4/255, got {text!r}') from error


def create_parser() -> Parser:
    """Create the parser of ``timm-dad evaluate``."""
    config, attack = EvalConfig(), EvalAttackConfig()
    parser = Parser(
        prog=PROGRAM,
        usage='%(prog)s --model SPEC ... --suite NAME=PATH ... --output DIR [flags]',
        description='Measure the accuracy of models on clean, shifted, corrupted and attacked images.',
    )
    add_config_arg(parser)
    parser.add_argument(
        '--model', metavar='SPEC', nargs='+', action='extend', required=True,
        help="models, compared with the first one, optionally named (NAME=SPEC): a name of timm, "
        "timm:MODEL/FILE, open_clip:MODEL/PRETRAINED (zero-shot), probe:FILE, run:FOLDER (the student of a "
        "`timm-dad train`), teacher:FOLDER (that run's teacher), demo or wise:A+B@ALPHA (weights between those of two)",
    )  # fmt: skip
    parser.add_argument('--output', metavar='DIR', required=True, help='folder of the results; the same one to resume')
    group = parser.add_argument_group('Suites')
    group.add_argument(
        '--suite', metavar='NAME=PATH', nargs='+', action='extend', default=[],
        help=f'data sets: with the NAMEs {", ".join(PUBLISHED)} in their published layout; with other names any '
        'folder with one sub-folder per class, hfds/SET or torch/SET; or demo/STYLE',
    )  # fmt: skip
    group.add_argument('--data-root', metavar='DIR', help='folder with published data sets: use all that exist there')
    group.add_argument(
        '--clean', metavar='NAME', nargs='+', action='extend', default=[],
        help='your own suites without a shift, which do not count in mean OOD; those named clean, val or validation '
        'are treated so anyway',
    )  # fmt: skip
    group.add_argument(
        '--corrupt', metavar='NAME', nargs='*', action='extend', choices=CORRUPTIONS,
        help='also corrupt every suite without corruptions: by all of ImageNet-C, or only by these',
    )  # fmt: skip
    group.add_argument(
        '--severity', type=int, nargs='+', action='extend', choices=SEVERITIES,
        help='severities of --corrupt (default: all)',
    )  # fmt: skip
    group.add_argument(
        '--attack', nargs='+', action='extend', choices=ATTACKS, default=[], help='also attack these suites'
    )
    group.add_argument(
        '--attack-eps', type=_number, default=attack.eps, metavar='E',
        help='radius of the attack, in [0, 1] pixel units, such as 4/255 (the default)',
    )  # fmt: skip
    group.add_argument('--attack-norm', choices=NORMS, default=attack.norm, help='norm of the attack')
    group.add_argument('--attack-images', type=int, metavar='N', help='attack N images per part, spread evenly')
    group = parser.add_argument_group('Models')
    add_ema_arg(group)
    group.add_argument(
        '--use-train-size', action='store_true', help='use the training size of timm models, not their test size'
    )
    named = [
        group.add_argument('--dad-classnames', metavar='FILE', help='class names for zero-shot models'),
        group.add_argument('--dad-templates', metavar='FILE', help='prompts for zero-shot models'),
        group.add_argument(
            '--dad-class-map', metavar='FILE', help="the model's class for every class of the data, if they differ"
        ),
        group.add_argument(
            '--dad-precision', choices=tuple(PRECISIONS), default='fp32', help='precision of the models'
        ),
    ]
    for action in named:  # the names that these had before they were those of all commands
        add_alias(group, action, action.option_strings[0].replace('--dad-', '--'))
    group = parser.add_argument_group('Report')
    group.add_argument(
        '--bootstrap', type=int, default=RESAMPLES, metavar='N', help='resamples for 95 %% intervals; 0: no intervals'
    )
    group.add_argument(
        '--timm-results', metavar='DIR', help="folder results of timm's repository, to compare with its numbers"
    )
    group = parser.add_argument_group('Execution')
    add_execution_args(group, config.batch_size)
    group.add_argument('--seed', type=int, default=config.seed, metavar='S', help='seed of all random numbers')
    return parser


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """Parse, and check everything that needs no data; raise ``SystemExit`` on a bad flag, with one line naming it."""
    return parse_checked(create_parser, argv, _check_args)


def _check_args(args: argparse.Namespace, given: Mapping[str, Any]) -> None:
    with under_flag('--model:'):
        models = parse_models(args.model)
    odd = [model.name for model in models if not model.name.isprintable()]  # no report could hold it
    linf, of_file = args.attack_norm == 'linf', args.attack_eps != EvalAttackConfig.eps
    attack_flags = ('attack_eps', 'attack_norm', 'attack_images')
    zero_shot = any(part.startswith(('open_clip:', 'demo')) for model in models for part in members(model.spec))
    own_head = any(not model.spec.startswith(('demo', 'teacher:')) for model in models)
    rules = (
        (args.suite or args.data_root, '--suite must be a data set as NAME=PATH (or give --data-root)'),
        (not odd, f'--model: a model name must be printable text, got {odd[:1]}: write NAME=SPEC'),
        ('severity' not in given or args.corrupt is not None, '--severity is for --corrupt: add it'),
        (args.attack or not any(name in given for name in attack_flags), '--attack-... needs --attack: add it'),
        ('attack_eps' in given or ('attack_norm' not in given if of_file else linf),
         f'--attack-eps must be given with --attack-norm {args.attack_norm}: '
         f'{"that of --config may be" if of_file else "its default is"} for {"another norm" if of_file else "linf"}'),
        (args.attack_images is None or args.attack_images > 0,
         f'--attack-images must be 1 or more, got {args.attack_images}'),
        (args.bootstrap >= 0, f'--bootstrap must be 0 or more, got {args.bootstrap}'),
        (zero_shot or not args.dad_classnames,
         '--dad-classnames is for zero-shot models (open_clip:, demo), but there is none'),
        (zero_shot or not args.dad_templates,
         '--dad-templates is for zero-shot models (open_clip:, demo), but there is none'),
        (own_head or not args.dad_class_map,
         '--dad-class-map is for models with their own head, but there is none'),
        device_rule(args.device),
    )  # fmt: skip
    check_rules(rules)
    check_file_args(args, 'dad_classnames', 'dad_templates', 'dad_class_map')
    check_output(Path(args.output))
    create_config(args)


def create_config(args: argparse.Namespace) -> EvalConfig:
    """Return the evaluation settings from the flags; ``ValueError`` names the flag."""
    attack = from_flags(EvalAttackConfig, args, {'eps': 'attack_eps', 'norm': 'attack_norm'})
    return from_flags(EvalConfig, args, {name: name for name in ('batch_size', 'workers', 'seed')}, attack=attack)


def describe_settings(args: argparse.Namespace) -> dict[str, str]:
    """List what figures depend on, by flag, for readers; values are written as a command line has them."""
    unused = [name for name in vars(args) if name.startswith('attack_') and not args.attack]
    unused += ['severity'] if args.corrupt is None else []
    every = {'severity': args.severity or SEVERITIES}
    if args.corrupt is not None:
        every['corrupt'] = args.corrupt or CORRUPTIONS
    work = ('config', 'output', 'batch_size', 'workers', 'device')
    return describe_flags({**vars(args), **every}, [*work, *unused])


def create_options(args: argparse.Namespace) -> ModelOptions:
    """Return the flags' options for all models; raise ``ValueError`` if a file cannot be read."""

    def read(path: str | None, column: str, flag: str) -> Any:
        with under_flag(f'{flag}:'):
            content = read_class_file(path, column) if path else None
            if content is not None and flag == '--dad-templates':
                check_templates(list(content))
            return content

    return ModelOptions(
        use_ema=args.use_ema,
        use_train_size=args.use_train_size,
        precision=args.dad_precision,
        class_names=read(args.dad_classnames, 'name', '--dad-classnames'),
        templates=read(args.dad_templates, 'template', '--dad-templates'),
        class_map=read(args.dad_class_map, 'teacher', '--dad-class-map'),
    )
