"""Files of a Sentinel-1 ground range product: in a SAFE folder, in its zip, or as a STAC item.

Names differ (``s1a-iw-grd-vv-20150222t...-001.xml``, ``iw-vv.xml``), the folders do not.
"""

import os
import re
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt
import pystac
import rasterio
from rasterio.windows import Window as RasterWindow

from smgrid.catalogtext import Signing
from smgrid.errors import SourceError
from smgrid.sources.annotation import Annotation, parse_annotation
from smgrid.sources.calibration import Noise, Table, Window, parse_calibration, parse_noise
from smgrid.sources.download import fetch, forget
from smgrid.sources.reader import AssetDriver

_VSIZIP = "/vsizip/"
_POLARISATION = re.compile(r"(?:^|-)(vv|vh|hh|hv)(?=[-.])")


@dataclass(frozen=True)
class Product:
    """One slice as files; every one is a path, a URL or a member of a zip file."""

    name: str
    """What messages and passes call it."""
    annotation: Mapping[str, str]
    """Polarisation ("vv") -> XML."""
    calibration: Mapping[str, str]
    """Polarisation -> XML."""
    noise: Mapping[str, str]
    """Polarisation -> XML."""
    measurement: Mapping[str, str]
    """Polarisation -> image."""
    manifest: str = ""
    """XML, where it is there."""
    sign: Signing = "none"
    """How URLs are signed."""
    origin: str = ""
    """Where the source was written, for messages."""

    @property
    def copolarised(self) -> str:
        """The polarisation that comes back strongest: VV or HH, where the product has one."""
        return next((name for name in ("vv", "hh") if name in self.annotation), "vh")

    def read_annotation(self, polarisation: str) -> Annotation:
        """Return the annotation of one image; the process keeps the last few."""
        return _annotation(self._file("annotation", polarisation), self.sign, self.origin)

    def read_calibration(self, polarisation: str) -> Table:
        """Return the calibration of one image."""
        return _calibration(self._file("calibration", polarisation), self.sign, self.origin)

    def read_noise(self, polarisation: str) -> Noise:
        """Return the thermal noise of one image."""
        return _noise(self._file("noise", polarisation), self.sign, self.origin)

    def read_manifest(self) -> ElementTree.Element:
        """Return the manifest; SourceError if there is none."""
        if not self.manifest:
            msg = f"{self.name} has no manifest.safe; fetch the whole product ({self.origin})"
            raise SourceError(msg)
        return read_xml(self.manifest, sign=self.sign, origin=self.origin)

    def read_image(self, polarisation: str, window: Window) -> npt.NDArray[Any]:
        """Return digital numbers (line, pixel) of a window.

        Raises
        ------
        SourceError
            If the image cannot be read or has another size than its annotation says.
        """
        href = self._file("measurement", polarisation)
        shape = self.read_annotation(polarisation).shape
        driver = AssetDriver(sign=self.sign, origin=self.origin)
        return driver.attempt(href, lambda uri: _read_window(uri, window, shape, href))

    def _file(self, kind: str, polarisation: str) -> str:
        files: Mapping[str, str] = getattr(self, kind)
        if polarisation not in files:
            known = ", ".join(sorted(files)) or "none"
            msg = (
                f"{self.name} has no {kind} of {polarisation} (it has {known}); fetch the whole "
                f"product, or take {polarisation} out of {self.origin}"
            )
            raise SourceError(msg)
        return files[polarisation]


def open_safe(path: str, *, origin: str) -> Product:
    """Return the product in a SAFE folder, in a zip file with one, or beside a manifest.

    Raises
    ------
    SourceError
        If there is no annotation in it.
    """
    place = Path(path)
    if place.name == "manifest.safe":
        place = place.parent
    members = _zip_members(place) if place.suffix == ".zip" else _folder_members(place)
    files: dict[str, dict[str, str]] = {
        kind: {} for kind in ("annotation", "calibration", "noise", "measurement")
    }
    manifest = ""
    for member, href in members:
        if member.name == "manifest.safe":
            manifest = href
        kind, found = _kind(member), _POLARISATION.search(member.name)
        if kind and found:
            files[kind][found[1]] = href
    if not files["annotation"]:
        msg = f"{path} ({origin}) holds no annotation/*.xml; name a folder or zip file of a product"
        raise SourceError(msg)
    name = place.name.removesuffix(".zip").removesuffix(".SAFE")
    return Product(
        name=name,
        annotation=files["annotation"],
        calibration=files["calibration"],
        noise=files["noise"],
        measurement=files["measurement"],
        manifest=manifest,
        origin=origin,
    )


