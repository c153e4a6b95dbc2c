import csv
import json
import logging
import re

import numpy as np
import open_clip
import pytest
import timm
import torch
import torch.nn.functional as F
from accelerate.state import AcceleratorState
from clips import MEAN, STD, add_clip_name, normalize, write_clip_folder
from folders import CLASSES, write_pictures
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import train_dad
from timm_dad.cli import main
from timm_dad.commands.probe import fit_head, fit_probe, split_held_out
from timm_dad.evaluation.command import main as evaluate
from timm_dad.teachers.backbones import load_open_clip
from timm_dad.teachers.heads import LinearHead, create_head_teacher, load_tower, read_head, save_head
from timm_dad.teachers.spec import DataClasses, create_teacher_by_spec


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch_home'))


@pytest.fixture
def pictures(tmp_path):
    """4 classes of 10 pictures, told apart by colour."""
    return write_pictures(tmp_path / 'pictures', train=10)


@pytest.fixture
def clip(tmp_path):
    write_clip_folder(tmp_path / 'clip')
    return tmp_path / 'clip'


def problem(count=200, dim=6, classes=3):
    x = F.normalize(torch.randn(count, dim, dtype=torch.double) + 1, dim=-1)
    y = (8 * x @ torch.randn(dim, classes, dtype=torch.double) + torch.randn(count, classes)).argmax(dim=-1)
    return x, y


# The fit.


@pytest.mark.parametrize('l2', [1e-1, 1e-3])
def test_the_fit_is_at_the_minimum(l2):
    x, y = problem()
    weight, bias = (part.requires_grad_(True) for part in fit_head(x, y, l2))
    loss = F.cross_entropy(F.linear(x, weight, bias), y) + l2 / 2 * weight.square().sum()
    for gradient in torch.autograd.grad(loss, (weight, bias)):
        assert gradient.abs().max() < 1e-5
    assert weight.abs().max() > 0.1


def test_more_regularization_is_a_smaller_head_and_a_warm_start_the_same_one():
    x, y = problem()
    strong, weak = fit_head(x, y, 1e-1), fit_head(x, y, 1e-3)
    assert strong[0].norm() < weak[0].norm()
    torch.testing.assert_close(fit_head(x, y, 1e-3, start=strong)[0], weak[0], atol=1e-3, rtol=1e-3)


def test_the_held_out_part_is_of_every_class_and_seeded():
    labels = torch.tensor([0] * 20 + [1] * 7 + [2])
    kept, held_out = split_held_out(labels, 0.2, seed=0)
    assert sorted([*kept.tolist(), *held_out.tolist()]) == list(range(28))
    assert labels[held_out].bincount(minlength=3).tolist() == [4, 1, 0]
    assert torch.equal(held_out, split_held_out(labels, 0.2, seed=0)[1])
    assert not torch.equal(held_out, split_held_out(labels, 0.2, seed=1)[1])


def test_classes_of_one_picture_leave_nothing_to_hold_out():
    with pytest.raises(ValueError, match='every class has one picture'):
        split_held_out(torch.arange(4), 0.1, seed=0)


def test_the_regularization_is_the_one_of_the_least_held_out_loss():
    x, y = problem(120)
    weight, bias, facts = fit_probe(x, y, 3, held_out=0.3)
    mean, scale = x.mean(dim=0), (x - x.mean(dim=0)).square().mean().sqrt()
    z = (x - mean) / scale
    kept, held_out = split_held_out(y, 0.3, seed=0)
    losses = {}
    for l2 in (1.0, 1e-1, 1e-2, 1e-3, 1e-4):
        losses[l2] = F.cross_entropy(F.linear(z[held_out], *fit_head(z[kept], y[kept], l2)), y[held_out]).item()
    assert facts['l2'] == pytest.approx(min(losses, key=losses.get))
    assert facts['held_out_loss'] == pytest.approx(min(losses.values()), rel=1e-3)
    expected = F.linear(z, *fit_head(z, y, facts['l2']))
    torch.testing.assert_close(F.linear(x, weight, bias), expected, atol=1e-4, rtol=1e-4)


