"""Paths in the settings of a DAD set."""

import os

import pytest
from dad_sets import write_dad_set, write_greys
from timm.data import create_dataset

import train_dad
from timm_dad.flags.moved import absolute, find_here, without_folder


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    for name in ('project/out/teacher.pth.tar', 'project/out/vqgan.safetensors', 'project/sets/one/dad_set.json'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / 'elsewhere').mkdir()
    monkeypatch.chdir(tmp_path / 'project')
    return tmp_path / 'project'


SPECS = ('timm:test_resnet/{}', 'open_clip:ViT-B-32/{}', 'probe:{}', 'run:{}', 'timm:local-dir:{}', '{}')


@pytest.mark.parametrize('spec', SPECS)
def test_a_path_holds_from_every_folder_and_moves_with_its_set(project, monkeypatch, spec):
    kept = absolute(spec.format('out/teacher.pth.tar'))
    assert kept == spec.format(project / 'out/teacher.pth.tar')
    monkeypatch.chdir('../elsewhere')
    assert find_here(kept, project / 'sets/one', '--dad-teacher') == kept
    os.rename(project, moved := project.with_name('moved'))
    there = spec.format(moved / 'out/teacher.pth.tar')
    assert find_here(kept, moved / 'sets/one', '--dad-teacher') == there
    assert find_here([kept], moved / 'sets/one', '--dad-teacher') == [there]
    assert find_here(spec.format('out/teacher.pth.tar'), moved / 'sets/one', '--dad-teacher') == there  # as once


@pytest.mark.parametrize('spec', SPECS)
def test_a_file_that_is_not_here_is_an_error_that_names_set_and_flag(project, spec):
    gone = spec.format('/gone/weights.pth')
    message = rf'the set .*sets/one was made with --dad-x {gone}, but /gone/weights\.pth is not here: give --dad-x$'
    with pytest.raises(ValueError, match=message):
        find_here(gone, project / 'sets/one', '--dad-x')


@pytest.mark.parametrize(
    'value',
    ['demo', 'timm:resnet50.a1_in1k', 'open_clip:ViT-L-14/openai', 'timm:hf-hub:org/repo', 'openimages-f8-16384', None,
     0.5, ['demo', 'timm:resnet50']],
)  # fmt: skip
def test_what_names_no_file_stays_as_it_is(project, value):
    (project / 'demo').mkdir()
    (project / 'repo').mkdir()
    assert absolute(value) == value
    assert find_here(value, project / 'sets/one', '--dad-teacher') == value


def test_training_says_which_set_names_a_teacher_that_is_not_here(project, capsys):
    dataset = create_dataset('', root=str(write_greys(project / 'greys')), split='train')
    flags = {'dad_teacher': 'timm:test_resnet//gone/teacher.pth.tar'}
    write_dad_set(project / 'set', dataset, teacher_flags=flags)
    training = ['--data-dir', str(project / 'greys'), '--dad', '--model', 'test_resnet', '--num-classes', '4']
    with pytest.raises(SystemExit) as ended:
        train_dad.main([*training, '--img-size', '32', '--val-split', '', '--dad-dir', str(project / 'set')])
    assert ended.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.endswith(
        f'--dad-dir: the set {project}/set was made with --dad-teacher {flags["dad_teacher"]}, but '
        '/gone/teacher.pth.tar is not here: give --dad-teacher'
    )


@pytest.mark.parametrize(
    ('value', 'shown'),
    [('timm:resnet50/x/y.pth', 'timm:resnet50/x/y.pth'), ('timm:resnet50//x/y.pth', 'timm:resnet50/y.pth'),
     ('run:/x/run', 'run:run'), ('/x/vqgan.safetensors', 'vqgan.safetensors'), ('demo', 'demo'), (None, None),
     (['demo', 'probe:/x/head.safetensors'], ['demo', 'probe:head.safetensors']),
     ('open_clip:ViT-L-14/openai', 'open_clip:ViT-L-14/openai'), ('hf://ada/greys', 'hf://ada/greys')],
)  # fmt: skip
def test_absolute_paths_lose_their_folder(value, shown):
    assert without_folder(value) == shown
