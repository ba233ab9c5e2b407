"""Annotation of Sentinel-1 ground range products: geometry of an image, read from its XML.

Tags and their meaning: Sentinel-1 Product Specification (S1-RS-MDA-52-7441). Nothing but the
standard library is needed, so that incidence angles are to be had without the extra ``[safe]``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree.ElementTree import Element

import numpy as np
import numpy.typing as npt
import pandas as pd

from smgrid.errors import SourceError

Floats = npt.NDArray[np.float64]
Times = npt.NDArray[np.datetime64]

# Relative orbit = (absolute orbit - offset) mod 175 + 1: ESA, Sentinel-1 Products, SAR Naming
# Convention. Sentinel-1C moved to another place in the orbit in June 2026, after orbit 8018.
_ORBIT_OFFSETS = {"S1A": 73, "S1B": 27, "S1C": 172, "S1D": 42}
_MOVED_AFTER = {"S1C": (8018, 99)}
_ORBITS_PER_CYCLE = 175


@dataclass(frozen=True, eq=False)
class GeolocationGrid:
    """Points of an image whose place on the ground is annotated: regular in line and pixel."""

    line: Floats
    """Lines of its rows, increasing."""
    pixel: Floats
    """Pixels of its columns, increasing."""
    longitude: Floats
    """(row, column) [degree]."""
    latitude: Floats
    """(row, column) [degree]."""
    height: Floats
    """(row, column), above the WGS 84 ellipsoid [m]."""
    incidence: Floats
    """(row, column), between the look direction and the ellipsoid's normal [degree]."""
    elevation: Floats
    """(row, column), elevation angle of the antenna [degree]."""
    azimuth_time: Times
    """(row, column), zero-Doppler time [UTC]."""
    slant_range_time: Floats
    """(row, column), two-way [s]."""


@dataclass(frozen=True, eq=False)
class RangeConversion:
    """Polynomials that turn ground range into slant range, one per azimuth time."""

    time: Times
    """When each is valid [UTC], increasing."""
    origin: Floats
    """Ground range that each counts from [m]."""
    coefficients: Floats
    """(time, degree), slant range [m] = sum of coefficient * (ground range - origin)**degree."""


@dataclass(frozen=True, eq=False)
class Annotation:
    """What the annotation of one image says of it."""

    mission: str
    """``"S1A"`` to ``"S1D"``."""
    orbit_state: str
    """``"ascending"`` or ``"descending"``."""
    absolute_orbit: int
    """Orbit number since launch."""
    start: pd.Timestamp
    """Start of the acquisition [UTC]."""
    shape: tuple[int, int]
    """Lines and pixels."""
    spacing: tuple[float, float]
    """Between lines and between pixels [m]."""
    first_line: np.datetime64
    """Zero-Doppler time of the first line [UTC]."""
    last_line: np.datetime64
    """Zero-Doppler time of the last line [UTC]."""
    grid: GeolocationGrid
    """Annotated places."""
    orbit_time: Times
    """Times of the state vectors [UTC]."""
    orbit_position: Floats
    """(axis, time), Earth-centred, Earth-fixed [m]."""
    ranges: RangeConversion
    """From ground range to slant range."""

    @property
    def platform(self) -> str:
        """Name of the satellite as STAC writes it: ``"sentinel-1a"``."""
        return f"sentinel-1{self.mission[-1].lower()}"


def parse_annotation(root: Element, *, source: str) -> Annotation:
    """Return the annotation of a ground range detected image.

    Parameters
    ----------
    root
        Element ``product`` of ``annotation/s1?-*.xml``, of any version of the processor.
    source
        What errors call it.

    Raises
    ------
    SourceError
        If it is another kind of document or product, or lacks something.
    """
    read = _Reader(root, source)
    if read.text("adsHeader/productType") != "GRD":
        found = read.text("adsHeader/productType")
        msg = f"{source} annotates a product of type {found}; use ground range products (GRD)"
        raise SourceError(msg)
    image = "imageAnnotation/imageInformation/"
    return Annotation(
        mission=read.text("adsHeader/missionId"),
        orbit_state=read.text("generalAnnotation/productInformation/pass").lower(),
        absolute_orbit=int(read.text("adsHeader/absoluteOrbitNumber")),
        start=pd.Timestamp(read.text("adsHeader/startTime")),
        shape=(int(read.text(f"{image}numberOfLines")), int(read.text(f"{image}numberOfSamples"))),
        spacing=(
            float(read.text(f"{image}azimuthPixelSpacing")),
            float(read.text(f"{image}rangePixelSpacing")),
        ),
        first_line=np.datetime64(read.text(f"{image}productFirstLineUtcTime"), "ns"),
        last_line=np.datetime64(read.text(f"{image}productLastLineUtcTime"), "ns"),
        grid=_parse_grid(read),
        orbit_time=read.times("generalAnnotation/orbitList/orbit", "time"),
        orbit_position=_parse_orbit(read),
        ranges=_parse_ranges(read),
    )


