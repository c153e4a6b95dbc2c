"""Answers on augmentations are those that a teacher gives on what a training sees."""

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from dad_sets import CLASSES, write_dad_set
from PIL import Image
from timm.data import create_dataset

from timm_dad.cli import main
from timm_dad.common.pixels import PixelNorm
from timm_dad.dad_sets.logits import encode_target, mix_targets
from timm_dad.dad_sets.read import DADSet
from timm_dad.dad_sets.reinforce import ReinforceConfig, Reinforcement, reinforce
from timm_dad.dad_sets.verify import clear_damage, verify
from timm_dad.data.images import Source
from timm_dad.flags import kwargs
from timm_dad.flags.pairs import open_dad_set, pair_dataset
from timm_dad.flags.reinforce import reinforce_config
from timm_dad.flags.train import parse_args
from timm_dad.training.loaders import PairCollateMixup, PairMixup, create_train_loader

CONFIG = {
    'input_size': (3, 32, 32),
    'mean': (0.5, 0.4, 0.3),
    'std': (0.2, 0.3, 0.25),
    'interpolation': 'bicubic',
    'crop_pct': 1.0,
}
AUG = (
    '--aa', 'rand-m9-mstd0.5-inc1', '--scale', '0.3', '1', '--mean', '0.5', '0.4', '0.3', '--std', '0.2', '0.3', '0.25',
)  # fmt: skip
FLAGS = (
    '--dad', '--dad-stored-logits', '--batch-size', '8', '--num-classes', '4', '--img-size', '32', '--device', 'cpu',
    '--workers', '0', '--data-dir', 'x',
)  # fmt: skip


def ask(x_pix):
    """A teacher of four classes that sees every pixel."""
    weight = torch.sin(torch.arange(4 * 3 * 32 * 32).view(4, -1).float() * 0.37)
    return x_pix.flatten(1) @ weight.T


def noise(*seed, size=(36, 40)):
    """Pixels that tell every crop and flip from every other."""
    return np.random.default_rng(seed).integers(256, size=(*size, 3), dtype=np.uint8)


