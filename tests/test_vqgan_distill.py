"""Distillation of VQGANs: real networks, tiny."""

import csv
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import load_file
from torch import nn

import timm_dad
from timm_dad import VQGAN, load_vqgan
from timm_dad.cli import main
from timm_dad.common.pixels import psnr
from timm_dad.flags.dad import create_vqgan
from timm_dad.flags.train import parse_args
from timm_dad.vqgan.save import save_vqgan
from timm_dad.vqgan_training import command as vqgan_command
from timm_dad.vqgan_training.distill import (
    Distiller,
    DistillLoss,
    compare,
    create_tiny,
    make_targets,
    pass_macs,
    tiny_config,
)
from timm_dad.vqgan_training.optimize import OptimizerConfig

TRAINING = '--batch-size 8 --workers 0 --lr 3e-3 --ch 8 --device cpu'.split()


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    """Folder of 40 training and 12 validation pictures, without a folder a class: two colours, one above the other."""
    root = tmp_path_factory.mktemp('pictures')
    rng = np.random.default_rng(0)
    for split, count in (('train', 40), ('validation', 12)):
        (root / split).mkdir()
        for index in range(count):
            image = np.empty((20, 20, 3), np.uint8)
            border = rng.integers(5, 15)
            image[:border], image[border:] = rng.integers(0, 256, (2, 3))
            Image.fromarray(image).save(root / split / f'{index}.png')
    return root


@pytest.fixture
def original(vqgan):
    return vqgan


@pytest.fixture
def saved(vqgan, tmp_path):
    save_vqgan(vqgan, tmp_path / 'original.safetensors')
    return tmp_path / 'original.safetensors'


@pytest.fixture(scope='module')
def demo_run(tmp_path_factory, pictures):
    """Folder of a run of 3 epochs of 5 steps on the demo's VQGAN, and what the command returned."""
    torch.set_num_threads(1)
    output = tmp_path_factory.mktemp('distilled') / 'run'
    metrics = vqgan_command.main(flags(pictures, 'demo', output, '--epochs', '3')[1:])
    AcceleratorState._reset_state(reset_partial_state=True)
    return output, metrics


def flags(pictures, vqgan, output, *more):
    data = ['--data-dir', str(pictures), '--img-size', '16']
    return ['vqgan', 'distill', '--vqgan', str(vqgan), *data, '--output', str(output), *TRAINING, *more]


def rows(output):
    with open(output / 'summary.csv') as file:
        return list(csv.DictReader(file))


def same_weights(one, other):
    one, other = load_file(one / 'last.safetensors'), load_file(other / 'last.safetensors')
    return all(torch.equal(one[name], other[name]) for name in one)


def distiller(original, steps=8, perceptual=None, **settings):
    torch.manual_seed(0)
    tiny = create_tiny(original, 16, ch=8)
    return Distiller(tiny, original, Accelerator(cpu=True), OptimizerConfig(steps=steps, **settings), perceptual)


def test_training_lowers_the_loss_and_raises_the_agreement(original, x_pix):
    made = distiller(original, steps=80, lr=1e-2)
    loader = [(x_pix, None)]
    before = made.evaluate(loader)
    losses = [made.step(x_pix)['loss'].item() for _ in range(80)]
    after = made.evaluate(loader)
    assert losses[-1] < 0.5 * losses[0]
    assert after['agreement'] > before['agreement'] + 0.1
    for name in ('psnr', 'psnr_decoder'):
        assert after[name] > before[name] + 1.5


def test_encoder_and_decoder_alone_are_trained(original, x_pix):
    made = distiller(original)
    before = {name: value.clone() for name, value in made.vqgan.state_dict().items()}
    frozen = {name: value.clone() for name, value in original.state_dict().items()}
    made.step(x_pix)
    changed = {name for name, value in made.vqgan.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if name.startswith(('encoder.', 'decoder.'))}
    assert all(torch.equal(value, frozen[name]) for name, value in original.state_dict().items())
    assert not original.training
    assert not any(value.requires_grad for value in original.parameters())


