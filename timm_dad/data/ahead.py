"""Reading data while networks compute, in processes or not."""

from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar('T')


def read_ahead(items: Iterable[T]) -> Generator[T]:
    """Draw the next item in a thread, one before it is asked for; its errors come where it is asked for."""
    iterator, end = iter(items), object()
    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(next, iterator, end)
        while (item := coming.result()) is not end:
            coming = reader.submit(next, iterator, end)
            yield item  # type: ignore[misc]
