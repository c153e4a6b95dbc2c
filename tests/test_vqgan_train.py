"""Training of VQGANs: real taming modules, tiny."""

import csv
import os
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from filelock import FileLock
from PIL import Image
from safetensors.torch import load_file
from torch import nn

import timm_dad
from timm_dad import VQGAN, VQGANConfig, load_vqgan
from timm_dad.cli import main
from timm_dad.flags.dad import create_vqgan
from timm_dad.flags.train import parse_args
from timm_dad.vqgan.save import save_vqgan
from timm_dad.vqgan_training import command as vqgan_command
from timm_dad.vqgan_training.perceptual import check_vgg16, create_lpips
from timm_dad.vqgan_training.reconstruction import VQGANTrainConfig, VQGANTrainer

ARCHITECTURE = ('--ch 32 --ch-mult 1 2 --num-res-blocks 1 --z-channels 4 --n-embed 32 --embed-dim 4 '
                '--attn-resolutions').split()  # fmt: skip
TRAINING = '--img-size 16 --batch-size 8 --workers 0 --lr 2e-3 --restart-interval 4 --device cpu'.split()


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    """Folder of 40 training and 12 validation pictures, without a folder a class: blots on grounds."""
    root = tmp_path_factory.mktemp('pictures')
    rng = np.random.default_rng(0)
    row, column = np.mgrid[:20, :20]
    for split, count in (('train', 40), ('validation', 12)):
        (root / split).mkdir()
        for index in range(count):
            ground, blot = 255 * rng.integers(0, 2, (2, 3))
            y, x, radius = rng.integers(4, 16, 3)
            inside = ((row - y) ** 2 + (column - x) ** 2 < radius**2)[..., None]
            Image.fromarray(np.where(inside, blot, ground).astype(np.uint8)).save(root / split / f'{index}.png')
    return root


def flags(pictures, output, *more, architecture=ARCHITECTURE):
    return ['vqgan', 'train', '--data-dir', str(pictures), '--output', str(output), *TRAINING, *architecture, *more]


def rows(output):
    with open(output / 'summary.csv') as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope='module')
def trained(pictures, tmp_path_factory):
    """Folder of a run of 3 epochs of 5 steps, and what the command returned."""
    torch.set_num_threads(1)
    output = tmp_path_factory.mktemp('trained') / 'run'
    metrics = vqgan_command.main(flags(pictures, output, '--epochs', '3')[1:])
    AcceleratorState._reset_state(reset_partial_state=True)
    return output, metrics


@pytest.mark.slow
def test_training_lowers_the_error(pictures, tmp_path):
    main(flags(pictures, tmp_path, '--steps', '100'))
    summary = rows(tmp_path)
    for name in ('train_l1', 'eval_l1'):
        assert float(summary[-1][name]) < 0.8 * float(summary[0][name])
    assert float(summary[-1]['eval_psnr']) > float(summary[0]['eval_psnr']) + 1.5


def test_every_epoch_is_logged(trained):
    output, metrics = trained
    summary = rows(output)
    assert [(row['epoch'], row['train_step']) for row in summary] == [('0', '5'), ('1', '10'), ('2', '15')]
    for row in summary:
        assert 0 < float(row['eval_usage']) <= 1
        assert 1 <= float(row['eval_perplexity']) <= 32 * float(row['eval_usage']) + 1e-6
        parts = sum(float(row[f'train_{name}']) for name in ('l1', 'l2', 'commitment'))
        assert float(row['train_loss']) == pytest.approx(parts, rel=1e-5)
    assert float(summary[-1]['eval_l1']) == metrics['l1']


def test_what_is_written_is_a_vqgan_that_reconstructs_the_same(trained, pictures):
    output, metrics = trained
    files = {path.name for path in output.iterdir()} - {'.lock'}
    names = ('best.safetensors', 'best.yaml', 'last.safetensors', 'last.yaml')
    assert files == {*names, 'resume.pt', 'summary.csv', 'args.yaml'}
    vqgan = load_vqgan(output / 'last.safetensors')
    assert vqgan.config.factor == 2
    images = [Image.open(pictures / 'validation' / f'{index}.png').convert('RGB') for index in range(12)]
    x = torch.stack([torch.from_numpy(np.array(image.resize((16, 16), Image.BICUBIC))) for image in images])
    x_pix = x.permute(0, 3, 1, 2).float() / 255
    assert (vqgan(x_pix) - x_pix).abs().mean().item() == pytest.approx(metrics['l1'], abs=1e-6)