def test_the_loss_is_that_by_hand(original, x_pix):
    tiny = create_tiny(original, 16, ch=8)
    parts = DistillLoss(tiny, original, None, 1.0)(x_pix)
    z = original.encode(x_pix)
    assert parts['latents'].item() == pytest.approx(((tiny.encode(x_pix) - z) ** 2).mean().item() / z.var().item())
    z_q = original.codebook[original.encode_to_codes(x_pix)].permute(0, 3, 1, 2)
    error = tiny.decode(z_q) - original.decode(z_q)
    assert parts['l1'].item() == pytest.approx(error.abs().mean().item(), rel=1e-5)
    assert parts['l2'].item() == pytest.approx(error.square().mean().item(), rel=1e-5)
    total = sum(parts[name].item() for name in ('latents', 'l1', 'l2'))
    assert parts['loss'].item() == pytest.approx(total, rel=1e-5)


def test_latents_do_not_teach_the_decoder_nor_pictures_the_encoder(original, x_pix):
    tiny = create_tiny(original, 16, ch=8)
    parts = DistillLoss(tiny, original, None, 1.0)(x_pix)
    with pytest.raises(RuntimeError, match=r'does not require grad|not have been used'):
        torch.autograd.grad(parts['latents'], list(tiny.decoder.parameters()), retain_graph=True)
    with pytest.raises(RuntimeError, match=r'does not require grad|not have been used'):
        torch.autograd.grad(parts['l1'], list(tiny.encoder.parameters()), retain_graph=True)


def test_pictures_of_one_colour_give_a_finite_loss(original):
    white = torch.ones(2, 3, 16, 16)
    with torch.no_grad():
        original.encoder.conv_out.weight.zero_()
    parts = DistillLoss(create_tiny(original, 16, ch=8), original, None, 1.0)(white)
    assert parts['loss'].isfinite()


def test_kept_targets_are_the_same(original, x_pix):
    one, other = distiller(original), distiller(original)
    for _ in range(2):
        one.step(x_pix)
        other.step(x_pix, make_targets(original, x_pix))
    for name, value in one.vqgan.state_dict().items():
        assert torch.equal(value, other.vqgan.state_dict()[name]), name


def test_targets_are_what_the_original_makes(original, x_pix):
    targets = make_targets(original, x_pix)
    torch.testing.assert_close(targets.pictures.clamp(0, 1), original(x_pix))
    torch.testing.assert_close(targets.latents, original.encode(x_pix))


def test_lpips_takes_the_place_of_l2_and_is_neither_trained_nor_saved(original, x_pix):
    network = nn.Conv2d(3, 1, 1)

    def distance(output, target):
        return (network(output) - network(target)).abs().mean()

    made = distiller(original, perceptual=distance, perceptual_weight=0.5)
    before = network.weight.clone()
    parts = made.step(x_pix)
    assert set(parts) == {'loss', 'latents', 'l1', 'perceptual'}
    total = parts['latents'] + parts['l1'] + 0.5 * parts['perceptual']
    assert parts['loss'].item() == pytest.approx(total.item(), rel=1e-5)
    assert torch.equal(network.weight, before)
    assert set(made.state_dict()['vqgan']) == set(made.vqgan.state_dict())


def test_a_gumbel_vqgan_can_be_distilled(vqgan_config, x_pix):
    original = VQGAN(replace(vqgan_config, quantizer='gumbel'))
    nn.init.normal_(original.quantize.proj.weight, std=3)
    nn.init.normal_(original.quantize.embed.weight)
    made = distiller(original.eval(), steps=60, lr=1e-2)
    before = made.evaluate([(x_pix, None)])
    for _ in range(60):
        made.step(x_pix)
    after = made.evaluate([(x_pix, None)])
    assert after['agreement'] > before['agreement']
    assert after['psnr_decoder'] > before['psnr_decoder'] + 1


def test_training_steps_of_the_papers_architecture_run():
    """Its depth, factor and codebook; narrow, for a CPU."""
    from timm_dad.vqgan.presets import PRESETS

    config = PRESETS['openimages-f8-16384'].config
    narrow = replace(config, ddconfig={**config.ddconfig, 'ch': 32})
    made = distiller(VQGAN(narrow).eval())
    parts = made.step(torch.rand(1, 3, 32, 32))
    assert parts['loss'].isfinite()
    assert made.vqgan.config.factor == 8


