"""Calibration, noise removal and border masking of Sentinel-1 ground range products.

Everything works on a window of the image with the tables of the product's own XML, so that no part
of a result depends on how an image is cut into windows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree.ElementTree import Element

import numpy as np
import numpy.typing as npt

from smgrid.errors import SourceError
from smgrid.sources.annotation import Floats, to_floats

Window = tuple[slice, slice]

BORDER_DEPTH = 2000
"""Lines and pixels from an edge of the image within which samples without a value are masked."""

# Trailing samples that are averaged before they are compared, so that a bright speck in the strip
# does not end it, and the power above which the image begins: digital number 30, about -26 dB.
_BORDER_RUN = 9
_BORDER_POWER = 30.0**2


@dataclass(frozen=True, eq=False)
class Table:
    """A look-up table: vectors along range at some lines of an image."""

    line: npt.NDArray[np.int64]
    """Line of each vector, increasing."""
    pixel: Sequence[Floats]
    """Pixels of each vector's values, increasing."""
    values: Sequence[Floats]
    """Values of each vector."""

    def interpolate(self, window: Window) -> Floats:
        """Return the table in a window of the image, bilinear between its nodes.

        Beyond the outermost nodes it keeps their values.
        """
        rows, columns = (np.arange(part.start, part.stop) for part in window)
        rows = rows.clip(self.line[0], self.line[-1])
        below = np.searchsorted(self.line, rows, side="right").clip(1, self.line.size - 1)
        first = int(below.min()) - 1
        vectors = np.stack(
            [
                np.interp(columns, self.pixel[number], self.values[number])
                for number in range(first, int(below.max()) + 1)
            ]
        )
        above = below - 1
        share = (rows - self.line[above]) / (self.line[below] - self.line[above])
        upper, lower = vectors[above - first], vectors[below - first]
        interpolated: Floats = upper + share[:, np.newaxis] * (lower - upper)
        return interpolated


@dataclass(frozen=True, eq=False)
class AzimuthBlock:
    """How thermal noise varies along azimuth in one part of an image."""

    lines: slice
    pixels: slice
    line: Floats
    """Lines of the values, increasing."""
    values: Floats
    """Factors of the noise along range [1]."""


@dataclass(frozen=True, eq=False)
class Noise:
    """Thermal noise of an image, in squared digital numbers."""

    along_range: Table
    along_azimuth: Sequence[AzimuthBlock]
    """None before version 2.90 of the processor (March 2018)."""

    @property
    def masks_border(self) -> bool:
        """Whether the processor set samples without a value to 0: since version 2.90 it does."""
        return len(self.along_azimuth) > 0

    def interpolate(self, window: Window) -> Floats:
        """Return the noise power in a window of the image; NaN where no block says it."""
        noise = self.along_range.interpolate(window)
        if not self.along_azimuth:
            return noise
        factor = np.full(noise.shape, np.nan)
        for block in self.along_azimuth:
            rows, columns = (
                slice(max(part.start, own.start), min(part.stop, own.stop))
                for part, own in zip(window, (block.lines, block.pixels), strict=True)
            )
            if rows.start < rows.stop and columns.start < columns.stop:
                along = np.interp(np.arange(rows.start, rows.stop), block.line, block.values)
                inside = tuple(
                    slice(own.start - part.start, own.stop - part.start)
                    for part, own in zip(window, (rows, columns), strict=True)
                )
                factor[inside] = along[:, np.newaxis]
        product: Floats = noise * factor
        return product


def parse_calibration(root: Element, *, source: str) -> Table:
    """Return the table of ``sigmaNought`` from ``calibration-*.xml``.

    Raises
    ------
    SourceError
        If it is another kind of document or damaged.
    """
    path = "calibrationVectorList/calibrationVector"
    return _parse_table(root, path, "sigmaNought", source)


def parse_noise(root: Element, *, source: str) -> Noise:
    """Return the thermal noise from ``noise-*.xml``, of any version of the processor.

    Raises
    ------
    SourceError
        If it is another kind of document or damaged.

    Notes
    -----
    Before version 2.90 of the processor the noise is a table along range; since then there is a
    factor along azimuth as well, one for each swath (ESA, Thermal Denoising of Products Generated
    by the S-1 IPF, MPC-0392). Tables of versions before 2.50 are 0 or not in squared digital
    numbers but many orders below; the noise of such products stays in them.
    """
    if root.find("noiseVectorList") is not None:
        return Noise(_parse_table(root, "noiseVectorList/noiseVector", "noiseLut", source), ())
    path = "noiseRangeVectorList/noiseRangeVector"
    blocks = root.findall("noiseAzimuthVectorList/noiseAzimuthVector")
    return Noise(
        _parse_table(root, path, "noiseRangeLut", source),
        tuple(_parse_block(block, source) for block in blocks),
    )


