import threading

import pytest

from timm_dad.data.ahead import read_ahead


def test_one_item_is_drawn_while_the_one_before_it_is_used():
    drawn = [threading.Event() for _ in range(4)]

    def items():
        for index, event in enumerate(drawn):
            event.set()
            yield index, threading.current_thread()

    for (index, reader), following in zip(read_ahead(items()), [*drawn[1:], None], strict=True):
        assert reader is not threading.main_thread()
        assert following is None or following.wait(10)
        assert not any(event.is_set() for event in drawn[index + 2 :])


def test_all_items_come_in_order_and_none_is_too_few():
    assert list(read_ahead(range(5))) == [0, 1, 2, 3, 4]
    assert list(read_ahead([None, 0])) == [None, 0]
    assert list(read_ahead([])) == []


def test_an_error_comes_after_the_items_before_it():
    def items():
        yield 1
        raise ValueError('image 2 does not decode')

    found = read_ahead(items())
    assert next(found) == 1
    with pytest.raises(ValueError, match='image 2 does not decode'):
        next(found)


def test_nothing_is_drawn_after_it_is_closed():
    drawn = []
    found = read_ahead(drawn.append(index) for index in range(9))
    next(found)
    found.close()
    threads = threading.active_count()
    assert drawn == [0, 1]
    assert threading.active_count() == threads
