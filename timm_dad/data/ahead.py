"""Read data ahead while networks compute, with or without worker processes."""

from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar('T')


def read_ahead(items: Iterable[T]) -> Generator[T]:
    """Fetch the next item in a thread, one item ahead; errors are raised where the item is requested."""
    iterator, end = iter(items), object()
    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(next, iterator, end)
        while (item := coming.result()) is not end:
            coming = reader.submit(next, iterator, end)
            yield item  # type: ignore[misc]
