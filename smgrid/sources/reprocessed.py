"""One item per observation: of a product that its provider made twice, the later one.

A catalog keeps both when a provider processes an acquisition again, and an interrupted harvest
leaves one item in two versions. Which one stays depends on what the items say, never on the order
in which a server gives them.
"""

import json
import logging
import re
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import pandas as pd
import pystac
from shapely.geometry import shape
from shapely.geometry.base import BaseGeometry

_STRIP_START = re.compile(r"_S(\d{8}T\d{6})")

_log = logging.getLogger(__name__)

# Properties that tell observations of one moment apart.
_ACQUISITION = ("sat:relative_orbit", "sat:orbit_state", "sar:instrument_mode", "sar:product_type")
# Properties that name the cell of a provider's tiling.
_TILE = (
    *("grid:code", "s2:mgrs_tile", "mgrs:utm_zone", "mgrs:latitude_band", "mgrs:grid_square"),
    *("modis:horizontal-tile", "modis:vertical-tile", "landsat:wrs_path", "landsat:wrs_row"),
    *("io:tile_id", "esa_worldcover:product_tile"),
)
# The same in an id: a burst of OPERA's, a tile of MODIS or VIIRS, one of Sentinel-2.
_TILE_IN_ID = re.compile(r"T\d{3}-\d{6}-IW\d|h\d{2}v\d{2}|(?<=_)T\d{2}[A-Z]{3}(?=_)")
# Moments of acquisition and of production, as ids state them.
_MOMENT_IN_ID = re.compile(r"\d{8}T\d{6}|\d{13,14}")
_PROCESSED = ("processing:datetime", "s1:processing_datetime", "s2:generation_time")
# Part of their common area that two products of one slice share; neighbours share far less.
_SAME_FOOTPRINT = 0.9


def keep_latest(items: Iterable[pystac.Item]) -> list[pystac.Item]:
    """Return one item per observation, in no particular order.

    Two items are of one observation if they begin in the same second and agree in kind of product
    (the first part of the id), platform, relative orbit, orbit state, mode and product type, and in
    the tile if they name one, else in the footprint (nine tenths of the common area). The one that
    was processed last stays, by what the items say in this order: time of processing, moments in
    the id (``MOD13Q1.A2022017.h12v11.061.2022034232400``), ``created``, ``updated``, the id itself.
    """
    versions: dict[str, pystac.Item] = {}
    for item in items:
        known = versions.get(item.id)
        versions[item.id] = item if known is None else max(known, item, key=_version)
    groups: dict[tuple[Any, ...], list[pystac.Item]] = defaultdict(list)
    for item in versions.values():
        groups[_observation(item)].append(item)
    kept: list[pystac.Item] = []
    for observation, members in groups.items():
        members.sort(key=_recency, reverse=True)
        has_tile = any(observation[-1])
        kept += members[:1] if has_tile else _apart(members)
    if len(kept) < len(versions):
        stay = {item.id for item in kept}
        _log.info("replaced by later versions: %s", ", ".join(sorted(versions.keys() - stay)))
    return kept


def _observation(item: pystac.Item) -> tuple[Any, ...]:
    properties = item.properties
    start = _moment(properties.get("start_datetime") or properties.get("datetime"))
    stated = [str(properties.get(name) or "").lower() for name in ("platform", *_ACQUISITION)]
    tile = (*(str(properties.get(name, "")) for name in _TILE), *_TILE_IN_ID.findall(item.id))
    # Where a datastrip of Sentinel-2 ends inside a tile, two items of one moment have a half each.
    strip = _STRIP_START.search(str(properties.get("s2:datastrip_id", "")))
    return (re.split(r"[._]", item.id)[0], start[:19], *stated, strip and strip[1], tile)


def _recency(item: pystac.Item) -> tuple[Any, ...]:
    """Return what orders the items of an observation, the latest one highest."""
    properties = item.properties
    processed = max(_moment(properties.get(name)) for name in _PROCESSED)
    created, updated = (_moment(properties.get(name)) for name in ("created", "updated"))
    return (processed, _MOMENT_IN_ID.findall(item.id), created, updated, item.id)


def _version(item: pystac.Item) -> tuple[Any, ...]:
    """Return what orders the versions of one item; two that are equal are the same."""
    document = item.to_dict(transform_hrefs=False)
    return (*_recency(item), json.dumps(document, sort_keys=True, default=str))


def _moment(stated: Any) -> str:
    """Return a stated moment as text that sorts by time; "" for none."""
    try:
        moment = pd.Timestamp(stated or "")
    except ValueError:
        return ""
    if pd.isna(moment):
        return ""
    moment = moment.tz_convert("UTC").tz_localize(None) if moment.tz else moment
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%f")


def _apart(members: list[pystac.Item]) -> list[pystac.Item]:
    """Return the items that no earlier one of the list covers."""
    kept: list[tuple[pystac.Item, BaseGeometry | None]] = []
    for item in members:
        outline = shape(item.geometry) if item.geometry else None
        if not any(_coincide(outline, other) for _, other in kept):
            kept.append((item, outline))
    return [item for item, _ in kept]


def _coincide(one: BaseGeometry | None, other: BaseGeometry | None) -> bool:
    if one is None or other is None or not one.intersects(other):
        return False
    common = one.intersection(other).area
    return bool(common >= _SAME_FOOTPRINT * one.union(other).area)
