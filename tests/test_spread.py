import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from timm_dad.common.spread import spread


@pytest.mark.parametrize(
    ('count', 'chosen', 'expected'),
    [(10, 4, [0, 3, 6, 9]), (3, 3, [0, 1, 2]), (2, 9, [0, 1]), (9, 1, [0]), (1, 1, [0]), (0, 8, []), (5, 0, [])],
)
def test_indices_by_hand(count, chosen, expected):
    assert spread(count, chosen) == expected


@given(count=st.integers(1, 2_000_000), chosen=st.integers(1, 1000))
@example(count=1_281_167, chosen=1000)
def test_indices_go_from_end_to_end_in_even_steps(count, chosen):
    indices = spread(count, chosen)
    assert len(indices) == min(count, chosen)
    assert indices[0] == 0
    if len(indices) > 1:
        steps = np.diff(indices)
        assert indices[-1] == count - 1
        assert steps.min() >= 1
        assert steps.max() - steps.min() <= 1


@given(count=st.integers(1, 20_000_000), chosen=st.sampled_from([24, 32]))
@example(count=1_281_167, chosen=32)
@example(count=50_000, chosen=24)
def test_dad_sets_that_were_hashed_with_numpys_indices_stay_what_they_are(count, chosen):
    """A set's ``sample`` is of 32 images, its contact sheet of 24; they were chosen by ``linspace``."""
    assert spread(count, chosen) == np.linspace(0, count - 1, min(count, chosen)).astype(int).tolist()
