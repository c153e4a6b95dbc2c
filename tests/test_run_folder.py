"""The folder of a run: what a resumed run may change, and what is kept of the run before."""

from types import SimpleNamespace

import pytest
import torch
import yaml
from accelerate import Accelerator

from timm_dad.training.resume import find_newest
from timm_dad.training.run_folder import RunFolder, changed_flags, check_resumed_flags


@pytest.mark.parametrize('name', ['model', 'num_classes', 'in_chans', 'opt'])
def test_what_cannot_change_is_refused_with_its_flag(name):
    before = {'model': 'resnet18', 'num_classes': 4, 'in_chans': 3, 'opt': 'sgd', 'lr': 0.1}
    flag = f'--{name.replace("_", "-")}'
    with pytest.raises(ValueError, match=rf'{flag} must be {before[name]}, as in the resumed run, got other'):
        check_resumed_flags(before, {**before, name: 'other'})
    if name != 'opt':
        check_resumed_flags(before, {**before, name: None})  # left to the model
    check_resumed_flags({}, {**before, name: 'other'})  # a checkpoint that says nothing
    check_resumed_flags(before, {**before, 'lr': 0.2})


def test_another_optimizer_begins_anew_with_no_resume_opt():
    before, now = {'opt': 'sgd', 'weight_decay': 0.1}, {'opt': 'adamw', 'weight_decay': 0.2}
    check_resumed_flags(before, now, keep_optimizer=False)
    with pytest.raises(ValueError, match=r'--weight-decay must be 0.1, as .*, got 0.2: .*, or give --no-resume-opt'):
        check_resumed_flags(before, {**now, 'opt': 'sgd'})
    check_resumed_flags({'opt_betas': None}, {'opt_betas': None})


def test_changed_flags_are_named_old_and_new_and_the_old_file_is_kept(tmp_path, caplog):
    caplog.set_level('INFO', logger='timm_dad')  # a test before may have set it as another process does
    folder = RunFolder(tmp_path / 'run', Accelerator(), find_newest, resume=True)
    with folder:
        assert not (tmp_path / 'run').exists()  # made when it starts
        folder.start({'lr': 0.1, 'epochs': 3, 'resume': ''}, 0)
        folder.start({'lr': 0.1, 'epochs': 3, 'resume': 'auto'}, 1)
        assert 'changed' not in caplog.text
        folder.start({'lr': 0.05, 'epochs': 5, 'resume': 'auto'}, 1)
    assert 'Flags that changed since: --epochs 3 -> 5, --lr 0.1 -> 0.05' in caplog.text
    kept = yaml.safe_load((tmp_path / 'run' / 'args-1.yaml').read_text())
    assert (kept['lr'], kept['epochs']) == (0.1, 3)
    assert yaml.safe_load((tmp_path / 'run' / 'args.yaml').read_text())['lr'] == 0.05
    assert changed_flags({'lr': 1}, {'lr': 1, 'new': 2}) == []


@pytest.mark.parametrize(('hidden', 'shown'), [(('top5',), False), ((), True)])
def test_hidden_metrics_are_in_the_summary_alone(tmp_path, caplog, hidden, shown):
    caplog.set_level('INFO', logger='timm_dad')
    optimizer = SimpleNamespace(param_groups=[{'lr': 0.1}])
    with RunFolder(tmp_path, Accelerator(), find_newest, resume=True) as folder:
        folder.start({}, 0)
        folder.log_epoch(0, {'loss': 1.0}, {'top1': 50.0, 'top5': 100.0}, optimizer, hidden=hidden)
    assert ('val_top5 100' in caplog.text) is shown
    assert 'val_top1 50' in caplog.text
    assert 'eval_top5' in (tmp_path / 'summary.csv').read_text()


def test_rows_of_epochs_that_are_trained_again_are_dropped(tmp_path):
    folder = RunFolder(tmp_path, Accelerator(), find_newest, resume=True)
    (tmp_path / 'summary.csv').write_bytes(b'epoch,loss\r\n0,3\r\n1,2\r\n2,1\r\n')
    with folder:
        folder.start({}, 1)
    assert (tmp_path / 'summary.csv').read_bytes() == b'epoch,loss\r\n0,3\r\n'


def test_a_folder_that_another_run_makes_meanwhile_is_refused(tmp_path):
    path, newest = tmp_path / 'run', ['']
    with RunFolder(path, Accelerator(), lambda _: newest[0], resume=True) as folder:
        assert folder.resolve('auto') == ''
        with RunFolder(path, Accelerator(), lambda _: newest[0], resume=True) as other:
            other.start({}, 0)
            with pytest.raises(ValueError, match='is in use by another run'):
                folder.start({}, 0)
        newest[0] = 'last.pth.tar'
        with pytest.raises(ValueError, match='contains an older run'):
            folder.start({}, 0)


