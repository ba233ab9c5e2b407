"""Shuffle a stream of tables into batches, with a bounded number of rows in memory."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from smgrid.training.table import Samples, join_samples

IntArray = npt.NDArray[np.int64]

# So many times the rows of the largest open table are left to draw from, so that batches mix tables
# however large they are ...
_TABLES = 2
# ... and tables smaller than this part of the buffer are joined: there may be thousands of them.
_PARTS = 4


def shuffled(
    tables: Iterable[Samples], *, batch_size: int, buffer: int, rng: np.random.Generator
) -> Iterator[Samples]:
    """Yield the rows of all tables once, in batches that mix tables.

    Parameters
    ----------
    tables
        The next one is read when fewer rows are left than `buffer`, or than two of the largest
        open table hold.
    batch_size
        Rows of a batch; the last one may be smaller.
    buffer
        Rows to draw from.
    rng
        The order depends on it and the arguments alone.

    Yields
    ------
    Samples
        A batch, with only the series that its rows use.

    Notes
    -----
    Every open table is drawn from in proportion to its length until it is used up, so tables are
    dropped in about the order in which they came. They are not copied, therefore the rows that were
    drawn stay in memory until then: about as many as are left.
    """
    parts: list[_Part] = []
    for table in _gathered(tables, max(buffer // _PARTS, 1)):
        parts.append(_Part(table, rng.permutation(len(table))))
        while _left(parts).sum() >= max(buffer, batch_size, _TABLES * _longest(parts)):
            yield _draw(parts, _proportional(parts, batch_size, rng), rng)
    while parts:
        # Nothing follows, so the tables end together; the last one would be alone otherwise.
        left = _left(parts)
        count = rng.multivariate_hypergeometric(left, min(batch_size, left.sum()))
        yield _draw(parts, count, rng)


@dataclass(eq=False)
class _Part:
    """A table whose rows are drawn in random order."""

    samples: Samples
    order: IntArray
    drawn: int = 0

    def draw(self, count: int) -> Samples:
        """Return the next rows."""
        rows = self.order[self.drawn : self.drawn + count]
        self.drawn += count
        return self.samples.take(rows).compact()


def _gathered(tables: Iterable[Samples], size: int) -> Iterator[Samples]:
    """Join small tables until they have so many rows."""
    held: list[Samples] = []
    count = 0
    for table in tables:
        held.append(table)
        count += len(table)
        if count >= size:
            yield join_samples(held)
            held, count = [], 0
    if count:
        yield join_samples(held)


def _lengths(parts: list[_Part]) -> IntArray:
    return np.array([len(part.order) for part in parts], np.int64)


def _longest(parts: list[_Part]) -> int:
    return int(_lengths(parts).max(initial=0))


def _left(parts: list[_Part]) -> IntArray:
    return np.array([len(part.order) - part.drawn for part in parts], np.int64)


def _proportional(parts: list[_Part], size: int, rng: np.random.Generator) -> IntArray:
    """Return how many rows of each table a batch takes, by its length and as far as they last."""
    length, left = _lengths(parts), _left(parts)
    count = np.minimum(rng.multinomial(size, length / length.sum()), left)
    return count + rng.multivariate_hypergeometric(left - count, size - count.sum())


def _draw(parts: list[_Part], count: IntArray, rng: np.random.Generator) -> Samples:
    """Draw a batch, and drop the tables that are used up."""
    drawn = [part.draw(n) for part, n in zip(parts, count.tolist(), strict=True) if n]
    parts[:] = [part for part in parts if part.drawn < len(part.order)]
    return join_samples(drawn).take(rng.permutation(int(count.sum())))