def relative_orbit(mission: str, absolute_orbit: int) -> int:
    """Return the relative orbit number, 1 to 175.

    Parameters
    ----------
    mission
        ``"S1A"`` to ``"S1D"``.
    absolute_orbit
        Orbit number since launch.

    Raises
    ------
    SourceError
        If the mission is not known.

    Notes
    -----
    ``(absolute - offset) mod 175 + 1`` with offset 73 (A), 27 (B), 172 (C), 42 (D): ESA, Sentinel-1
    Products, SAR Naming Convention; 99 for C since the reconfiguration of June 2026.
    """
    if mission not in _ORBIT_OFFSETS:
        msg = f"mission {mission!r} is not known; expected one of {', '.join(_ORBIT_OFFSETS)}"
        raise SourceError(msg)
    last, moved = _MOVED_AFTER.get(mission, (absolute_orbit, 0))
    offset = _ORBIT_OFFSETS[mission] if absolute_orbit <= last else moved
    return (absolute_orbit - offset) % _ORBITS_PER_CYCLE + 1


def parse_relative_orbit(manifest: Element) -> int | None:
    """Return the relative orbit in which an acquisition began, from ``manifest.safe``."""
    for element in manifest.iter():
        is_start = element.get("type") == "start"
        if is_start and element.tag.endswith("}relativeOrbitNumber") and element.text:
            return int(element.text)
    return None


class _Reader:
    """Reads values out of one XML document, with errors that name it."""

    def __init__(self, root: Element, source: str) -> None:
        self.root = root
        self.source = source

    def text(self, path: str, parent: Element | None = None) -> str:
        found = (self.root if parent is None else parent).findtext(path)
        if found is None or not found.strip():
            msg = f"{self.source} has no {path}; it is not an annotation or truncated, fetch it new"
            raise SourceError(msg)
        return found.strip()

    def column(self, path: str, tag: str, convert: Callable[[str], Any]) -> list[Any]:
        """Return one value of each element at `path`."""
        elements = self.root.findall(path)
        if not elements:
            msg = f"{self.source} has no {path}; it is not an annotation or truncated, fetch it new"
            raise SourceError(msg)
        return [convert(self.text(tag, element)) for element in elements]

    def floats(self, path: str, tag: str) -> Floats:
        return np.array(self.column(path, tag, float))

    def times(self, path: str, tag: str) -> Times:
        return np.array(self.column(path, tag, str), dtype="datetime64[ns]")


def _parse_grid(read: _Reader) -> GeolocationGrid:
    path = "geolocationGrid/geolocationGridPointList/geolocationGridPoint"
    line, row = np.unique(read.floats(path, "line"), return_inverse=True)
    pixel, column = np.unique(read.floats(path, "pixel"), return_inverse=True)
    if min(line.size, pixel.size) < 2 or row.size != line.size * pixel.size:
        msg = (
            f"{read.source}: its {row.size} geolocation points do not fill a grid of {line.size} "
            f"lines and {pixel.size} pixels; it is damaged, fetch it new"
        )
        raise SourceError(msg)

    def arrange(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        arranged = np.empty((line.size, pixel.size), dtype=values.dtype)
        arranged[row, column] = values
        return arranged

    return GeolocationGrid(
        line=line,
        pixel=pixel,
        longitude=arrange(read.floats(path, "longitude")),
        latitude=arrange(read.floats(path, "latitude")),
        height=arrange(read.floats(path, "height")),
        incidence=arrange(read.floats(path, "incidenceAngle")),
        elevation=arrange(read.floats(path, "elevationAngle")),
        azimuth_time=arrange(read.times(path, "azimuthTime")),
        slant_range_time=arrange(read.floats(path, "slantRangeTime")),
    )


def _parse_orbit(read: _Reader) -> Floats:
    path = "generalAnnotation/orbitList/orbit"
    frames = set(read.column(path, "frame", str))
    if frames != {"Earth Fixed"}:
        found = ", ".join(sorted(frames))
        msg = f"{read.source}: its orbit is given in the frame {found}; expected Earth Fixed"
        raise SourceError(msg)
    return np.stack([read.floats(path, f"position/{axis}") for axis in "xyz"])


def _parse_ranges(read: _Reader) -> RangeConversion:
    path = "coordinateConversion/coordinateConversionList/coordinateConversion"
    return RangeConversion(
        time=read.times(path, "azimuthTime"),
        origin=read.floats(path, "gr0"),
        coefficients=_stack(read.column(path, "grsrCoefficients", to_floats)),
    )


def _stack(rows: Sequence[Floats]) -> Floats:
    """Return rows of different length as one array, filled with zeros."""
    stacked = np.zeros((len(rows), max(row.size for row in rows)))
    for number, row in enumerate(rows):
        stacked[number, : row.size] = row
    return stacked


def to_floats(text: str) -> Floats:
    """Return the numbers of a list as XML writes it, separated by blanks."""
    return np.array(text.split(), dtype="float64")
