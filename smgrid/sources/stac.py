"""Items of a STAC API or static catalog: which ones a region and period need, and their pixels.

What an API cannot filter is filtered here, so that its silence never hides data; pixels are read
on the items' own lattice, never from overviews.
"""

import operator
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import odc.stac
import pandas as pd
import pystac
import pystac_client
import xarray as xr
from odc.geo import CRS
from odc.geo.geobox import GeoBox
from odc.geo.geom import Geometry
from pystac.extensions.projection import ProjectionExtension
from pystac.stac_io import DefaultStacIO
from pystac_client.exceptions import APIError
from pystac_client.stac_api_io import StacApiIO
from requests.exceptions import RequestException
from urllib3.util import Retry

from smgrid.catalog import SourceSpec, StacQuery, is_url
from smgrid.errors import CatalogError, NoDataError, SourceError
from smgrid.sources.reader import AssetDriver
from smgrid.windows import Period
from smgrid.yamltext import suggest

Span = tuple[pd.Timestamp, pd.Timestamp]

_RETRY = Retry(
    total=6, backoff_factor=1, status_forcelist=[429, 500, 502, 503, 504], allowed_methods=None
)
_TIMEOUT_S = 60
_PAGE = 250
_NO_TIME = pd.Timedelta(0)
_DAY = pd.Timedelta(days=1)
# What pystac and pystac-client raise for a document that is missing or not STAC.
_UNREADABLE = (
    APIError,
    RequestException,
    pystac.STACError,
    pystac.STACTypeError,
    pystac.RequiredPropertyMissing,
    OSError,
    ValueError,
    KeyError,
)
_CONDITIONS: Mapping[str, Callable[[Any, Any], bool]] = {
    "eq": operator.eq,
    "neq": operator.ne,
    "lt": operator.lt,
    "lte": operator.le,
    "gt": operator.gt,
    "gte": operator.ge,
    "in": lambda value, choices: value in choices,
    "contains": operator.contains,
    "startsWith": lambda value, start: str(value).startswith(start),
    "endsWith": lambda value, end: str(value).endswith(end),
}


def search_items(
    spec: SourceSpec, grid: GeoBox, period: Period | None, *, margin: pd.Timedelta = _NO_TIME
) -> list[pystac.Item]:
    """Return the items of a source that a region and period need.

    Parameters
    ----------
    spec
        Its ``stac`` says where to search.
    grid
        Region; an item is kept if its footprint polygon meets it.
    period
        Days, UTC; an item is kept if its time span meets them. ``None`` for static data.
    margin
        Searched before and after the period as well.

    Returns
    -------
    list of pystac.Item
        Sorted by start time and id, each once, with absolute asset URLs (not signed).

    Raises
    ------
    SourceError
        If the API or catalog cannot be read or lacks the collection.
    NoDataError
        If nothing matches.
    """
    query = stac_query(spec)
    _check_conditions(spec, query)
    span = (period.start - margin, period.end + _DAY + margin) if period else None
    region = grid.footprint("EPSG:4326", wrapdateline=True)
    found: dict[str, pystac.Item] = {}
    try:
        for item in _candidates(query, region, span):
            if _matches(item, query, region, span):
                found.setdefault(item.id, item)
    except _UNREADABLE as cause:
        msg = (
            f"{query.href} cannot be searched for {query.collection} ({cause}); "
            f"try again later or correct {spec.origin}"
        )
        raise SourceError(msg) from cause
    if not found:
        raise no_data(spec, grid, period)
    for item in found.values():
        item.make_asset_hrefs_absolute()
    return sorted(found.values(), key=lambda item: (item_span(item)[0], item.id))


def stac_query(spec: SourceSpec) -> StacQuery:
    """Return ``spec.stac``; CatalogError if the source has none."""
    if spec.stac is None:
        msg = f"{spec.origin}: {spec.name} needs stac: with href and collection; add it"
        raise CatalogError(msg)
    return spec.stac


def no_data(spec: SourceSpec, grid: GeoBox, period: Period | None) -> NoDataError:
    """Return the error for a region and period without data of a source."""
    box = grid.geographic_extent.boundingbox
    collection = f" ({stac_query(spec).collection})" if spec.stac else ""
    return NoDataError(
        f"{spec.name}{collection} has no data for {period or 'any time'} in "
        f"{box.left:.4f}..{box.right:.4f} E {box.bottom:.4f}..{box.top:.4f} N; choose another "
        f"period or region, or another source of {', '.join(spec.provides)} than {spec.origin}"
    )


