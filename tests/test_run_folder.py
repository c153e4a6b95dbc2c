"""The folder of a run: what a resumed run may change, and what is kept of the run before."""

from types import SimpleNamespace

import pytest
import yaml
from accelerate import Accelerator

from timm_dad.training.resume import find_newest
from timm_dad.training.run_folder import RunFolder, changed_flags, check_resumed_flags


@pytest.mark.parametrize('name', ['model', 'num_classes', 'in_chans', 'opt'])
def test_what_cannot_change_is_refused_with_its_flag(name):
    before = {'model': 'resnet18', 'num_classes': 4, 'in_chans': 3, 'opt': 'sgd', 'lr': 0.1}
    flag = f'--{name.replace("_", "-")}'
    with pytest.raises(ValueError, match=rf'{flag} must be what the resumed run has, {before[name]}, got other'):
        check_resumed_flags(before, {**before, name: 'other'})
    check_resumed_flags(before, {**before, name: None})  # left to the model
    check_resumed_flags({}, {**before, name: 'other'})  # a checkpoint that says nothing
    check_resumed_flags(before, {**before, 'lr': 0.2})


def test_another_optimizer_begins_anew_with_no_resume_opt():
    check_resumed_flags({'opt': 'sgd'}, {'opt': 'adamw'}, keep_optimizer=False)


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


@pytest.mark.parametrize(('num_classes', 'shown'), [(5, False), (6, True), (None, True)])
def test_top5_of_few_classes_is_in_the_summary_alone(tmp_path, caplog, num_classes, shown):
    caplog.set_level('INFO', logger='timm_dad')
    optimizer = SimpleNamespace(param_groups=[{'lr': 0.1}])
    with RunFolder(tmp_path, Accelerator(), find_newest, resume=True) as folder:
        folder.start({'num_classes': num_classes}, 0)
        folder.log_epoch(0, {'loss': 1.0}, {'top1': 50.0, 'top5': 100.0}, optimizer)
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
        with pytest.raises(ValueError, match='holds an older run'):
            folder.start({}, 0)


def test_a_folder_that_is_there_is_held_from_the_beginning(tmp_path):
    with RunFolder(tmp_path, Accelerator(), lambda _: 'last.pth.tar', resume=True) as folder:
        assert folder.resolve('auto') == 'last.pth.tar'
        with pytest.raises(ValueError, match='is in use by another run'):
            RunFolder(tmp_path, Accelerator(), lambda _: '', resume=True).__enter__()
        folder.start({}, 0)
    with RunFolder(tmp_path, Accelerator(), lambda _: '', resume=True):
        pass
    with pytest.raises(ValueError, match='holds an older run; name another folder, or --resume auto'):
        RunFolder(tmp_path, Accelerator(), lambda _: 'last.pth.tar', resume=False).__enter__()
