"""Reads raster assets for odc-stac: signed at read time, never shifted, with errors that say which.

What is remote is read again, from a fresh URL, when it fails: after GDAL's own retries of single
requests, because a tile that arrives damaged or short, a token that has expired and a failure that
GDAL remembers can only be cured by reading the asset anew. Damage is seen where the compression
has a check sum or grammar: always with deflate, nearly always with LZW and zstd, never in
uncompressed tiles.
"""

import logging
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar, get_args

import numpy as np
import rasterio
import requests
from odc.geo.converters import rio_geobox
from odc.geo.geobox import GeoBox
from odc.loader import RasterLoadParams, RasterSource, RioDriver, RioReader

# GDAL_CLOUD_DEFAULTS is what it captures where the user set nothing.
from odc.loader._rio import GDAL_CLOUD_DEFAULTS, rio_env
from rasterio._err import CPLE_BaseError
from rasterio.errors import RasterioError, RasterioIOError

from smgrid.catalog import SourceSpec, is_url
from smgrid.catalogtext import Signing
from smgrid.errors import AssetError, CatalogError, SourceError
from smgrid.sources.gdal import FORGET, asset_options, gdal_options, watch_headers
from smgrid.sources.retry import asked_wait, redact, retry_pauses
from smgrid.sources.signing import forget_token, sign_href

_log = logging.getLogger(__name__)

# Waits before each new attempt at a remote asset [s], after GDAL's own retries.
_PAUSES = (1.0, 4.0, 15.0)
# Part of a pixel by which a file may miss the lattice that it is pasted on.
_TOLERANCE = 0.02
# What GDAL raises when a server, not the signature, is at fault; it says nothing of tiles.
_SERVER_FAULT = re.compile(r"CURL error|HTTP response code: (?!40[13])\d{3}")
_BUSY = re.compile(r"HTTP response code: (429|503)")
_REFUSED = re.compile(r"HTTP response code: 40[13]")
_PROBE_TIMEOUT_S = 20.0

_MISSING = "it is missing, truncated or not a raster: fetch it again or correct {origin}"
_CURES: Mapping[Signing, str] = dict.fromkeys(get_args(Signing), _MISSING)
_CURES_REFUSED: Mapping[Signing, str] = {
    "none": "it needs credentials: correct stac.sign in {origin}",
    "planetary-computer": "try again later, or set PC_SDK_SUBSCRIPTION_KEY",
    "earthdata": (
        "make a new EARTHDATA_TOKEN, and accept the provider's licence with its account, at "
        "https://urs.earthdata.nasa.gov"
    ),
}
# Assets whose last attempt in this process failed; GDAL remembers them, too.
_FAILED: set[str] = set()

_T = TypeVar("_T")


class AssetDriver(RioDriver):
    """Driver of ``odc.stac.load`` that reads the assets of one source.

    Parameters
    ----------
    sign
        How URLs are signed.
    crs
        CRS of files that carry none or a wrong one.
    nodata
        Stored value that means missing, whatever the file says.
    origin
        Where the source was written, for messages.
    """

    def __init__(
        self,
        *,
        sign: Signing = "none",
        crs: str | None = None,
        nodata: float | None = None,
        origin: str = "",
    ) -> None:
        super().__init__()
        self.sign = sign
        self.crs = crs
        self.nodata = nodata
        self.origin = origin

    @classmethod
    def of(cls, spec: SourceSpec) -> "AssetDriver":
        """Return the driver for the assets of `spec`."""
        sign = spec.stac.sign if spec.stac else "none"
        return cls(sign=sign, crs=spec.crs, nodata=spec.nodata, origin=spec.origin)

    def capture_env(self) -> dict[str, Any]:
        """Return the GDAL options of the user, which travel to the workers."""
        captured: dict[str, Any] = super().capture_env()
        return captured if captured != GDAL_CLOUD_DEFAULTS else {}

    def open(self, src: RasterSource, ctx: Any) -> "AssetReader":
        """Return a reader of one asset; nothing is opened before it reads."""
        return AssetReader(src, ctx, self)

    def read_geobox(self, href: str) -> GeoBox:
        """Return the grid of an asset from its header."""

        def read(uri: str) -> GeoBox:
            with rasterio.open(uri) as source:
                return self.check_geobox(source, href)

        return self.attempt(href, read)

    def attempt(self, href: str, read: Callable[[str], _T]) -> _T:
        """Return what `read` makes of an asset, which it gets as GDAL can open it.

        Parameters
        ----------
        href
            Path or URL, as the item states it.
        read
            Called again, with a fresh URL and with what GDAL remembers of the old one forgotten,
            when a remote asset fails; after waits of about 1, 4 and 15 s, or what a busy server
            asks for.

        Raises
        ------
        AssetError
            If every attempt fails.
        """
        pauses = (*(retry_pauses(_PAUSES) if is_url(href) else ()), None)
        for number, pause in enumerate(pauses, 1):
            signed = sign_href(href, self.sign)
            options = asset_options(signed, self.sign, origin=self.origin)
            options |= FORGET if href in _FAILED else {}
            try:
                with rio_env(**gdal_options(self.capture_env()), **options):
                    result = _read_whole(self._with_crs(signed), read)
            except (RasterioError, CPLE_BaseError) as cause:
                failure = self.unreadable(href, cause, attempts=number)
                _FAILED.add(href)
            else:
                _FAILED.discard(href)
                return result
            # Outside of the handler: GDAL's errors do not survive the way between processes, not
            # even as the context of another one, and they hold the signed URL.
            if pause is None:
                raise failure
            reason = failure.reason
            if self.sign == "planetary-computer" and not _SERVER_FAULT.search(reason):
                forget_token(href, signed)
            wait = max(pause, _ask_wait(signed)) if _BUSY.search(reason) else pause
            _log.warning(
                "%s: %s; attempt %d of %d, again in %.1f s",
                *(failure.asset, reason, number, len(pauses), wait),
            )
            time.sleep(wait)
        raise AssertionError  # the last attempt returns or raises

    def to_readable(self, href: str) -> str:
        """Return what GDAL opens for an asset: signed now, its CRS corrected."""
        return self._with_crs(sign_href(href, self.sign))

    def check_geobox(self, source: rasterio.DatasetReader, href: str) -> GeoBox:
        """Return the grid of an open file; SourceError if it has no CRS."""
        if source.crs is None:
            kind = "only ground control points, it is not geocoded" if source.gcps[0] else "no CRS"
            msg = (
                f"{redact(href)} has {kind}; state its CRS as crs: in "
                f"{self.origin or 'the catalog'} or use a geocoded product"
            )
            raise AssetError(msg, asset=redact(href), reason=kind)
        geobox = rio_geobox(source)
        assert isinstance(geobox, GeoBox)  # ground control points alone come with no CRS
        return geobox

    def unreadable(self, href: str, cause: Exception, *, attempts: int = 1) -> AssetError:
        """Return the error for an asset that cannot be read."""
        reason = _reason(cause)
        cures = _CURES_REFUSED if _REFUSED.search(reason) else _CURES
        tried = f", {attempts} attempts" if attempts > 1 else ""
        cure = cures[self.sign].format(origin=self.origin or "the catalog")
        msg = f"{redact(href)} cannot be read ({reason}{tried}); {cure}"
        return AssetError(msg, asset=redact(href), attempts=attempts, reason=reason)

    def _with_crs(self, uri: str) -> str:
        if self.crs is None:
            return uri
        if "?" in uri:
            msg = (
                f"{self.origin}: crs cannot be stated for a URL with a query ({redact(uri)}); "
                "omit it"
            )
            raise CatalogError(msg)
        path = f"/vsicurl/{uri}" if uri.startswith("http") else uri
        return f"vrt://{path}?a_srs={self.crs}"


