"""Frozen networks, compiled: the same results, one graph for one shape, and no compiling again."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch._dynamo.utils import counters

from timm_dad.frozen.prepare import Compiled, FixedBatch, check_compiler, prepare_frozen
from timm_dad.method.attack import AttackConfig
from timm_dad.method.augment import DADAugment
from timm_dad.method.chunked import Chunked
from timm_dad.teachers.ensemble import TeacherEnsemble

CPU = torch.device('cpu')


class Recorder:
    def __init__(self):
        self.sizes = []

    def __call__(self, batch):
        self.sizes.append(len(batch))
        return 2 * batch


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_smaller_batches_are_filled_up_and_cut_back(counts):
    recorder = Recorder()
    function = FixedBatch(recorder)
    for place, count in enumerate(counts):
        x = torch.randn(count, 3)
        torch.testing.assert_close(function(x), 2 * x)
        largest = max(counts[: place + 1])
        # The half, quarter and eighth of the largest, if that is enough.
        assert recorder.sizes[-1] == min(size for size in halvings(largest) if size >= count)


def test_rows_of_several_tensors_are_filled_up_together():
    sizes = []

    def add(x, y):
        sizes.append((len(x), len(y)))
        return x + y.mean(dim=(1, 2, 3))[:, None]

    function = FixedBatch(add)
    for count in (5, 4):
        x, y = torch.randn(count, 3), torch.randn(count, 2, 4, 4)
        torch.testing.assert_close(function(x, y), x + y.mean(dim=(1, 2, 3))[:, None])
    assert sizes == [(5, 5), (5, 5)]


def halvings(largest):
    return [largest, (largest + 1) // 2, (largest + 3) // 4, (largest + 7) // 8]


def test_whatever_sizes_come_after_the_largest_few_are_compiled():
    recorder = Recorder()
    function = FixedBatch(recorder)
    for count in (64, *range(1, 65)):
        function(torch.randn(count, 1))
    assert set(recorder.sizes) == {64, 32, 16, 8}


def test_results_of_cuda_graphs_are_kept_and_gradients_need_none(monkeypatch):
    """A stand-in for CUDA graphs, which write every result to the same memory."""
    modes = []

    def compile(function, *, dynamic, mode='default'):
        place = []

        def call(x):
            modes.append(mode)
            if mode == 'default':
                return function(x)
            place.append(function(x)) if not place else place[0].copy_(function(x))
            return place[0]

        return call

    monkeypatch.setattr(torch, 'compile', compile)
    on_gpu, on_cpu = (Compiled(lambda x: 2 * x, torch.device(name)) for name in ('cuda', 'cpu'))
    one, two = torch.ones(2), torch.full((2,), 5.0)
    with torch.no_grad():
        first, second = FixedBatch(on_gpu)(one), FixedBatch(on_gpu)(two)
        on_cpu(one)
    assert modes == ['reduce-overhead', 'reduce-overhead', 'default']
    assert (first.tolist(), second.tolist()) == ([2.0, 2.0], [10.0, 10.0])
    on_gpu(one.requires_grad_()).sum().backward()
    assert modes[-1] == 'default'
    assert one.grad.tolist() == [2.0, 2.0]


@pytest.mark.slow
def test_a_size_that_fails_is_forgotten():
    """Else the smaller pieces that follow would be filled up to it, and memory would run out again and again."""

    class Room(Recorder):
        def __call__(self, batch):
            if len(batch) > 4:
                raise torch.OutOfMemoryError('CUDA out of memory.')
            return super().__call__(batch)

    room = Room()
    x = torch.randn(64, 2)
    torch.testing.assert_close(Chunked()(FixedBatch(room), x), 2 * x)
    assert set(room.sizes) == {4}


def test_pieces_are_not_filled_up_to_a_larger_batch_that_could_not_be_had():
    recorder = Recorder()
    function = FixedBatch(recorder)
    pieces = Chunked(4)
    for count in (64, 63, 2):
        x = torch.randn(count, 2)
        torch.testing.assert_close(pieces(function, x), 2 * x)
    assert max(recorder.sizes) == 4


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
    for count in (4, 3):
        make(count)
    assert counters['stats']['unique_graphs'] == graphs
    for count in (1, 2):
        make(count)
    graphs_of_all_sizes = counters['stats']['unique_graphs']
    assert graphs_of_all_sizes <= 3 * graphs  # sizes of 4, 2 and 1
    for count in (4, 3, 2, 1):
        make(count)
    assert counters['stats']['unique_graphs'] == graphs_of_all_sizes


@pytest.mark.slow
def test_several_teachers_are_compiled(teacher, x_pix, fresh_dynamo):
    ensemble = TeacherEnsemble([teacher, teacher])
    expected = ensemble(x_pix)
    prepare_frozen(ensemble, None, 'fp32', CPU, compile=True)
    torch.testing.assert_close(ensemble(x_pix), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ensemble(x_pix[:3]), expected[:3], atol=1e-4, rtol=1e-4)


def test_names_of_parameters_stay(teacher, vqgan, monkeypatch):
    before = [list(vqgan.state_dict()), list(teacher.state_dict())]
    monkeypatch.setattr('timm_dad.frozen.prepare.check_compiler', lambda device: None)
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


def test_a_machine_that_cannot_compile_and_does_not_say_why(monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError

    monkeypatch.setattr(torch, 'compile', broken)
    with pytest.raises(ValueError, match=r'torch.compile does not work on this machine .*: RuntimeError$'):
        check_compiler(CPU)


def test_without_compile_nothing_is_replaced(teacher, vqgan):
    prepare_frozen(teacher, vqgan, 'fp32', CPU)
    assert not isinstance(vqgan.encoder.forward, FixedBatch)
    assert isinstance(vqgan.encoder, nn.Module)