def test_what_is_written_is_for_dad(trained):
    args = parse_args(['--dad', '--dad-vqgan', str(trained[0] / 'best.safetensors')])
    assert isinstance(create_vqgan(args, (16, 16)), timm_dad.VQGAN)


def test_a_saved_vqgan_is_the_same(vqgan, x_pix, tmp_path):
    save_vqgan(vqgan, tmp_path / 'a.safetensors')
    loaded = load_vqgan(tmp_path / 'a.safetensors')
    torch.testing.assert_close(loaded(x_pix), vqgan(x_pix), atol=1e-6, rtol=0)
    assert loaded.config == vqgan.config
    assert {path.name for path in tmp_path.iterdir()} == {'a.safetensors', 'a.yaml'}


def same_weights(one, other):
    one, other = load_file(one / 'last.safetensors'), load_file(other / 'last.safetensors')
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
def test_equal_seeds_give_equal_bits(trained, pictures, tmp_path):
    main(flags(pictures, tmp_path / 'same', '--epochs', '3', '--workers', '1'))  # no sample depends on a worker
    main(flags(pictures, tmp_path / 'other', '--epochs', '3', '--seed', '1'))
    assert same_weights(trained[0], tmp_path / 'same')
    assert not same_weights(trained[0], tmp_path / 'other')


class Killed(Exception):  # noqa: N818
    pass


@pytest.mark.slow
@pytest.mark.parametrize('steps', [5, 9, 13])
def test_a_killed_run_ends_as_an_undisturbed_one(steps, trained, pictures, tmp_path, monkeypatch):
    train_step = VQGANTrainer.step

    def step(trainer, x_pix):
        if trainer.steps_done == steps:
            raise Killed
        return train_step(trainer, x_pix)

    monkeypatch.setattr(VQGANTrainer, 'step', step)
    argv = flags(pictures, tmp_path, '--epochs', '3', '--recovery-interval', '4', '--resume', 'auto')
    with pytest.raises(Killed):
        main(argv)
    monkeypatch.undo()
    main(argv)
    assert same_weights(trained[0], tmp_path)
    assert (tmp_path / 'summary.csv').read_text() == (trained[0] / 'summary.csv').read_text()


def test_a_run_that_is_done_is_not_trained_again(trained, pictures):
    output, metrics = trained
    before = (output / 'last.safetensors').read_bytes()
    again = vqgan_command.main(flags(pictures, output, '--epochs', '3', '--resume', 'auto')[1:])
    assert again == pytest.approx(metrics)
    assert (output / 'last.safetensors').read_bytes() == before


@pytest.mark.slow
def test_steps_are_epochs_by_another_name(trained, pictures, tmp_path):
    main(flags(pictures, tmp_path, '--steps', '15'))
    assert same_weights(trained[0], tmp_path)


def test_fine_tuning_starts_from_the_weights(trained, pictures, tmp_path):
    more = ('--init', str(trained[0] / 'best.safetensors'), '--steps', '2', '--lr', '1e-6')
    main(flags(pictures, tmp_path, *more, architecture=[]))
    assert float(rows(tmp_path)[0]['eval_l1']) == pytest.approx(float(rows(trained[0])[-1]['eval_l1']), rel=0.02)
    assert yaml.safe_load((tmp_path / 'last.yaml').read_text()) == yaml.safe_load(
        (trained[0] / 'last.yaml').read_text()
    )


