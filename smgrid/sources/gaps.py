"""Gap report: which passes of Sentinel-1 one collection has and another, made from it, does not.

Processing chains skip scenes. Terrain-corrected backscatter that is missing looks like a satellite
that did not pass; the collection of ground range products tells the two apart.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pystac
from odc.geo.geobox import GeoBox
from odc.geo.geom import Geometry, unary_union

from smgrid.catalog import Catalog, CatalogName, SourceSpec, open_catalog
from smgrid.errors import NoDataError
from smgrid.sources.passes import PASS_GAP, Pass, group_slices, pass_of, passes_within
from smgrid.sources.search import no_data, search_items
from smgrid.windows import Period

# Part of the region by which footprints of one slice may differ between two collections: outlines
# of ground range products are of the swath, those of corrected ones of the valid pixels.
_SAME_SHARE = 0.1
# Slices of one pass meet in a seam that their outlines, rounded to metres, may leave open [degree].
_SEAM = 0.01


@dataclass(frozen=True)
class GapReport:
    """What a collection has of the passes that another one has."""

    expected: str
    """Source of the passes that there are."""
    product: str
    """Source that may lack some of them."""
    period: Period
    """Days that were compared."""
    passes: pd.DataFrame
    """One row for each pass, by its start (UTC): platform, relative_orbit, orbit_state, and the
    shares of the region that the two sources cover, ``expected`` and ``found``."""

    @property
    def missing(self) -> pd.DataFrame:
        """The passes of which the product has nothing."""
        return self.passes[self.passes["found"] == 0]

    @property
    def partial(self) -> pd.DataFrame:
        """The passes of which the product lacks a part: more than a tenth of the region."""
        lacking = self.passes["expected"] - self.passes["found"] > _SAME_SHARE
        return self.passes[lacking & (self.passes["found"] > 0)]

    def __str__(self) -> str:
        """Return the counts of each month, and every pass that is not there."""
        lines = [
            f"{self.product}, {self.period}: {len(self.missing)} of the {len(self.passes)} passes "
            f"of {self.expected} missing, {len(self.partial)} incomplete"
        ]
        counted = ((self.passes, "passes"), (self.missing, "missing"), (self.partial, "incomplete"))
        counts = pd.DataFrame({name: _per_month(table) for table, name in counted})
        counts = counts.fillna(0).astype(int).rename_axis("month").reset_index()
        lines += counts.to_string(index=False).splitlines()
        for table, word in counted[1:]:
            lines += [f"{word}: {_describe(start, row)}" for start, row in table.iterrows()]
        return "\n".join(lines)


def find_gaps(
    grid: GeoBox,
    period: Any,
    *,
    expected: SourceSpec | Catalog | CatalogName,
    product: SourceSpec | Catalog | CatalogName,
) -> GapReport:
    """Find the passes that one source of Sentinel-1 has and another does not.

    Only items are searched, no pixels read.

    Parameters
    ----------
    grid
        Region.
    period
        First and last UTC day; a pass counts on the day when it starts.
    expected
        Source of all passes, such as ground range products: a catalog with one source of vv
        (``"planetary-computer-grd"``), or a `SourceSpec`.
    product
        Source that may lack some, such as terrain-corrected backscatter.

    Returns
    -------
    GapReport

    Raises
    ------
    NoDataError
        If ``expected`` has no pass at all: nothing can be said then.
    SourceError
        If one of them cannot be searched.

    Notes
    -----
    Two passes are the same one if platform and relative orbit agree, where both are known, and
    their starts are at most 10 minutes apart.
    """
    period = Period.parse(period)
    wanted, made = _source_of(expected), _source_of(product)
    region = grid.footprint("EPSG:4326", wrapdateline=True)
    there = _search(wanted, grid, period)
    first = [one for one, _ in there]
    if not passes_within(first, period):
        raise no_data(wanted, grid, period)
    try:
        found = _search(made, grid, period)
    except NoDataError:
        found = []
    rows = [
        {
            "time": one.time,
            "platform": one.platform,
            "relative_orbit": one.relative_orbit,
            "orbit_state": one.orbit_state,
            "expected": _share(outlines, region),
            "found": _share([o for other, own in found if _same(one, other) for o in own], region),
        }
        for one, outlines in there
        if passes_within([one], period)
    ]
    table = pd.DataFrame(rows).set_index("time").sort_index()
    return GapReport(wanted.name, made.name, period, table)


def _source_of(source: SourceSpec | Catalog | CatalogName) -> SourceSpec:
    if isinstance(source, SourceSpec):
        return source
    catalog = source if isinstance(source, Catalog) else open_catalog(source)
    return catalog.provider_of("vv")


def _search(
    spec: SourceSpec, grid: GeoBox, period: Period
) -> list[tuple[Pass, list[Geometry | None]]]:
    """Return the passes of a source, each with the outlines of its slices."""
    items = search_items(spec, grid, period, margin=PASS_GAP)
    outlines: Mapping[str, Geometry | None] = {item.id: _outline(item) for item in items}
    passes = group_slices(pass_of(item) for item in items)
    return [(one, [outlines[name] for name in one.slices]) for one in passes]


def _outline(item: pystac.Item) -> Geometry | None:
    return Geometry(item.geometry, "EPSG:4326") if item.geometry else None


def _same(one: Pass, other: Pass) -> bool:
    def agree(left: str | int, right: str | int) -> bool:
        return not left or not right or left == right

    return (
        abs(one.time - other.time) <= PASS_GAP
        and agree(one.platform, other.platform)
        and agree(one.relative_orbit, other.relative_orbit)
    )


def _share(outlines: Sequence[Geometry | None], region: Geometry) -> float:
    """Return the part of a region that outlines cover; all of it where one is not stated."""
    known = [outline for outline in outlines if outline is not None]
    if len(known) < len(outlines):
        return 1.0
    if not known:
        return 0.0
    # A pass whose outline only touches the region is there, however little of it.
    least = float(np.finfo(float).tiny)
    union = unary_union(outline.buffer(_SEAM) for outline in known)
    assert union is not None
    covered = union.buffer(-_SEAM) & region
    return max(float(covered.area / region.area), least)


def _per_month(table: pd.DataFrame) -> "pd.Series[int]":
    return table.groupby(pd.DatetimeIndex(table.index).strftime("%Y-%m")).size()


def _describe(start: object, row: "pd.Series[Any]") -> str:
    state = f" {row['orbit_state']}" if row["orbit_state"] else ""
    return (
        f"{start} {row['platform'] or 'unknown satellite'}, orbit {row['relative_orbit']}{state}, "
        f"{row['found']:.0%} of {row['expected']:.0%} of the region"
    )
