import io
import sys

import pytest

from timm_dad.common.progress import progress, say, tell


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_nothing_is_drawn_into_a_file(monkeypatch, caplog):
    caplog.set_level('INFO', logger='timm_dad')
    monkeypatch.setattr(sys, 'stderr', io.StringIO())
    bar = progress(range(3), desc='Epoch 0')
    assert list(bar) == [0, 1, 2]
    tell(bar, 'epoch 0, batch 3 of 3', {'loss': 0.12345, 'kd_loss': 2}, decimals=2)
    assert sys.stderr.getvalue() == ''
    assert caplog.messages == ['epoch 0, batch 3 of 3: loss 0.12  kd_loss 2.00']


@pytest.mark.parametrize('show', [True, False])
def test_a_terminal_gets_the_bar_of_the_process_that_shows_it(monkeypatch, caplog, show):
    monkeypatch.setattr(sys, 'stderr', Terminal())
    bar = progress(range(3), show=show, desc='Epoch 0')
    for _ in bar:
        tell(bar, 'epoch 0', {'loss': 0.5})
    drawn = sys.stderr.getvalue()
    assert ('Epoch 0' in drawn and 'loss=0.500' in drawn) is show
    assert caplog.messages == [] or not show


def test_a_line_does_not_stick_to_a_bar(monkeypatch, capsys):
    terminal = Terminal()
    monkeypatch.setattr(sys, 'stderr', terminal)
    with progress(total=2, desc='Shards') as bar:
        bar.update()
        say('view0/a.png is altered')
    assert capsys.readouterr().out == 'view0/a.png is altered\n'
    assert '\r' in terminal.getvalue()
