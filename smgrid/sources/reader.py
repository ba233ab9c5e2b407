"""Reads raster assets for odc-stac: signed at read time, never shifted, with errors that say which.

Signing at read time is what lets a lazy cube outlive a token: a URL signed when the graph is built
is dead about 45 minutes later.
"""

import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import rasterio
from odc.geo.converters import rio_geobox
from odc.geo.geobox import GeoBox
from odc.loader import RasterLoadParams, RasterSource, RioDriver, RioReader
from odc.loader._rio import GDAL_CLOUD_DEFAULTS  # what it captures where the user set nothing
from rasterio.errors import RasterioError
from requests.exceptions import RequestException

from smgrid.catalog import SourceSpec, is_url
from smgrid.catalogtext import Signing
from smgrid.errors import CatalogError, SourceError

# GDAL retries nothing by default and waits for ever. ALL includes dropped connections.
_GDAL_HTTP: Mapping[str, str] = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_HTTP_MAX_RETRY": "5",
    "GDAL_HTTP_RETRY_DELAY": "0.5",
    "GDAL_HTTP_RETRY_CODES": "ALL",
    "GDAL_HTTP_CONNECTTIMEOUT": "20",
    "GDAL_HTTP_TIMEOUT": "120",
}
# Waits before each new attempt at a remote asset [s], after GDAL's own retries.
_PAUSES = (1.0, 4.0)
# Part of a pixel by which a file may miss the lattice that it is pasted on.
_TOLERANCE = 0.02


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
        """Return the GDAL options that travel to the workers; the user's own come first."""
        captured = super().capture_env()
        return {**_GDAL_HTTP, **(captured if captured != GDAL_CLOUD_DEFAULTS else {})}

    def open(self, src: RasterSource, ctx: Any) -> "AssetReader":
        """Return a reader of one asset; nothing is opened before it reads."""
        return AssetReader(src, ctx, self)

    def to_readable(self, href: str) -> str:
        """Return what GDAL opens for an asset: signed now, its CRS corrected."""
        uri = _sign(href, self.sign)
        if self.crs is None:
            return uri
        if "?" in uri:
            msg = f"{self.origin}: crs cannot be stated for a URL with a query ({href}); omit it"
            raise CatalogError(msg)
        path = f"/vsicurl/{uri}" if uri.startswith("http") else uri
        return f"vrt://{path}?a_srs={self.crs}"

    def read_geobox(self, href: str) -> GeoBox:
        """Return the grid of an asset from its header."""
        try:
            with rasterio.open(self.to_readable(href)) as source:
                return self.check_geobox(source, href)
        except RasterioError as cause:
            raise self.unreadable(href, cause) from cause

    def check_geobox(self, source: rasterio.DatasetReader, href: str) -> GeoBox:
        """Return the grid of an open file; SourceError if it has no CRS."""
        if source.crs is None:
            kind = "only ground control points, it is not geocoded" if source.gcps[0] else "no CRS"
            msg = (
                f"{href} has {kind}; state its CRS as crs: in {self.origin or 'the catalog'} or "
                "use a geocoded product"
            )
            raise SourceError(msg)
        geobox = rio_geobox(source)
        assert isinstance(geobox, GeoBox)  # ground control points alone come with no CRS
        return geobox

    def unreadable(self, href: str, cause: Exception) -> SourceError:
        """Return the error for an asset that cannot be read."""
        reason = str(cause.__cause__ or cause)
        return SourceError(
            f"{href} cannot be read ({reason}); it is missing, truncated or not a raster: fetch it "
            f"again or correct {self.origin or 'the catalog'}"
        )


class AssetReader(RioReader):
    """Reader of one asset that retries what is remote and names the asset when it gives up."""

    def __init__(self, src: RasterSource, ctx: Any, driver: AssetDriver) -> None:
        super().__init__(src, ctx)
        self._driver = driver

    def read(self, cfg: RasterLoadParams, dst_geobox: GeoBox, **kwargs: Any) -> Any:
        """Return the pixels on `dst_geobox`, as ``RioReader.read`` does."""
        href = self._src.uri
        cfg = cfg.patch(
            src_nodata_override=self._driver.nodata,
            src_nodata_fallback=cfg.meta.nodata if cfg.meta else None,
        )
        pauses = iter(_PAUSES if is_url(href) else ())
        with ExitStack() as stack:
            while True:
                try:
                    return self._read_signed(cfg, dst_geobox, **kwargs)
                except RasterioError as cause:
                    pause = next(pauses, None)
                    if pause is None:
                        raise self._driver.unreadable(href, cause) from cause
                time.sleep(pause)
                # GDAL remembers a failed URL for the life of the process: ask it to forget.
                stack.enter_context(rasterio.Env(CPL_VSIL_CURL_NON_CACHED="/vsicurl/"))

    def _read_signed(self, cfg: RasterLoadParams, dst_geobox: GeoBox, **kwargs: Any) -> Any:
        uri = self._driver.to_readable(self._src.uri)
        self._check_lattice(uri, cfg, dst_geobox)
        return RioReader(replace(self._src, uri=uri), self._ctx).read(cfg, dst_geobox, **kwargs)

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
            msg = (
                f"{self._src.uri}: its pixels are {shift:.2f} of a pixel off the lattice that its "
                "STAC item states; the item's proj:transform is wrong, correct the item"
            )
            raise SourceError(msg)


def _sign(href: str, sign: Signing) -> str:
    if sign == "none":
        return href
    import planetary_computer  # only sources that sign need it, and its models are slow to build

    try:
        return str(planetary_computer.sign(href))
    except RequestException as cause:
        msg = (
            f"{href} could not be signed by the Planetary Computer ({cause}); try again later, "
            "or set PC_SDK_SUBSCRIPTION_KEY if requests are being limited"
        )
        raise SourceError(msg) from cause
