"""compiled.py: the same results, one graph for one shape, and no compiling again."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch._dynamo.utils import counters

from timm_dad.attack import AttackConfig
from timm_dad.augment import DADAugment
from timm_dad.compiled import FixedBatch, check_compiler
from timm_dad.ensemble import TeacherEnsemble
from timm_dad.frozen import prepare_frozen

CPU = torch.device('cpu')


class Recorder:
    def __init__(self):
        self.sizes = []

    def __call__(self, batch):
        self.sizes.append(len(batch[0]) if isinstance(batch, list) else len(batch))
        return [2 * rows for rows in batch] if isinstance(batch, list) else 2 * batch


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.booleans())
def test_smaller_batches_are_filled_up_and_cut_back(counts, several):
    recorder = Recorder()
    function = FixedBatch(recorder)
    for count in counts:
        x = torch.randn(count, 3)
        found = function([x, x + 1]) if several else function(x)
        torch.testing.assert_close(found, [2 * x, 2 * x + 2] if several else 2 * x)
    assert recorder.sizes == [max(counts[: index + 1]) for index in range(len(counts))]


def test_gradients_go_through_filled_batches():
    function = FixedBatch(lambda x: (x**2).sum(dim=1))
    function(torch.randn(5, 2))
    x = torch.randn(3, 2, requires_grad=True)
    (gradient,) = torch.autograd.grad(function(x).sum(), x)
    torch.testing.assert_close(gradient, 2 * x.detach())


@pytest.fixture
def fresh_dynamo():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.mark.slow  # inductor takes its time
@pytest.mark.parametrize('attack_from', ['reconstruction', 'input'])
def test_compiled_models_give_the_same_views_and_are_compiled_once(teacher, vqgan, x_pix, attack_from, fresh_dynamo):
    def make(count):
        return DADAugment(
            teacher,
            vqgan,
            mean=(0, 0, 0),
            std=(1, 1, 1),
            attack=AttackConfig(random_start=0.0),
            attack_from=attack_from,
        ).make_views(x_pix[:count], torch.arange(count))

    expected = make(4)
    prepare_frozen(teacher, vqgan, 'fp32', CPU, compile=True)
    counters.clear()
    views = make(4)
    torch.testing.assert_close(views.x_adv, expected.x_adv, atol=1e-4, rtol=0)
    torch.testing.assert_close(views.dad_logits, expected.dad_logits, atol=1e-3, rtol=1e-3)
    graphs = counters['stats']['unique_graphs']
    assert graphs <= 4  # encoder, decoder, teacher with and without gradient
    for count in (4, 3, 1, 4, 2):
        make(count)
    assert counters['stats']['unique_graphs'] == graphs


@pytest.mark.slow
def test_several_teachers_are_compiled_as_one(teacher, x_pix, fresh_dynamo):
    ensemble = TeacherEnsemble([teacher, teacher])
    expected = ensemble(x_pix)
    prepare_frozen(ensemble, None, 'fp32', CPU, compile=True)
    torch.testing.assert_close(ensemble(x_pix), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ensemble(x_pix[:3]), expected[:3], atol=1e-4, rtol=1e-4)


def test_names_of_parameters_stay(teacher, vqgan, monkeypatch):
    before = [list(vqgan.state_dict()), list(teacher.state_dict())]
    monkeypatch.setattr('timm_dad.compiled.check_compiler', lambda device: None)
    prepare_frozen(teacher, vqgan, 'fp32', CPU, compile=True)
    assert [list(vqgan.state_dict()), list(teacher.state_dict())] == before
    assert isinstance(vqgan.encoder.forward, FixedBatch)
    prepare_frozen(teacher, vqgan, 'fp32', CPU, compile=True)  # again: nothing is compiled twice
    assert not isinstance(vqgan.encoder.forward.function, FixedBatch)


def test_a_machine_that_cannot_compile_says_so(monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError('No working C++ compiler found\nand much more')

    monkeypatch.setattr(torch, 'compile', broken)
    with pytest.raises(
        ValueError, match=r'torch.compile does not work on this machine .*: No working C\+\+ compiler found$'
    ):
        check_compiler(CPU)


def test_without_compile_nothing_is_replaced(teacher, vqgan):
    prepare_frozen(teacher, vqgan, 'fp32', CPU)
    assert not isinstance(vqgan.encoder.forward, FixedBatch)
    assert isinstance(vqgan.encoder, nn.Module)
