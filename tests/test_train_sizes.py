"""``--train-img-sizes`` in ``timm-dad train``: the size of a batch is a matter of seed, epoch and place."""

from types import SimpleNamespace

import pytest
import torch
from folders import write_pictures
from test_train_dad import DAD, PROGRESSIVE, SIZES, digest, flags, weights
from timm.data import create_dataset

import train_dad
from timm_dad.common.timm_version import NEW_TIMM
from timm_dad.flags.student import create_student
from timm_dad.flags.train import parse_args
from timm_dad.training.batches import Batches
from timm_dad.training.loaders import create_train_loader

pytestmark = pytest.mark.skipif(not NEW_TIMM, reason='timm before 1.0.31 has no such flag')


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp('pictures'), train=6, validation=3)


def batches(pictures, rank=0, num_processes=1, batch_size=4, **more):
    accelerator = SimpleNamespace(process_index=rank, num_processes=num_processes, device=torch.device('cpu'))
    settings = {'input_size': (3, 16, 16), 'num_workers': 0, 'persistent_workers': False, 're_prob': 0.5, **more}
    dataset = create_dataset('', root=str(pictures), split='train')
    sizes = {'input_size_choices': [16, 20, 24], 'batch_choice_weights': [1, 0, 1]}
    loader = create_train_loader(dataset, accelerator, seed=1, batch_size=batch_size, **sizes, **settings)
    return Batches(loader, accelerator, seed=1)


def inputs(batches, epoch, start=0):
    return [input for _, input, _ in batches.of_epoch(epoch, start)]


def sides(found):
    return [input.shape[-1] for input in found]


def test_sizes_are_drawn_by_epoch_and_place_and_an_epoch_begins_at_any_batch(pictures):
    made = batches(pictures)
    epochs = [inputs(made, epoch) for epoch in range(4)]
    assert {side for found in epochs for side in sides(found)} == {16, 24}  # the weight of 20 is 0
    assert len({tuple(sides(found)) for found in epochs}) > 1
    for start in (0, 2, 5):
        again = inputs(batches(pictures), epoch=3, start=start)
        assert len(again) == 6 - start
        assert all(map(torch.equal, epochs[3][start:], again))


@pytest.mark.parametrize('prefetcher', [True, False])
def test_batches_of_two_processes_are_those_of_one_with_twice_the_size(pictures, prefetcher):
    one = inputs(batches(pictures, batch_size=8, use_prefetcher=prefetcher), epoch=2)
    two = [inputs(batches(pictures, rank, 2, use_prefetcher=prefetcher), epoch=2) for rank in (0, 1)]
    assert len(one) == 3
    assert sides(one) == sides(two[0]) == sides(two[1])
    for whole, *parts in zip(one, *two, strict=True):
        assert torch.equal(whole, torch.cat(parts))


@pytest.mark.parametrize('settings', [{'batch_size': 25}, {'batch_size': 13, 'num_processes': 2}])
def test_too_few_images_for_a_batch_are_named(pictures, settings):
    with pytest.raises(ValueError, match=r'--batch-size must be at most the (24|12) training images'):
        batches(pictures, **settings)


def spy(monkeypatch):
    """Shapes that a student sees, with whether it trains."""
    seen, create_student = [], train_dad.create_student

    def create(args):
        student = create_student(args)
        student.register_forward_pre_hook(lambda module, inputs: seen.append((module.training, inputs[0].shape)))
        return student

    monkeypatch.setattr(train_dad, 'create_student', create)
    return seen


@pytest.mark.slow
def test_a_run_of_several_sizes_with_dad_goes_on_within_an_epoch_to_the_same_bits(pictures, tmp_path, monkeypatch):
    seen = spy(monkeypatch)
    more = (*DAD, *SIZES, '--batch-size', '4', '--recovery-interval', '1', '--mixup', '0.2', '--resume', 'auto')
    train_dad.main(flags(pictures, tmp_path / 'whole', *more))
    # Clean images and their views at the size of the batch; validation at --img-size.
    assert {shape for training, shape in seen if training} == {(8, 3, 32, 32), (8, 3, 44, 44)}
    assert {shape[1:] for training, shape in seen if not training} == {(3, 32, 32)}
    update, calls = train_dad.update, []

    def stop(*args):
        calls.append(1)
        if len(calls) == 9:
            raise KeyboardInterrupt
        return update(*args)

    monkeypatch.setattr(train_dad, 'update', stop)
    with pytest.raises(KeyboardInterrupt):
        train_dad.main(flags(pictures, tmp_path / 'broken', *more))
    assert (tmp_path / 'broken' / 'run' / 'recovery-1-1.pth.tar').exists()
    monkeypatch.setattr(train_dad, 'update', update)
    train_dad.main(flags(pictures, tmp_path / 'broken', *more))
    assert digest(weights(tmp_path / 'whole')['state_dict']) == digest(weights(tmp_path / 'broken')['state_dict'])


@pytest.mark.timm
@pytest.mark.parametrize(
    ('more', 'message'),
    [
        ((*DAD, '--dad-cache', '1'), '--train-img-sizes needs DAD views made from the batch'),
        ((*DAD[:3], '--dad-view', 'random'), '--train-img-sizes needs DAD views made from the batch'),
        ((*DAD, '--dad-recipe', 'latent'), '--train-img-sizes needs DAD views made from the batch'),
        ((*DAD, '--dad-compile'), '--dad-compile is for one image size'),
        (('--aug-splits', '2'), '--train-img-sizes does not go with --aug-splits'),
        (('--aug-repeats', '2'), '--train-img-sizes does not go with --aug-repeats'),
        (('--train-size-probs', '0', '0'), '--train-size-probs must not all be 0, got [0.0, 0.0]'),
        (('--train-size-random-mix', '0.5'), '--train-size-random-mix needs --train-size-schedule progressive'),
        ((*PROGRESSIVE, '--train-img-sizes', '32'), 'needs two --train-img-sizes or more, got [32]'),
        (('--train-batch-sizes', '4', '2'), '--train-batch-sizes does not work here: every batch has --batch-size'),
    ],
)
def test_what_does_not_go_with_several_sizes_is_named(pictures, tmp_path, capsys, more, message):
    with pytest.raises(SystemExit):
        parse_args(flags(pictures, tmp_path, *SIZES, *more))
    assert message in capsys.readouterr().err


def test_a_size_that_the_student_does_not_take_is_named(pictures, tmp_path, capsys):
    fixed = ('--train-img-sizes', '32', '48', '--model', 'test_vit3', '--model-kwargs', 'img_size=32')
    assert create_student(parse_args(flags(pictures, tmp_path, *fixed, 'dynamic_img_size=True')))
    with pytest.raises(SystemExit):
        train_dad.main(flags(pictures, tmp_path, *fixed))
    error = capsys.readouterr().err
    assert '--train-img-sizes: test_vit3 does not take pictures of 3x48x48' in error
    assert '; add --model-kwargs dynamic_img_size=True' in error
