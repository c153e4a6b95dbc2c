"""The trainer's public arguments: extra views, a task factory, hooks."""

from itertools import groupby

import pytest
import torch
from folders import write_pictures
from PIL import Image
from torch.utils.data import IterableDataset

import train_dad
from timm_dad.data.pairs import PairStream

COLOUR = (255, 0, 51)


class Recorder:
    """Extra views of one colour; keeps what it is told and asked, in order."""

    dad_set = None

    def __init__(self):
        self.events = []

    def set_epoch(self, epoch):
        self.events.append(f'epoch {epoch}')

    def __call__(self, index, image, label):
        self.events.append(index)
        return Image.new('RGB', image.size, COLOUR), label


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp('pictures'), train=6, validation=1)


def flags(pictures, output):
    """A run of 2 epochs of 2 updates; pixels of value 1 stay 1."""
    return [
        *('--data-dir', str(pictures), '--output', str(output), '--experiment', 'run', '--model', 'test_resnet'),
        *('--num-classes', '4', '--img-size', '32', '--mean', '0', '0', '0', '--std', '1', '1', '1'),
        *('--color-jitter', '0', '--batch-size', '12', '--workers', '0', '--epochs', '2', '--warmup-epochs', '0'),
    ]


def test_extra_views_task_and_hooks_are_the_callers_own(pictures, tmp_path):
    extra_views, batches, students, epochs = Recorder(), [], [], []

    def create_task(args, student, device, **dad):
        task, augment = train_dad.create_task(args, student, device, **dad)
        task.register_forward_pre_hook(lambda _, inputs: batches.append(inputs[0]))
        students.append(student)
        return task, augment

    argv = [*flags(pictures, tmp_path), '--dad', '--dad-view', 'random', '--dad-teacher', 'demo']
    train_dad.main(argv, extra_views=extra_views, create_task=create_task, hooks=[epochs.append])
    told = [event for event, _ in groupby(extra_views.events)]
    assert [told[0], told[25]] == ['epoch 0', 'epoch 1']  # each before its first image, once or several times
    assert sorted(told[1:25]) == sorted(told[26:]) == list(range(24))
    colour = torch.tensor(COLOUR).view(3, 1, 1) / 255
    assert len(batches) == 4
    for batch in batches:
        clean, second = batch.chunk(2)
        torch.testing.assert_close(second, colour.expand_as(second))
        assert not torch.allclose(clean, colour.expand_as(clean))
    saved = torch.load(tmp_path / 'run' / 'last.pth.tar', weights_only=False)['state_dict']
    assert all(torch.equal(saved[name], value) for name, value in students[0].state_dict().items())
    assert epochs == [0, 1]


@pytest.mark.parametrize('more', [[], ['--dad', '--dad-teacher', 'demo', '--dad-vqgan', 'demo']])
def test_extra_views_that_would_be_ignored_are_refused(pictures, tmp_path, capsys, more):
    with pytest.raises(SystemExit):
        train_dad.main([*flags(pictures, tmp_path), *more], extra_views=Recorder())
    assert 'extra_views would be ignored: it needs --dad --dad-view random' in capsys.readouterr().err


def test_a_stream_and_its_partner_are_told_the_epoch():
    class Stream(IterableDataset):
        def __iter__(self):
            yield from ()

        def set_epoch(self, count):
            self.epoch = count

    stream, extra_views = Stream(), Recorder()
    PairStream(stream, extra_views).set_epoch(3)
    assert (stream.epoch, extra_views.events) == (3, ['epoch 3'])