def item_span(item: pystac.Item) -> Span:
    """Return first and last moment of an item, UTC without time zone, whole seconds."""
    properties = item.properties
    moment = properties.get("datetime") or properties.get("start_datetime")
    start = properties.get("start_datetime") or moment
    end = properties.get("end_datetime") or moment
    return _to_utc(start), _to_utc(end)


def split_by_lattice(
    spec: SourceSpec, items: Iterable[pystac.Item], assets: Sequence[str]
) -> list[tuple[GeoBox, list[pystac.Item]]]:
    """Return the items by the lattice of their pixels, each with one GeoBox on that lattice.

    Two items share a lattice when CRS, pixel size and alignment agree. Items that do not state
    their projection get it from the header of their file.
    """
    driver = AssetDriver.of(spec)
    lattices: dict[Any, tuple[GeoBox, list[pystac.Item]]] = {}
    for item in items:
        geobox = _native_geobox(spec, item, assets, driver)
        a, _, x, _, e, y, *_ = geobox.affine
        offset = [round(part % 1, 3) % 1 for part in (x / a, y / e)]
        key = (str(geobox.crs), round(a, 6), round(e, 6), *offset)
        lattices.setdefault(key, (geobox, []))[1].append(item)
    return list(lattices.values())


def load_items(
    spec: SourceSpec,
    items: Sequence[pystac.Item],
    geobox: GeoBox,
    *,
    assets: Mapping[str, str],
    groups: Mapping[str, int],
    chunks: int,
) -> xr.Dataset:
    """Return the pixels of items, those of one group mosaicked, lazily.

    Parameters
    ----------
    spec
        Signing, CRS and nodata of the assets.
    items
        From `search_items`.
    geobox
        Where, on the items' own lattice (see `split_by_lattice`): the pixels are exact copies.
    assets
        Variable -> asset key.
    groups
        Item id -> group; where slices of a group overlap, the first by time and id wins.
    chunks
        Tile edge [pixels of `geobox`].

    Returns
    -------
    xarray.Dataset
        float32 (group, y, x), values as stored, NaN where missing.

    Raises
    ------
    SourceError
        If no item has a wanted asset; when computed, if an asset cannot be read.
    """
    _check_assets(spec, items, assets)
    bands = {}
    for name, key in assets.items():
        # odc-stac takes an item without the asset for an item of another kind of collection.
        holding = [item for item in items if key in item.assets]
        loaded = odc.stac.load(
            holding,
            bands=[key],
            geobox=geobox,
            groupby=lambda item, parsed, index: groups[item.id],
            dtype="float32",
            nodata=float("nan"),
            resampling="nearest",
            use_overviews=False,
            fail_on_error=True,
            chunks={"y": chunks, "x": chunks},
            driver=AssetDriver.of(spec),
        )
        numbers = sorted({groups[item.id] for item in holding})
        bands[name] = (
            loaded[key].rename(time="group").assign_coords(group=numbers).drop_attrs(deep=False)
        )
    everything = sorted({groups[item.id] for item in items})
    return xr.Dataset({name: da.reindex(group=everything) for name, da in bands.items()})


class _StaticIO(DefaultStacIO):
    """Reads the documents of a static catalog; URLs as those of an API, with retries."""

    def read_text_from_href(self, href: str) -> str:
        return _api_io().request(href) if is_url(href) else super().read_text_from_href(href)


def _candidates(query: StacQuery, region: Geometry, span: Span | None) -> Iterator[pystac.Item]:
    if not is_url(query.href) or query.href.endswith(".json"):
        return _static_items(query)
    return _api_items(query, region, span)


def _static_items(query: StacQuery) -> Iterator[pystac.Item]:
    root = pystac.read_file(query.href, stac_io=_StaticIO())
    if not isinstance(root, pystac.Catalog):
        raise pystac.STACError(f"it is {type(root).__name__}, expected a catalog or collection")
    child = root if root.id == query.collection else root.get_child(query.collection, True)
    if child is None:
        known = [found.id for found in root.get_all_collections()]
        raise pystac.STACError(f"no such collection; {suggest(query.collection, known)}")
    return child.get_items(recursive=True)


