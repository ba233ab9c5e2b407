"""A small Sentinel-1 ground range product that the tests write, with its own exact geometry.

The satellite flies a circle, right-looking and ascending; an image has a few hundred lines and
pixels of 10 m. `Scene.place` says where the centre of a sample lies on the ground and `Scene.find`
the inverse, both by elementary geometry with nothing of smgrid. The XML has the tags of the
Sentinel-1 Product Specification that matter, in the old layout of noise or the new one.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import rasterio
from pyproj import Transformer
from rasterio.control import GroundControlPoint

LIGHT = 299_792_458.0
_TO_ECEF = Transformer.from_crs("EPSG:4979", "EPSG:4978", always_xy=True)
_TO_LONLAT = Transformer.from_crs("EPSG:4978", "EPSG:4979", always_xy=True)
_RADIUS, _SPEED = 7_071_000.0, 7_500.0
_HEADING = np.radians(-12.0)
_NADIR = np.radians([-2.0, 50.0])  # longitude and latitude below the satellite at time 0
_STEP_S, _SPACING = 1.48e-3, 10.0


@dataclass(frozen=True)
class Scene:
    """One slice; lines count from the start of its pass."""

    numbers: dict = field(default_factory=dict)
    """Polarisation ("vv") -> digital numbers (line, pixel), uint16."""
    first: int = 0
    """Line of the pass at which the slice begins."""
    start: str = "2024-03-05T17:32:00"
    """Time of line 0 of the pass."""
    mission: str = "S1A"
    orbit: int = 52_848
    relative_orbit: int | None = 88
    """In the manifest; None for a product without one."""
    amplitude: float = 500.0
    """Calibration A: sigma0 = (DN^2 - noise) / A^2."""
    noise: float = 2000.0
    noise_layout: str = "new"
    middle: float = -3.0
    """Lines by which the residual of the bistatic correction moves near range."""

    @property
    def shape(self):
        return next(iter(self.numbers.values())).shape

    @property
    def name(self):
        begin, end = (f"{self.time(line):%Y%m%dT%H%M%S}" for line in (0, self.shape[0] - 1))
        return f"{self.mission}_IW_GRDH_1SDV_{begin}_{end}_{self.orbit:06d}_0ABCDE_{self.first:04d}"

    def time(self, line):
        seconds = (self.first + line) * _STEP_S
        return pd.Timestamp(self.start) + pd.Timedelta(round(seconds * 1e9), "ns")

    def slant_range(self, pixel, seconds):
        """Slant range [m] of samples, `seconds` after the start of the pass."""
        base, slope, bend = self.coefficients(seconds)
        ground = pixel * _SPACING
        return base + slope * ground + bend * ground**2

    def coefficients(self, seconds):
        """Ground range to slant range; it drifts, so that it has to be interpolated in time."""
        return 880_000.0 + 40.0 * seconds, 0.66, 3.5e-7

    def place(self, line, pixel, height=0.0):
        """Longitude and latitude [degree] of the centres of samples at a height [m]."""
        line, pixel = np.broadcast_arrays(np.asarray(line, float), np.asarray(pixel, float))
        distance = self.slant_range(pixel, (self.first + line) * _STEP_S)
        seconds = (self.first + line) * _STEP_S + self.residual(distance)
        distance = self.slant_range(pixel, seconds)
        position, velocity = satellite(seconds)
        down = -position / np.linalg.norm(position, axis=0)
        right = np.cross(down, velocity, axis=0)
        right = right / np.linalg.norm(right, axis=0)
        angle = np.full(line.shape, np.radians(33.0))
        for _ in range(5):  # the look angle at which the line of sight meets the height
            point = position + distance * (np.cos(angle) * down + np.sin(angle) * right)
            height_at = _TO_LONLAT.transform(*point)[2]
            nudged = position + distance * (
                np.cos(angle + 1e-6) * down + np.sin(angle + 1e-6) * right
            )
            slope = (_TO_LONLAT.transform(*nudged)[2] - height_at) / 1e-6
            angle = angle - (height_at - height) / slope
        longitude, latitude, _ = _TO_LONLAT.transform(*point)
        return longitude, latitude

    def residual(self, distance):
        """What the time of a line lacks to zero Doppler [s]: half of the two-way time, shifted."""
        near = self.slant_range(0.0, 0.0)
        return (distance - near) / LIGHT - self.middle * _STEP_S

    def find(self, longitude, latitude, height=0.0):
        """Line and pixel of places at a height, by Newton's method on `place`."""
        line = np.full(np.shape(longitude), self.shape[0] / 2.0)
        pixel = np.full(np.shape(longitude), self.shape[1] / 2.0)
        for _ in range(4):
            x, y = self.place(line, pixel, height)
            x_line, y_line = self.place(line + 1, pixel, height)
            x_pixel, y_pixel = self.place(line, pixel + 1, height)
            a, b, c, d = x_line - x, x_pixel - x, y_line - y, y_pixel - y
            u, v, determinant = longitude - x, latitude - y, a * d - b * c
            line = line + (u * d - v * b) / determinant
            pixel = pixel + (v * a - u * c) / determinant
        return line, pixel

    def incidence(self, line, pixel):
        """Incidence angle on the ellipsoid [degree]."""
        longitude, latitude = self.place(line, pixel)
        point = np.stack(_TO_ECEF.transform(longitude, latitude, np.zeros(longitude.shape)))
        above = np.stack(_TO_ECEF.transform(longitude, latitude, np.ones(longitude.shape)))
        distance = self.slant_range(pixel, (self.first + line) * _STEP_S)
        position, _ = satellite((self.first + line) * _STEP_S + self.residual(distance))
        look = (position - point) / np.linalg.norm(position - point, axis=0)
        return np.degrees(np.arccos((look * (above - point)).sum(axis=0)))

    def write(self, folder):
        """Write the SAFE folder; return it."""
        safe = Path(folder) / f"{self.name}.SAFE"
        for number, (name, values) in enumerate(self.numbers.items(), 1):
            stem = f"s1a-iw-grd-{name}-{self.time(0):%Y%m%dt%H%M%S}-{number:03d}"
            tables = safe / "annotation" / "calibration"
            tables.mkdir(parents=True, exist_ok=True)
            (safe / "annotation" / f"{stem}.xml").write_text(self.annotation(name))
            (tables / f"calibration-{stem}.xml").write_text(self.calibration())
            (tables / f"noise-{stem}.xml").write_text(self.noise_table())
            self.write_image(safe / "measurement" / f"{stem}.tiff", values)
        if self.relative_orbit is not None:
            (safe / "manifest.safe").write_text(
                '<xfdu:XFDU xmlns:xfdu="urn:xfdu" xmlns:safe="urn:safe">'
                f'<safe:relativeOrbitNumber type="start">{self.relative_orbit}'
                "</safe:relativeOrbitNumber></xfdu:XFDU>"
            )
        return safe

    def write_image(self, path, values):
        path.parent.mkdir(parents=True, exist_ok=True)
        lines, pixels = (axis.ravel() for axis in self.tie_points())
        longitude, latitude = self.place(lines, pixels)
        points = [
            GroundControlPoint(row=row, col=col, x=x, y=y)
            for row, col, x, y in zip(lines, pixels, longitude, latitude, strict=True)
        ]
        profile = {"driver": "GTiff", "dtype": "uint16", "count": 1, "compress": "deflate"}
        rows, columns = values.shape
        with rasterio.open(
            path, "w", height=rows, width=columns, gcps=points, crs="EPSG:4326", **profile
        ) as dst:
            dst.write(values, 1)

    def tie_points(self):
        rows, columns = self.shape
        lines = np.unique(np.r_[np.arange(0, rows, 120), rows - 1])
        pixels = np.unique(np.r_[np.arange(0, columns, 90), columns - 1])
        return np.meshgrid(lines, pixels, indexing="ij")

    def annotation(self, name):
        rows, columns = self.shape
        return (
            "<product><adsHeader>"
            f"{tags(missionId=self.mission, productType='GRD', polarisation=name.upper())}"
            f"{tags(startTime=stamp(self.time(0)), absoluteOrbitNumber=self.orbit)}</adsHeader>"
            "<generalAnnotation><productInformation><pass>Ascending</pass></productInformation>"
            f"<orbitList>{self.orbit_list()}</orbitList></generalAnnotation>"
            "<imageAnnotation><imageInformation>"
            f"{tags(productFirstLineUtcTime=stamp(self.time(0)))}"
            f"{tags(productLastLineUtcTime=stamp(self.time(rows - 1)))}"
            f"{tags(rangePixelSpacing=_SPACING, azimuthPixelSpacing=_SPACING)}"
            f"{tags(numberOfLines=rows, numberOfSamples=columns)}"
            "</imageInformation></imageAnnotation>"
            f"<geolocationGrid><geolocationGridPointList>{self.geolocation()}"
            "</geolocationGridPointList></geolocationGrid>"
            f"<coordinateConversion><coordinateConversionList>{self.conversions()}"
            "</coordinateConversionList></coordinateConversion></product>"
        )

    def orbit_list(self):
        text = ""
        for seconds in np.arange(-60.0, 61.0, 10.0):
            (x, y, z), _ = satellite(np.asarray(seconds))
            moment = pd.Timestamp(self.start) + pd.Timedelta(seconds, "s")
            text += (
                f"<orbit>{tags(time=stamp(moment), frame='Earth Fixed')}"
                f"<position>{tags(x=float(x), y=float(y), z=float(z))}</position></orbit>"
            )
        return text

    def geolocation(self):
        lines, pixels = (axis.ravel() for axis in self.tie_points())
        longitude, latitude = self.place(lines, pixels)
        incidence = self.incidence(lines, pixels)
        distance = self.slant_range(pixels, (self.first + lines) * _STEP_S)
        residual = self.residual(distance)
        text = ""
        for k in range(lines.size):
            moment = self.time(lines[k]) + pd.Timedelta(round(residual[k] * 1e9), "ns")
            text += (
                "<geolocationGridPoint>"
                f"{tags(azimuthTime=stamp(moment), slantRangeTime=2 * distance[k] / LIGHT)}"
                f"{tags(line=lines[k], pixel=pixels[k], latitude=latitude[k])}"
                f"{tags(longitude=longitude[k], height=0.0, incidenceAngle=incidence[k])}"
                f"{tags(elevationAngle=incidence[k] - 4)}</geolocationGridPoint>"
            )
        return text

    def conversions(self):
        text = ""
        for seconds in np.arange(-1.0, self.first * _STEP_S + 3.0, 0.25):
            moment = pd.Timestamp(self.start) + pd.Timedelta(seconds, "s")
            # Counted from 1 km, as a product may do.
            base, slope, bend = self.coefficients(seconds)
            shifted = (
                base + slope * 1000.0 + bend * 1000.0**2,
                slope + 2 * bend * 1000.0,
                bend,
            )
            listed = " ".join(repr(float(value)) for value in shifted)
            text += (
                f"<coordinateConversion>{tags(azimuthTime=stamp(moment), gr0=1000.0)}"
                f"{tags(grsrCoefficients=listed)}</coordinateConversion>"
            )
        return text

    def calibration(self):
        text = "".join(
            f"<calibrationVector>{tags(line=line)}{self.vector('sigmaNought', self.amplitude)}"
            "</calibrationVector>"
            for line in (0, self.shape[0] // 2, self.shape[0] + 10)
        )
        return f"<calibration><calibrationVectorList>{text}</calibrationVectorList></calibration>"

    def noise_table(self):
        rows, columns = self.shape
        old = self.noise_layout == "old"
        vector, tag = ("noiseVector", "noiseLut") if old else ("noiseRangeVector", "noiseRangeLut")
        # With a factor of 2 along azimuth, half along range is the same noise.
        value = self.noise if old else self.noise / 2
        text = "".join(
            f"<{vector}>{tags(line=line)}{self.vector(tag, value)}</{vector}>"
            for line in (0, rows - 1)
        )
        if old:
            return f"<noise><noiseVectorList>{text}</noiseVectorList></noise>"
        block = tags(
            firstAzimuthLine=0,
            lastAzimuthLine=rows - 1,
            firstRangeSample=0,
            lastRangeSample=columns - 1,
            line=f"0 {rows - 1}",
            noiseAzimuthLut="2.0 2.0",
        )
        return (
            f"<noise><noiseRangeVectorList>{text}</noiseRangeVectorList><noiseAzimuthVectorList>"
            f"<noiseAzimuthVector>{block}</noiseAzimuthVector></noiseAzimuthVectorList></noise>"
        )

    def vector(self, tag, value):
        pixels = np.unique(np.r_[np.arange(0, self.shape[1], 40), self.shape[1] - 1])
        listed = " ".join([repr(float(value))] * pixels.size)
        return tags(pixel=" ".join(map(str, pixels))) + f"<{tag}>{listed}</{tag}>"


def satellite(seconds):
    """Position [m] and velocity [m/s] (axis, ...), Earth-fixed."""
    longitude, latitude = _NADIR
    up = np.array(
        [
            np.cos(latitude) * np.cos(longitude),
            np.cos(latitude) * np.sin(longitude),
            np.sin(latitude),
        ]
    )
    east = np.array([-np.sin(longitude), np.cos(longitude), 0.0])
    ahead = np.cos(_HEADING) * np.cross(up, east) + np.sin(_HEADING) * east
    angle = np.asarray(seconds) * _SPEED / _RADIUS
    position = _RADIUS * (
        np.multiply.outer(up, np.cos(angle)) + np.multiply.outer(ahead, np.sin(angle))
    )
    velocity = _SPEED * (
        np.multiply.outer(ahead, np.cos(angle)) - np.multiply.outer(up, np.sin(angle))
    )
    return position, velocity


def ramps(shape=(360, 400), first=0):
    """Images whose digital numbers tell the place: 500 + 10 line (vv), 500 + 10 pixel (vh)."""
    line, pixel = np.indices(shape)
    return {
        "vv": (500 + 10 * (line + first)).astype("uint16"),
        "vh": (500 + 10 * pixel).astype("uint16"),
    }


def stamp(moment):
    return moment.isoformat()


def tags(**values):
    return "".join(f"<{tag}>{value}</{tag}>" for tag, value in values.items())
