"""``timm-dad export``: a student for timm, ONNX Runtime and torch.export, and what keeps it from being written."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from folders import CLASSES, write_pictures
from huggingface_hub import ModelCard
from pages import run_commands
from PIL import Image
from safetensors.torch import load_file
from test_features import flags as feature_flags
from test_generate import tree
from test_push import MEAN, STD, STUDENTS, needs_new_timm, write_run

import train_dad
from timm_dad.cli import main
from timm_dad.commands import export
from timm_dad.flags.runs import validation_pictures
from timm_dad.teachers.trained import read_flags

needs_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ('onnx', 'onnxscript', 'onnxruntime')),
    reason='the extra export (onnx, onnxscript, onnxruntime) is not installed',
)
CHECKED = '12 pictures of the validation data: largest difference of logits'


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp('made') / 'pictures', train=1, validation=3)


def run_export(run, kind, *flags):
    """Export into ``out`` beside the run, which is returned."""
    output = run.parent / 'out'
    main(['export', str(run), '--output', str(output), '--format', kind, *flags])
    return output


def refused(capsys, run, kind, *flags):
    """The one line that it ends with; nothing is left beside the run."""
    before = sorted(path.name for path in run.parent.iterdir())
    with pytest.raises(SystemExit) as stop:
        run_export(run, kind, *flags)
    assert stop.value.code == 2
    assert sorted(path.name for path in run.parent.iterdir()) == before
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    return line


def by_card(folder, pixels, monkeypatch):
    """Logits by the lines of Python in the card, run in its folder."""
    code = (folder / 'README.md').read_text().partition('```python\n')[2].partition('```')[0]
    monkeypatch.chdir(folder)
    names = {'pixels': pixels}
    exec(code, names)
    return torch.as_tensor(names['logits'])


def normalized(pixels):
    """``[N, H, W, 3]`` from 0 to 255 -> ``[N, 3, H, W]``."""
    return ((pixels / 255 - torch.tensor(MEAN)) / torch.tensor(STD)).permute(0, 3, 1, 2)


# --- timm -----------------------------------------------------------------------------------------------------------


@needs_new_timm
def test_timm_loads_the_folder_with_equal_logits(pictures, tmp_path, capsys):
    student, _ = write_run(tmp_path / 'run', pictures, **STUDENTS['resnet'])
    output = run_export(tmp_path / 'run', 'timm')
    assert sorted(tree(output)) == ['README.md', 'config.json', 'model.safetensors']
    told = capsys.readouterr().out
    assert told.startswith(f'{CHECKED} 0, same top-1 on 12 of them\n')
    assert told.endswith('out: README.md config.json model.safetensors\n')
    model = timm.create_model(f'local-dir:{output}', pretrained=True).eval()
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(model(x), student(x))
    assert model.pretrained_cfg['label_names'] == list(CLASSES)
    card = ModelCard.load(output / 'README.md')
    assert (card.data.library_name, card.data.license) == ('timm', None)
    assert "timm.create_model('local-dir:out', pretrained=True)" in card.text
    assert '81.25, epoch 7' in card.text
    assert f'{CHECKED} 0' in card.text
    assert 'Licences' not in card.text


@needs_new_timm
@pytest.mark.parametrize(
    ('flags', 'which'),
    [([], 'best, averaged'), (['--no-use-ema'], 'best'), (['--checkpoint', 'best', '--use-ema'], 'best, averaged'),
     (['--checkpoint', 'last'], 'last, averaged'), (['--checkpoint', 'last', '--no-use-ema'], 'last')],
)  # fmt: skip
def test_flags_choose_checkpoint_and_weights(pictures, tmp_path, flags, which):
    best, best_average = write_run(tmp_path / 'run', pictures, ema=True, **STUDENTS['resnet'])
    content = torch.load(tmp_path / 'run/model_best.pth.tar')
    last = {name: value + 1 for name, value in best.state_dict().items()}
    last_average = {name: value + 2 for name, value in best.state_dict().items()}
    torch.save({**content, 'state_dict': last, 'state_dict_ema': last_average}, tmp_path / 'run/last.pth.tar')
    expected = {
        'best': best.state_dict(), 'best, averaged': best_average.state_dict(), 'last': last,
        'last, averaged': last_average,
    }[which]  # fmt: skip
    output = run_export(tmp_path / 'run', 'timm', *flags)
    found = load_file(output / 'model.safetensors')
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
    # The metric is that of the average, which was validated.
    assert ('81.25, epoch 7' in (output / 'README.md').read_text()) == ('averaged' in which)


@needs_new_timm
def test_a_checkpoint_is_named_as_a_file_and_as_elsewhere(pictures, tmp_path, monkeypatch):
    write_run(tmp_path / 'run', pictures, **STUDENTS['resnet'])
    (tmp_path / 'run/model_best.pth.tar').rename(tmp_path / 'run/last.pth.tar')
    monkeypatch.chdir(tmp_path)
    main(['export', 'run:run/last.pth.tar', '--output', 'new/out', '--format', 'timm'])
    assert (tmp_path / 'new/out/model.safetensors').is_file()


# --- torch ----------------------------------------------------------------------------------------------------------


def test_a_program_takes_any_number_of_images(pictures, tmp_path, capsys, monkeypatch):
    student, _ = write_run(tmp_path / 'run', pictures, **STUDENTS['resnet'])
    output = run_export(tmp_path / 'run', 'torch')
    assert f'{CHECKED} 0' in capsys.readouterr().out
    assert sorted(tree(output)) == ['README.md', 'model.pt2']
    facts = {'config.json': ''}
    model = torch.export.load(output / 'model.pt2', extra_files=facts).module()
    for count in (1, 5):
        pixels = torch.randint(0, 256, (count, 64, 64, 3), dtype=torch.uint8)
        expected = student(normalized(pixels))
        torch.testing.assert_close(model(normalized(pixels)), expected)
        torch.testing.assert_close(by_card(output, pixels, monkeypatch), expected)
    assert json.loads(facts['config.json']) == {
        'model': 'test_resnet.r160_in1k', 'task': 'classification', 'input_size': [3, 64, 64],
        'interpolation': 'bilinear', 'mean': MEAN, 'std': STD, 'crop_pct': 0.75, 'crop_mode': 'center',
        'label_names': list(CLASSES),
    }  # fmt: skip
    for path in (Path(timm.__file__).parents[1], tmp_path):  # folders of this machine
        assert str(path).encode() not in (output / 'model.pt2').read_bytes()


@pytest.mark.slow
def test_a_program_needs_neither_timm_nor_timm_dad(pictures, tmp_path):
    write_run(tmp_path / 'run', pictures, **STUDENTS['vit'])
    output = run_export(tmp_path / 'run', 'torch')
    code = """
