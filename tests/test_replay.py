"""replay.py: recent DAD views, and when the task shows them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from timm_dad.method.attack import AttackConfig
from timm_dad.method.augment import DADAugment
from timm_dad.method.replay import ReplayCache
from timm_dad.method.schedule import DADSchedule
from timm_dad.method.task import DADTask

TARGET = torch.tensor([0, 1, 2, 3])


def views(first, count):
    """Views that can be told apart: number ``first + i`` has that in all of its parts."""
    number = torch.arange(first, first + count)
    return (number / 255).view(-1, 1, 1, 1).expand(-1, 3, 2, 2), number.float()[:, None], number % 2 == 0


@given(st.integers(1, 20), st.lists(st.integers(1, 25), min_size=1, max_size=6))
def test_the_newest_views_are_kept_with_their_logits(size, counts):
    replay, added = ReplayCache(size), 0
    for count in counts:
        replay.add(*views(added, count))
        added += count
    assert len(replay) == min(size, added)
    x_dad, logits, kept = replay.draw(400)
    number = logits.flatten().long()
    assert number.max() < added
    assert number.min() >= added - len(replay)
    assert torch.equal(x_dad.mul(255).round()[:, 0, 0, 0].long(), number)
    assert torch.equal(kept, number % 2 == 0)
    if size <= 5:
        assert set(number.tolist()) == set(range(added - len(replay), added))


def test_equal_seeds_draw_equal_views():
    replay = ReplayCache(8)
    replay.add(*views(0, 8))
    drawn = []
    for _ in range(2):
        torch.manual_seed(1)
        drawn.append(replay.draw(5)[1])
    assert torch.equal(*drawn)


def test_nothing_to_draw_and_no_room_are_errors():
    with pytest.raises(ValueError, match='there is no DAD view to show again'):
        ReplayCache(4).draw(1)
    with pytest.raises(ValueError, match='replay must hold 1 view or more, got 0'):
        ReplayCache(0)
    replay = ReplayCache(4)
    replay.add(*views(0, 2))
    replay.clear()
    assert len(replay) == 0


# In the task.


@pytest.fixture
def make_task(student, teacher, vqgan, monkeypatch):
    """A task of a schedule, and the batch numbers for which views were made."""

    def make(**schedule):
        augment = DADAugment(teacher, vqgan, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), attack=AttackConfig())
        task = DADTask(student, teacher, augment, schedule=DADSchedule(**schedule), verbose=False)
        make_views = augment.make_views

        def spy(*args):
            made.append(task.next_batch - 1)
            return make_views(*args)

        monkeypatch.setattr(augment, 'make_views', spy)
        return task

    made = []
    return make, made


@pytest.mark.parametrize(('every', 'expected'), [(1, [0, 1, 2, 3, 4, 5, 6]), (3, [0, 3, 6]), (9, [0])])
def test_every_nth_batch_gets_fresh_views(make_task, x_pix, every, expected):
    make, made = make_task
    task = make(every=every)
    seconds = [task._prepare(x_pix * 2 - 1, TARGET).extra is not None for _ in range(7)]
    assert made == expected
    assert [index for index, has in enumerate(seconds) if has] == expected
    task.set_epoch(1)
    task._prepare(x_pix * 2 - 1, TARGET)
    assert made[-1] == 0  # the first of an epoch is one
    task.set_epoch(1, batch=every)
    task._prepare(x_pix * 2 - 1, TARGET)
    assert made[-1] == every  # and a resumed epoch goes on counting


def test_batches_between_see_recent_views_with_the_teachers_answer_to_them(make_task, teacher, x_pix):
    make, made = make_task
    task = make(every=2, replay=4)
    fresh, again = (task._prepare(x_pix * 2 - 1, TARGET).extra for _ in range(2))
    assert made == [0]
    to_bytes = lambda x_norm: ((x_norm + 1) / 2 * 255).round()  # noqa: E731
    for own, logits in zip(to_bytes(again.x_norm), again.logits, strict=True):
        same = [bool((own == other).all()) for other in to_bytes(fresh.x_norm)]
        assert any(same)
        assert torch.equal(logits, fresh.logits[same.index(True)])
    result = task(x_pix * 2 - 1, TARGET)
    assert result['dad_loss'] > 0


def test_views_are_seen_again_where_probability_leaves_a_batch_out(make_task, x_pix):
    make, made = make_task
    task = make(prob=0.5, replay=8)
    torch.manual_seed(0)
    assert all(task._prepare(x_pix * 2 - 1, TARGET).extra is not None for _ in range(12))
    assert 0 < len(made) < 12
    assert made[0] == 0


def test_what_is_drawn_does_not_depend_on_whether_there_is_something_to_see_again(make_task, x_pix):
    make, _ = make_task
    drawn = []
    for is_empty in (False, True):
        task = make(prob=0.01, replay=8)
        if not is_empty:
            task._prepare(x_pix * 2 - 1, TARGET)
        torch.manual_seed(3)
        task._wants_fresh_view()
        drawn.append(torch.rand(()))
    assert torch.equal(*drawn)


def test_a_resumed_epoch_has_views_from_its_first_batch(make_task, x_pix):
    """The cache is not in checkpoints, and split batch norm needs an extra view in every batch."""
    make, made = make_task
    task = make(every=4, replay=8)
    task.set_epoch(1, batch=2)
    assert all(task._prepare(x_pix * 2 - 1, TARGET).extra is not None for _ in range(3))
    assert made == [2, 4]


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
def test_views_have_the_memory_layout_of_the_batch(make_task, x_pix, layout):
    make, _ = make_task
    task = make(every=2, replay=4)
    batch = (x_pix * 2 - 1).contiguous(memory_format=layout)
    for second in (task._prepare(batch, TARGET).extra for _ in range(2)):
        assert second.x_norm.is_contiguous(memory_format=layout)


@pytest.mark.parametrize('schedule', [{'warmup_epochs': 2}, {'off_epoch': 1}], ids=str)
def test_no_view_is_seen_again_where_the_schedule_has_none(make_task, x_pix, schedule):
    make, _ = make_task
    task = make(every=2, replay=8, **schedule)
    task.set_epoch(0 if 'off_epoch' in schedule else 1)
    assert all(task._prepare(x_pix * 2 - 1, TARGET).extra is not None for _ in range(2))
    task.set_epoch(1 if 'off_epoch' in schedule else 0)
    assert all(task._prepare(x_pix * 2 - 1, TARGET).extra is None for _ in range(2))


def test_replay_makes_a_schedule_one_that_always_has_a_view():
    assert not DADSchedule(every=2).always
    assert DADSchedule(every=2, replay=1).always
    assert not DADSchedule(prob=0.5).always
    assert DADSchedule(prob=0.5, replay=1).always


def test_nothing_is_seen_again_where_nothing_is_made():
    with pytest.raises(ValueError, match='replay shows DAD views again, but prob 0 makes none'):
        DADSchedule(prob=0.0, replay=4)


def test_replay_without_an_augmentation_is_refused(student, teacher):
    with pytest.raises(ValueError, match='replay keeps DAD views made in the training step: pass augment with it'):
        DADTask(student, teacher, None, schedule=DADSchedule(every=2, replay=4), verbose=False)


@pytest.mark.parametrize(('field', 'value'), [('every', 0), ('replay', -1)])
def test_numbers_out_of_range_are_refused(field, value):
    with pytest.raises(ValueError, match=f'{field} must be'):
        DADSchedule(**{field: value})