def write(root):
    """A data set of six pictures a class, and a DAD set of it."""
    for index in range(24):
        folder = root / 'data' / 'train' / CLASSES[index // 6]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(index)).save(folder / f'{index:02}.png')
    write_dad_set(
        root / 'set', data(root), num_views=2, pixels=lambda index, view, image, size: noise(index, view, size=size)
    )
    return root


@pytest.fixture
def made(tmp_path):
    return write(tmp_path)


def data(root):
    return create_dataset('', str(root / 'data'), split='train')


def store(root, *flags, ask=ask, **changes):
    """Reinforce the set, as ``generate`` does with these flags."""
    own = [flag for flag in FLAGS if flag != '--dad-stored-logits']
    args = parse_args([*own, '--dad-dir', str(root / 'set'), '--dad-teacher', 'demo', *AUG, *flags])
    args.reinforce, args.reinforce_top_k = 3, 4
    config = reinforce_config(args, (32, 32))
    config = ReinforceConfig(**{**vars(config), 'batch_size': 7, **changes})
    return reinforce(Source(data(root)), DADSet(root / 'set'), ask, config, progress=False)


def batches(root, *flags):
    """Batches of a training that replays the answers."""
    args = parse_args([*FLAGS, '--dad-dir', str(root / 'set'), *AUG, *flags])
    pairs = pair_dataset(args, data(root), CONFIG, dad_set=open_dad_set(args, (32, 32)))
    return create_train_loader(pairs, Accelerator(cpu=True), **kwargs.train_loader_kwargs(args, CONFIG))


@pytest.mark.parametrize(
    'flags',
    [(), ('--no-prefetcher', '--reprob', '0.7'), ('--dad-same-crop',), ('--dad-view-aug', 'base', '--workers', '1')],
    ids=' '.join,
)
def test_answers_are_of_the_very_pixels_of_the_batch(made, flags):
    stored = store(made, *flags).stored_logits()
    loader = batches(made, *flags)
    norm, turns = PixelNorm(CONFIG['mean'], CONFIG['std']), set()
    for epoch in range(2):
        loader.dataset.set_epoch(epoch)
        for input, coded in loader:
            expected = ask(norm.to_pixels(input)).log_softmax(dim=1)
            for got, own in zip(stored.read(coded), expected.chunk(2), strict=True):
                torch.testing.assert_close(got.log_softmax(dim=1), own, atol=0.02, rtol=1e-3)
            turns |= set((coded // 4 % 3).tolist())
            assert torch.equal(stored.labels(coded), coded // 4 // 3 // 6)  # six pictures a class
    assert turns == {0, 1, 2}


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob('*')) if path.is_file()}


def test_it_goes_on_where_it_was_stopped_with_the_same_bytes(made, tmp_path_factory):
    store(made)
    whole = contents(made / 'set' / 'reinforced')
    other = tmp_path_factory.mktemp('other')
    write(other)
    calls = itertools.count()

    def stopped(x_pix):
        if next(calls) == 4:
            raise KeyboardInterrupt
        return ask(x_pix)

    with pytest.raises(KeyboardInterrupt):
        store(other, ask=stopped)
    left = contents(other / 'set' / 'reinforced')
    assert 'index.json' not in left
    assert any(name.startswith('manifest/') for name in left)
    store(other)
    assert contents(other / 'set' / 'reinforced') == whole


def test_damage_is_found_and_made_again(made):
    store(made)
    folder = made / 'set' / 'reinforced'
    whole = contents(folder)
    path = folder / 'logits' / '000001.safetensors'
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
    found = [str(damage) for damage in verify(made / 'set') if damage.folder]
    assert found == ['altered: reinforced/logits/000001.safetensors']
    loader = batches(made)
    answers = Reinforcement(DADSet(made / 'set')).stored_logits()
    with pytest.raises(ValueError, match=r'000001\.safetensors is damaged'):
        list(map(answers.read, (coded for _, coded in loader)))
    clear_damage(made / 'set' / 'reinforced', answers.folder.settings)
    store(made)
    assert contents(folder) == whole


@pytest.mark.parametrize(
    ('flags', 'match'),
    [
        (('--aa', 'rand-m7-mstd0.5-inc1'), 'another augmentation .*auto_augment: here "rand-m7.* there "rand-m9'),
        (('--dad-temperature', '2'), r'logits.temperature: here 2.0, there 4.0'),
        (('--mean', '0', '0', '0'), 'transform.mean'),
        (('--dad-same-crop',), 'pairs.same_draws: here true, there false'),
    ],
)
def test_another_augmentation_is_refused(made, flags, match):
    store(made)
    args = parse_args([*FLAGS, '--dad-dir', str(made / 'set'), *AUG, *flags])
    config = {**CONFIG, 'mean': tuple(args.mean)}
    with pytest.raises(ValueError, match=match):
        pair_dataset(args, data(made), config, dad_set=open_dad_set(args, (32, 32)))


@pytest.mark.parametrize(
    ('flags', 'match'),
    [
        (('--reprob', '0.5'), '--reprob: .*add --no-prefetcher'),
        (('--aug-splits', '2'), '--aug-splits: stored answers are of one augmentation'),
        (('--dad-teacher', 'demo'), '--dad-teacher is about the teacher'),
    ],
)
def test_flags_that_the_answers_know_nothing_of_are_refused(made, capsys, flags, match):
    store(made)
    with pytest.raises(SystemExit, match='2'):
        parse_args([*FLAGS, '--dad-dir', str(made / 'set'), *AUG, *flags])
    assert re.search(match, capsys.readouterr().err)


def test_without_answers_stored_logits_need_no_aug(made, capsys):
    with pytest.raises(SystemExit, match='2'):
        parse_args([*FLAGS, '--dad-dir', str(made / 'set'), *AUG])
    assert '--dad-stored-logits: ' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('flags', 'match'),
    [
        (('--aa', 'rand-m9'), '--aa is for --reinforce N: add it'),
        (('--reinforce', '2', '--shards', '0/2'), '--reinforce asks about a set that is whole'),
        (('--reinforce', '-1'), '--reinforce must be 0 or more, got -1'),
        (('--reinforce', '2', '--aa', 'augmix-m3-w3'), '--aa augmix-m3-w3 makes splits'),
        (('--reinforce', '2', '--reinforce-top-k', '0'), '--reinforce-top-k: top_k must be 1 or more, got 0'),
    ],
)
def test_bad_flags_of_generate(tmp_path, capsys, flags, match):
    models = ('--dad-teacher', 'demo', '--dad-vqgan', 'demo')
    with pytest.raises(SystemExit, match='2'):
        main(['generate', '--dataset', 'demo/noto', *models, '--output', str(tmp_path / 'set'), *flags])
    assert match in capsys.readouterr().err
    assert not Path(tmp_path / 'set').exists()


@pytest.mark.parametrize('base_alone', [False, True])
@pytest.mark.parametrize('mode', ['batch', 'pair', 'elem'])
def test_mixed_targets_are_timms_mixture(made, mode, base_alone):
    """The same draws with class indices give the same pictures, and the labels that ours stand for."""
    stored = store(made).stored_logits(smoothing=0.1)
    label = torch.tensor([0, 1, 2, 3, 3, 1])
    index = torch.tensor([1, 7, 13, 19, 20, 8])
    coded = torch.tensor(
        [encode_target(int(i), t, 3, int(own), 4) for i, t, own in zip(index, (0, 1, 2, 0, 1, 2), label, strict=True)]
    )
    settings = {'mixup_alpha': 0.8, 'cutmix_alpha': 1.0, 'num_classes': 4, 'label_smoothing': 0.1, 'mode': mode}
    views = torch.randint(256, (6, 2, 3, 8, 8), dtype=torch.uint8)
    found = {}
    for codes, target in ((False, label), (True, coded)):
        for kind in (PairMixup, PairCollateMixup):
            mixing = kind(**settings)
            mixing.base_alone, mixing.coded = base_alone, codes
            np.random.seed(3)
            if kind is PairMixup:
                pixels = torch.cat(list(views.unbind(dim=1))).float()
                found[kind, codes] = mixing(pixels, torch.cat([target, target]))
            else:
                pairs = [([view.numpy().copy() for view in own], int(t)) for own, t in zip(views, target, strict=True)]
                found[kind, codes] = mixing(pairs)
    for kind in (PairMixup, PairCollateMixup):
        (pictures, soft), (same, mixed) = found[kind, False], found[kind, True]
        assert torch.equal(pictures, same)
        torch.testing.assert_close(stored.labels(mixed), soft, atol=1e-6, rtol=0)
        clean, second = stored.read(mixed)
        (alone, alone_second), partner = stored.read(torch.cat([coded, coded])), mixed[:6, 1].long()
        other, _ = stored.read(torch.cat([partner, partner]))
        share = mixed[:6, 2].float()[:, None]
        expected = share * (alone / 4).softmax(dim=1) + (1 - share) * (other / 4).softmax(dim=1)
        torch.testing.assert_close((clean / 4).softmax(dim=1), expected, atol=1e-5, rtol=1e-4)
        if base_alone:
            torch.testing.assert_close((second / 4).softmax(dim=1), (alone_second / 4).softmax(dim=1))


def test_a_mixture_of_one_is_itself():
    coded = torch.tensor([5, 6, 7])
    assert mix_targets(torch.eye(3), coded).tolist() == [[5, 7, 1], [6, 6, 1], [7, 5, 1]]


def test_a_stream_is_refused(made):
    class Stream:
        streams = True

    with pytest.raises(ValueError, match='a set of a stream cannot be reinforced'):
        reinforce(Stream(), DADSet(made / 'set'), ask, ReinforceConfig(transform={}, repeats=1), progress=False)
