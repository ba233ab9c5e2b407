"""Sources become one lazy cube: every variable on its nested grid, checked against the schema."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from odc.geo.geobox import GeoBox

from smgrid.catalog import (
    Catalog,
    CatalogName,
    SourceSpec,
    open_catalog,
    require_credentials,
)
from smgrid.cube.convention import Convention, convert_convention
from smgrid.errors import CatalogError, NoDataError, SourceError, WindowError
from smgrid.grid import coarsen_grid, nesting_factor
from smgrid.schema import describe, validate
from smgrid.sources.fallback import load_chain, sources_needed
from smgrid.windows import WINDOW_DAYS, Period

DEFAULT_CHUNK = 512


def load_cube(
    grid: GeoBox,
    period: Any,
    *,
    catalog: CatalogName | Sequence[CatalogName] | Catalog = "planetary-computer",
    scenes: Any = None,
    convention: Convention | None = None,
    chunks: int = DEFAULT_CHUNK,
) -> xr.DataTree:
    """Describe a cube of every variable that a catalog provides; nothing is read but metadata.

    Parameters
    ----------
    grid
        Base grid, see `make_grid`.
    period
        First and last day (UTC, inclusive) of all inputs. An acquisition can only be mapped with
        a year of NDVI and weather before it, so this spans at least 368 days when the catalog
        provides such series.
    catalog
        Name of a catalog that smgrid ships, path of your own, several of them in a sequence, or an
        open `Catalog`; see `open_catalog`.
    scenes
        Restrict the acquisitions to these days; the series still cover all of ``period``.
    convention
        Convert backscatter to ``"sigma0"`` or ``"gamma0"`` by the product's own factor where a
        source provides ``gamma0_to_sigma0``, else by the ellipsoid incidence angle, which is
        flagged as approximate; default: as the source provides it.
    chunks
        Edge of a tile in base pixels: the unit of work and of memory.

    Returns
    -------
    xr.DataTree
        ``base`` with scene (time, y, x) and static (y, x) variables, ``x<k>`` with series
        (date, y, x) on the grid k times coarser, ``labels`` on their own grid
        (``labels_<source>`` where there are several sources of them). Where a source has fallbacks,
        the coordinates ``source`` (time) and ``<variable>_source`` (date) tell which was used.
        The attributes hold what `update_cube` needs to describe the same cube for a longer period.

    Raises
    ------
    ConfigError
        A credential is not set; found before anything is read.
    CatalogError, SourceError, NoDataError
        An input is not described well, cannot be read, or holds nothing here.
    WindowError
        The period is too short to hold one window.
    """
    catalog = catalog if isinstance(catalog, Catalog) else open_catalog(catalog)
    period = Period.parse(period)
    scene_period = None if scenes is None else Period.parse(scenes)
    _check_period(catalog, period)
    groups: dict[str, xr.Dataset] = {}
    for name, parts in _load_nodes(catalog, grid, period, scene_period or period, chunks).items():
        groups |= _merge_base(parts) if name == "base" else _merge_series(name, parts)
    if convention is not None and "vv" in groups.get("base", {}):
        groups["base"] = convert_convention(groups["base"], convention)
    for ds in groups.values():
        validate(ds)
    tree = xr.DataTree.from_dict({f"/{name}": ds for name, ds in sorted(groups.items())})
    tree.attrs = _describe_call(catalog, period, scene_period, convention)
    return tree


def _load_nodes(
    catalog: Catalog, grid: GeoBox, period: Period, scene_period: Period, chunks: int
) -> dict[str, list[xr.Dataset]]:
    """Return what the sources have by group."""
    days = {spec.name: scene_period if spec.kind == "scene" else period for spec in catalog.loaded}
    chains = {spec.name: catalog.chain_of(spec) for spec in catalog.loaded}
    # All of them before the first search, which may take minutes.
    require_credentials(
        one for name, chain in chains.items() for one in sources_needed(chain, days[name])
    )
    nodes: dict[str, list[xr.Dataset]] = {}
    for spec in catalog.loaded:
        factor = nesting_factor(grid, spec.native_resolution) if spec.kind == "series" else 1
        target = coarsen_grid(grid, factor) if spec.kind == "series" else grid
        ds = load_chain(chains[spec.name], target, days[spec.name], chunks=chunks)
        nodes.setdefault(_node(catalog, spec, factor), []).append(ds)
    return nodes


def _describe_call(
    catalog: Catalog, period: Period, scenes: Period | None, convention: Convention | None
) -> dict[str, Any]:
    attrs: dict[str, Any] = {
        "title": catalog.title,
        "smgrid_catalog": catalog.name,
        "smgrid_period": str(period),
    }
    if catalog.opened_as:
        attrs["smgrid_catalog_path"] = list(catalog.opened_as)
    if scenes is not None:
        attrs["smgrid_scenes"] = str(scenes)
    if convention is not None:
        attrs["smgrid_convention"] = convention
    return attrs


def _check_period(catalog: Catalog, period: Period) -> None:
    days = (period.end - period.start).days + 1
    if days < WINDOW_DAYS and any(spec.kind == "series" for spec in catalog.loaded):
        raise WindowError(
            f"the period {period.start:%Y-%m-%d} to {period.end:%Y-%m-%d} has {days} days; a model "
            f"looks back over one year, so no acquisition could be mapped. Begin at least "
            f"{WINDOW_DAYS} days before the last date you want to map (scenes=... restricts which "
            f"acquisitions are read)"
        )


def _node(catalog: Catalog, spec: SourceSpec, factor: int) -> str:
    """Return the group of a source: labels keep their own grids, and so do their groups."""
    if spec.kind == "series":
        return f"x{factor}"
    if spec.kind != "label":
        return "base"
    labels = [re.sub(r"\W", "_", one.name) for one in catalog.loaded if one.kind == "label"]
    own = re.sub(r"\W", "_", spec.name)
    if labels.count(own) > 1:
        msg = f"{spec.origin}: another source of labels is called {own} as well; rename one"
        raise CatalogError(msg)
    return "labels" if len(labels) == 1 else f"labels_{own}"


def _merge_base(parts: list[xr.Dataset]) -> dict[str, xr.Dataset]:
    scenes = [ds for ds in parts if "time" in ds.dims]
    if len(scenes) > 1:
        names = [", ".join(map(str, ds.data_vars)) for ds in scenes]
        raise SourceError(
            f"more than one source gives acquisitions of their own ({'; '.join(names)}); a cube "
            f"has one set of acquisition times. Let one source provide vv and vh"
        )
    base = scenes[0] if scenes else parts[0]
    if scenes and base.sizes["time"] == 0:
        raise NoDataError("no acquisition in the region and period")
    for ds in parts:
        for name, variable in ds.data_vars.items():
            if "relative_orbit" in variable.dims:
                variable = _per_acquisition(variable, base)
            if name not in base:
                base = base.assign({name: variable.reset_coords(drop=True)})
    return {"base": base}


def _per_acquisition(angle: xr.DataArray, scenes: xr.Dataset) -> xr.DataArray:
    """Give every acquisition the angle, or another layer, of its relative orbit, lazily."""
    name = str(angle.name)
    if "vv" not in scenes:
        raise SourceError(f"{name} is given per relative orbit, but no source gives acquisitions")
    wanted, known = scenes["relative_orbit"].values, angle["relative_orbit"].values
    unknown = sorted(set(wanted.tolist()) - set(known.tolist()))
    if unknown:
        raise SourceError(
            f"{name} is known for relative orbits {sorted(known.tolist())}, but there are "
            f"acquisitions of {unknown}: add them to the source of {name}"
        )
    index = np.searchsorted(known, wanted, sorter=np.argsort(known))
    index = np.argsort(known)[index]
    reference = scenes["vv"]
    if angle.ndim == 1:
        values = angle.values[index].astype(np.float32)[:, None, None]
        data = da.broadcast_to(
            da.from_array(values, chunks=(1, 1, 1)),
            reference.shape,
            chunks=reference.chunks,
        )
    else:
        data = angle.chunk({"relative_orbit": 1}).data[index]
    expanded = xr.DataArray(data, dims=reference.dims, attrs=angle.attrs, name=name)
    return describe(expanded, name)


def _merge_series(name: str, parts: Iterable[xr.Dataset]) -> dict[str, xr.Dataset]:
    """Put series of one grid and one calendar together; another calendar gets its own group."""
    groups: dict[str, xr.Dataset] = {}
    for ds in parts:
        key = name
        if name in groups:
            same = groups[name].indexes["date"].equals(ds.indexes["date"])
            key = name if same else f"{name}_{_cadence(ds)}"
        groups[key] = groups[key].assign(ds.data_vars) if key in groups else ds
    return groups


def _cadence(ds: xr.Dataset) -> str:
    return "daily" if "t2m" in ds or "tp" in ds else "8day"
