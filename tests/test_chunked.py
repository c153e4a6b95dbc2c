"""chunked.py: pieces give what the whole gives, and fewer images fit where more did not."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from timm_dad.method.attack import AttackConfig
from timm_dad.method.augment import DADAugment
from timm_dad.method.chunked import Chunked
from timm_dad.method.pixel_space import ATTACK_FROM

TARGET = torch.tensor([0, 1, 2, 3])


@dataclass(frozen=True)
class Pair:
    value: Tensor
    other: Tensor | None = None

    def __len__(self):
        return len(self.value)


def doubled(pair, extra, nothing):
    assert nothing is None
    return Pair(2 * pair.value + extra, pair.other)


def out_of_memory():
    # What a GPU says; should_reduce_batch_size of Accelerate knows it by its class.
    return torch.cuda.OutOfMemoryError('CUDA out of memory. Tried to allocate 1.00 GiB.')


class Device:
    """A function on a device with room for so many images."""

    def __init__(self, room):
        self.room, self.calls = room, []

    def __call__(self, x):
        self.calls.append(len(x))
        if len(x) > self.room:
            raise out_of_memory()
        return x + 1


@given(st.integers(1, 9), st.integers(0, 12), st.booleans())
def test_pieces_give_what_the_whole_gives(count, size, has_other):
    value, extra = torch.randn(count, 3), torch.randn(count, 3)
    pair = Pair(value, value.argmax(dim=1) if has_other else None)
    found = Chunked(size)(doubled, pair, extra, None)
    assert torch.equal(found.value, 2 * value + extra)
    assert found.other is None if not has_other else torch.equal(found.other, pair.other)


@pytest.mark.slow
@settings(max_examples=10)  # each search empties the device's cache, which collects garbage
@given(st.integers(1, 40), st.integers(1, 40))
def test_a_size_is_found_that_fits_and_kept(count, room):
    device, pieces, x = Device(room), Chunked(), torch.randn(count, 2)
    assert torch.equal(pieces(device, x), x + 1)
    tried = len(device.calls)
    assert torch.equal(pieces(device, x), x + 1)
    assert max(device.calls[tried:]) <= room
    assert count <= room or pieces.size > room / 2 - 1  # no smaller than halving asks for


def test_the_size_is_said_once(caplog):
    pieces = Chunked()
    for _ in range(3):
        pieces(Device(5), torch.randn(8, 1))
    assert [record.getMessage() for record in caplog.records] == [
        'Out of memory with 8 images at once: teacher and VQGAN take 4 at a time from now on'
    ]


@pytest.mark.parametrize(('size', 'room'), [(4, 3), (0, 0)])
def test_no_room_for_the_size_asked_for_or_for_one_image_is_an_error(size, room):
    with pytest.raises(RuntimeError, match='out of memory'):
        Chunked(size)(Device(room), torch.randn(4, 1))


@pytest.mark.parametrize(('side', 'sizes'), [(224, [4, 4, 2]), (112, [10]), (448, [1] * 10)])
def test_on_a_cpu_pieces_are_small_from_the_start(side, sizes):
    device = Device(99)
    Chunked()(device, torch.zeros(1).expand(10, 3, side, side))
    assert device.calls == sizes
    Chunked(10)(device, torch.zeros(1).expand(10, 3, side, side))
    assert device.calls[-1] == 10


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    def fail(x):
        calls.append(len(x))
        raise RuntimeError('shapes do not match')

    calls = []
    with pytest.raises(RuntimeError, match='shapes do not match'):
        Chunked()(fail, torch.randn(4, 1))
    assert calls == [4]


def test_a_negative_size_is_refused():
    with pytest.raises(ValueError, match=r'micro_batch must be 0 .* or more, got -1'):
        Chunked(-1)


@pytest.mark.parametrize('attack_from', ATTACK_FROM)
@pytest.mark.parametrize('keep_label', [False, True])
def test_dad_views_do_not_depend_on_the_size_of_the_pieces(teacher, vqgan, x_pix, attack_from, keep_label):
    made = []
    for size in (0, 1, 3):
        augment = DADAugment(teacher, vqgan, mean=(0, 0, 0), std=(1, 1, 1), attack=AttackConfig(eps=2.0, step_size=2.0),
                             keep_label=keep_label, attack_from=attack_from, micro_batch=size)  # fmt: skip
        torch.manual_seed(5)
        made.append(augment.make_views(x_pix, TARGET))
    for views in made[1:]:
        for name, value in vars(made[0]).items():
            if value is not None:
                torch.testing.assert_close(getattr(views, name), value, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_views_are_made_in_pieces_when_memory_runs_out(teacher, vqgan, x_pix, monkeypatch):
    augment = DADAugment(teacher, vqgan, mean=(0, 0, 0), std=(1, 1, 1), attack=AttackConfig(random_start=0.0))
    expected, forward, sizes = augment.make_views(x_pix, TARGET), type(teacher).forward, []

    def small(self, x):
        sizes.append(len(x))
        if len(x) > 2:
            raise out_of_memory()
        return forward(self, x)

    monkeypatch.setattr(type(teacher), 'forward', small)
    views = augment.make_views(x_pix, TARGET)
    torch.testing.assert_close(views.x_dad, expected.x_dad, atol=1e-5, rtol=0)
    assert sizes[0] == 4
    assert set(sizes[1:]) == {2}
