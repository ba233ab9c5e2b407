"""The files of a SMAP product: named, newest versions picked, fetched and read where they are used.

Coordinates come from the constants of EASE-Grid 2.0; the files' own latitudes and longitudes can be
-9999 wherever there is no value. Describing a cube fetches nothing: a file is downloaded, once, by
the task that reads it.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import h5py
import numpy as np
import numpy.typing as npt
import pandas as pd
import pystac
from odc.geo.geobox import GeoBox

from smgrid.catalog import SourceSpec, find_files
from smgrid.catalogtext import Signing
from smgrid.errors import NoDataError, SourceError
from smgrid.grid import ease_grid
from smgrid.sources.download import fetch, forget
from smgrid.sources.retry import redact
from smgrid.sources.search import search_items
from smgrid.windows import Period

FILL = -9999.0
"""Missing value of SMAP's fields."""


@dataclass(frozen=True)
class Product:
    """How the files of a product are called."""

    short_name: str
    """Of the provider."""
    form: str
    """The name for people."""
    name: re.Pattern[str]
    """Groups: time, release, counter."""


@dataclass(frozen=True)
class RemoteFile:
    """A file that is fetched when it is read."""

    href: str
    sign: Signing
    origin: str

    def read(
        self, what: str, read: Callable[[h5py.File], npt.NDArray[np.float32]]
    ) -> npt.NDArray[np.float32]:
        """Return what `read` makes of the open file; a damaged copy is fetched again next time.

        Parameters
        ----------
        what
            What is read, for messages.
        read
            Takes the values out of the file.

        Raises
        ------
        SourceError
            If the file cannot be fetched, is damaged, or is not of this product.
        """
        # A name carries its release: what is fetched stays good.
        path = fetch(self.href, sign=self.sign, origin=self.origin, max_age=None)
        try:
            with h5py.File(path, "r") as file:
                return read(file)
        except (OSError, KeyError, ValueError) as cause:
            forget(path)
            msg = f"{redact(self.href)}: cannot read {what} ({cause}); download the file again"
            raise SourceError(msg) from cause


def find_newest(
    spec: SourceSpec, product: Product, grid: GeoBox, period: Period
) -> dict[pd.Timestamp, RemoteFile]:
    """Return the newest file of each time in `period`, by time.

    The newest has the highest release, then the highest counter; what else there is of the same
    time, in whatever order, is not looked at.

    Raises
    ------
    NoDataError
        If there is none.
    SourceError
        If a file is not called like those of the product, or the search fails.
    """
    sign: Signing = spec.stac.sign if spec.stac else "earthdata"
    newest: dict[pd.Timestamp, tuple[tuple[int, int, str], str]] = {}
    for href in _find_hrefs(spec, product, grid, period):
        match = _parse(href, product)
        if match is None:
            msg = (
                f"{redact(href)} is not named like a {product.short_name} file "
                f"({product.form}); correct paths of the source"
            )
            raise SourceError(msg)
        time = pd.Timestamp(match[1])
        version = (int(match[2]), int(match[3]), href)
        if period.start <= time.normalize() <= period.end:
            newest[time] = max(newest.get(time, (version, href)), (version, href))
    if not newest:
        msg = (
            f"{spec.origin}: {spec.name} has no file from {period.start:%Y-%m-%d} to "
            f"{period.end:%Y-%m-%d}; download {product.short_name} of that period"
        )
        raise NoDataError(msg)
    return {time: RemoteFile(newest[time][1], sign, spec.origin) for time in sorted(newest)}


def read_cells(dataset: Any, rows: slice, cols: slice) -> npt.NDArray[Any]:
    """Return a window of a field on the global 9 km grid; ValueError if it has another shape."""
    if dataset.shape != ease_grid(9).shape.yx:
        msg = f"{dataset.name} has the shape {dataset.shape}, expected {ease_grid(9).shape.yx}"
        raise ValueError(msg)
    return np.asarray(dataset[rows, cols])


def _find_hrefs(spec: SourceSpec, product: Product, grid: GeoBox, period: Period) -> Iterable[str]:
    if spec.stac is None:
        return find_files(spec)
    return [_data_href(item, product) for item in search_items(spec, grid, period)]


def _data_href(item: pystac.Item, product: Product) -> str:
    """Return the URL of an item's file: the asset called like one, rather over HTTP than S3."""
    hrefs = [asset.href for asset in item.assets.values() if _parse(asset.href, product)]
    if not hrefs:
        msg = (
            f"{item.id} has no asset named like a {product.short_name} file ({product.form}); it "
            f"has {', '.join(item.assets) or 'none'}: correct stac.collection"
        )
        raise SourceError(msg)
    return min(hrefs, key=lambda href: (href.startswith("s3://"), href))


def _parse(href: str, product: Product) -> re.Match[str] | None:
    return product.name.search(urlsplit(href).path)
