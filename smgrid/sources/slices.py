"""Which slices of ground range products a region and period need: of files or of a collection."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pandas as pd
import pystac
from odc.geo.geobox import GeoBox
from odc.geo.geom import Geometry, unary_union

from smgrid.catalog import SourceSpec, find_files
from smgrid.errors import SourceError
from smgrid.sources.annotation import parse_relative_orbit, relative_orbit
from smgrid.sources.geolocation import footprint
from smgrid.sources.passes import Pass, group_slices
from smgrid.sources.safe import Product, open_safe, product_of_item
from smgrid.sources.stac import item_span, search_items, stac_query
from smgrid.windows import Period

_DAY = pd.Timedelta(days=1)
# Share of a region by which a pass has to cover more of it than an earlier one to be preferred.
_BETTER = 1e-3
# Slices of a pass are a sample of 10 m apart [degree]; that is no gap.
_SEAM = 1e-4


@dataclass(frozen=True, eq=False)
class Slice:
    """One product, and where and when it was acquired."""

    product: Product
    acquired: Pass
    """A pass of this slice alone."""
    footprint: Geometry
    """In degrees."""


def find_slices(
    spec: SourceSpec, grid: GeoBox, period: Period | None, *, margin: pd.Timedelta
) -> list[Slice]:
    """Return the slices of a source over a region, ordered by time.

    Parameters
    ----------
    spec
        ``stac``, or ``paths`` of SAFE folders, their zip files or manifests.
    grid
        Region.
    period
        Days, UTC; ``None`` for all.
    margin
        Searched before and after the period as well.

    Raises
    ------
    NoDataError
        If a collection has none.
    SourceError
        If a collection or product cannot be read.
    """
    if spec.stac:
        found = [_of_item(spec, item) for item in search_items(spec, grid, period, margin=margin)]
    else:
        region = grid.footprint("EPSG:4326", wrapdateline=True)
        found = [piece for piece in _of_files(spec) if piece.footprint.intersects(region)]
    if period is not None:
        first, last = period.start - margin, period.end + _DAY + margin
        found = [piece for piece in found if first <= piece.acquired.time < last]
    return sorted(found, key=lambda piece: (piece.acquired.time, piece.product.name))


def best_passes(slices: Sequence[Slice], grid: GeoBox) -> list[Pass]:
    """Return one pass of each relative orbit: the one whose slices cover most of a region.

    Of those that cover as much it is the earliest, so that the choice is stable while passes are
    added.
    """
    region = grid.footprint("EPSG:4326", wrapdateline=True)
    outlines = {piece.product.name: piece.footprint.buffer(_SEAM) for piece in slices}
    best: dict[int, tuple[float, Pass]] = {}
    for one in group_slices(piece.acquired for piece in slices):
        outline = unary_union(outlines[name] for name in one.slices)
        covered = (outline & region).area / region.area if outline else 0.0
        if one.relative_orbit not in best or covered > best[one.relative_orbit][0] + _BETTER:
            best[one.relative_orbit] = (covered, one)
    return [best[orbit][1] for orbit in sorted(best)]


def _of_files(spec: SourceSpec) -> Iterator[Slice]:
    seen: dict[str, str] = {}
    for path in find_files(spec):
        product = open_safe(path, origin=spec.origin)
        if product.name in seen:
            msg = f"{path} and {seen[product.name]} are one product; name it once in {spec.origin}"
            raise SourceError(msg)
        seen[product.name] = path
        annotation = product.read_annotation(product.copolarised)
        orbit = None
        if product.manifest:
            orbit = parse_relative_orbit(product.read_manifest())
        acquired = Pass(
            time=annotation.start.floor("s"),
            platform=annotation.platform,
            orbit_state=annotation.orbit_state,
            relative_orbit=orbit or relative_orbit(annotation.mission, annotation.absolute_orbit),
            slices=(product.name,),
        )
        yield Slice(product, acquired, footprint(annotation.grid))


def _of_item(spec: SourceSpec, item: pystac.Item) -> Slice:
    properties = item.properties
    product = product_of_item(item, sign=stac_query(spec).sign, origin=spec.origin)
    acquired = Pass(
        time=item_span(item)[0],
        platform=str(properties.get("platform") or "").lower(),
        orbit_state=str(properties.get("sat:orbit_state") or "").lower(),
        relative_orbit=int(properties.get("sat:relative_orbit") or 0),
        slices=(item.id,),
    )
    if not acquired.relative_orbit:
        msg = f"{item.id} has no sat:relative_orbit, so it is not known which passes it serves"
        raise SourceError(msg)
    return Slice(product, acquired, Geometry(item.geometry, "EPSG:4326"))
