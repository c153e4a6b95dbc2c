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
from timm.data import FastCollateMixup, create_dataset

import train_dad
from timm_dad.cli import main
from timm_dad.common.pixels import PixelNorm
from timm_dad.dad_sets.augmented import ReinforcedViews
from timm_dad.dad_sets.claims import Locks
from timm_dad.dad_sets.logits import encode_target, mix_targets
from timm_dad.dad_sets.mixtures import Mixtures
from timm_dad.dad_sets.parts import Shards
from timm_dad.dad_sets.read import DADSet
from timm_dad.dad_sets.reinforce import ReinforceConfig, Reinforcement, reinforce
from timm_dad.dad_sets.verify import clear_damage, verify
from timm_dad.data.images import Source
from timm_dad.flags import kwargs
from timm_dad.flags.pairs import open_dad_set, pair_dataset
from timm_dad.flags.reinforce import reinforce_config, stored_logits
from timm_dad.flags.train import parse_args
from timm_dad.timm_train import pair_views
from timm_dad.training.loaders import PairCollateMixup, PairMixup, create_mixup, create_train_loader

CONFIG = {
    'input_size': (3, 32, 32),
    'mean': (0.5, 0.4, 0.3),
    'std': (0.2, 0.3, 0.25),
    'interpolation': 'bicubic',
    'crop_pct': 1.0,
}
NORM = CONFIG['mean'], CONFIG['std']
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


def store(root, *flags, ask=ask, claims=Locks, **changes):
    """Reinforce the set, as ``generate`` does with these flags."""
    own = [flag for flag in FLAGS if flag != '--dad-stored-logits']
    args = parse_args([*own, '--dad-dir', str(root / 'set'), '--dad-teacher', 'demo', *AUG, *flags])
    args.reinforce, args.reinforce_top_k = 3, 4
    config = reinforce_config(args, (32, 32))
    config = ReinforceConfig(**{**vars(config), 'batch_size': 7, **changes})
    return reinforce(Source(data(root)), DADSet(root / 'set'), ask, config, progress=False, claims=claims)


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


MIX = ('--mixup', '0.8', '--cutmix', '1.0', '--mixup-prob', '0.8')