class AssetReader(RioReader):
    """Reader of one asset that retries what is remote and names the asset when it gives up."""

    def __init__(self, src: RasterSource, ctx: Any, driver: AssetDriver) -> None:
        super().__init__(src, ctx)
        self._driver = driver

    def read(self, cfg: RasterLoadParams, dst_geobox: GeoBox, **kwargs: Any) -> Any:
        """Return the pixels on `dst_geobox`, as ``RioReader.read`` does."""
        missing = self._driver.nodata
        # A stated value is taken out here, in one pass over the pixels where odc-loader takes four.
        cfg = cfg.patch(
            src_nodata_override=None if missing is None else float("nan"),
            src_nodata_fallback=cfg.meta.nodata if cfg.meta else None,
        )

        def read(uri: str) -> Any:
            self._check_lattice(uri, cfg, dst_geobox)
            source = replace(self._src, uri=uri)
            where, pixels = RioReader(source, self._ctx).read(cfg, dst_geobox, **kwargs)
            if missing is not None:
                np.copyto(pixels, np.nan, where=pixels == missing)
            return where, pixels

        return self._driver.attempt(self._src.uri, read)

    def _check_lattice(self, uri: str, cfg: RasterLoadParams, target: GeoBox) -> None:
        """Refuse a file whose pixels lie elsewhere than those they would be pasted on.

        With nearest neighbours odc-loader ignores a shift of up to 0.9 pixels, which is what false
        metadata of an item lead to.
        """
        with rasterio.open(uri) as source:
            geobox = self._driver.check_geobox(source, self._src.uri)
        if not cfg.nearest or geobox.crs != target.crs:
            return
        pixel, cell = geobox.affine, target.affine
        same_scale = abs(pixel.a / cell.a - 1) < 1e-6 and abs(pixel.e / cell.e - 1) < 1e-6
        offset = ((pixel.c - cell.c) / cell.a, (pixel.f - cell.f) / cell.e)
        shift = max(abs(part - round(part)) for part in offset)
        if same_scale and shift > _TOLERANCE:
            asset = redact(self._src.uri)
            reason = f"its pixels are {shift:.2f} of a pixel off the lattice that its item states"
            msg = f"{asset}: {reason}; the STAC item's proj:transform is wrong, correct the item"
            raise AssetError(msg, asset=asset, reason=reason)


def _read_whole(uri: str, read: Callable[[str], _T]) -> _T:
    """Return what `read` makes of a file; RasterioIOError if a part of its header did not come."""
    with watch_headers() as damage:
        try:
            result = read(uri)
        except SourceError:  # such as no CRS
            if not damage:
                raise
        else:
            if not damage:
                return result
    raise RasterioIOError(damage[0])


def _reason(cause: Exception) -> str:
    return redact(str(cause.__cause__ or cause))


def _ask_wait(url: str) -> float:
    """Return how long a busy server asks to be left alone [s]: GDAL does not tell."""
    if not url.startswith("http"):
        return 0.0
    try:
        with requests.head(url, timeout=_PROBE_TIMEOUT_S) as answer:
            return asked_wait(answer)
    except requests.RequestException:
        return 0.0


# The name under which the downloads of whole files know it.
_sign = sign_href
