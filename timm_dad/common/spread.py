"""Indices that are spread evenly."""


def spread(count: int, chosen: int) -> list[int]:
    """Choose indices that are spread evenly, the first and (from two on) the last among them.

    NOTE: it rounds down because DAD sets hold a hash of the images that these indices name: with others, every set that
    was made before would be refused.

    Args:
        count: Indices to choose from.
        chosen: How many; all if there are fewer.

    Returns:
        Indices from 0 to ``count - 1``, rising, none twice.
    """
    chosen = min(count, chosen)
    return [place * (count - 1) // max(1, chosen - 1) for place in range(chosen)]