def _api_items(query: StacQuery, region: Geometry, span: Span | None) -> Iterator[pystac.Item]:
    client = pystac_client.Client.open(query.href, stac_io=_api_io())
    # An API that does not conform to QUERY may answer a query with nothing instead of an error.
    conditions = dict(query.query) if query.query and client.conforms_to("QUERY") else None
    for part in _months(span) if span else [None]:
        search = client.search(
            collections=[query.collection],
            bbox=region.boundingbox.bbox,
            datetime=[f"{moment:%Y-%m-%dT%H:%M:%SZ}" for moment in part] if part else None,
            query=conditions,
            limit=_PAGE,
        )
        yield from search.items()


def _api_io() -> StacApiIO:
    return StacApiIO(timeout=_TIMEOUT_S, max_retries=_RETRY)


def _months(span: Span) -> Iterator[Span]:
    """Yield the parts of a span that lie in one calendar month: long searches time out."""
    start, end = span
    firsts = pd.date_range(start.normalize(), end, freq="MS")
    yield from pairwise([start, *(first for first in firsts if start < first < end), end])


def _matches(item: pystac.Item, query: StacQuery, region: Geometry, span: Span | None) -> bool:
    start, end = item_span(item)
    if span is not None and (start >= span[1] or end < span[0]):
        return False
    if not all(_holds(item, name, wanted) for name, wanted in query.query.items()):
        return False
    if item.geometry is None:
        return True
    footprint = Geometry(item.geometry, "EPSG:4326")
    return footprint.intersects(region) and not footprint.touches(region)


def _holds(item: pystac.Item, name: str, wanted: Any) -> bool:
    conditions = wanted if isinstance(wanted, Mapping) else {"eq": wanted}
    value = item.properties.get(name)
    return value is not None and all(
        _CONDITIONS[key](value, bound) for key, bound in conditions.items()
    )


def _check_conditions(spec: SourceSpec, query: StacQuery) -> None:
    for name, wanted in query.query.items():
        for key in wanted if isinstance(wanted, Mapping) else ():
            if key not in _CONDITIONS:
                msg = (
                    f"{spec.origin}: stac.query.{name} of {spec.name}: unknown condition {key!r}; "
                    f"{suggest(key, list(_CONDITIONS))}"
                )
                raise CatalogError(msg)


def _to_utc(text: Any) -> pd.Timestamp:
    moment = pd.Timestamp(text)
    moment = moment.tz_convert("UTC").tz_localize(None) if moment.tz else moment
    return moment.floor("s").as_unit("ns")


def _native_geobox(
    spec: SourceSpec, item: pystac.Item, assets: Sequence[str], driver: AssetDriver
) -> GeoBox:
    """Return the grid of an item's pixels; SourceError if its assets lie on different ones."""
    keys = [key for key in assets if key in item.assets]
    try:
        geoboxes = odc.stac.parse_item(item).geoboxes(keys)
    except ValueError:  # an incomplete projection
        geoboxes = ()
    if not geoboxes:
        geoboxes = (driver.read_geobox(item.assets[keys[0]].href),)
        _state_projection(item, keys, geoboxes[0])
    if len(geoboxes) > 1:
        msg = (
            f"{item.id}: its assets {', '.join(keys)} lie on different grids; load them one by one"
        )
        raise SourceError(msg)
    geobox = geoboxes[0]
    return GeoBox(geobox.shape, geobox.affine, CRS(spec.crs)) if spec.crs else geobox


def _state_projection(item: pystac.Item, keys: Sequence[str], geobox: GeoBox) -> None:
    for key in keys:
        projection = ProjectionExtension.ext(item.assets[key], add_if_missing=True)
        projection.wkt2 = CRS(geobox.crs).to_wkt()
        projection.shape = list(geobox.shape.yx)
        projection.transform = list(geobox.affine)[:6]


def _check_assets(
    spec: SourceSpec, items: Sequence[pystac.Item], assets: Mapping[str, str]
) -> None:
    present: dict[str, int] = defaultdict(int)
    for item in items:
        for key in item.assets:
            present[key] += 1
    for name, key in assets.items():
        if not present[key]:
            msg = (
                f"{spec.origin}: assets.{name} of {spec.name} is {key!r}, which no item has; "
                f"{suggest(key, [known for known, count in present.items() if count])}"
            )
            raise SourceError(msg)
