"""Odd flags, of which a training warns."""

import pytest

from timm_dad.flags.hints import hints
from timm_dad.flags.rules import check_seed
from timm_dad.flags.train import parse_args


@pytest.mark.parametrize(
    ('flags', 'hint'),
    [
        (
            ('--warmup-epochs', '10', '--epochs', '1'),
            '--warmup-epochs 10 covers all of --epochs 1, so the learning rate',
        ),
        (
            ('--sched', 'multistep', '--decay-milestones', '3', '5', '9', '--epochs', '8', '--stop-epoch', '4'),
            '--decay-milestones 5 9: the rate does not fall there, for this run ends after 4 epochs',
        ),
        (('--sched', 'multistep', '--decay-milestones', '3', '5', '--epochs', '5', '--warmup-epochs', '1'), None),
        (('--lr', '1e9'), '--lr 1e+09 is so large'),
        (('--opt-betas', '0.9', '0.99'), '--opt-betas has no effect: --opt sgd has no such setting'),
        (('--opt', 'lookahead_sgd', '--opt-eps', '1e-6'), '--opt-eps has no effect: --opt lookahead_sgd'),
        (('--opt', 'lookahead_adamw', '--opt-eps', '1e-6', '--opt-betas', '0.9', '0.99'), None),
        (('--warmup-epochs', '10', '--epochs', '1', '--warmup-prefix'), None),
        ((), None),
    ],
)
def test_flags_without_a_sensible_effect_are_warned_of(flags, hint):
    found = list(hints(parse_args(['--data-dir', 'x', '--model', 'test_resnet', '--opt', 'sgd', *flags])))
    assert len(found) == (hint is not None)
    if hint:
        assert found[0].startswith(hint)


def test_a_seed_is_no_negative_number():
    args = parse_args(['--data-dir', 'x'])
    check_seed(args)
    args.seed = -1
    with pytest.raises(ValueError, match='--seed must be 0 or more, got -1'):
        check_seed(args)
