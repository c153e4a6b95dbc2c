from timm_dad.common.markdown import format_table


def test_columns_are_padded_and_numbers_stand_on_the_right():
    rows = [['suite', 'figure', 'm'], ['a|b', 'top-1', '61.25'], ['noto', 'ECE', '9.00']]
    assert format_table(rows, text_columns=2).splitlines() == [
        '| suite | figure |     m |',
        '| ----- | ------ | ----: |',
        '| a\\|b  | top-1  | 61.25 |',
        '| noto  | ECE    |  9.00 |',
    ]


def test_a_rule_has_three_signs_or_more():
    assert format_table([['', 'x'], ['a', '1']]).splitlines()[1] == '| --- | --: |'