def test_metrics_are_those_by_hand(original, x_pix):
    tiny = create_tiny(original, 16, ch=8)
    metrics = compare(tiny, original, [(x_pix[:3], None), (x_pix[3:], None)], Accelerator(cpu=True))
    assert tiny.training
    tiny.eval()
    codes, codes_tiny = original.encode_to_codes(x_pix), tiny.encode_to_codes(x_pix)
    assert metrics['agreement'] == pytest.approx((codes == codes_tiny).float().mean().item())
    pairs = {
        'psnr': (tiny(x_pix), original(x_pix)),
        'psnr_decoder': (tiny.decode_codes(codes), original(x_pix)),
        'psnr_input': (tiny(x_pix), x_pix),
        'psnr_original': (original(x_pix), x_pix),
    }
    for name, (one, other) in pairs.items():
        by_hand = 10 * torch.log10(1 / (one - other).square().mean(dim=(1, 2, 3)))
        assert metrics[name] == pytest.approx(by_hand.mean().item(), rel=1e-5), name
        assert metrics[name] == pytest.approx(psnr(one, other).mean().item(), rel=1e-5), name


def test_a_vqgan_agrees_with_itself(original, x_pix):
    metrics = compare(original, original, [(x_pix, None)], Accelerator(cpu=True))
    assert (metrics['agreement'], metrics['psnr'], metrics['psnr_decoder']) == (1.0, 100.0, 100.0)
    assert metrics['psnr_input'] == metrics['psnr_original']


def test_every_epoch_is_logged(demo_run):
    output, metrics = demo_run
    summary = rows(output)
    assert [(row['epoch'], row['train_step']) for row in summary] == [('0', '5'), ('1', '10'), ('2', '15')]
    for row in summary:
        parts = sum(float(row[f'train_{name}']) for name in ('latents', 'l1', 'l2'))
        assert float(row['train_loss']) == pytest.approx(parts, rel=1e-5)
    assert {name: float(summary[-1][f'eval_{name}']) for name in metrics} == metrics
    assert float(summary[-1]['train_loss']) < float(summary[0]['train_loss'])


def test_what_is_written_is_a_vqgan_for_dad(demo_run):
    output, _ = demo_run
    names = ('best.safetensors', 'best.yaml', 'last.safetensors', 'last.yaml')
    assert {path.name for path in output.iterdir()} - {'.lock'} == {*names, 'resume.pt', 'summary.csv', 'args.yaml'}
    args = parse_args(['--dad', '--dad-vqgan', str(output / 'best.safetensors')])
    vqgan = create_vqgan(args, (16, 16))
    assert isinstance(vqgan, timm_dad.VQGAN)
    assert vqgan.config.networks == 'tiny'
    demo = load_vqgan(Path(timm_dad.__file__).parent / 'demo' / 'assets' / 'vqgan.safetensors')
    assert torch.equal(vqgan.codebook, demo.codebook)
    assert (vqgan.config.n_embed, vqgan.config.factor) == (demo.config.n_embed, demo.config.factor)


def test_the_best_has_the_highest_psnr(demo_run, original):
    best = max(float(row['eval_psnr']) for row in rows(demo_run[0]))
    assert torch.load(demo_run[0] / 'resume.pt', weights_only=True)['best'] == pytest.approx(-best)


def test_both_sizes_are_said(saved, pictures, tmp_path, caplog):
    with caplog.at_level('INFO', 'timm_dad'):
        main(flags(pictures, saved, tmp_path / 'run', '--steps', '2'))
    for vqgan in (load_vqgan(saved), load_vqgan(tmp_path / 'run' / 'last.safetensors')):
        parameters = sum(value.numel() for value in vqgan.parameters()) / 1e6
        macs = pass_macs(vqgan.config, 16) / 1e9
        assert f'VQGAN of {parameters:.3g} M parameters, {macs:.3g} GMACs a pass at 16 px' in caplog.text


@pytest.mark.slow
def test_equal_seeds_give_equal_bits(demo_run, pictures, tmp_path):
    main(flags(pictures, 'demo', tmp_path / 'same', '--epochs', '3'))
    main(flags(pictures, 'demo', tmp_path / 'other', '--epochs', '3', '--seed', '1'))
    assert same_weights(demo_run[0], tmp_path / 'same')
    assert not same_weights(demo_run[0], tmp_path / 'other')


class Killed(Exception):  # noqa: N818
    pass


