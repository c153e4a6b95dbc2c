import argparse

import pytest

from timm_dad.flags.fields import add_fields, dad_flags, from_flags
from timm_dad.flags.rules import check_rules, naming_flag
from timm_dad.method.attack import AttackConfig


def test_the_first_rule_that_does_not_hold_speaks():
    check_rules([(True, 'a'), ('yes', 'b')])
    with pytest.raises(ValueError, match=r'^b$'):
        check_rules([(True, 'a'), (0, 'b'), (False, 'c')])


@pytest.mark.parametrize(
    ('flags', 'flag'), [(None, '--num-steps'), ({'num_steps': 'dad_num_steps'}, '--dad-num-steps')]
)
def test_the_field_of_a_config_becomes_a_flag(flags, flag):
    with pytest.raises(ValueError, match=f'^{flag}: num_steps must be 0'), naming_flag(flags):
        raise ValueError('num_steps must be 0')


def test_default_type_and_help_of_a_flag_are_those_of_the_field():
    parser = argparse.ArgumentParser()
    flags = dad_flags('eps', 'num_steps', 'norm')
    add_fields(parser, AttackConfig, flags)
    assert from_flags(AttackConfig, parser.parse_args([]), flags) == AttackConfig()
    text = parser.format_help()
    assert all(part in text for part in ('--dad-eps DAD_EPS', 'radius of the attack', '{l2,linf}'))
    args = parser.parse_args(['--dad-eps', '0.5', '--dad-num-steps', '3', '--dad-norm', 'linf'])
    assert from_flags(AttackConfig, args, flags, step_size=0.2) == AttackConfig(
        eps=0.5, num_steps=3, norm='linf', step_size=0.2
    )
    with pytest.raises(ValueError, match=r'^--dad-num-steps: num_steps must be 0 or more, got -1$'):
        from_flags(AttackConfig, parser.parse_args(['--dad-num-steps', '-1']), flags)
