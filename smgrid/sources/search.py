"""Which items of a STAC API or static catalog a region and period need.

What an API cannot filter is filtered here, so that its silence never hides data. Searches go month
by month, since long ones time out; an answer is kept on disk (`smgrid.sources.itemcache`) and of
what was processed twice the later item is taken (`smgrid.sources.reprocessed`). A static catalog is
read anew each time.
"""

import logging
import operator
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from itertools import pairwise
from typing import Any

import pandas as pd
import pystac
import pystac_client
from odc.geo.geobox import GeoBox
from odc.geo.geom import Geometry
from pystac.stac_io import DefaultStacIO
from pystac_client.exceptions import APIError
from pystac_client.stac_api_io import StacApiIO
from requests.exceptions import RequestException

from smgrid.catalog import SourceSpec, StacQuery, is_url
from smgrid.errors import CatalogError, NoDataError, SmgridError, SourceError
from smgrid.sources.itemcache import Document, SearchKey, offer_stale, read_answer, write_answer
from smgrid.sources.reprocessed import keep_latest
from smgrid.sources.retry import open_session, redact
from smgrid.windows import Period
from smgrid.yamltext import suggest

Span = tuple[pd.Timestamp, pd.Timestamp]

_log = logging.getLogger(__name__)

_TIMEOUTS = (20.0, 60.0)  # to connect, and between two pieces of the answer [s]
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
        Sorted by start time and id, each observation once (see `keep_latest`), with absolute asset
        URLs (not signed).

    Raises
    ------
    SourceError
        If the API or catalog cannot be read or lacks the collection. A request that fails is tried
        seven times within five minutes; an API that refuses connections is given up after about
        65 s.
    NoDataError
        If nothing matches.
    """
    query = stac_query(spec)
    _check_conditions(spec, query)
    span = (period.start - margin, period.end + _DAY + margin) if period else None
    region = grid.footprint("EPSG:4326", wrapdateline=True)
    try:
        found = keep_latest(
            item for item in _candidates(spec, region, span) if _matches(item, query, region, span)
        )
    except SmgridError:
        raise
    except _UNREADABLE as cause:
        raise _unsearchable(spec, cause) from cause
    if not found:
        raise no_data(spec, grid, period)
    for item in found:
        item.make_asset_hrefs_absolute()
    found.sort(key=lambda item: (item_span(item)[0], item.id))
    months = Counter(f"{item_span(item)[0]:%Y-%m}" for item in found)
    counts = ", ".join(f"{month}: {count}" for month, count in months.items())
    _log.info("%s: %d items of %s (%s)", spec.name, len(found), query.collection, counts)
    return found


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


class _StaticIO(DefaultStacIO):
    """Reads the documents of a static catalog; URLs as those of an API, with retries."""

    def read_text_from_href(self, href: str) -> str:
        return _api_io().request(href) if is_url(href) else super().read_text_from_href(href)


class _Api:
    """A STAC API, opened when the first search is not in the cache."""

    def __init__(self, href: str) -> None:
        self.href = href

    @cached_property
    def client(self) -> pystac_client.Client:
        # Opening replaces the time-outs of the StacApiIO, by none unless they are given here.
        return pystac_client.Client.open(self.href, stac_io=_api_io(), timeout=_TIMEOUTS)

    def search(self, key: SearchKey) -> list[Document]:
        """Return the items of one part of a search, and keep them."""
        # An API that does not conform to QUERY may answer a query with nothing, not an error.
        asks = key.conditions and self.client.conforms_to("QUERY")
        search = self.client.search(
            collections=[key.collection],
            bbox=key.bbox,
            datetime=list(key.span) if key.span else None,
            query=dict(key.conditions) if asks else None,
            limit=_PAGE,
        )
        items = [_without_links(item) for item in search.items_as_dicts()]
        write_answer(key, items)
        return items


def _unsearchable(spec: SourceSpec, cause: Exception, offer: str = "") -> SourceError:
    query = stac_query(spec)
    return SourceError(
        f"{redact(query.href)} cannot be searched for {query.collection} ({redact(str(cause))}); "
        f"try again later or correct {spec.origin}{offer}"
    )


def _candidates(spec: SourceSpec, region: Geometry, span: Span | None) -> Iterator[pystac.Item]:
    query = stac_query(spec)
    if not is_url(query.href) or query.href.endswith(".json"):
        return _static_items(query)
    return _api_items(spec, region, span)


def _static_items(query: StacQuery) -> Iterator[pystac.Item]:
    root = pystac.read_file(query.href, stac_io=_StaticIO())
    if not isinstance(root, pystac.Catalog):
        raise pystac.STACError(f"it is {type(root).__name__}, expected a catalog or collection")
    child = root if root.id == query.collection else root.get_child(query.collection, True)
    if child is None:
        known = [found.id for found in root.get_all_collections()]
        raise pystac.STACError(f"no such collection; {suggest(query.collection, known)}")
    return child.get_items(recursive=True)


def _api_items(spec: SourceSpec, region: Geometry, span: Span | None) -> Iterator[pystac.Item]:
    query = stac_query(spec)
    api = _Api(query.href)
    bbox = tuple(round(edge, 7) for edge in region.boundingbox.bbox)
    for part in _months(span) if span else [None]:
        moments = (_to_text(part[0]), _to_text(part[1])) if part else None
        key = SearchKey(query.href, query.collection, bbox, moments, query.query)
        items = read_answer(key)
        place = "the cache"
        if items is None:
            place = "the API"
            try:
                items = api.search(key)
            except _UNREADABLE as cause:
                raise _unsearchable(spec, cause, offer_stale(key)) from cause
        when = "/".join(moments) if moments else "any time"
        _log.debug("%s, %s: %d items from %s", query.collection, when, len(items), place)
        yield from map(pystac.Item.from_dict, items)


def _without_links(item: Document) -> Document:
    """Return an item with the one link that its relative URLs need."""
    own = [link for link in item.get("links", []) if link.get("rel") == "self"]
    return {**item, "links": own}


def _api_io() -> StacApiIO:
    io = StacApiIO(timeout=_TIMEOUTS, max_retries=None)
    io.session = open_session()
    return io


def _months(span: Span) -> Iterator[Span]:
    """Yield the parts of a span that lie in one calendar month, give or take a day at its ends."""
    start, end = span
    firsts = pd.date_range(start.normalize(), end, freq="MS")
    inner = (first for first in firsts if start + _DAY < first < end - _DAY)
    yield from pairwise([start, *inner, end])


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


def _to_text(moment: pd.Timestamp) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"


def _to_utc(text: Any) -> pd.Timestamp:
    moment = pd.Timestamp(text)
    moment = moment.tz_convert("UTC").tz_localize(None) if moment.tz else moment
    return moment.floor("s").as_unit("ns")