@pytest.mark.parametrize(
    ('flags', 'grey'),
    [
        ((), 0.5),  # timm's prefetcher takes mixtures in whole grey levels
        (('--no-prefetcher', '--dad-same-crop'), 0),
        (('--no-prefetcher', '--dad-view-aug', 'base', '--workers', '1'), 0),
    ],
    ids=str,
)
def test_answers_and_labels_are_of_the_very_mixtures_of_the_batch(made, flags, grey):
    answers = store(made, *MIX, *flags)
    stored, loader, norm = answers.stored_logits(smoothing=0.1), batches(made, *MIX, *flags), PixelNorm(*NORM)
    off, mixtures, shares = 0.1 / 4, answers.mixtures, []
    assert create_mixup({'mixup_alpha': 0.8}, loader.dataset.dataset.views) is None  # or they would be mixed twice
    for input, coded in loader:
        got, expected = stored.read(coded), ask(norm.to_pixels(input)).log_softmax(dim=1).chunk(2)
        for one, own in zip(got, expected, strict=True):
            torch.testing.assert_close(one.log_softmax(dim=1), own, atol=0.02 + grey, rtol=1e-3)
        labels = stored.labels(coded)
        assert labels.shape == (16, 4)
        for row, (place, own) in enumerate(zip((coded // 4).tolist(), (coded % 4).tolist(), strict=True)):
            index, turn = divmod(place, 3)
            partner = mixtures.partner(index, turn)
            _, share = mixtures.mix(index, turn, [torch.ones(3, 32, 32)] * 2, [torch.zeros(3, 32, 32)] * 2)
            share = 1.0 if 'base' in flags and row >= 8 else share
            expected = torch.full((4,), off)
            expected[own] += 0.9 * share
            expected[partner // 6] += 0.9 * (1 - share)  # six pictures a class
            torch.testing.assert_close(labels[row], expected)
            shares.append(share)
    assert 1.0 in shares
    assert min(shares) < 0.9


@pytest.mark.parametrize('how', [{'mixup_alpha': 0.8}, {'mixup_alpha': 0.0, 'cutmix_alpha': 1.0}], ids=str)
def test_the_share_of_an_image_is_what_is_left_of_it(how):
    mixtures = Mixtures(how, 3, 100)
    for index in range(20):
        own, other = [torch.ones(3, 16, 16), torch.full((3, 16, 16), 2.0)], [torch.zeros(3, 16, 16)] * 2
        (clean, second), share = mixtures.mix(index, 1, own, other)
        assert clean.mean().item() == pytest.approx(share, abs=1e-5)
        assert torch.equal(second, 2 * clean)  # one weight or box for both
    assert {mixtures.partner(index, 0) for index in range(100)} <= set(range(100))
    assert len({mixtures.partner(index, 0) for index in range(100)}) > 50


def test_a_mixture_depends_on_the_sample_alone(made):
    """So no batch, order or process has to be the one that it was made in."""
    store(made, *MIX)
    samples = batches(made, *MIX).dataset
    forward = [samples[index] for index in range(24)]
    for index in reversed(range(24)):
        views, target = samples[index]
        assert target == forward[index][1]
        assert all(map(torch.equal, views, forward[index][0]))


def test_timms_own_script_mixes_no_mixtures_again(made):
    store(made, *MIX)
    args = parse_args([*FLAGS, '--dad-dir', str(made / 'set'), *AUG, *MIX])
    pairs, collate = pair_views(args, data(made), CONFIG, FastCollateMixup(num_classes=4))
    assert collate is None
    assert pairs.mixtures is not None


@pytest.mark.slow
def test_a_training_learns_from_mixtures_and_goes_on_alike(made, tmp_path):
    store(made, *MIX)
    (made / 'data' / 'validation').symlink_to(made / 'data' / 'train')
    flags = [
        *FLAGS[:-1], str(made / 'data'), '--dad-dir', str(made / 'set'), *AUG, *MIX, '--model', 'test_resnet',
        '--output', str(tmp_path), '--epochs', '2', '--lr', '0.01', '--warmup-epochs', '0', '--experiment',
    ]  # fmt: skip

    def stop(epoch):
        if epoch == 1:
            raise KeyboardInterrupt

    train_dad.main([*flags, 'whole'])
    with pytest.raises(KeyboardInterrupt):
        train_dad.main([*flags, 'stopped'], hooks=[stop])
    train_dad.main([*flags, 'stopped', '--resume', 'auto'])
    one, other = (torch.load(tmp_path / name / 'last.pth.tar', weights_only=False) for name in ('whole', 'stopped'))
    assert one['epoch'] == other['epoch'] == 1
    for name, tensor in one['state_dict'].items():
        assert torch.equal(tensor, other['state_dict'][name])


def test_data_and_task_of_a_training_read_its_answers_once(made, monkeypatch):
    store(made)
    args = parse_args([*FLAGS, '--dad-dir', str(made / 'set'), *AUG])
    dad_set = open_dad_set(args, (32, 32))
    opened, init = [], Reinforcement.__init__
    monkeypatch.setattr(Reinforcement, '__init__', lambda self, *given: opened.append(given) or init(self, *given))
    pair_dataset(args, data(made), CONFIG, dad_set=dad_set)
    assert stored_logits(args, dad_set, CONFIG).turns == 3
    assert opened == [(dad_set,)]


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


def test_shards_by_number_are_answered_and_whoever_makes_the_last_one_finishes(made, tmp_path_factory):
    store(made)
    other = write(tmp_path_factory.mktemp('other'))
    for numbers in ((), (3, 0), (2,), (4,)):
        assert store(other, claims=lambda root, own=numbers: Shards(own)) is None
    assert store(other, claims=lambda root: Shards((1, 2))).repeats == 3
    assert contents(other / 'set' / 'reinforced') == contents(made / 'set' / 'reinforced')


def test_it_says_how_much_of_an_answer_is_kept(made, caplog):
    caplog.set_level('INFO', logger='timm_dad')
    store(made, ask=lambda x_pix: torch.zeros(len(x_pix), 4), top_k=1)
    (said,) = (record.getMessage() for record in caplog.records if record.getMessage().startswith('Answers'))
    assert said == (
        "Answers: --reinforce-top-k 1 keeps 25% of the teacher's softmax at temperature 4 per class, and all "
        'others share the rest equally; more classes or a lower --dad-temperature keep more of it'
    )


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
        ((*MIX, '--mixup', '0.2'), 'mixup.mixup_alpha: here 0.2, there 0.8'),
        (('--mixup', '0', '--cutmix', '0'), 'mixup.cutmix_alpha: here null, there 1.0'),
        ((*MIX, '--mixup-mode', 'pair'), 'drawn one by one: leave --mixup-mode pair out'),
        ((*MIX, '--mixup-off-epoch', '1'), 'are all for mixtures: leave --mixup-off-epoch out'),
    ],
)
def test_another_augmentation_is_refused(made, flags, match):
    store(made, *(MIX if '--mixup' in flags else ()))
    args = parse_args([*FLAGS, '--dad-dir', str(made / 'set'), *AUG, *flags])
    config = {**CONFIG, 'mean': tuple(args.mean)}
    with pytest.raises(ValueError, match=match):
        pair_dataset(args, data(made), config, dad_set=open_dad_set(args, (32, 32)))


@pytest.mark.parametrize(
    ('flags', 'match'),
    [
        (('--reprob', '0.5'), '--reprob: .*add --no-prefetcher'),
        (('--aug-splits', '2'), '--aug-splits: stored answers are for one augmentation'),
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
        (('--reinforce', '2', '--shards', '0/2'), '--reinforce needs a complete set'),
        (('--reinforce', '-1'), '--reinforce must be 0 or more, got -1'),
        (('--reinforce', '2', '--aa', 'augmix-m3-w3'), '--aa augmix-m3-w3 makes splits'),
        (('--mixup', '0.8'), '--mixup is for --reinforce N: add it'),
        (('--reinforce', '2', '--mixup', '-1'), '--mixup must be 0 or more, got -1'),
        (('--reinforce', '2', '--cutmix', '1', '--mixup-prob', '2'), '--mixup-prob must be from 0 to 1, got 2.0'),
        (('--reinforce', '2', '--mixup-prob', '0.5'), '--mixup-prob is for --mixup and --cutmix: add one of them'),
        (('--reinforce', '2', '--cutmix-minmax', '0.5'), '--cutmix-minmax must be two numbers from 0 to 1'),
        (('--reinforce', '2', '--hflip', '50'), '--hflip must be from 0 to 1, got 50.0'),
        (('--reinforce', '2', '--scale', '1', '0.1'), '--scale must be two positive numbers, the smaller one first'),
        (('--reinforce', '2', '--std', '0', '1', '1'), '--std must be positive, got [0.0, 1.0, 1.0]'),
        (('--reinforce', '2', '--train-interpolation', 'cubic'), '--train-interpolation must be one of'),
        (('--reinforce', '2', '--aa', 'rand-mm'), '--aa must be a policy such as rand-m9-mstd0.5-inc1'),
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
    with pytest.raises(ValueError, match='a stream has no index to replay augmentations by'):
        ReinforcedViews(DADSet(made / 'set'), Stream(), 0, 1)
