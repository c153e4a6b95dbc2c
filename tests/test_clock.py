import pytest
import torch

from timm_dad.dad_sets import clock as module
from timm_dad.dad_sets.clock import Clock, all_done


@pytest.fixture
def now(monkeypatch):
    """A clock that the test sets."""
    time = [0.0]
    monkeypatch.setattr(module.time, 'perf_counter', lambda: time[0])
    return time


def test_what_is_not_computing_is_waiting(now):
    clock = Clock(torch.device('cpu'))
    assert clock.waited == 0
    for seconds in (1, 2):
        with clock.working():
            now[0] += seconds
            with clock.computing():
                now[0] += 3 * seconds
    assert (clock.total, clock.busy, clock.waited) == (12, 9, 0.25)


def test_work_that_ends_with_an_error_counts(now):
    clock = Clock(torch.device('cpu'))

    def fail():
        now[0] += 2
        raise ValueError('full')

    with pytest.raises(ValueError, match='full'), clock.working():
        fail()
    assert (clock.total, clock.waited) == (2, 1)


def test_a_cpu_has_done_what_it_was_given():
    assert all_done(torch.device('cpu'))() is None


class Event:
    """Stands in for an event of a GPU, which gets there in its own time."""

    made = ()

    def __init__(self, enable_timing):
        assert enable_timing
        self.time = None
        Event.made += (self,)

    def record(self, stream):
        assert stream == 'stream'

    def query(self):
        return self.time is not None

    def elapsed_time(self, end):
        return 1000 * (end.time - self.time)


def test_on_a_gpu_its_own_time_counts_when_it_is_there(now, monkeypatch):
    monkeypatch.setattr(Event, 'made', ())
    monkeypatch.setattr(torch.cuda, 'Event', Event)
    monkeypatch.setattr(torch.cuda, 'current_stream', lambda device: 'stream')
    clock = Clock(torch.device('cuda'))
    with clock.working():
        for _ in range(2):
            with clock.computing():
                now[0] += 1
        now[0] += 8
    first, second, third, fourth = Event.made
    first.time, second.time, third.time = 0, 4, 4
    assert clock.waited == pytest.approx(0.6)
    fourth.time = 9
    assert clock.waited == pytest.approx(0.1)
