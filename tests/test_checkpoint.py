"""Where a resumed training goes on, and what a checkpoint gives it."""

import copy
import re
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from timm.scheduler import CosineLRScheduler, PlateauLRScheduler
from timm.task import ClassificationTask
from torch import nn

from timm_dad.training.checkpoint import Checkpoints
from timm_dad.training.meters import Meters, NonFiniteLossError, merged
from timm_dad.training.resume import Resumed, TrainState, open_checkpoint, resume_training
from timm_dad.training.schedule import fast_forward, step_schedule

pytestmark = pytest.mark.timm


def resumed(**progress):
    return Resumed(path='run/recovery.pth.tar', epoch=3, flags={'batch_size': 4}, progress=progress)


@pytest.mark.parametrize(
    ('images', 'images_per_batch', 'accum_steps', 'batch'),
    [(0, 8, 1, 0), (48, 8, 1, 6), (48, 16, 1, 3), (48, 8, 3, 6), (48, 24, 2, 2), (48, 4, 1, 12)],
)
def test_the_position_counts_images_whatever_batch_and_processes(images, images_per_batch, accum_steps, batch):
    assert resumed(images=images).position(images_per_batch, accum_steps) == (3, batch)


def test_the_end_of_an_epoch_is_a_place_though_its_last_update_is_short():
    """10 batches in updates of 4: the last has 2."""
    assert resumed(images=80, epoch_done=True).position(8, 4) == (3, 10)
    with pytest.raises(ValueError, match='an update here takes 32'):
        resumed(images=80).position(8, 4)


def test_start_epoch_is_taken_whatever_the_position_of_the_checkpoint(monkeypatch):
    monkeypatch.setattr('timm_dad.training.resume.resume_task_checkpoint', lambda *args, **more: None)
    state = TrainState(Meters(Accelerator()))
    more = {'images_per_batch': 5, 'accum_steps': 1, 'keep_optimizer': True}
    resume_training(None, SimpleNamespace(param_groups=[]), state, resumed(images=48), start_epoch=1, **more)
    assert (state.epoch, state.batch) == (1, 0)


@pytest.mark.parametrize(('images_per_batch', 'accum_steps'), [(32, 1), (5, 1), (8, 4), (16, 2)])
def test_a_place_where_no_update_begins_is_refused(images_per_batch, accum_steps):
    update = images_per_batch * accum_steps
    message = (
        f'--resume: run/recovery.pth.tar was written after 48 images of epoch 3, but an update here takes {update} '
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        resumed(images=48).position(images_per_batch, accum_steps)


def test_a_position_of_the_first_version_counted_batches_of_a_process():
    two_processes = [{'loss': [1.0, 4]}, {'loss': [2.0, 4]}]
    assert resumed(batches=6, meters=two_processes).position(16, 1) == (3, 3)  # 6 batches of 2 x 4 images
    assert resumed().position(16, 1) == (3, 0)


def plateau(optimizer, *, warmup_t, noise=None):
    """One that halves the rate after every epoch that is not better."""
    return PlateauLRScheduler(
        optimizer, decay_rate=0.5, patience_t=0, warmup_t=warmup_t, warmup_lr_init=0.001, noise_range_t=noise
    )


def sgd(lr):
    return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)


@pytest.mark.parametrize('factor', [1, 2])
@pytest.mark.parametrize('noise', [None, (0, 9)])
@pytest.mark.parametrize('warmup_t', [0, 2])
@pytest.mark.parametrize('within', [False, True])
def test_plateau_goes_on_with_its_rate_from_any_epoch(tmp_path, monkeypatch, within, warmup_t, noise, factor):
    """Also with another ``--lr``, by whose share of the old one all rates change then."""
    metrics = [5.0, 4.0, 3.0, 3.5, 2.0, 2.0]
    optimizer = sgd(0.1)
    scheduler = plateau(optimizer, warmup_t=warmup_t, noise=noise)
    made, _ = checkpoints(tmp_path, ema=False)
    made.scheduler, written, rates = scheduler, [], []
    for epoch, metric in enumerate(metrics):
        rates.append(optimizer.param_groups[0]['lr'])
        made._remember(4 if within else 0)
        saved = (dict(made._task.progress), optimizer.state_dict(), None if within else metric)
        written.append(copy.deepcopy(saved))
        step_schedule(scheduler, epoch + 1, metric)
    assert len(set(rates[warmup_t:])) > 1
    for start, (progress, state_dict, metric) in enumerate(written):
        later, state = sgd(factor * 0.1), TrainState(Meters(made.accelerator))
        monkeypatch.setattr(
            'timm_dad.training.resume.resume_task_checkpoint',
            lambda *_, optimizer, state_dict=state_dict, **__: optimizer.load_state_dict(state_dict),
        )
        found = Resumed(path='', epoch=start + (not within), flags={}, progress=progress, metric=metric)
        more = {'images_per_batch': 4, 'accum_steps': 1, 'start_epoch': None, 'keep_optimizer': True}
        resume_training(None, later, state, found, **more)
        again = plateau(later, warmup_t=warmup_t, noise=noise)
        fast_forward(again, state, found, 6, 1)
        for epoch in range(state.epoch, len(metrics)):
            scale = 1 if 0 <= epoch < warmup_t else factor
            if factor == 1 or epoch > warmup_t:
                assert later.param_groups[0]['lr'] == pytest.approx(scale * rates[epoch], rel=1e-12), (start, epoch)
            step_schedule(again, epoch + 1, metrics[epoch])


