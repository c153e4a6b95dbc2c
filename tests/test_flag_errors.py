import pytest

from timm_dad.flags.rules import check_rules, naming_flag


def test_the_first_rule_that_does_not_hold_speaks():
    check_rules([(True, 'a'), ('yes', 'b')])
    with pytest.raises(ValueError, match=r'^b$'):
        check_rules([(True, 'a'), (0, 'b'), (False, 'c')])


@pytest.mark.parametrize(
    ('flags', 'unknown', 'flag'),
    [(None, None, '--num_steps'), ({'num_steps': 'dad_num_steps'}, None, '--dad-num-steps'), ({}, 'dad', '--dad')],
)
def test_the_field_of_a_config_becomes_a_flag(flags, unknown, flag):
    with (
        pytest.raises(ValueError, match=f'^{flag.replace("_", "-")}: num_steps must be 0'),
        naming_flag(flags, unknown),
    ):
        raise ValueError('num_steps must be 0')
