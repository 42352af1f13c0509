"""How glibc hands freed memory back; nothing happens where there is another C library."""

import contextlib
import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # malloc.h


def keep(*, below: int, at_most: int, arenas: int | None = None) -> None:
    """Blocks of `below` bytes are kept when they are freed, `at_most` bytes in all, since every page of a block that
    was handed back is made anew; larger ones go back at once. `arenas` says how many heaps threads share."""
    with contextlib.suppress(AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        if arenas is not None:
            mallopt(M_ARENA_MAX, arenas)
        mallopt(M_MMAP_THRESHOLD, below)
        mallopt(M_TRIM_THRESHOLD, at_most)