def product_of_item(item: pystac.Item, *, sign: Signing, origin: str) -> Product:
    """Return the product behind an item of a collection of ground range products.

    The annotation is found beside the calibration: what such items call ``schema-product-*`` is the
    report on radio interference where the product has one.

    Raises
    ------
    SourceError
        If the item has no asset ``schema-calibration-*``.
    """
    prefixes = {"calibration": "schema-calibration-", "noise": "schema-noise-"}
    files = {
        kind: {
            key.removeprefix(prefix): asset.href
            for key, asset in item.assets.items()
            if key.startswith(prefix)
        }
        for kind, prefix in prefixes.items()
    }
    if not files["calibration"]:
        msg = (
            f"{item.id} has no asset schema-calibration-* (it has {', '.join(item.assets)}); "
            f"{origin} needs a collection of Sentinel-1 ground range products"
        )
        raise SourceError(msg)
    return Product(
        name=item.id,
        annotation={name: _beside(href) for name, href in files["calibration"].items()},
        measurement={
            name: item.assets[name].href for name in files["calibration"] if name in item.assets
        },
        calibration=files["calibration"],
        noise=files["noise"],
        sign=sign,
        origin=origin,
    )


def read_xml(href: str, *, sign: Signing, origin: str) -> ElementTree.Element:
    """Return the root of an XML document: a path, a URL, or a member of a zip file.

    Raises
    ------
    SourceError
        If it cannot be had or is not XML; a damaged copy is removed from the cache.
    """
    try:
        if href.startswith(_VSIZIP):
            archive, member = _split_zip(href)
            with zipfile.ZipFile(archive) as zipped, zipped.open(member) as file:
                return ElementTree.parse(file).getroot()
        # A product that is processed again gets another name: what is fetched stays good.
        path = fetch(href, sign=sign, origin=origin, max_age=None)
        try:
            return ElementTree.parse(path).getroot()
        except ElementTree.ParseError:
            forget(path)
            raise
    except (ElementTree.ParseError, OSError, zipfile.BadZipFile) as cause:
        msg = f"{href} cannot be read as XML ({cause}); it is damaged, fetch it again ({origin})"
        raise SourceError(msg) from cause


# A tile reads its tables anew only when many products were read in between: 10 MB each.
@lru_cache(maxsize=16)
def _annotation(href: str, sign: Signing, origin: str) -> Annotation:
    return parse_annotation(read_xml(href, sign=sign, origin=origin), source=href)


@lru_cache(maxsize=16)
def _calibration(href: str, sign: Signing, origin: str) -> Table:
    return parse_calibration(read_xml(href, sign=sign, origin=origin), source=href)


@lru_cache(maxsize=16)
def _noise(href: str, sign: Signing, origin: str) -> Noise:
    return parse_noise(read_xml(href, sign=sign, origin=origin), source=href)


def _read_window(
    uri: str, window: Window, shape: tuple[int, int], href: str
) -> npt.NDArray[np.uint16]:
    with rasterio.open(uri) as source:
        if source.shape != shape:
            msg = (
                f"{href} has {source.shape[0]} lines of {source.shape[1]} pixels, its annotation "
                f"says {shape[0]} of {shape[1]}; it is not of this product, fetch both again"
            )
            raise SourceError(msg)
        numbers: npt.NDArray[np.uint16] = source.read(1, window=RasterWindow.from_slices(*window))
        return numbers


def _kind(member: PurePosixPath) -> str | None:
    """Return what a file of a product is, by its folder and name."""
    folder = member.parent.as_posix()
    if folder == "measurement" and member.suffix in (".tiff", ".tif"):
        return "measurement"
    if member.suffix != ".xml":
        return None
    if folder == "annotation":
        return "annotation"
    if folder == "annotation/calibration":
        prefix = member.name.partition("-")[0]
        return prefix if prefix in ("calibration", "noise") else None
    return None


def _folder_members(folder: Path) -> Iterable[tuple[PurePosixPath, str]]:
    for path in sorted(folder.rglob("*")):
        yield PurePosixPath(path.relative_to(folder).as_posix()), str(path)


def _zip_members(archive: Path) -> Iterable[tuple[PurePosixPath, str]]:
    try:
        with zipfile.ZipFile(archive) as zipped:
            names = zipped.namelist()
    except (OSError, zipfile.BadZipFile) as cause:
        msg = f"{archive} cannot be read as a zip file ({cause}); fetch it again"
        raise SourceError(msg) from cause
    for name in sorted(names):
        inside = PurePosixPath(name)
        parts = inside.parts[1:] if inside.parts[0].endswith(".SAFE") else inside.parts
        yield PurePosixPath(*parts), f"{_VSIZIP}{os.fspath(archive)}/{name}"


def _split_zip(href: str) -> tuple[str, str]:
    archive, _, member = href.removeprefix(_VSIZIP).partition(".zip/")
    return f"{archive}.zip", member


def _beside(calibration: str) -> str:
    """Return where the annotation lies that belongs to a calibration file."""
    return re.sub(r"calibration/calibration-([^/]+)$", r"\1", calibration)