def test_a_class_without_pictures_is_refused():
    with pytest.raises(ValueError, match=r'every class needs pictures to fit on, but the labels \[1, 3\] have none'):
        fit_probe(torch.randn(6, 2), torch.tensor([0, 0, 0, 2, 2, 2]), 4)


# The command.


def probe(pictures, spec, output, *more):
    main(
        [
            *('probe', '--data-dir', str(pictures), '--teacher', spec, '--output', str(output)),
            *('--workers', '0', '--batch-size', '16', '--device', 'cpu', *more),
        ]
    )
    return read_head(output)


@pytest.fixture
def timm_folder(tmp_path):
    cfg = {'mean': MEAN, 'std': STD, 'input_size': (3, 32, 32)}
    model = timm.create_model('test_resnet', num_classes=9, pretrained_cfg_overlay=cfg)
    timm.models.save_for_hf(model, tmp_path / 'timm', safe_serialization=True)
    return tmp_path / 'timm'


@pytest.mark.parametrize('source', ['open_clip', 'timm'])
def test_a_probe_is_a_teacher_that_knows_the_pictures(pictures, clip, timm_folder, tmp_path, source, caplog):
    spec = {'open_clip': f'open_clip:local-dir:{clip}', 'timm': f'timm:local-dir:{timm_folder}'}[source]
    logging.getLogger('timm_dad').setLevel(logging.WARNING)  # as `timm-dad info` leaves it
    with caplog.at_level(logging.INFO, 'timm_dad'):
        head = probe(pictures, spec, tmp_path / 'probe.safetensors')
    assert f'use it with --dad-teacher probe:{tmp_path / "probe.safetensors"}' in caplog.text
    assert head.tower == spec
    assert list(head.class_names) == list(CLASSES)
    assert head.facts['pictures'] == 40
    data = DataClasses(num_classes=4, class_names=CLASSES)
    teacher = create_teacher_by_spec(f'probe:{tmp_path / "probe.safetensors"}', data)
    correct = 0
    for label, name in enumerate(CLASSES):
        for path in (pictures / 'train' / name).iterdir():
            pixels = torch.tensor(np.array(Image.open(path).resize((32, 32)))).permute(2, 0, 1)[None] / 255
            correct += int(teacher(pixels).argmax() == label)
    assert correct >= 36
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_the_logits_are_the_heads_own_without_clips_scale(pictures, clip, tmp_path):
    head = probe(pictures, f'open_clip:local-dir:{clip}', tmp_path / 'probe.safetensors')
    teacher = create_teacher_by_spec(
        f'probe:{tmp_path / "probe.safetensors"}', DataClasses(num_classes=4, class_names=CLASSES)
    )
    x_pix = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        features = F.normalize(load_open_clip(f'local-dir:{clip}')[0].encode_image(normalize(x_pix)), dim=-1)
    torch.testing.assert_close(teacher(x_pix), features @ head.weight.T + head.bias, atol=1e-4, rtol=1e-4)


