"""``benchmarks/same_outputs.py``: equal outputs are equal, and differences are found and named."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / 'benchmarks'))


@pytest.mark.slow
def test_a_commit_is_the_same_as_itself(capsys):
    from same_outputs import main

    assert main(['HEAD', 'HEAD', '--only', 'train']) == 0
    assert capsys.readouterr().out.split() == ['train', 'equal,', '6', 'files']


@pytest.mark.slow
def test_a_changed_loss_is_found(tmp_path, capsys):
    from same_outputs import main

    changed, facts = tmp_path / 'changed', tmp_path / 'facts.json'
    shutil.copytree(ROOT / 'timm_dad', changed / 'timm_dad', ignore=shutil.ignore_patterns('__pycache__'))
    shutil.copy(ROOT / 'train_dad.py', changed)
    loss = next((changed / 'timm_dad').rglob('loss.py'))
    text = loss.read_text()
    assert '* temperature**2' in text
    loss.write_text(text.replace('* temperature**2', '* temperature**2 * 1.001'))
    only = ('--only', 'train', 'train-cache')
    assert main([str(ROOT), str(changed), *only, '--save', str(facts), '--keep', str(tmp_path / 'kept')]) == 1
    plain, dad, *lines = capsys.readouterr().out.splitlines()
    assert plain.split()[:2] == ['train', 'equal,']
    assert dad.split() == ['train-cache', 'differs']
    assert any('last.pth.tar: ' in line and ' at most, state_dict.' in line for line in lines)
    assert any('summary.csv: numbers: ' in line for line in lines)
    assert (tmp_path / 'kept' / 'base' / 'train' / 'run' / 'last.pth.tar').is_file()
    assert main([str(changed), '--against', str(facts), *only]) == 1
    assert [line.split()[:2] for line in capsys.readouterr().out.splitlines() if line[0] != ' '] == [
        ['train', 'equal,'],
        ['train-cache', 'differs'],
    ]


def write(folder, change=0.0, word='sheet', version='1.0', size=(2, 3)):
    """What a command might leave."""
    (folder / 'manifest').mkdir(parents=True)
    state = {'state_dict': {'weight': torch.ones(size) + change, 'bias': torch.zeros(2)}, 'epoch': 1}
    torch.save(state, folder / 'last.pth.tar')
    save_file({'head': torch.ones(3) + change}, folder / 'head.safetensors')
    np.savez(folder / 'predicted.npz', label=np.arange(4) + change)
    Image.fromarray(np.full((4, 4, 3), 9 + round(change), np.uint8)).save(folder / 'preview.png')
    (folder / 'report.md').write_text(f'| top-1 |    {50 + change:.2f} |\ncontact {word}\n')
    header = {'codes_used': 'x', 'made_with': {'torch': version}, 'shard': 0}
    lines = [json.dumps(line, separators=(',', ':')) for line in (header, {'sha256': version.replace('.', '')})]
    (folder / 'manifest' / '000000.jsonl').write_text('\n'.join(lines) + '\n')
    (folder / '.lock').touch()
    return folder


def compared(one, other):
    from output_facts import facts_of_folder
    from same_outputs import compare

    facts = [{'it': facts_of_folder(folder / 'it')} for folder in (one, other)]
    stored = json.loads(json.dumps(facts))
    assert stored == facts
    return compare('it', *stored, (one, other))


def test_equal_files_are_equal_and_versions_do_not_count(tmp_path):
    write(tmp_path / 'a' / 'it')
    write(tmp_path / 'b' / 'it', version='2.0')
    assert compared(tmp_path / 'a', tmp_path / 'b') == []


def test_every_kind_of_file_is_compared(tmp_path):
    write(tmp_path / 'a' / 'it')
    write(tmp_path / 'b' / 'it', change=1.0)
    (tmp_path / 'b' / 'it' / 'more.csv').write_text('1')
    assert compared(tmp_path / 'a', tmp_path / 'b') == [
        'head.safetensors: 1 of 1 differ: by 1 at most, head',
        'last.pth.tar: 1 of 2 differ: by 1 at most, state_dict.weight',
        'more.csv: only in HEAD',
        'predicted.npz: 1 of 1 differ: by 1 at most, label',
        'preview.png: 1 of 1 differ: by 1 at most, pixels',
        "report.md: numbers: 1 x, first '| top-1 |    50.00 |' -> '| top-1 |    51.00 |'",
    ]


def test_another_shape_is_a_difference(tmp_path):
    write(tmp_path / 'a' / 'it')
    write(tmp_path / 'b' / 'it', size=(3, 2))
    assert compared(tmp_path / 'a', tmp_path / 'b') == ['last.pth.tar: 1 of 2 differ: state_dict.weight']


def test_wording_is_told_from_numbers(tmp_path, capsys):
    from output_facts import facts_of_folder
    from same_outputs import report

    write(tmp_path / 'a' / 'it')
    write(tmp_path / 'b' / 'it', word='page')
    facts = [{'it': facts_of_folder(tmp_path / name / 'it')} for name in 'ab']
    assert not report(['it'], *facts, None)
    assert capsys.readouterr().out.splitlines() == [
        'it               other words',
        "    report.md: wording: 1 x, first 'contact sheet' -> 'contact page'",
    ]


def test_a_command_that_fails_at_both_is_no_success(tmp_path):
    for name in 'ab':
        (tmp_path / name / 'it').mkdir(parents=True)
        (tmp_path / name / 'it' / 'failed.txt').write_text('SystemExit: --dad needs a teacher\n')
    assert compared(tmp_path / 'a', tmp_path / 'b') == ['it fails at both: SystemExit: --dad needs a teacher']


@pytest.mark.parametrize(
    ('argv', 'message'),
    [
        ([], 'name BASE or --against FILE, one of them'),
        (['HEAD', 'HEAD', '--against', 'x.json'], 'name BASE or --against FILE, one of them'),
        (['--against', 'x.json', '--save', 'y.json'], '--save keeps what is known of BASE: name it'),
        (['HEAD', '--keep', '.'], '--keep: . exists; name a new folder'),
        (['HEAD', '--only', 'nothing'], "invalid choice: 'nothing'"),
    ],
)
def test_flags_that_do_not_fit_are_errors(argv, message, capsys):
    from same_outputs import parse_args

    with pytest.raises(SystemExit):
        parse_args(argv)
    assert message in capsys.readouterr().err


def test_what_is_no_commit_is_an_error():
    from same_outputs import checkout

    with pytest.raises(SystemExit, match='no-such-commit is neither a folder nor a commit'), checkout('no-such-commit'):
        pass


def test_needed_commands_come_first():
    from output_commands import COMMANDS, with_needs

    assert with_needs(['evaluate', 'train-stored']) == ['train-dad', 'generate-folder', 'train-stored', 'evaluate']
    for name, command in COMMANDS.items():
        order = list(COMMANDS)
        assert all(order.index(needed) < order.index(name) for needed in command.needs)