def test_plateau_has_its_own_rate_where_the_optimizer_begins_anew():
    scheduler = plateau(sgd(0.1), warmup_t=1)
    state = TrainState(Meters(Accelerator()), epoch=3)
    fast_forward(scheduler, state, None, 6, 1)
    assert scheduler.optimizer.param_groups[0]['lr'] == 0.1


def test_another_rate_is_where_the_schedule_begins(monkeypatch):
    old, new = sgd(0.1), sgd(0.3)
    CosineLRScheduler(old, 10)
    monkeypatch.setattr(
        'timm_dad.training.resume.resume_task_checkpoint',
        lambda *_, optimizer, **__: optimizer.load_state_dict(old.state_dict()),
    )
    more = {'images_per_batch': 4, 'accum_steps': 1, 'start_epoch': 5, 'keep_optimizer': True}
    state = TrainState(Meters(Accelerator()))
    resume_training(None, new, state, resumed(), **more)
    scheduler = CosineLRScheduler(new, 10)
    fast_forward(scheduler, state, None, 6, 1)
    assert new.param_groups[0]['lr'] == pytest.approx(0.15)


def test_a_checkpoint_of_another_model_or_optimizer_is_one_line(monkeypatch):
    def fails(*_, **__):
        nn.Linear(2, 2).load_state_dict({f'layer.{i}.weight': torch.ones(1) for i in range(99)})

    monkeypatch.setattr('timm_dad.training.resume.resume_task_checkpoint', fails)
    more = {'images_per_batch': 4, 'accum_steps': 1, 'start_epoch': None, 'keep_optimizer': True}
    message = (
        r'--resume: run/recovery.pth.tar does not fit model and optimizer: Error.*\[...\]; give the flags of its run'
    )
    with pytest.raises(ValueError, match=message) as found:
        resume_training(None, sgd(0.1), TrainState(Meters(Accelerator())), resumed(), **more)
    assert len(str(found.value)) < 400
    assert '\n' not in str(found.value)


def test_no_path_is_no_checkpoint_and_a_wrong_one_is_named(tmp_path):
    assert open_checkpoint('') is None
    with pytest.raises(ValueError, match=r'--resume must be a checkpoint, got .nowhere., which does not exist'):
        open_checkpoint('nowhere')
    torch.save({'state_dict': {}}, tmp_path / 'weights.pth')
    with pytest.raises(ValueError, match=r'--resume must be a training checkpoint, got .* contains no optimizer'):
        open_checkpoint(str(tmp_path / 'weights.pth'))


def test_meters_of_other_processes_are_not_lost():
    states = [({'loss': 1.0, 'kd_loss': 2.0}, 4), ({'loss': 3.0, 'kd_loss': 4.0}, 4)]
    assert merged(states, 1, 2) == states[1]
    assert merged(states, 0, 1) == ({'loss': 4.0, 'kd_loss': 6.0}, 8)
    assert [merged(states, rank, 3) for rank in range(3)] == [
        ({'loss': 4.0, 'kd_loss': 6.0}, 8), ({'loss': 0.0, 'kd_loss': 0.0}, 0), ({'loss': 0.0, 'kd_loss': 0.0}, 0)
    ]  # fmt: skip


def checkpoints(tmp_path, *, ema):
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    task = ClassificationTask(network, nn.CrossEntropyLoss(), device=torch.device('cpu'), verbose=False)
    if ema:
        task.setup_ema(decay=0.9)
    made = Checkpoints(
        task, None, None, Accelerator(), tmp_path, None, decreasing=True, history=1, images_per_batch=8, num_batches=6
    )  # fmt: skip
    return made, network


def test_a_moving_average_that_is_new_keeps_its_buffers(tmp_path):
    made, network = checkpoints(tmp_path, ema=False)
    network[1].running_mean.fill_(7)
    buffers = made._buffers()
    assert not [name for name in buffers if name.startswith('ema.')]
    later, network = checkpoints(tmp_path, ema=True)
    later.restore(resumed(buffers=[buffers]), TrainState(Meters(later.accelerator)))
    assert network[1].running_mean.tolist() == [7, 7]
    average = later.task.get_trainable_module(ema=True)
    assert average.module[1].running_mean.tolist() == [0, 0]


def test_meters_are_means_by_image_and_name_a_loss_that_is_not_finite():
    meters = Meters(Accelerator())
    assert meters.means == {}
    for value, count in ((1.0, 2), (4.0, 6)):
        meters.add(
            {'loss': torch.tensor(value), 'kd_loss': torch.tensor(2 * value), 'output': torch.ones(3)}, count, 'x'
        )
    meters.read()
    assert meters.means == {'loss': 3.25, 'kd_loss': 6.5}
    assert meters.reduce() == meters.means
    meters.add({'loss': torch.tensor(2.0), 'kd_loss': torch.tensor(1.0)}, 2, 'epoch 1, batch 6')
    meters.add({'loss': torch.tensor(float('nan')), 'kd_loss': torch.tensor(1.0)}, 2, 'epoch 1, batch 7')
    message = r'the loss is not finite in epoch 1, batch 7, process 0 \(loss nan, kd_loss 1\)'
    with pytest.raises(NonFiniteLossError, match=message):
        meters.read()
