"""The embedded demo: its files, its data set, how they are made, and the three arms."""

import json
from pathlib import Path

import demo_build as build
import numpy as np
import pytest
import torch
from safetensors import safe_open

from timm_dad.cli import main as timm_dad_command
from timm_dad.commands import demo as run
from timm_dad.demo import data
from timm_dad.flags.train import parse_args


def test_the_assets_stay_below_15_mb_and_carry_their_attribution():
    files = [path for path in data.ASSETS.rglob('*') if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 15 * 10**6
    attribution = (data.ASSETS / 'ATTRIBUTION.md').read_text()
    for style in data.STYLES:
        assert f'`{style}.npz`' in attribution
    assert not [path for path in files if path.suffix in ('.pt', '.pth', '.ckpt', '.pkl')]


def test_the_tuning_style_is_neither_shipped_nor_reported_nor_learned():
    assert data.TUNING_STYLE not in data.STYLES
    assert not (data.ASSETS / f'{data.TUNING_STYLE}.npz').exists()
    assert set(data.UNSEEN_STYLES).isdisjoint(data.SEEN_STYLES)
    assert 'noto-mono' in data.UNSEEN_STYLES
    assert len(data.STYLES) >= 5


def test_data_set_has_training_pictures_of_noto_alone():
    noto = data.DemoDataset('noto', 'train')
    image, label = noto[0]
    assert image.size == (data.SIZE, data.SIZE)
    assert 0 <= label < len(noto.class_names) == 16
    for style in data.STYLES:
        assert len(data.DemoDataset(style, 'validation')) > 100
    with pytest.raises(ValueError, match='the demo has the styles'):
        data.DemoDataset('kandinsky', 'train')
    with pytest.raises(ValueError, match='no train pictures of twemoji'):
        data.DemoDataset('twemoji', 'train')


def test_transform_is_applied():
    noto = data.DemoDataset('noto', 'validation')
    noto.transform = lambda image: image.size
    assert noto[3][0] == (32, 32)


def small_emoji64(root):
    """A folder in the layout of emoji64: 20 pictures a style."""
    rng = np.random.default_rng(0)
    keys = np.array([f'{index:04x}' for index in range(20)])
    classes = np.array(sorted(build.CLASS_NAMES))
    for style in (*data.STYLES, data.TUNING_STYLE):
        x = rng.integers(0, 256, (20, 64, 64, 3)).astype(np.uint8)
        split = np.array(['train'] * 15 + ['val'] * 5)
        np.savez(root / f'{style}.npz', x=x, y=np.arange(20) % 16, split=split, key=keys, classes=classes)
    captions = {key: {'name': f'name {key}', 'keywords': ['one', 'two']} for key in keys}
    (root / 'captions.json').write_text(json.dumps(captions))


@pytest.mark.slow
def test_build_makes_everything_that_the_demo_reads(tmp_path, monkeypatch):
    small_emoji64(tmp_path)
    flags = ['--source', tmp_path, '--output', tmp_path / 'assets', '--vqgan-steps', 60, '--teacher-steps', 2]
    build.main([str(flag) for flag in [*flags, '--threads', 1]])
    names = {str(path.relative_to(tmp_path / 'assets')) for path in (tmp_path / 'assets').rglob('*') if path.is_file()}
    shipped = {str(path.relative_to(data.ASSETS)) for path in data.ASSETS.rglob('*') if path.is_file()}
    assert names == shipped - {'ATTRIBUTION.md'}
    for name in ('vqgan.safetensors', 'teacher/open_clip_model.safetensors'):
        with safe_open(tmp_path / 'assets' / name, 'pt') as made, safe_open(data.ASSETS / name, 'pt') as here:
            assert set(made.keys()) == set(here.keys())
            assert all(made.get_slice(key).get_shape() == here.get_slice(key).get_shape() for key in made.keys())
    monkeypatch.setattr(data, 'ASSETS', tmp_path / 'assets')
    assert len(data.DemoDataset('noto', 'train')) == 15
    assert len(data.DemoDataset('noto-mono', 'validation')) == 5


def test_halving_is_the_mean_of_2_by_2_pixels(tmp_path):
    small_emoji64(tmp_path)
    with np.load(tmp_path / 'noto.npz') as file:
        expected = file['x'][3, 10:12, 20:22].astype(float).mean(axis=(0, 1))
    np.testing.assert_allclose(build.read_style(tmp_path / 'noto.npz').x[3, 5, 10], expected, atol=0.51)


@pytest.mark.parametrize('change', [build.random_damage, lambda x: build.random_affine(x, 0.3, 0.4, 0.1)])
def test_random_changes_stay_in_range_and_differ_between_pictures(change):
    x = torch.rand(1, 3, 32, 32).expand(16, -1, -1, -1).clone()
    changed = change(x)
    assert changed.shape == x.shape
    assert changed.min() >= 0
    assert changed.max() <= 1
    assert len({value.sum().item() for value in changed}) > 4


def test_interval_is_the_t_interval():
    # mean 3, standard deviation 1.5811, t 2.776 at 4 degrees of freedom: 2.776 * 1.5811 / sqrt(5) = 1.963
    assert run.interval([1, 2, 3, 4, 5]) == '3.0 ± 2.0'
    assert run.interval([2.34]) == '2.3'


def test_table_averages_the_right_styles():
    top1 = {style: float(index) for index, style in enumerate(data.STYLES)}
    runs = {0: {arm: {s: v + shift for s, v in top1.items()} for arm, shift in
                (('teacher', 50), ('plain', 0), ('kd', 2), ('dad', 5))}}  # fmt: skip
    rows = {line.split('  ')[0]: line.split()[-6:] for line in run.format_table(runs).splitlines()}
    unseen = sum(top1[style] for style in data.UNSEEN_STYLES) / len(data.UNSEEN_STYLES)
    others = sum(value for style, value in top1.items() if style != 'noto') / (len(top1) - 1)
    for name, value in (('mean unseen', unseen), ('mean but noto', others)):
        assert [float(cell) for cell in rows[name]] == pytest.approx(
            [value + 50, value, value + 2, value + 5, 2, 3], abs=0.06
        )


@pytest.mark.slow
def test_demo_runs_three_arms_and_writes_the_results(tmp_path, capsys):
    more = ['--epochs', '1', '--batch-size', '256', '--seeds', '1', '2']
    timm_dad_command(['demo', '--output', str(tmp_path), *more])
    results = json.loads((tmp_path / 'results.json').read_text())
    assert set(results) == {'teacher', 'plain', 'kd', 'dad'}
    for arm in results.values():
        assert set(arm) == set(data.STYLES)
        assert all(0 <= value <= 100 for value in arm.values())
    by_seed = json.loads((tmp_path / 'results-by-seed.json').read_text())
    assert results['dad']['noto'] == pytest.approx((by_seed['1']['dad']['noto'] + by_seed['2']['dad']['noto']) / 2)
    assert results['teacher']['noto'] > 60
    printed = capsys.readouterr().out
    assert 'dad - kd' in printed
    assert '±' in printed
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {
        f'{arm}-seed{seed}' for arm in ('plain', 'kd', 'dad') for seed in (1, 2)
    }
    assert Path(tmp_path / 'dad-seed1' / 'preview.png').is_file()


def test_demo_refuses_seeds_that_repeat(tmp_path, capsys):
    with pytest.raises(SystemExit):
        run.main(['--output', str(tmp_path), '--seeds', '1', '1'])
    assert '--seeds takes up to 10 different seeds' in capsys.readouterr().err


def test_flags_of_dad_do_not_reach_the_plain_arm(tmp_path, monkeypatch):
    import train_dad

    seen = []

    def train(argv, program):
        assert program == 'timm-dad demo'
        seen.append(argv)
        return {'student': dict.fromkeys(data.STYLES, 1.0), 'teacher': dict.fromkeys(data.STYLES, 2.0)}

    monkeypatch.setattr(train_dad, 'main', train)
    run.main(
        ['--output', str(tmp_path / 'new'), '--epochs', '3', '--dad-weight', '1.5', '--dad-keep-label', '--lr', '1']
    )
    given = {
        'plain': ['--epochs', '3', '--lr', '1'],
        'kd': ['--epochs', '3', '--dad-weight', '1.5', '--lr', '1'],
        'dad': ['--epochs', '3', '--dad-weight', '1.5', '--dad-keep-label', '--lr', '1'],
    }
    for (arm, own), argv in zip(run.ARMS.items(), seen, strict=True):
        assert argv[6:] == [*given[arm], *own]  # after seed, output and experiment


@pytest.mark.parametrize(
    'flags',
    ['--dad-eps=.5', '--dad-attack-from input', '--dad-cache 0 --dad-every 2 --dad-replay 9', '--dad-same-crop',
     '--dad-preview-interval 1', '--dad-micro-batch 3', '--dad-keep-label --epochs 3'],
)  # fmt: skip
def test_flags_of_the_dad_view_are_its_arms_alone(flags):
    for arm in run.ARMS:
        args = parse_args(run.arm_flags(arm, flags.split()))
        assert args.dad == (arm != 'plain')
        assert args.epochs == (3 if 'epochs' in flags else 56)
        eps = None if arm == 'plain' else 0.5 if arm == 'dad' and '--dad-eps' in flags else 0.1
        assert args.dad_eps == eps


@pytest.mark.parametrize('flags', ['--dad-recipe latent', '--dad-weight 1.5 --dad-view-aug base'])
def test_the_control_keeps_its_augmentation_on_both_views(flags):
    """The better control: with RandAugment on both views."""
    of_arms = {arm: parse_args(run.arm_flags(arm, flags.split())) for arm in ('kd', 'dad')}
    assert {arm: args.dad_view_aug for arm, args in of_arms.items()} == {'kd': 'full', 'dad': 'base'}
    assert {args.dad_weight for args in of_arms.values()} == {1.5}


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        ('--dad-micro-batch -3', '--dad-micro-batch: micro_batch must be 0'),
        ('--dad-eps -1', '--dad-eps: eps is in'),
        ('--epochs x', "--epochs: invalid int value: 'x'"),
    ],
)
def test_bad_flags_of_one_arm_end_the_demo_before_the_first_training(tmp_path, capsys, flags, message):
    with pytest.raises(SystemExit):
        run.main(['--output', str(tmp_path / 'new'), *flags.split()])
    said = capsys.readouterr()
    assert message in said.err
    assert '---' not in said.out
    assert not (tmp_path / 'new').exists()


def test_other_pictures_are_refused(capsys):
    with pytest.raises(SystemExit):
        run.main(['photos'])
    assert 'the demo has pictures of its own, got photos' in capsys.readouterr().err


def test_a_file_may_say_dad_which_each_arm_says_for_itself(tmp_path):
    (tmp_path / 'own.yaml').write_text('dad: true\ndad_eps: 0.5\n')
    _, extra = run._parse_own(['--config', str(tmp_path / 'own.yaml')])
    assert [parse_args(run.arm_flags(arm, extra)).dad for arm in run.ARMS] == [False, True, True]


@pytest.mark.parametrize('flag', ['--eval-suites', '--experiment', '--data-dir', '--seed', '--dad', '--no-dad'])
def test_what_the_demo_sets_itself_is_refused(flag, capsys):
    with pytest.raises(SystemExit):
        run.main([flag, 'x'])
    assert f'{flag} is set by the demo itself' in capsys.readouterr().err