@pytest.mark.slow
@pytest.mark.parametrize('steps', [5, 9])
def test_a_killed_run_ends_as_an_undisturbed_one(steps, demo_run, pictures, tmp_path, monkeypatch):
    train_step = Distiller.step

    def step(trainer, x_pix):
        if trainer.steps_done == steps:
            raise Killed
        return train_step(trainer, x_pix)

    monkeypatch.setattr(Distiller, 'step', step)
    argv = flags(pictures, 'demo', tmp_path, '--epochs', '3', '--recovery-interval', '4', '--resume', 'auto')
    with pytest.raises(Killed):
        main(argv)
    monkeypatch.undo()
    main(argv)
    assert same_weights(demo_run[0], tmp_path)
    assert (tmp_path / 'summary.csv').read_text() == (demo_run[0] / 'summary.csv').read_text()


def test_a_run_is_not_resumed_with_another_original(demo_run, saved, pictures, capsys):
    with pytest.raises(SystemExit):
        main(flags(pictures, saved, demo_run[0], '--epochs', '3', '--resume', 'auto'))
    assert 'resume.pt has other flags: --vqgan ' in capsys.readouterr().err


def test_a_run_that_is_done_is_not_trained_again(demo_run, pictures):
    output, metrics = demo_run
    before = (output / 'last.safetensors').read_bytes()
    again = vqgan_command.main(flags(pictures, 'demo', output, '--epochs', '3', '--resume', 'auto')[1:])
    assert again == pytest.approx(metrics)
    assert (output / 'last.safetensors').read_bytes() == before


def test_amp_trains_in_the_precision_and_leaves_weights_in_fp32(pictures, tmp_path):
    main(flags(pictures, 'demo', tmp_path / 'fp32', '--epochs', '1'))
    AcceleratorState._reset_state(reset_partial_state=True)
    main(flags(pictures, 'demo', tmp_path / 'amp', '--epochs', '1', '--amp', '--amp-dtype', 'bfloat16'))
    ((fp32,), (amp,)) = rows(tmp_path / 'fp32'), rows(tmp_path / 'amp')
    assert float(amp['train_loss']) == pytest.approx(float(fp32['train_loss']), rel=0.05)
    assert amp['train_loss'] != fp32['train_loss']
    assert {value.dtype for value in load_file(tmp_path / 'amp' / 'last.safetensors').values()} == {torch.float32}