def test_a_folder_that_is_there_is_held_from_the_beginning(tmp_path):
    with RunFolder(tmp_path, Accelerator(), lambda _: 'last.pth.tar', resume=True) as folder:
        assert folder.resolve('auto') == 'last.pth.tar'
        with pytest.raises(ValueError, match='is in use by another run'):
            RunFolder(tmp_path, Accelerator(), lambda _: '', resume=True).__enter__()
        folder.start({}, 0)
    with RunFolder(tmp_path, Accelerator(), lambda _: '', resume=True):
        pass
    with pytest.raises(ValueError, match='contains an older run; choose another folder, or --resume auto'):
        RunFolder(tmp_path, Accelerator(), lambda _: 'last.pth.tar', resume=False).__enter__()


@pytest.mark.parametrize('kept', ['model_best.pth.tar', 'best.safetensors', 'resume.pt'])
@pytest.mark.parametrize('resume', [False, True])
def test_a_folder_of_weights_that_cannot_be_resumed_is_left_alone(tmp_path, kept, resume):
    """A run of another kind, or one whose state was removed: its best weights would be overwritten."""
    (tmp_path / kept).write_bytes(b'weights')
    with pytest.raises(ValueError, match=f'contains {kept} of a run that cannot be resumed here; choose another'):
        RunFolder(tmp_path, Accelerator(), lambda _: '', resume=resume).__enter__()
    (tmp_path / kept).rename(tmp_path / 'teacher.safetensors')  # not a run's name
    with RunFolder(tmp_path, Accelerator(), lambda _: '', resume=resume):
        pass


def test_an_old_file_of_flags_replaces_none_that_is_kept(tmp_path):
    (tmp_path / 'args-2.yaml').write_text('lr: 7')
    with RunFolder(tmp_path, Accelerator(), find_newest, resume=True) as folder:
        for lr in (1, 2, 3):
            folder.start({'lr': lr}, 0)
    kept = [yaml.safe_load((tmp_path / f'args-{number}.yaml').read_text())['lr'] for number in (1, 2, 3)]
    assert kept == [1, 7, 2]


def test_a_folder_of_damaged_checkpoints_is_no_new_one(tmp_path):
    def all_damaged(folder):
        raise ValueError('no checkpoint is whole')

    with (
        pytest.raises(ValueError, match='contains an older run; choose another folder'),
        RunFolder(tmp_path, Accelerator(), all_damaged, resume=False),
    ):
        pass
    with RunFolder(tmp_path, Accelerator(), all_damaged, resume=True) as folder:
        with pytest.raises(ValueError, match='--resume auto: no checkpoint is whole'):
            folder.resolve('auto')


@pytest.mark.parametrize(
    ('content', 'kept'),
    [
        (b'', b''),
        (b'epoch,x\r\n0,1\r\n\r\n1,2\r\n', b'epoch,x\r\n0,1\r\n'),
        (b'\xef\xbb\xbfepoch,x\r\n0,1\r\n', b'epoch,x\r\n0,1\r\n'),
    ],
)
def test_a_summary_that_a_full_disk_or_an_editor_left_goes_on(tmp_path, content, kept):
    (tmp_path / 'summary.csv').write_bytes(content)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    with RunFolder(tmp_path, Accelerator(), lambda _: '', resume=True) as folder:
        folder.start({}, 1)
        assert (tmp_path / 'summary.csv').read_bytes() == kept
        folder.log_epoch(1, {'loss': 2.0}, None, optimizer)
    header = b'' if kept else b'epoch,train_loss,lr\r\n'
    assert (tmp_path / 'summary.csv').read_bytes() == kept + header + b'1,2.0,0.5\r\n'


@pytest.mark.parametrize(
    'content', [b'a,b\n1,2\n', b'epoch,x\nfoo,1\n', 'epoch,ü\n0,1\n'.encode('latin-1'), b'epoch\n"']
)
def test_a_summary_that_is_none_is_named(tmp_path, content):
    (tmp_path / 'summary.csv').write_bytes(content)
    with (
        RunFolder(tmp_path, Accelerator(), lambda _: '', resume=True) as folder,
        pytest.raises(ValueError, match=r'summary\.csv is not a table of epochs .*: move it away'),
    ):
        folder.start({}, 1)


def test_flags_that_are_no_yaml_are_named(tmp_path):
    (tmp_path / 'args.yaml').write_text('a: [1')
    with (
        RunFolder(tmp_path, Accelerator(), lambda _: '', resume=True) as folder,
        pytest.raises(ValueError, match=r'args\.yaml is not YAML \(.*\): move it away'),
    ):
        folder.start({}, 1)