@pytest.fixture
def own_accelerator_state():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.slow
def test_a_probe_teaches_and_is_evaluated_in_bf16(pictures, clip, tmp_path, own_accelerator_state):
    spec = f'probe:{tmp_path / "probe.safetensors"}'
    probe(pictures, f'open_clip:local-dir:{clip}', tmp_path / 'probe.safetensors')
    train_dad.main(
        [
            *('--data-dir', str(pictures), '--val-split', 'train', '--output', str(tmp_path), '--experiment', 'run'),
            *(
                '--model',
                'test_resnet',
                '--num-classes',
                '4',
                '--img-size',
                '32',
                '--batch-size',
                '20',
                '--epochs',
                '1',
            ),
            *('--workers', '0', '--device', 'cpu', '--dad', '--dad-vqgan', 'demo', '--dad-teacher', spec),
            *('--dad-precision', 'bf16'),
        ]
    )
    with open(tmp_path / 'run' / 'summary.csv') as file:
        (row,) = csv.DictReader(file)
    assert float(row['train_kd_loss']) > 0
    assert float(row['train_dad_loss']) > 0
    report = evaluate(
        [
            *('--model', f'probe={spec}', '--suite', f'train={pictures}/train', '--output', str(tmp_path / 'report')),
            *('--precision', 'bf16', '--bootstrap', '20', '--workers', '0', '--device', 'cpu'),
        ]
    )
    assert report['figures']['probe']['train']['*']['top1']['value'] >= 90


def test_equal_seeds_give_equal_files(pictures, clip, tmp_path):
    files = []
    for name, seed in (('a', '1'), ('b', '1')):
        probe(pictures, f'open_clip:local-dir:{clip}', tmp_path / f'{name}.safetensors', '--seed', seed)
        files.append((tmp_path / f'{name}.safetensors').read_bytes())
    assert files[0] == files[1]


def test_a_probe_finds_its_classes_in_a_subset_in_another_order(pictures, clip, tmp_path):
    probe(pictures, f'open_clip:local-dir:{clip}', tmp_path / 'probe.safetensors')
    spec, x_pix = f'probe:{tmp_path / "probe.safetensors"}', torch.rand(2, 3, 32, 32)
    whole = create_teacher_by_spec(spec, DataClasses(num_classes=4, class_names=CLASSES))(x_pix)
    part = create_teacher_by_spec(spec, DataClasses(num_classes=2, class_names=['tree', 'cat']))(x_pix)
    torch.testing.assert_close(part, whole[:, [3, 0]])
    mapped = DataClasses(num_classes=2, class_names=['oak', 'tiger'], class_map=['tree', '0'])
    torch.testing.assert_close(create_teacher_by_spec(spec, mapped)(x_pix), part)


@pytest.mark.parametrize(
    ('more', 'match'),
    [
        (('--data-dir', ''), '--data-dir must name a folder'),
        (('--data-dir', 'nowhere'), '--data-dir nowhere: there is no such folder'),
        (('--output', 'probe.pt'), r"--output must end in \.safetensors, got 'probe\.pt'"),
        (('--output', 'nowhere/probe.safetensors'), '--output must be in a folder that exists'),
        (('--output', 'there.safetensors'), '--output there.safetensors already exists: move it away'),
        (('--held-out', '1'), '--held-out must be between 0 and 1, got 1'),
        (('--batch-size', '0'), '--batch-size must be 1 or more'),
        (('--workers', '-1'), '--workers must be 0 or more'),
        (
            ('--teacher', 'demo'),
            "--dad-teacher demo: an image tower is timm:MODEL, run:FOLDER or open_clip:.* got 'demo'",
        ),
        (('--teacher', 'timm:nope'), "--dad-teacher timm:nope: timm has no model 'nope'"),
    ],
)
def test_bad_flags_end_with_one_line(pictures, clip, tmp_path, capsys, monkeypatch, more, match):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'there.safetensors').write_bytes(b'weights of a tower')
    with pytest.raises(SystemExit) as stop:
        probe(pictures, f'open_clip:local-dir:{clip}', 'probe.safetensors', *more)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert re.search(f'timm-dad probe: error: {match}', error), error
    assert not (tmp_path / 'probe.safetensors').exists()


# Files of heads.


def head_file(path, tower='', **more):
    head = LinearHead(weight=torch.randn(3, 16), bias=torch.randn(3), tower=tower, class_names=['a', 'b', 'c'], **more)
    save_head(path, head)
    return head


