import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from timm_dad.dad_sets.logits import dense_logits, kept_share, sparse_logits


def _logits(shape, scale=5.0, seed=0):
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_shapes_and_types():
    values, classes, rest = sparse_logits(_logits((2, 3, 10)), 4, 4.0)
    assert (values.shape, values.dtype) == ((2, 3, 4), torch.float16)
    assert (classes.shape, classes.dtype) == ((2, 3, 4), torch.int32)
    assert (rest.shape, rest.dtype) == ((2, 3), torch.float16)


def test_by_hand():
    values, classes, rest = sparse_logits(torch.tensor([1.0, 3.0, 1.0, 2.0]), 2, 1.0)
    assert values.tolist() == [0.0, -1.0]
    assert classes.tolist() == [1, 3]
    assert rest.item() == pytest.approx(-2.0)  # the mean of two equal ones
    assert dense_logits(values, classes, rest, 4).tolist() == pytest.approx([-2, 0, -2, -1])


@given(st.integers(1, 12), st.integers(2, 12), st.floats(0.5, 20), st.integers(0, 1000))
def test_softmax_at_the_temperature_is_kept_for_the_largest_and_in_sum_for_the_rest(
    top_k, num_classes, temperature, seed
):
    logits = _logits((num_classes,), seed=seed)
    dense = dense_logits(*sparse_logits(logits, top_k, temperature), num_classes)
    found, expected = (dense / temperature).softmax(0), (logits / temperature).softmax(0)
    kept = logits.topk(min(top_k, num_classes)).indices
    torch.testing.assert_close(found[kept], expected[kept], rtol=2e-2, atol=1e-4)
    others = torch.ones(num_classes, dtype=torch.bool).scatter(0, kept, False)
    torch.testing.assert_close(found[others].sum(), expected[others].sum(), rtol=2e-2, atol=1e-4)
    assert found[others].unique().numel() <= 1


@given(st.integers(0, 1000))
def test_all_classes_are_the_logits_up_to_a_constant(seed):
    logits = _logits((7,), seed=seed)
    dense = dense_logits(*sparse_logits(logits, 7, 4.0), 7)
    torch.testing.assert_close(dense - dense.max(), logits - logits.max(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize('scale', [1e-6, 1e3, 1e6, 1e30])
@pytest.mark.parametrize('top_k', [1, 3, 6])
def test_any_scale_gives_finite_logits_and_the_right_class(scale, top_k):
    logits = _logits((5, 6), scale=scale)
    for own, *parts in zip(logits, *sparse_logits(logits, top_k, 4.0), strict=True):
        dense = dense_logits(*parts, 6)
        assert dense.isfinite().all()
        assert dense.argmax() == own.argmax() or scale < 1e-3


def test_half_precision_and_shifted_logits_are_taken_alike():
    logits = _logits((4, 9))
    for one, other in zip(sparse_logits(logits, 3, 4.0), sparse_logits(logits + 1000, 3, 4.0), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-3)


def test_what_it_is_given_is_left_alone():
    logits = _logits((4, 9))
    before = logits.clone()
    sparse_logits(logits, 3, 4.0)
    assert torch.equal(logits, before)


def test_share_that_is_kept():
    logits = torch.tensor([[2.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    first = logits[0].div(2).softmax(0)[:1].sum().item()
    assert kept_share(logits, 1, 2.0) == pytest.approx((first + 0.25) / 2)
    assert kept_share(logits, 9, 2.0) == pytest.approx(1.0)
