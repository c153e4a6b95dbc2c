"""Checkpoints after a kill, damage and a full disk."""

import errno
import os
from argparse import Namespace

import pytest
import torch
from torch import nn

from timm_dad.common.torch_files import read_checkpoint
from timm_dad.training.resume import find_newest, open_checkpoint
from timm_dad.training.saver import Saver

pytestmark = pytest.mark.timm

METRICS = [1.0, 3.0, 2.0, 4.0, 0.0]


def saver(folder, history=2):
    folder.mkdir(exist_ok=True)
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return Saver(
        model, optimizer, Namespace(model='x'), checkpoint_dir=str(folder), recovery_dir=str(folder),
        max_history=history,
    )  # fmt: skip


def train(made, epochs):
    for epoch in epochs:
        nn.init.constant_(made.model.weight, epoch)
        made.save_checkpoint(epoch, METRICS[epoch])


def content(folder):
    """Epoch, by the weight, and metric of every checkpoint."""
    read = {path.name: read_checkpoint(path) for path in folder.glob('*.pth.tar')}
    return {name: (found['state_dict']['weight'][0, 0].item(), found['metric']) for name, found in read.items()}


@pytest.mark.parametrize('operation', ['link', 'unlink', 'remove', 'replace', 'fsync'])
def test_a_run_killed_at_any_operation_on_files_ends_with_the_checkpoints_of_one_that_was_not(
    tmp_path, monkeypatch, operation
):
    train(saver(tmp_path / 'whole'), range(5))
    real = getattr(os, operation)
    for at in range(1, 99):
        folder, count = tmp_path / str(at), []

        def dies(*args, count=count, at=at, **more):
            count.append(1)
            if len(count) == at:
                raise KeyboardInterrupt
            return real(*args, **more)

        monkeypatch.setattr(os, operation, dies)
        try:
            train(saver(folder), range(5))
        except KeyboardInterrupt:
            monkeypatch.setattr(os, operation, real)
            again = saver(folder)
            newest = open_checkpoint(find_newest(folder))
            again.restore()
            train(again, range(newest.epoch if newest else 0, 5))
            (folder / 'tmp.pth.tar').unlink(missing_ok=True)
            assert content(folder) == content(tmp_path / 'whole'), at
        else:
            break
    assert 1 < at < 99, 'it was not killed'


def test_without_last_a_run_goes_on_from_the_newest_numbered_checkpoint(tmp_path):
    train(saver(tmp_path), range(4))
    (tmp_path / 'last.pth.tar').unlink()
    assert find_newest(tmp_path) == str(tmp_path / 'checkpoint-3.pth.tar')
    (tmp_path / 'checkpoint-3.pth.tar').unlink()
    assert find_newest(tmp_path) == str(tmp_path / 'checkpoint-1.pth.tar')


def test_a_milestone_stays_whatever_its_metric_and_is_linked_where_a_kill_left_it_out(tmp_path):
    made = saver(tmp_path, history=1)
    made.save_epochs = (1, 5)
    train(made, range(5))
    milestones = {'milestone-1.pth.tar': (0.0, 1.0), 'milestone-5.pth.tar': (4.0, 0.0)}
    kept = {'checkpoint-3.pth.tar': (3.0, 4.0), 'model_best.pth.tar': (3.0, 4.0), 'last.pth.tar': (4.0, 0.0)}
    assert content(tmp_path) == {**kept, **milestones}
    (tmp_path / 'milestone-5.pth.tar').unlink()
    again = saver(tmp_path, history=1)
    again.save_epochs = (1, 5)
    again.restore()
    assert content(tmp_path) == {**kept, **milestones}
    assert find_newest(tmp_path) == str(tmp_path / 'last.pth.tar')


def damage(path, how):
    content = bytearray(path.read_bytes())
    place = content.rfind(torch.full((4,), 3.0).numpy().tobytes())
    assert place > 0
    content[place + 3] ^= 0x40
    whole = content[: len(content) // 2] if how == 'truncated' else content
    path.unlink()  # a link to others
    path.write_bytes(whole)


@pytest.mark.parametrize('how', ['truncated', 'flipped'])
def test_a_damaged_checkpoint_is_left_out_for_the_next_one(tmp_path, caplog, how):
    caplog.set_level('INFO', logger='timm_dad')
    train(saver(tmp_path), range(4))
    damage(tmp_path / 'last.pth.tar', how)
    assert find_newest(tmp_path) == str(tmp_path / 'checkpoint-3.pth.tar')
    assert 'last.pth.tar is ' in caplog.text
    assert 'using checkpoint-3.pth.tar' in caplog.text
    (tmp_path / 'recovery-4-7.pth.tar').write_bytes((tmp_path / 'last.pth.tar').read_bytes())
    assert find_newest(tmp_path) == str(tmp_path / 'checkpoint-3.pth.tar')
    with pytest.raises(ValueError, match=r'--resume: .*last.pth.tar is .*(damaged|truncated)'):
        open_checkpoint(str(tmp_path / 'last.pth.tar'))
    for path in tmp_path.glob('checkpoint-*'):
        path.unlink()
    with pytest.raises(
        ValueError, match=r'no checkpoint in .* is intact; remove them to start over: .*last.pth.tar is'
    ):
        find_newest(tmp_path)


@pytest.mark.parametrize('how', ['truncated', 'flipped', 'missing'])
def test_a_best_checkpoint_that_is_not_whole_is_made_again(tmp_path, caplog, how):
    caplog.set_level('INFO', logger='timm_dad')
    train(saver(tmp_path), range(4))
    before = content(tmp_path)
    best = tmp_path / 'model_best.pth.tar'
    damage(best, how) if how != 'missing' else best.unlink()
    saver(tmp_path).restore()
    assert content(tmp_path) == before
    assert 'model_best.pth.tar is recreated from' in caplog.text


def test_what_a_disk_says_names_the_file(tmp_path):
    made = saver(tmp_path)
    (tmp_path / 'tmp.pth.tar').symlink_to('/dev/full')
    with pytest.raises(OSError, match=r'No space left on device: .*tmp\.pth\.tar') as found:
        train(made, [0])
    assert found.value.errno == errno.ENOSPC