def test_a_head_is_read_as_it_was_written(tmp_path):
    head = head_file(tmp_path / 'head.safetensors', 'open_clip:X/y', facts={'l2': 0.1}, visual={'w': torch.ones(2)})
    read = read_head(tmp_path / 'head.safetensors')
    assert torch.equal(read.weight, head.weight)
    assert torch.equal(read.bias, head.bias)
    assert torch.equal(read.visual['w'], torch.ones(2))
    assert (read.tower, list(read.class_names), read.facts) == ('open_clip:X/y', ['a', 'b', 'c'], {'l2': 0.1})
    with safe_open(tmp_path / 'head.safetensors', framework='pt') as file:
        assert json.loads(file.metadata()['timm_dad'])['tower'] == 'open_clip:X/y'


def test_other_users_can_read_a_head(tmp_path):
    head_file(tmp_path / 'head.safetensors')
    (tmp_path / 'opened').touch()
    assert (tmp_path / 'head.safetensors').stat().st_mode == (tmp_path / 'opened').stat().st_mode


@pytest.mark.parametrize('suffix', ['.pt', '.safetensors'])
@pytest.mark.parametrize('bias', [True, False])
def test_a_clip_fine_tuned_with_a_head_is_a_teacher(tmp_path, suffix, bias):
    """A plain checkpoint of ``visual.*`` and ``head.*``, as a fine-tuning script of open_clip's towers saves it."""
    _, _ = add_clip_name(tmp_path, 'tiny-tuned')
    tuned = open_clip.create_model('tiny-tuned').eval()
    head = nn.Linear(16, 5, bias=bias)
    state = {f'visual.{name}': value for name, value in tuned.visual.state_dict().items()}
    state.update({f'head.{name}': value.detach() for name, value in head.state_dict().items()})
    file = tmp_path / f'tuned{suffix}'
    save_file(state, file) if suffix == '.safetensors' else torch.save({'state_dict': state}, file)
    x_pix = torch.rand(2, 3, 32, 32)
    x_norm = normalize(x_pix, open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    with torch.no_grad():
        expected = head(F.normalize(tuned.encode_image(x_norm), dim=-1))
    for spec, checkpoint in ((f'open_clip:tiny-tuned/{file}', None), ('open_clip:tiny-tuned', str(file))):
        teacher = create_teacher_by_spec(spec, DataClasses(num_classes=5), checkpoint)
        torch.testing.assert_close(teacher(x_pix), expected, atol=1e-5, rtol=1e-5)


def test_the_tag_beside_such_a_file_states_activation_and_normalization(tmp_path, monkeypatch):
    add_clip_name(tmp_path, 'tiny-tag')
    tag = open_clip.pretrained._pcfg('nowhere', quick_gelu=True, mean=(0.5,) * 3, std=(0.5,) * 3)
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, 'tiny-tag', {'own': tag})
    tuned = open_clip.create_model('tiny-tag', force_quick_gelu=True).eval()
    head = nn.Linear(16, 5)
    state = {f'visual.{name}': value for name, value in tuned.visual.state_dict().items()}
    state.update({f'head.{name}': value.detach() for name, value in head.state_dict().items()})
    save_file(state, tmp_path / 'tuned.safetensors')
    x_pix = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected = head(F.normalize(tuned.encode_image(normalize(x_pix, (0.5,) * 3, (0.5,) * 3)), dim=-1))
    file = str(tmp_path / 'tuned.safetensors')
    teacher = create_teacher_by_spec('open_clip:tiny-tag/own', DataClasses(num_classes=5), file)
    torch.testing.assert_close(teacher(x_pix), expected, atol=1e-5, rtol=1e-5)


def test_a_file_of_a_whole_clip_has_no_head(tmp_path):
    file, _ = add_clip_name(tmp_path, 'tiny-whole')
    assert read_head(file) is None


