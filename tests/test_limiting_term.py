import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from timm_dad.diagnosis.limiting_term import ADVICE, OODErrors, decompose, terms


def flags(count, wrong):
    """``count`` flags, the first ``wrong`` of them set."""
    return np.arange(count) < wrong


def ood(teacher, apart, student=0, count=100):
    return OODErrors(
        teacher_wrong=flags(count, teacher), student_wrong=flags(count, student), disagrees=flags(count, apart)
    )


@pytest.mark.parametrize(
    ('teacher', 'fit', 'shift', 'limiting'),
    [
        (0.5, 0.3, 0.2, 'teacher'),
        (0.2, 0.4, 0.1, 'fit'),
        (0.2, 0.1, 0.3, 'shift'),
        (0.1, 0.2, -0.2, 'fit'),
        (0.2, 0.2, 0.2, 'teacher'),
        (0.1, 0.2, 0.2, 'fit'),
        (0.0, 0.0, 0.0, 'teacher'),
    ],
)
def test_the_largest_term_limits_and_of_equal_ones_the_first(teacher, fit, shift, limiting):
    found = terms(teacher, fit, shift)
    assert found['limiting'] == limiting
    assert found['bound'] == pytest.approx(teacher + fit + shift)
    assert limiting in ADVICE


def test_terms_of_counted_images():
    found = decompose(flags(50, 10), {'a': ood(10, 70, student=60), 'b': ood(50, 30, student=40)})
    for name, values in {
        'a': (0.6, 0.1, 0.2, 0.5, 0.8),
        'b': (0.4, 0.5, 0.2, 0.1, 0.8),
        'mean': (0.5, 0.3, 0.2, 0.3, 0.8),
    }.items():
        got = [found[name][key] for key in ('student_error', 'teacher', 'fit', 'shift', 'bound')]
        assert got == pytest.approx(values), name
    assert [found[name]['limiting'] for name in ('a', 'b')] == ['shift', 'teacher']


@given(st.lists(st.tuples(*[st.integers(0, 3)] * 3), min_size=1, max_size=30), st.lists(st.booleans(), min_size=1))
def test_the_sum_of_the_terms_is_not_less_than_the_students_error(images, dad):
    label, teacher, student = np.array(images).T
    errors = OODErrors(teacher_wrong=teacher != label, student_wrong=student != label, disagrees=teacher != student)
    found = decompose(np.array(dad), {'ood': errors}, num_resamples=2)['ood']
    assert found['student_error'] <= found['bound'] + 1e-12


def test_certainty_is_1_where_one_term_is_far_ahead_and_a_half_where_two_are_equal():
    clear = decompose(flags(500, 5), {'ood': ood(400, 10, count=500)})['ood']
    assert (clear['limiting'], clear['certainty']) == ('teacher', 1.0)
    equal = decompose(flags(500, 200), {'ood': ood(200, 200, count=500)})['ood']
    assert 0.4 < equal['certainty'] < 0.6


def test_certainty_is_of_the_spread_of_sampling():
    # fit 0.5 of 100 images, teacher 0.55: difference 0.05, standard deviation sqrt(2) * 0.05; P(z > -0.71) = 0.76.
    found = decompose(flags(100, 50), {'ood': ood(55, 0)}, num_resamples=20_000)['ood']
    assert found['limiting'] == 'teacher'
    assert found['certainty'] == pytest.approx(0.76, abs=0.05)


def test_resamples_are_seeded():
    sets = flags(100, 50), {'ood': ood(50, 60)}
    assert decompose(*sets) == decompose(*sets)
    assert decompose(*sets)['ood']['certainty'] != decompose(*sets, seed=1)['ood']['certainty']


@pytest.mark.parametrize(('dad', 'oods'), [(0, {'ood': ood(1, 1)}), (5, {}), (5, {'ood': ood(0, 0, count=0)})])
def test_terms_of_nothing(dad, oods):
    with pytest.raises(ValueError, match='the terms need images of DAD views and of one OOD set or more'):
        decompose(flags(dad, 0), oods)