import sys
sys.modules['timm'] = sys.modules['timm_dad'] = None
import torch
print(torch.export.load('model.pt2').module()(torch.zeros(3, 3, 64, 32)).shape)
"""
    done = subprocess.run([sys.executable, '-c', code], cwd=output, capture_output=True, text=True)
    assert done.stdout == 'torch.Size([3, 4])\n', done.stderr


def test_a_run_of_several_labels_says_so(tmp_path, caplog, capsys):
    flags = {**STUDENTS['resnet'], 'task': 'multilabel', 'dataset': 'hfds/ada/gone', 'train_split': 'train'}
    student, _ = write_run(tmp_path / 'run', '', **flags)
    output = run_export(tmp_path / 'run', 'torch')
    facts = {'config.json': ''}
    model = torch.export.load(output / 'model.pt2', extra_files=facts).module()
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(model(x), student(x))
    assert json.loads(facts['config.json'])['task'] == 'multilabel'
    assert 'label_names' not in facts['config.json']
    assert 'the model gets no class names' in caplog.text
    assert '32 pictures of the demo: largest difference of logits 0' in capsys.readouterr().out


@pytest.mark.slow
def test_a_student_that_learned_features_is_exported_without_their_map(pictures, tmp_path):
    train_dad.main(feature_flags(pictures, tmp_path, '--epochs', '1', '-b', '4'))
    output = run_export(tmp_path / 'run', 'torch')
    state = torch.export.load(output / 'model.pt2').state_dict
    assert set(state) == set(timm.create_model('test_resnet', num_classes=4).state_dict())


# --- ONNX -----------------------------------------------------------------------------------------------------------


@needs_onnx
@pytest.mark.slow
def test_onnx_runtime_gives_the_logits_and_the_file_says_how_images_must_look(pictures, tmp_path, monkeypatch):
    import onnx
    import onnxruntime

    student, _ = write_run(tmp_path / 'run', pictures, **STUDENTS['vit'])
    output = run_export(tmp_path / 'run', 'onnx')
    assert sorted(tree(output)) == ['README.md', 'model.onnx']
    onnx.checker.check_model(output / 'model.onnx', full_check=True)
    session = onnxruntime.InferenceSession(str(output / 'model.onnx'))
    facts = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
    assert (facts['mean'], facts['std'], facts['input_size']) == (MEAN, STD, [3, 64, 32])
    assert (facts['label_names'], facts['task']) == (list(CLASSES), 'classification')
    assert [given.shape for given in session.get_inputs()] == [['N', 3, 64, 32]]
    for count in (1, 5):
        pixels = torch.randint(0, 256, (count, 64, 32, 3), dtype=torch.uint8)
        expected = student(normalized(pixels))
        torch.testing.assert_close(by_card(output, pixels.numpy(), monkeypatch), expected, rtol=1e-4, atol=1e-5)
    for path in (Path(timm.__file__).parents[1], tmp_path):  # folders of this machine
        assert str(path).encode() not in (output / 'model.onnx').read_bytes()


@pytest.mark.parametrize('name', ['onnx', 'onnxscript', 'onnxruntime'])
def test_a_missing_package_is_said_before_anything_is_loaded(pictures, tmp_path, capsys, monkeypatch, name):
    for other in ('onnx', 'onnxscript', 'onnxruntime'):
        monkeypatch.setitem(sys.modules, other, None if other == name else np)
    monkeypatch.setattr(export, 'Student', None)
    write_run(tmp_path / 'run', pictures, **STUDENTS['resnet'])
    line = refused(capsys, tmp_path / 'run', 'onnx')
    assert line == f'timm-dad export: error: {name} is missing; run: pip install "timm-dad[export]"'


# --- what keeps it from being written -------------------------------------------------------------------------------


@pytest.mark.parametrize('change', [lambda logits: logits + 0.01, lambda logits: logits * torch.nan])
def test_a_network_of_other_logits_leaves_nothing(pictures, tmp_path, capsys, monkeypatch, change):
    write_run(tmp_path / 'run', pictures, **STUDENTS['resnet'])

    def write(student, folder):
        (folder / 'model.pt2').write_bytes(b'other')
        return lambda x: change(student.model(x))

    monkeypatch.setitem(export._WRITERS, 'torch', write)
    line = refused(capsys, tmp_path / 'run', 'torch')
    assert 'model_best.pth.tar: 12 pictures of the validation data: largest difference of logits' in line
    assert 'the limit is 0.001, so nothing was written' in line


@needs_new_timm
def test_a_failed_export_leaves_no_folder_above_it(pictures, tmp_path, capsys, monkeypatch):
    write_run(tmp_path / 'run', pictures, **STUDENTS['resnet'])
    monkeypatch.setitem(export._WRITERS, 'timm', lambda student, folder: lambda x: student.model(x) + 1)
    with pytest.raises(SystemExit):
        main(['export', str(tmp_path / 'run'), '--output', str(tmp_path / 'a/b/out'), '--format', 'timm'])
    assert [path.name for path in tmp_path.iterdir()] == ['run']


def test_what_torch_cannot_export_is_one_line(pictures, tmp_path, capsys, monkeypatch):
    write_run(tmp_path / 'run', pictures, **STUDENTS['resnet'])
    monkeypatch.setattr(torch.export, 'export', lambda *_, **__: 1 / 0)
    line = refused(capsys, tmp_path / 'run', 'torch')
    assert line.endswith('model_best.pth.tar: ZeroDivisionError: division by zero')
    assert line.startswith('timm-dad export: error: --format torch: ')


# --- pictures -------------------------------------------------------------------------------------------------------


def test_pictures_are_of_the_validation_data_or_else_of_the_demo(pictures, tmp_path):
    write_run(tmp_path / 'run', pictures, **STUDENTS['resnet'])
    flags = read_flags(tmp_path / 'run/args.yaml')
    what, found = validation_pictures(flags, 4)
    assert what == 'the validation data'
    expected = [Image.open(pictures / f'validation/{name}') for name in ('cat/0.png', 'tree/2.png')]
    assert [np.array(found[place]).tolist() for place in (0, -1)] == [np.array(each).tolist() for each in expected]
    for changed in ({'data_dir': str(tmp_path / 'gone')}, {'val_split': ''}, {'val_split': 3}, {'val_split': 'test'}):
        what, found = validation_pictures({**flags, **changed}, 4)
        assert (what, [each.size for each in found]) == ('the demo', [(32, 32)] * 4)


def test_a_picture_that_does_not_decode_makes_them_the_demos(tmp_path):
    root = write_pictures(tmp_path / 'pictures', validation=1)
    assert validation_pictures({'data_dir': str(root)}, 4)[0] == 'the validation data'
    (root / 'validation/dog/0.png').write_text('no picture')
    assert validation_pictures({'data_dir': str(root)}, 4)[0] == 'the demo'


# --- the page -------------------------------------------------------------------------------------------------------


@needs_onnx
@needs_new_timm
@pytest.mark.slow
def test_the_commands_of_the_page_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_commands('export') == 4
    assert timm.create_model('local-dir:student-timm', pretrained=True).num_classes == 16
    assert sorted(path.name for path in tmp_path.glob('student-*/model.*')) == [
        'model.onnx', 'model.pt2', 'model.safetensors',
    ]  # fmt: skip