@pytest.mark.parametrize(
    ('more', 'message'),
    [
        (['--vqgan', ''], '--vqgan must name the VQGAN to imitate (a file, a folder, a preset, or demo)'),
        (['--vqgan', 'nothing.safetensors'], '--vqgan: no VQGAN at nothing.safetensors'),
        (['--ch', '0'], '--ch must be 1 or more, got 0'),
        (['--img-size', '18'], '--img-size must be a multiple of 4, the factor of the VQGAN, got 18'),
        (['--batch-size', '41'], '--batch-size must be at most the 40 training images, got 41'),
        (['--steps', '1'], '--steps: steps must be 2 or more, got 1'),
        (['--lr', '3'], '--lr: lr must be between 0 and 1, got 3.0'),
        (['--weight-decay', '-1'], '--weight-decay: weight_decay must be from 0 to 1, got -1.0'),
        (['--clip-grad', '0'], '--clip-grad: clip_grad must be more than 0, got 0.0'),
        (['--perceptual-weight', '0'], '--perceptual-weight: perceptual_weight must be more than 0'),
        (['--perceptual-weight', '2'], '--perceptual-weight needs --perceptual lpips'),
        (['--amp-dtype', 'bfloat16'], '--amp-dtype needs --amp'),
        (['--no-aug', '--hflip', '1'], '--no-aug takes centre crops without mirroring: leave --hflip out'),
        (['--val-split', ''], '--val-split must name a split'),
        (['--resume', 'x'], "--resume must be auto, got 'x'"),
        (['--data-dir', ''], '--data-dir must name a folder of pictures (or give --dataset)'),
        (['--n-embed', '8'], 'unrecognized arguments: --n-embed 8'),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(more, message, pictures, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(flags(pictures, 'demo', tmp_path / 'run', *more))
    assert message in capsys.readouterr().err
    assert not (tmp_path / 'run').exists()


def test_a_tiny_vqgan_is_not_distilled_again(vqgan_config, pictures, tmp_path, capsys):
    save_vqgan(VQGAN(tiny_config(vqgan_config, 8)), tmp_path / 'tiny.safetensors')
    with pytest.raises(SystemExit):
        main(flags(pictures, tmp_path / 'tiny.safetensors', tmp_path / 'run'))
    assert '--vqgan must be a VQGAN that is not tiny, got' in capsys.readouterr().err


def test_the_width_is_that_of_the_flag_or_the_default(saved, pictures, tmp_path):
    main(flags(pictures, saved, tmp_path / 'run', '--steps', '2', '--ch', '12'))
    assert load_vqgan(tmp_path / 'run' / 'last.safetensors').config.ddconfig['ch'] == 12
    argv = flags(pictures, saved, tmp_path / 'default', '--steps', '2')
    del argv[argv.index('--ch') : argv.index('--ch') + 2]
    main(argv)
    tiny, original = load_vqgan(tmp_path / 'default' / 'last.safetensors'), load_vqgan(saved)
    assert 10 * pass_macs(tiny.config, 16) <= pass_macs(original.config, 16)


@pytest.mark.slow
def test_the_command_runs_as_a_process(pictures, tmp_path):
    root = str(Path(timm_dad.__file__).parents[1])
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': root}
    argv = flags(pictures, 'demo', tmp_path / 'run', '--steps', '2')
    done = subprocess.run(
        [sys.executable, '-m', 'timm_dad', *argv], env=environment, text=True, capture_output=True, timeout=300
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert 'GMACs a pass' in done.stdout + done.stderr
    assert load_vqgan(tmp_path / 'run' / 'best.safetensors').config.networks == 'tiny'


@pytest.mark.slow
def test_two_processes_are_one_with_twice_the_batch(pictures, tmp_path):
    """But for the variance of the latents, which is that of a process's own batch."""
    more = ('--steps', '8')
    main(flags(pictures, 'demo', tmp_path / 'one', *more))
    argv = flags(pictures, 'demo', tmp_path / 'two', *more)
    argv[argv.index('--batch-size') + 1] = '4'
    root = str(Path(timm_dad.__file__).parents[1])
    launcher = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2']
    subprocess.run(
        [*launcher, '-m', 'timm_dad', *argv],
        env={**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': root}, check=True, timeout=300,
    )  # fmt: skip
    for one, two in zip(rows(tmp_path / 'one'), rows(tmp_path / 'two'), strict=True):
        for name in ('train_loss', 'train_latents', 'train_l1', 'eval_psnr', 'eval_psnr_original'):
            assert float(two[name]) == pytest.approx(float(one[name]), rel=0.05), name


def test_the_benchmark_builds_from_training_pictures_of_the_given_styles_alone(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / 'benchmarks'))
    import tiny_vqgan as benchmark
    from demo_build import Style

    from timm_dad.demo.data import DEMO_VQGAN

    def style(seed, of_validation=0):
        x = np.random.default_rng(seed).integers(0, 256, (8, 32, 32, 3)).astype(np.uint8)
        x[6:] += np.uint8(of_validation)
        return Style(x, np.zeros(8, np.int64), np.array(6 * ['train'] + 2 * ['val']), np.arange(8).astype(str))

    monkeypatch.setattr(benchmark, 'BATCH_SIZE', 4)
    monkeypatch.setattr(benchmark, 'COPIES', 1)
    built = []
    for name, noto, other in (('a', style(0), style(1)), ('b', style(0, of_validation=9), style(2))):
        styles = {'noto': noto, 'twemoji': other}
        path = tmp_path / f'{name}.safetensors'
        settings = {'names': ('noto',), 'steps': 2, 'ch': 4, 'precision': 'fp32'}
        assert benchmark.build_tiny(DEMO_VQGAN, styles, path, **settings) == path
        built.append(load_vqgan(path))
    assert built[0].fingerprint() == built[1].fingerprint()
    before = path.stat().st_mtime_ns
    benchmark.build_tiny(DEMO_VQGAN, styles, path, names=('noto',), steps=3)
    assert path.stat().st_mtime_ns == before
    x_pix = benchmark.pictures(styles, ('noto',), 'val')
    assert x_pix.shape == (2, 3, 32, 32)
    assert 0 <= benchmark.measure(built[0], load_vqgan(DEMO_VQGAN), x_pix)['agreement'] <= 1