def to_sigma0(
    numbers: npt.NDArray[Any], window: Window, *, calibration: Table, noise: Noise
) -> npt.NDArray[np.float32]:
    """Return sigma0 [linear power] of a window of an image, its thermal noise removed.

    Parameters
    ----------
    numbers
        Digital numbers (line, pixel); 0 is a sample without a value.
    window
        Lines and pixels of the image.
    calibration, noise
        Tables of the image.

    Returns
    -------
    numpy.ndarray
        NaN without a value. Where less came back than the noise, the result is negative: that
        keeps averages of power unbiased, and leaves it to the caller what a logarithm does.

    Notes
    -----
    ``sigma0 = (DN^2 - noise) / A^2`` with both tables interpolated bilinearly (ESA, Radiometric
    Calibration of S-1 Level-1 Products Generated by the S-1 IPF, ESA-EOPG-CSCOP-TN-0002).
    """
    power = numbers.astype("float64") ** 2 - noise.interpolate(window)
    sigma0 = power / calibration.interpolate(window) ** 2
    return np.where(numbers > 0, sigma0, np.nan).astype("float32")


def extend_to_border(window: Window, shape: tuple[int, int]) -> Window:
    """Return a window with all samples that `mask_border` needs: to each edge that is near."""
    rows, columns = (
        slice(
            0 if part.start < BORDER_DEPTH else part.start,
            size if part.stop > size - BORDER_DEPTH else part.stop,
        )
        for part, size in zip(window, shape, strict=True)
    )
    return rows, columns


def mask_border(
    numbers: npt.NDArray[Any], window: Window, shape: tuple[int, int], *, noise: Noise
) -> npt.NDArray[np.bool_]:
    """Return which samples of a window are artefacts at the border of an image.

    Parameters
    ----------
    numbers
        Digital numbers (line, pixel), of the co-polarised image, which has the stronger signal.
    window
        Lines and pixels of the image, from `extend_to_border`.
    shape
        Lines and pixels of the whole image.
    noise
        Noise of the image.

    Returns
    -------
    numpy.ndarray
        True where a sample is to be masked.

    Notes
    -----
    Products of versions before 2.90 of the processor have a strip of small values instead of 0
    along their edges. As in ESA's method (Masking "No-value" Pixels on GRD Products Generated by
    the Sentinel-1 ESA IPF, MPC-0243) every line and column is masked from its ends inwards until
    the signal, less the noise, rises above a threshold, `BORDER_DEPTH` samples at most. The mean of
    the last nine samples is compared, because single ones inside the strip are bright, the weak
    point of that method (Ali et al. 2018, doi:10.1109/JSTARS.2017.2787650). Water at the very edge
    of an image can be as dark and is then lost, too.
    """
    power = numbers.astype("float64") ** 2 - noise.interpolate(window)
    masked = np.zeros(numbers.shape, dtype=bool)
    for axis, (part, size) in enumerate(zip(window, shape, strict=True)):
        along, out = np.moveaxis(power, axis, 0), np.moveaxis(masked, axis, 0)
        if part.start == 0:
            out[:BORDER_DEPTH] |= _leading_run(along[:BORDER_DEPTH])
        if part.stop == size:
            out[::-1][:BORDER_DEPTH] |= _leading_run(along[::-1][:BORDER_DEPTH])
    return masked


def _leading_run(power: Floats) -> npt.NDArray[np.bool_]:
    """Return which samples come before the first one that stands out, along the first axis."""
    total = np.cumsum(power, axis=0)
    total[_BORDER_RUN:] -= total[:-_BORDER_RUN].copy()
    stands_out = total > _BORDER_RUN * _BORDER_POWER
    return ~np.logical_or.accumulate(stands_out, axis=0)


def _parse_table(root: Element, path: str, tag: str, source: str) -> Table:
    vectors = root.findall(path)
    line = np.array([int(vector.findtext("line", "-1")) for vector in vectors])
    pixel = [to_floats(vector.findtext("pixel", "")) for vector in vectors]
    values = [to_floats(vector.findtext(tag, "")) for vector in vectors]
    sound = (
        line.size > 1
        and (np.diff(line) > 0).all()
        and all(p.size == v.size > 0 for p, v in zip(pixel, values, strict=True))
        and all((np.diff(p) > 0).all() for p in pixel)
    )
    if not sound:
        msg = (
            f"{source}: its {line.size} vectors of {tag} are no table with increasing lines and "
            "pixels; it is another kind of document or damaged, fetch it new"
        )
        raise SourceError(msg)
    return Table(line=line, pixel=pixel, values=values)


def _parse_block(block: Element, source: str) -> AzimuthBlock:
    try:
        first_line, last_line, first_pixel, last_pixel = (
            int(block.findtext(tag, ""))
            for tag in (
                "firstAzimuthLine",
                "lastAzimuthLine",
                "firstRangeSample",
                "lastRangeSample",
            )
        )
        line = to_floats(block.findtext("line", ""))
        values = to_floats(block.findtext("noiseAzimuthLut", ""))
    except ValueError as cause:
        msg = f"{source}: a block of noise along azimuth is damaged ({cause}); fetch it new"
        raise SourceError(msg) from cause
    if line.size != values.size or line.size == 0 or not (np.diff(line) > 0).all():
        msg = f"{source}: a block of noise along azimuth has no increasing lines; fetch it new"
        raise SourceError(msg)
    lines, pixels = slice(first_line, last_line + 1), slice(first_pixel, last_pixel + 1)
    return AzimuthBlock(lines=lines, pixels=pixels, line=line, values=values)
