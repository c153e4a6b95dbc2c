"""How often the host waits for the device: once an update of a training, never while the shards of a set are made."""

from types import SimpleNamespace
from unittest.mock import patch

import pytest
import timm
import torch
from accelerate import Accelerator
from timm.data import Mixup
from torch import nn
from waits import META, Waits

import train_dad
from timm_dad.dad_sets.formats import FormatConfig
from timm_dad.dad_sets.maker import GenerateConfig, ShardMaker
from timm_dad.data.images import Frame, LoadedImage
from timm_dad.method.augment import DADAugment
from timm_dad.method.code_space import CodeAttackConfig
from timm_dad.method.latent_space import LatentAttackConfig
from timm_dad.method.schedule import DADSchedule
from timm_dad.method.task import DADTask
from timm_dad.teachers.teacher import Teacher
from timm_dad.training.meters import Meters

NORM = {'mean': (0.5, 0.5, 0.5), 'std': (0.5, 0.5, 0.5)}


class OnMeta(Accelerator):
    """One whose device is ``meta``."""

    @property
    def device(self):
        return META


class UpdatesAlone(Meters):
    """Means of no epoch: they are read once, of counts that are not there."""

    def reduce(self):
        return {}


class Batches:
    """Batches on the device, mixed there."""

    def __init__(self, count, mixup):
        self.count, self.mixup = count, mixup

    def __len__(self):
        return self.count

    def of_epoch(self, epoch, start):
        for place in range(start, self.count):
            batch = torch.empty(4, 3, 16, 16, device=META), torch.zeros(4, dtype=torch.long, device=META)
            yield place, *(self.mixup(*batch) if self.mixup else batch)


def create_network():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 5))


@pytest.fixture
def augmented(vqgan):
    def create(**augment):
        teacher = Teacher(create_network(), **NORM, input_size=(24, 24), num_classes=5)
        return DADAugment(teacher.to(META), vqgan.to(META), **NORM, **augment)

    return create


@pytest.fixture
def build(augmented):
    def create(schedule=None, **augment):
        views = augmented(**augment)
        student = create_network().to(META)
        return DADTask(student, views.teacher, views, **NORM, schedule=schedule, device=META, verbose=False)

    return create


def waits_of_updates(task, *, accum=1, mixup=None, optimizer='sgd', clip_grad=None):
    """What is waited for in the second of two updates, and after it."""
    accelerator, parameters = OnMeta(cpu=True), task.get_trainable_module()
    args = SimpleNamespace(
        grad_accum_steps=accum, clip_grad=clip_grad, clip_mode='norm', synchronize_step=False, log_interval=1000,
        save_images=False,
    )  # fmt: skip
    nothing = SimpleNamespace(step_update=lambda **_: None)
    checkpoints = SimpleNamespace(accelerator=accelerator, folder=None, save_recovery=lambda *_: None)
    state, found, waits = SimpleNamespace(meters=UpdatesAlone(accelerator), batch=0, epoch=0), [], Waits()
    update = train_dad.update

    def watched(*arguments):
        update(*arguments)
        found.append([*waits.found])
        waits.found.clear()

    optimizer = timm.optim.create_optimizer_v2(parameters, opt=optimizer, lr=0.1)
    with (
        patch.object(train_dad, 'update', watched),
        patch.object(train_dad, 'progress', lambda items, **_: items),
        waits,
    ):
        batches = Batches(2 * accum, mixup)
        train_dad.train_one_epoch(0, task, batches, optimizer, nothing, checkpoints, state, args)
    return found[1], waits.found


ONCE = ['tolist'], []  # in the second update, and after it; in the first one values of the first batch are looked at

ATTACKS = {
    'pixels': {},
    'from x': {'attack_from': 'input'},
    'latent': {'attack': LatentAttackConfig()},
    'disagreement': {'attack': LatentAttackConfig(objective='disagreement')},
}
WAYS = {
    'plain': {},
    'accumulated': {'accum': 3},
    'mixed': {'mixup': Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, num_classes=5)},
    'clipped': {'clip_grad': 1.0, 'optimizer': 'adamw', 'accum': 2},
}


@pytest.mark.parametrize('way', WAYS)
def test_an_update_waits_once(build, way):
    assert waits_of_updates(build(), **WAYS[way]) == ONCE


@pytest.mark.parametrize('attack', ATTACKS)
def test_an_update_waits_once_whatever_the_attack(build, attack):
    assert waits_of_updates(build(**ATTACKS[attack], micro_batch=2), accum=2) == ONCE


def test_views_that_are_seen_again_are_not_waited_for(build):
    assert waits_of_updates(build(DADSchedule(every=2, replay=8)), accum=2) == ONCE


@pytest.mark.parametrize(
    ('augment', 'wait'),
    [({'keep_label': True}, 'nonzero'), ({'attack': CodeAttackConfig(neighbours=4)}, 'unique')],
    ids=['keep label', 'codes'],
)
def test_what_depends_on_values_waits_once_a_piece(build, augment, wait):
    """Which views lost their label, and which codes are there: no shape is known before."""
    assert waits_of_updates(build(**augment, micro_batch=2), accum=2) == ([*[wait] * 4, 'tolist'], [])


@pytest.mark.parametrize('format', ['folder', 'codes'])
def test_a_shard_is_made_without_waiting(augmented, format):
    """What is read of the device is read where files are encoded and written, in threads of their own."""
    config = GenerateConfig(frame=Frame(size=(16, 16)), files=FormatConfig(format=format), num_views=2, top_k=2)
    batch = [LoadedImage(index, torch.zeros(3, 16, 16, dtype=torch.uint8), 1, '') for index in range(4)]
    written, folder = [], SimpleNamespace(settings_id='')
    with patch.object(ShardMaker, '_write', lambda self, *made: written.append(made)), Waits() as waits:
        maker = ShardMaker(None, augmented(), config, META)
        maker.add(*maker.stack(batch))  # its values are looked at
        waits.found.clear()
        maker.add(*maker.stack(batch))
        maker.write(folder, 0)
        maker.close()
    assert waits.found == []
    assert len(written) == 1


def test_the_counter_counts():
    tensor = torch.zeros(2, device=META)
    with Waits() as waits:
        assert bool(tensor.sum()) is True
        tensor.tolist()
        tensor.to('cpu', non_blocking=True)
        tensor.cpu()
        torch.zeros(2).to(META)
        torch.tensor([1.0], device=META)
        with pytest.raises(AssertionError, match='an index of booleans waits'):
            tensor[tensor > 0]
        torch.zeros(2).sum().item()  # on the host
    assert waits.found == ['__bool__', 'tolist', 'cpu', 'to device', 'tensor', 'mask']
