"""Choose evenly spread indices."""


def spread(count: int, chosen: int) -> list[int]:
    """Choose evenly spread indices, including the first and (from two on) the last.

    NOTE: it rounds down because DAD sets store a hash of the images at these indices: with other indices, every
        existing set would be rejected.

    Args:
        count: Number of indices to choose from.
        chosen: Number to choose; all if there are fewer.

    Returns:
        Indices from 0 to ``count - 1``, ascending, without repeats.
    """
    chosen = min(count, chosen)
    return [place * (count - 1) // max(1, chosen - 1) for place in range(chosen)]
