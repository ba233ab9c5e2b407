"""Random streams and correlated random fields: the raw material of every part of the world."""

from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


def stream(seed: int, *subject: str) -> np.random.Generator:
    """Random generator of one subject of one world.

    Each subject draws from its own stream, so that more stations or later dates leave the terrain
    and the weather of a seed as they are.
    """
    key = tuple(crc32(name.encode()) for name in subject)
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def fractal_field(rng: np.random.Generator, shape: tuple[int, int], *, exponent: float) -> Array:
    """Gaussian field with the power spectrum ``f ** -exponent``; mean 0, standard deviation 1.

    Spectral synthesis (Saupe 1988, in Peitgen & Saupe, The Science of Fractal Images, 71-136). The
    field is cut from a larger, periodic one, so that opposite edges do not resemble each other.

    Parameters
    ----------
    rng
        Where the numbers come from.
    shape
        (rows, columns).
    exponent
        2 is rough, 4 is smooth.
    """
    rows, columns = (max(8, int(1.5 * n)) for n in shape)
    noise = np.fft.rfft2(rng.standard_normal((rows, columns)))
    frequency = np.hypot(np.fft.fftfreq(rows)[:, None], np.fft.rfftfreq(columns)[None, :])
    frequency[0, 0] = np.inf  # no mean
    field = np.fft.irfft2(noise * frequency ** (-exponent / 2), s=(rows, columns))
    return standardise(field[: shape[0], : shape[1]])


def smooth_fields(
    rng: np.random.Generator, count: int, shape: tuple[int, int], *, scale: float
) -> Array:
    """Return `count` independent smooth Gaussian fields (count, y, x), mean 0 and variance 1.

    White noise under a Gaussian kernel: two cells at a distance d correlate by
    ``exp(-d**2 / (4 * scale**2))``.

    Parameters
    ----------
    rng, count, shape
        Source, number and (rows, columns) of the fields.
    scale
        Standard deviation of the kernel [cells].
    """
    reach = int(np.ceil(3 * scale))
    rows, columns = shape
    noise = rng.standard_normal((count, rows + 2 * reach, columns + 2 * reach))
    down, across = _kernel(rows, reach, scale), _kernel(columns, reach, scale)
    return np.asarray(down @ noise @ across.T, dtype=np.float32)


def standardise(field: NDArray[Any]) -> Array:
    """Return `field` shifted and scaled to mean 0 and standard deviation 1."""
    spread = float(field.std()) or 1.0
    return np.asarray((field - field.mean()) / spread, dtype=np.float32)


def _kernel(size: int, reach: int, scale: float) -> NDArray[np.float64]:
    """Rows of Gaussian weights whose squares sum to 1 (size, size + 2 * reach)."""
    distance = np.arange(size + 2 * reach)[None, :] - reach - np.arange(size)[:, None]
    weights = np.exp(-0.5 * (distance / scale) ** 2)
    return np.asarray(weights / np.linalg.norm(weights, axis=1, keepdims=True))
