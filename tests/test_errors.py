import logging
from pathlib import Path

import pytest
from torch._utils import ExceptionWrapper

from timm_dad.common import errors
from timm_dad.common.errors import is_main_process, run_command, user_errors
from timm_dad.common.log import setup_logging

RANKS = ('RANK', 'PMI_RANK', 'OMPI_COMM_WORLD_RANK', 'MV2_COMM_WORLD_RANK')


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in RANKS:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize('name', RANKS)
def test_every_launchers_rank_tells_the_main_process(monkeypatch, name):
    assert is_main_process()
    for rank in (0, 1, 7):
        monkeypatch.setenv(name, str(rank))
        assert is_main_process() == (rank == 0)


def test_the_rank_of_torchrun_goes_before_that_of_the_scheduler(monkeypatch):
    monkeypatch.setenv('PMI_RANK', '0')  # srun started one torchrun a node
    monkeypatch.setenv('RANK', '3')
    assert not is_main_process()
    monkeypatch.setenv('RANK', '-1')  # none, as Accelerate takes it
    assert is_main_process()


def test_processes_are_those_of_accelerate(monkeypatch):
    from accelerate.utils.environment import get_cpu_distributed_information

    for name in RANKS:
        monkeypatch.setenv(name, '5')
        assert get_cpu_distributed_information().rank == 5
        assert not is_main_process()
        monkeypatch.delenv(name)


def _fail(error):
    with user_errors('timm-dad test'):
        raise error


@pytest.mark.parametrize('error', [ValueError('eps must be positive'), ImportError('pip install it')])
def test_an_error_is_one_line_and_its_traceback_is_seen_at_debug(monkeypatch, capsys, caplog, error):
    with pytest.raises(SystemExit, match='2'):
        _fail(error)
    assert capsys.readouterr().err == f'timm-dad test: error: {error}\n'
    assert not caplog.text
    caplog.set_level(logging.DEBUG, 'timm_dad.common.errors')
    setup_logging()  # as all commands do: INFO is enough for the rest
    with pytest.raises(SystemExit, match='2'):
        _fail(error)
    assert 'in _fail' in caplog.text
    assert f'{type(error).__name__}: {error}' in caplog.text
    assert capsys.readouterr().err.endswith(f'timm-dad test: error: {error}\n')


def test_an_environment_variable_shows_where_an_error_was_raised(monkeypatch, capsys, caplog):
    monkeypatch.setenv('TIMM_DAD_DEBUG', '1')
    level = logging.getLogger('timm_dad').level
    try:
        setup_logging()
        with pytest.raises(SystemExit, match='2'):
            _fail(ValueError('eps must be positive'))
    finally:
        logging.getLogger('timm_dad').setLevel(level)
        logging.getLogger('train_dad').setLevel(level)
    assert 'in _fail' in caplog.text
    assert capsys.readouterr().err.endswith('timm-dad test: error: eps must be positive\n')


def test_other_errors_and_exits_pass():
    for error in (RuntimeError, KeyboardInterrupt, SystemExit):
        with pytest.raises(error):
            _fail(error)


def test_the_main_process_says_it_before_another_exits(capsys, monkeypatch):
    said = []
    monkeypatch.setattr(errors.time, 'sleep', lambda seconds: said.append((seconds, capsys.readouterr().err)))
    for rank in ('0', '1'):
        monkeypatch.setenv('OMPI_COMM_WORLD_RANK', rank)
        with pytest.raises(SystemExit):
            _fail(ValueError('x'))
        assert capsys.readouterr().err == 'timm-dad test: error: x\n'
        assert said == ([] if rank == '0' else [(10, '')])


@pytest.mark.parametrize(
    ('error', 'line'),
    [
        (OSError(28, 'No space left on device', 'run/last.pth.tar'), 'no space left on device: run/last.pth.tar'),
        (PermissionError(13, 'Permission denied', Path('a')), 'permission denied: a'),
        (OSError(28, 'No space left on device'), 'no space left on device'),
        (OSError('no strerror'), 'no strerror'),
    ],
)
def test_what_a_disk_says_is_one_line_with_the_file(capsys, error, line):
    with pytest.raises(SystemExit, match='2'):
        _fail(error)
    assert capsys.readouterr().err == f'timm-dad test: error: {line}\n'


@pytest.mark.parametrize(
    ('error', 'line'),
    [
        (ValueError('x.png is truncated'), 'x.png is truncated'),
        (OSError(2, 'No such file or directory', 'x.png'), "No such file or directory: 'x.png'"),
    ],
)
def test_an_error_in_a_loaders_process_is_one_line(capsys, error, line):
    try:
        raise error
    except Exception:
        wrapped = ExceptionWrapper(where='in DataLoader worker process 0')
    with pytest.raises(SystemExit), user_errors('timm-dad test'):
        wrapped.reraise()
    assert capsys.readouterr().err == f'timm-dad test: error: {line}\n'


@pytest.mark.parametrize(
    ('flags', 'more'),
    [
        ((), ''),
        (('--output', Path('out'), '--experiment', '2026-x', '--resume', 'auto'), ' --experiment 2026-x --resume auto'),
    ],
)
def test_ctrl_c_says_how_to_go_on(capsys, monkeypatch, flags, more):
    def stopped():
        raise KeyboardInterrupt(*flags)

    for rank, said in (('1', ''), ('0', f"\nInterrupted. Resume with: timm-dad train 'a b' --output out{more}\n")):
        monkeypatch.setenv('RANK', rank)
        with pytest.raises(SystemExit, match='130'):
            run_command(stopped, ['timm-dad', 'train', 'a b', '--output', 'out'])
        assert capsys.readouterr().err == said