@pytest.mark.parametrize(
    ('more', 'message'),
    [
        (['--img-size', '17'], '--img-size must be a multiple of 2, the factor of the VQGAN, got 17 (nearest: 16)'),
        (['--img-size', '0'], '--img-size must be 1 or more, got 0'),
        (['--ch', '40'], "--ch must be a multiple of 32, the groups of taming's group norm, got 40"),
        (['--ch-mult', '0', '1'], '--ch-mult must be factors of 1 or more, got [0, 1]'),
        (['--attn-resolutions', '5'], '--attn-resolutions must be sides of feature maps, [16, 8] at this size, got'),
        (['--n-embed', '0'], '--n-embed must be 1 or more, got 0'),
        (['--steps', '1'], '--steps: steps must be 2 or more, got 1'),
        (['--lr', '3'], '--lr: lr must be between 0 and 1, got 3.0'),
        (['--clip-grad', '0'], '--clip-grad: clip_grad must be more than 0, got 0.0'),
        (['--weight-decay', '-1'], '--weight-decay: weight_decay must be from 0 to 1, got -1.0'),
        (['--perceptual-weight', '0'], '--perceptual-weight: perceptual_weight must be more than 0 (or --perceptual'),
        (['--perceptual-weight', '2'], '--perceptual-weight needs --perceptual lpips'),
        (['--amp-dtype', 'bfloat16'], '--amp-dtype needs --amp'),
        (['--no-aug', '--hflip', '1'], '--no-aug takes centre crops without mirroring: leave --hflip out'),
        (['--epochs', '1', '--batch-size', '40'], '--epochs must give 2 steps or more, got 1'),
        (['--restart-interval', '-1'], '--restart-interval: restart_interval must be 0 or more, got -1'),
        (['--restart-until', '2'], '--restart-until: restart_until must be a fraction, from 0 to 1, got 2.0'),
        (['--scale', '0.5', '0.1'], '--scale must be two areas, 0 < LEAST <= MOST <= 1, got [0.5, 0.1]'),
        (['--hflip', '2'], '--hflip must be from 0 to 1, got 2.0'),
        (['--workers', '-1'], '--workers must be 0 or more, got -1'),
        (['--batch-size', '41'], '--batch-size must be at most the 40 training images, got 41'),
        (['--val-split', 'test'], "--val-split must be a folder in"),
        (['--val-split', ''], '--val-split must name a split'),
        (['--resume', 'x'], "--resume must be auto, got 'x'"),
        (['--device', 'tpu'], "--device must be cuda or cpu, got 'tpu'"),
        (['--perceptual', 'l3'], "argument --perceptual: invalid choice: 'l3'"),
        (['--epochs', '2', '--steps', '3'], 'not allowed with argument'),
        (['--init', 'x.safetensors'], '--ch is already part of --init: give only one of them'),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(more, message, pictures, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(flags(pictures, tmp_path / 'run', *more))
    assert message in capsys.readouterr().err
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
    ('argv', 'message'),
    [
        (['--init', 'nothing.safetensors'], '--init: '),
        (['--init', 'demo', '--img-size', '18'], '--img-size must be a multiple of 4, the factor of the VQGAN, got 18'),
        (['--resume', 'auto'], '--resume auto needs --output'),
        (['--data-dir', ''], '--data-dir must name a folder of pictures (or give --dataset)'),
    ],
)
def test_bad_input_without_an_architecture(argv, message, pictures, capsys):
    with pytest.raises(SystemExit):
        main(['vqgan', 'train', '--data-dir', str(pictures), '--device', 'cpu', *argv])
    assert message in capsys.readouterr().err


def test_an_empty_folder_is_an_error(tmp_path, capsys):
    for split in ('train', 'validation'):
        (tmp_path / 'data' / split).mkdir(parents=True)
    with pytest.raises(SystemExit):
        main(flags(tmp_path / 'data', tmp_path / 'run'))
    assert f"--data-dir {tmp_path / 'data'}: no images for split 'train'" in capsys.readouterr().err


@pytest.mark.parametrize('quantizer', ['gumbel', 'cosine', 'inner_product'])
def test_a_vqgan_of_other_than_nearest_codes_is_not_trained(vqgan_config, pictures, tmp_path, capsys, quantizer):
    config = VQGANConfig(ddconfig=vqgan_config.ddconfig, n_embed=8, embed_dim=4, quantizer=quantizer)
    save_vqgan(VQGAN(config), tmp_path / 'other.safetensors')
    with pytest.raises(SystemExit):
        main(flags(pictures, tmp_path / 'run', '--init', str(tmp_path / 'other.safetensors'), architecture=[]))
    error = f'--init must be a VQGAN of nearest codes (VQModel, MOVQ), got one of {quantizer.replace("_", " ")}'
    assert error in capsys.readouterr().err


def test_a_folder_with_an_older_run_is_refused(trained, pictures, capsys):
    with pytest.raises(SystemExit):
        main(flags(pictures, trained[0], '--epochs', '3'))
    assert 'contains an older run; choose another folder, or --resume auto' in capsys.readouterr().err


def test_a_finished_vqgan_without_its_state_is_not_overwritten(trained, pictures, tmp_path, capsys):
    for name in ('best.safetensors', 'summary.csv'):
        shutil.copy(trained[0] / name, tmp_path / name)
    for more in ([], ['--resume', 'auto']):
        with pytest.raises(SystemExit):
            main(flags(pictures, tmp_path, *more))
        assert 'contains best.safetensors of a run that cannot be resumed here' in capsys.readouterr().err
    assert (tmp_path / 'best.safetensors').read_bytes() == (trained[0] / 'best.safetensors').read_bytes()


def test_the_flags_of_a_run_are_a_config_of_another(trained, pictures, tmp_path):
    main(['vqgan', 'train', '--config', str(trained[0] / 'args.yaml'), '--output', str(tmp_path)])
    assert (tmp_path / 'best.safetensors').read_bytes() == (trained[0] / 'best.safetensors').read_bytes()
    rates = [float(row['lr']) for row in csv.DictReader((tmp_path / 'summary.csv').read_text().splitlines())]
    assert rates[-1] == pytest.approx(4e-6 * max(rates), rel=0.5)  # that of the last step: where a cosine ends


def test_a_run_is_not_resumed_with_other_flags(trained, pictures, capsys):
    with pytest.raises(SystemExit):
        main(flags(pictures, trained[0], '--epochs', '3', '--resume', 'auto', '--hflip', '0'))
    assert 'resume.pt has other flags: --hflip 0.5 -> 0.0; choose another --output' in capsys.readouterr().err


def test_a_run_from_another_vqgan_goes_on_with_it(pictures, tmp_path, capsys):
    small = ['vqgan', 'train', '--data-dir', str(pictures), '--img-size', '16', '--batch-size', '8', '--workers', '0']
    small += ['--output', str(tmp_path), '--steps', '4']
    main([*small, '--init', 'demo'])
    with pytest.raises(SystemExit):
        main([*small, '--resume', 'auto'])
    assert 'resume.pt has other flags: --init a VQGAN -> none' in capsys.readouterr().err
    shutil.copy(tmp_path / 'best.safetensors', tmp_path / 'own.safetensors')
    shutil.copy(tmp_path / 'best.yaml', tmp_path / 'own.yaml')
    main([*small, '--init', str(tmp_path / 'own.safetensors'), '--resume', 'auto'])


def test_a_run_of_version_0_1_is_not_resumed(pictures, tmp_path, capsys):
    torch.save(
        {'settings': {}, 'trainer': {}, 'epoch': 1, 'batch': 0, 'best': 0.1, 'meters': {}}, tmp_path / 'resume.pt'
    )
    with pytest.raises(SystemExit):
        main(flags(pictures, tmp_path, '--resume', 'auto'))
    assert 'resume.pt is from version 0.1, which drew samples in another way; choose' in capsys.readouterr().err


def test_a_broken_file_is_not_resumed(pictures, tmp_path, capsys):
    (tmp_path / 'resume.pt').write_bytes(b'no zip')
    with pytest.raises(SystemExit):
        main(flags(pictures, tmp_path, '--resume', 'auto'))
    assert 'resume.pt is not a PyTorch checkpoint: ' in capsys.readouterr().err


def test_a_folder_in_use_is_refused(pictures, tmp_path, capsys):
    with FileLock(tmp_path / '.lock'), pytest.raises(SystemExit):
        main(flags(pictures, tmp_path))
    assert f'--output: {tmp_path} is in use by another run; choose another folder' in capsys.readouterr().err


def test_an_infinite_loss_stops_the_run(pictures, tmp_path, monkeypatch, capsys):
    forward = vqgan_command.VQGANTrainer.step
    monkeypatch.setattr(
        VQGANTrainer, 'step', lambda trainer, x: {name: value * np.nan for name, value in forward(trainer, x).items()}
    )
    with pytest.raises(SystemExit, match='2'):
        main(flags(pictures, tmp_path, '--steps', '2'))
    assert re.search(r'the loss is not finite in step 1, .*lower --lr .*start again', capsys.readouterr().err)
    assert not (tmp_path / 'last.safetensors').exists()


FAKE_LPIPS = """
from torch import nn
class LPIPS(nn.Module):
    def __init__(self, net, verbose):
        super().__init__()
        assert net == 'vgg'
    def forward(self, in0, in1, normalize):
        assert normalize
        return (in0 - in1).abs().mean(dim=(1, 2, 3), keepdim=True)
"""


def test_lpips_takes_the_place_of_l2(pictures, tmp_path, monkeypatch):
    (tmp_path / 'lpips.py').write_text(FAKE_LPIPS)
    monkeypatch.syspath_prepend(str(tmp_path))
    main(flags(pictures, tmp_path / 'run', '--steps', '2', '--perceptual', 'lpips', '--perceptual-weight', '0.5'))
    sys.modules.pop('lpips')
    (row,) = rows(tmp_path / 'run')
    loss, l1, perceptual, commitment = (
        float(row[f'train_{name}']) for name in ('loss', 'l1', 'perceptual', 'commitment')
    )
    assert perceptual == pytest.approx(l1, rel=1e-5)
    assert loss == pytest.approx(l1 + 0.5 * perceptual + commitment, rel=1e-5)
    assert 'train_l2' not in row


def test_lpips_never_unpickles_what_lies_in_the_cache(tmp_path, monkeypatch):
    class Payload:
        def __reduce__(self):
            return open, (str(tmp_path / 'it ran'), 'w')

    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    check_vgg16()  # nothing is there yet
    path = tmp_path / 'hub' / 'checkpoints' / 'vgg16-397923af.pth'
    path.parent.mkdir(parents=True)
    torch.save({'features.0.weight': torch.zeros(2)}, path)
    check_vgg16()
    torch.save({'features.0.weight': Payload()}, path)
    monkeypatch.setitem(sys.modules, 'lpips', types.SimpleNamespace(LPIPS=lambda **_: pytest.fail('it was built')))
    with pytest.raises(ValueError, match=r"vgg16-397923af\.pth is not torchvision's VGG16, .*open: delete it"):
        create_lpips(torch.device('cpu'))
    assert not (tmp_path / 'it ran').exists()
    path.write_bytes(b'')
    with pytest.raises(ValueError, match=r'--perceptual lpips: .*is empty; delete it'):
        check_vgg16()


def test_lpips_that_is_asked_for_and_missing_is_an_error(pictures, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'lpips', None)
    with pytest.raises(SystemExit):
        main(flags(pictures, tmp_path / 'run', '--perceptual', 'lpips'))
    assert '--perceptual lpips needs the package lpips; run: pip install lpips' in capsys.readouterr().err


def trainer(config, **settings):
    torch.manual_seed(0)
    return VQGANTrainer(VQGAN(config), Accelerator(cpu=True), VQGANTrainConfig(steps=8, **settings))


def test_unused_codes_are_restarted_on_latents(vqgan_config, x_pix):
    made = trainer(vqgan_config, restart_interval=2, lr=1e-12)
    with torch.no_grad():
        made.vqgan.codebook[1:] = 100  # far from every latent
    made.step(x_pix)
    assert (made.vqgan.codebook[1:] > 99).all()
    assert made.used.nonzero().tolist() == [[0]]
    made.step(x_pix)
    latents = made.vqgan.encode(x_pix).permute(0, 2, 3, 1).reshape(-1, 4)
    nearest = torch.cdist(made.vqgan.codebook[1:], latents).min(dim=1).values
    assert nearest.max() < 1e-3
    assert made.used.sum() == 0  # counted anew


@pytest.mark.parametrize('settings', [{'restart_interval': 0}, {'restart_interval': 2, 'restart_until': 0.0}])
def test_codes_stay_where_they_are_without_restart(settings, vqgan_config, x_pix):
    made = trainer(vqgan_config, lr=1e-12, **settings)
    with torch.no_grad():
        made.vqgan.codebook[1:] = 100
    for _ in range(4):
        made.step(x_pix)
    assert (made.vqgan.codebook[1:] > 99).all()


def test_every_parameter_is_trained(vqgan_config, x_pix):
    made = trainer(vqgan_config, restart_interval=0)
    before = {name: value.clone() for name, value in made.vqgan.state_dict().items()}
    made.step(x_pix)
    made.step(x_pix)
    assert [name for name, value in made.vqgan.state_dict().items() if torch.equal(value, before[name])] == []


def test_metrics_are_those_by_hand(vqgan, x_pix):
    made = VQGANTrainer(vqgan, Accelerator(cpu=True), VQGANTrainConfig(steps=2))
    metrics = made.evaluate([(x_pix[:3], None), (x_pix[3:], None)])
    assert vqgan.training
    error = (vqgan.eval()(x_pix) - x_pix).flatten(1)
    assert metrics['l1'] == pytest.approx(error.abs().mean().item(), rel=1e-5)
    psnr = 10 * torch.log10(1 / error.square().mean(dim=1))
    assert metrics['psnr'] == pytest.approx(psnr.mean().item(), rel=1e-5)
    counts = torch.bincount(vqgan.encode_to_codes(x_pix).flatten(), minlength=32).double()
    assert metrics['usage'] == pytest.approx((counts > 0).double().mean().item())
    share = counts[counts > 0] / counts.sum()
    assert metrics['perplexity'] == pytest.approx(np.exp(-(share * share.log()).sum().item()))


def test_lpips_is_neither_trained_nor_saved(vqgan_config, x_pix):
    network = nn.Conv2d(3, 1, 1)
    made = VQGANTrainer(
        VQGAN(vqgan_config), Accelerator(cpu=True), VQGANTrainConfig(steps=2),
        lambda output, x: (network(output) - network(x)).abs().mean(),
    )  # fmt: skip
    before = network.weight.clone()
    assert made.step(x_pix)['perceptual'] > 0
    assert torch.equal(network.weight, before)
    assert set(made.state_dict()['vqgan']) == set(VQGAN(vqgan_config).state_dict())


@pytest.mark.slow
@pytest.mark.parametrize('dtype', [pytest.param('float16', marks=pytest.mark.slow), 'bfloat16'])
def test_amp_trains_in_the_precision_and_leaves_weights_in_fp32(dtype, pictures, tmp_path):
    main(flags(pictures, tmp_path / 'fp32', '--epochs', '1'))
    AcceleratorState._reset_state(reset_partial_state=True)
    main(flags(pictures, tmp_path / 'amp', '--epochs', '1', '--amp', '--amp-dtype', dtype))
    ((fp32,), (amp,)) = rows(tmp_path / 'fp32'), rows(tmp_path / 'amp')
    assert float(amp['train_l1']) == pytest.approx(float(fp32['train_l1']), rel=0.05)
    assert amp['train_l1'] != fp32['train_l1']
    assert {value.dtype for value in load_file(tmp_path / 'amp' / 'last.safetensors').values()} == {torch.float32}


@pytest.mark.slow
def test_two_processes_are_one_with_twice_the_batch(pictures, tmp_path):
    """Without restart, which draws latents of one process."""
    more = ('--restart-interval', '0', '--steps', '8')
    main(flags(pictures, tmp_path / 'one', *more))
    argv = flags(pictures, tmp_path / 'two', *more)
    argv[argv.index('--batch-size') + 1] = '4'
    root = str(Path(timm_dad.__file__).parents[1])
    launcher = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2']
    subprocess.run(
        [*launcher, '-m', 'timm_dad', *argv],
        env={**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': root}, check=True, timeout=300,
    )  # fmt: skip
    for one, two in zip(rows(tmp_path / 'one'), rows(tmp_path / 'two'), strict=True):
        for name in ('train_loss', 'train_l1', 'train_commitment', 'eval_l1', 'eval_psnr'):
            assert float(two[name]) == pytest.approx(float(one[name]), rel=0.02), name