@pytest.mark.parametrize(
    ('name', 'match'),
    [('junk.pt', r'junk\.pt is not a PyTorch checkpoint'), ('junk.safetensors', 'is not a file of weights')],
)
def test_a_file_that_holds_no_weights_is_refused(tmp_path, name, match):
    (tmp_path / name).write_text('junk')
    with pytest.raises(ValueError, match=match):
        read_head(tmp_path / name)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path):
    class Payload:
        def __reduce__(self):
            return (open, (str(tmp_path / 'owned'), 'w'))

    torch.save({'head.weight': Payload()}, tmp_path / 'evil.pt')
    with pytest.raises(ValueError, match=r'evil\.pt contains more than weights'):
        read_head(tmp_path / 'evil.pt')
    assert not (tmp_path / 'owned').exists()


@pytest.mark.parametrize(('weight', 'bias'), [((3,), (3,)), ((3, 4), (4,))])
def test_a_head_of_strange_shape_is_refused(weight, bias):
    with pytest.raises(ValueError, match=r'head.weight must be \[K, D\] and head.bias \[K\], got'):
        LinearHead(weight=torch.zeros(weight), bias=torch.zeros(bias))


def test_a_probe_of_other_weights_is_refused(pictures, clip, tmp_path):
    probe(pictures, f'open_clip:local-dir:{clip}', tmp_path / 'probe.safetensors')
    write_clip_folder(clip)
    with pytest.raises(
        ValueError, match=r'probe\.safetensors was fitted on weights that differ from those of open_clip:'
    ):
        create_teacher_by_spec(f'probe:{tmp_path / "probe.safetensors"}', DataClasses(num_classes=4))


def test_a_head_of_another_width_is_refused(clip, tmp_path):
    head = LinearHead(weight=torch.zeros(3, 7), bias=torch.zeros(3))
    with pytest.raises(ValueError, match='does not fit the image tower open_clip:local-dir'):
        create_head_teacher(head, f'open_clip:local-dir:{clip}', 3)


def test_a_head_of_other_classes_is_refused(clip, tmp_path):
    head_file(tmp_path / 'head.safetensors', f'open_clip:local-dir:{clip}')
    with pytest.raises(ValueError, match=r"has 3 classes and the data 2; it knows 0 of them .*\['x', 'y'\]"):
        create_teacher_by_spec(
            f'probe:{tmp_path / "head.safetensors"}', DataClasses(num_classes=2, class_names=['x', 'y'])
        )


def test_files_that_are_no_probe_are_refused(tmp_path):
    data = DataClasses(num_classes=3)
    with pytest.raises(ValueError, match='must be what `timm-dad probe` wrote, got no file'):
        create_teacher_by_spec('probe:nowhere.safetensors', data)
    head_file(tmp_path / 'towerless.safetensors')
    save_file({'a': torch.zeros(1)}, tmp_path / 'headless.safetensors')
    for name in ('towerless', 'headless'):
        with pytest.raises(ValueError, match='got a file without a head or without its tower'):
            create_teacher_by_spec(f'probe:{tmp_path / name}.safetensors', data)


def test_a_probe_given_as_weights_of_a_model_is_refused(clip, tmp_path):
    add_clip_name(tmp_path, 'tiny-beside')
    head_file(tmp_path / 'head.safetensors', f'open_clip:local-dir:{clip}')
    with pytest.raises(ValueError, match=r'contains a head but no image tower \(visual\.\*\): give it as probe:'):
        create_teacher_by_spec(f'open_clip:tiny-beside/{tmp_path / "head.safetensors"}', DataClasses(num_classes=3))


def test_the_tower_of_a_timm_model_has_no_classifier(timm_folder):
    tower, norm = load_tower(f'timm:local-dir:{timm_folder}')
    assert tower(torch.rand(1, 3, 32, 32)).shape == (1, tower.num_features)
    assert norm['input_size'] == (32, 32)
    assert load_file(timm_folder / 'model.safetensors')['fc.weight'].shape[0] == 9
