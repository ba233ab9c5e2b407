"""A static STAC catalog of a map: a Collection, an Item per acquisition, and the model beside."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from os import PathLike
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd
import pystac
from pystac.extensions.classification import Bitfield, Classification, ClassificationExtension
from pystac.extensions.datacube import DatacubeExtension, Dimension, Variable
from pystac.extensions.projection import ProjectionExtension
from pystac.extensions.raster import DataType, NoDataStrings, RasterBand, RasterExtension
from pystac.extensions.sat import OrbitState, SatExtension
from pystac.utils import make_relative_href

import smgrid
from smgrid.cube.record import MANIFEST_KEY
from smgrid.cube.storage import StorePath
from smgrid.cube.template import digest_of
from smgrid.errors import ConfigError
from smgrid.export.attributes import global_attrs
from smgrid.export.cog import PREFIX, cog_identity, cog_name
from smgrid.export.footprint import lonlat_extent, lonlat_geometry
from smgrid.export.mlm import model_collection
from smgrid.export.placing import IDENTITY, is_there, json_identity, local_target, placing
from smgrid.export.stored import StoredMap, StoredVariable, open_stored
from smgrid.grid import require_north_up
from smgrid.models.bundle import CARD_NAME, load_ensemble
from smgrid.models.ensemble import Ensemble

ZARR_TYPE = "application/vnd.zarr; version=3"
_CATALOG = "catalog.json"


@dataclass(frozen=True)
class _Places:
    """Links to what the catalog describes."""

    store: str
    cogs: Mapping[str, str]
    """Links by file name."""

    @property
    def manifest(self) -> str:
        """Link to the provenance in the store."""
        return f"{self.store}/{MANIFEST_KEY}"

    def seen_from(self, target: Path) -> dict[str, Any]:
        """Return the links as they will be in the catalog at `target`, wherever that is."""
        return {
            "store": _relative(self.store, target),
            "cogs": {name: _relative(link, target) for name, link in self.cogs.items()},
        }


@dataclass(frozen=True)
class _Model:
    """The ensemble that a map was made with, and where it is."""

    ensemble: Ensemble
    folder: Path
    link: str


def write_stac(
    store: StorePath,
    out: str | PathLike[str],
    *,
    href_base: str | None = None,
    cogs: str | PathLike[str] | None = None,
    ensemble: str | PathLike[str] | None = None,
    prefix: str = PREFIX,
) -> Path:
    """Describe a map as a static STAC 1.1 catalog.

    Parameters
    ----------
    store
        Folder or URL of a complete map.
    out
        Folder of the catalog; it appears complete or not at all.
    href_base
        URL of the folder that store, COGs' folder and bundle will be in; default: relative links.
    cogs
        Folder that `smgrid.export.cog.write_cogs` wrote from this map: its files become assets.
    ensemble
        Bundle that the map was made with: an Item of the MLM extension describes it.
    prefix
        Of the names of the COGs.

    Returns
    -------
    Path
        ``catalog.json``.

    Raises
    ------
    ConfigError
        The map has no dates, the folder of COGs lacks files of this map, or the ensemble is another
        than the map's.
    StoreError
        Other content is at `out`, or as `open_stored`.

    Notes
    -----
    Items of a regular product have the period of their step, and its start as ``datetime``. A
    geometry across the antimeridian is cut there, and its bbox has west greater than east.
    """
    stored = open_stored(store)
    if stored.times.empty:
        raise ConfigError(f"{stored.path} has no dates, expected a map of acquisitions")
    target = local_target(out, store=stored.path)
    files = {} if cogs is None else _find_cogs(stored, Path(cogs), prefix)
    places = _Places(
        store=_link(stored.path, href_base),
        cogs={name: _link(str(path), href_base, folders=1) for name, path in files.items()},
    )
    model = None if ensemble is None else _open_model(stored, str(ensemble), href_base)
    identity = digest_of(
        {
            "smgrid": smgrid.__version__,
            "map": stored.digest(list(stored.layers)),
            **places.seen_from(target),
            "ensemble": model and [model.ensemble.digest, _relative(model.link, target)],
        }
    )
    if is_there(target, identity, _read_identity):
        return target / _CATALOG
    catalog = _make_catalog(stored, places, model, prefix)
    catalog.extra_fields[IDENTITY] = identity
    catalog.normalize_hrefs(str(target))
    catalog.make_all_asset_hrefs_relative()
    with placing(target) as partial:
        catalog.save(pystac.CatalogType.SELF_CONTAINED, dest_href=str(partial))
    return target / _CATALOG


def _read_identity(path: Path) -> str | None:
    return json_identity(path / _CATALOG)


def _relative(link: str, target: Path) -> str:
    """Return a link as seen from the folder of the catalog; one to a URL is as it is."""
    return make_relative_href(link, str(target), start_is_dir=True)


def _find_cogs(stored: StoredMap, folder: Path, prefix: str) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for variable, position in stored.layers:
        path = folder.resolve() / cog_name(stored, variable, position, prefix=prefix)
        if not path.exists():
            msg = f"{folder} has no {path.name}; export all of the map to it first"
            raise ConfigError(msg)
        try:
            found = cog_identity(path)
        except (OSError, ValueError) as error:
            msg = f"{path} cannot be read ({error}); remove it and export it anew"
            raise ConfigError(msg) from error
        if found != stored.digest([(variable, position)]):
            msg = f"{path} was not made from {stored.path} as it is now; export it anew"
            raise ConfigError(msg)
        files[path.name] = path
    return files


def _link(path: str, href_base: str | None, *, folders: int = 0) -> str:
    """Return the link to a path, with so many of its parent folders below `href_base`."""
    if href_base is None:
        return path
    parts = path.rstrip("/").split("/")[-1 - folders :]
    # The parts of a URL are encoded already.
    return "/".join([href_base.rstrip("/"), *(parts if "://" in path else map(quote, parts))])


def _make_catalog(
    stored: StoredMap, places: _Places, model: _Model | None, prefix: str
) -> pystac.Catalog:
    # Of ids that are parts of links.
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", Path(stored.path).stem).strip("-") or "map"
    attrs = global_attrs(stored, form="STAC")
    catalog = pystac.Catalog(name, str(attrs["summary"]), title=str(attrs["title"]))
    collection = _make_collection(stored, places, f"{name}-maps", attrs)
    catalog.add_child(collection)
    items = [_make_item(stored, p, places, name, prefix) for p in range(len(stored.steps))]
    collection.add_items(items)
    if model is not None:
        models = _describe_model(stored, model, f"{name}-model")
        catalog.add_child(models)
        (described,) = models.get_items()
        for item in items:
            item.add_link(pystac.Link(pystac.RelType.DERIVED_FROM, described, title="model"))
    return catalog


def _open_model(stored: StoredMap, path: str, href_base: str | None) -> _Model:
    ensemble = load_ensemble(path)
    wanted = stored.coords.attrs.get("smgrid_ensemble")
    if ensemble.digest != wanted:
        msg = (
            f"{path} has the digest {ensemble.digest[:12]}, but {stored.path} was made with "
            f"{str(wanted)[:12]}; give the bundle that it was made with"
        )
        raise ConfigError(msg)
    folder = Path(path).resolve()
    link = _link(str(folder), href_base) if folder.is_dir() else str(ensemble.card["origin"])
    return _Model(ensemble, folder, link)


def _describe_model(stored: StoredMap, model: _Model, name: str) -> pystac.Collection:
    return model_collection(
        model.ensemble,
        model.link,
        name,
        form="bundle" if (model.folder / CARD_NAME).exists() else "checkpoints",
        geometry=lonlat_geometry(stored.grid),
        bbox=list(lonlat_extent(stored.grid)),
        period=_period(stored),
    )


def _period(stored: StoredMap) -> tuple[datetime, datetime]:
    first, last = (moment.tz_localize("UTC").to_pydatetime() for moment in stored.span)
    return first, last


def _make_collection(
    stored: StoredMap, places: _Places, name: str, attrs: Mapping[str, Any]
) -> pystac.Collection:
    bbox = list(lonlat_extent(stored.grid))
    stated = stored.coords.attrs.get("license")
    collection = pystac.Collection(
        name,
        str(attrs["summary"]),
        pystac.Extent(pystac.SpatialExtent([bbox]), pystac.TemporalExtent([list(_period(stored))])),
        title=str(attrs["title"]),
        license="other" if stated is None else str(stated),
        keywords=str(attrs.get("keywords", "gridded data")).split(", "),
    )
    cube = DatacubeExtension.ext(collection, add_if_missing=True)
    cube.apply(_dimensions(stored), _variables(stored))
    collection.add_asset("zarr", _zarr_asset(places))
    manifest = pystac.Asset(
        places.manifest, title="Provenance", media_type="application/json", roles=["metadata"]
    )
    collection.add_asset("manifest", manifest)
    _describe_bands(collection, "zarr", stored.variables)
    return collection


def _make_item(
    stored: StoredMap, position: int, places: _Places, name: str, prefix: str
) -> pystac.Item:
    one = stored.select([position])
    start, end = _period(one)
    item = pystac.Item(
        f"{name}_{start:%Y%m%dT%H%M%SZ}",
        lonlat_geometry(stored.grid),
        list(lonlat_extent(stored.grid)),
        start,
        {key: stored.coords.attrs[key] for key in _own(stored)},
    )
    if stored.ends is not None:
        item.common_metadata.start_datetime, item.common_metadata.end_datetime = start, end
    _describe_orbit(item, stored.at(position))
    _describe_grid(item, stored)
    cube = DatacubeExtension.ext(item, add_if_missing=True)
    cube.apply(_dimensions(one), _variables(stored))
    item.add_asset("zarr", _zarr_asset(places))
    _describe_bands(item, "zarr", stored.variables)
    for variable in stored.variables:
        file = cog_name(stored, variable, position if variable.has_steps else None, prefix=prefix)
        if file in places.cogs:
            title = str(variable.attrs.get("long_name", variable.name))
            roles = ["data"] if variable.is_quantity else ["data", "metadata"]
            asset = pystac.Asset(
                places.cogs[file], title=title, media_type=pystac.MediaType.COG, roles=roles
            )
            item.add_asset(variable.name, asset)
            _describe_bands(item, variable.name, (variable,))
    return item


def _own(stored: StoredMap) -> list[str]:
    return [key for key in map(str, stored.coords.attrs) if key.startswith("smgrid_")]


def _describe_orbit(item: pystac.Item, labels: Mapping[str, Any]) -> None:
    if labels.get("platform"):
        item.common_metadata.platform = str(labels["platform"])
    if labels.get("orbit_state") or labels.get("relative_orbit"):
        state, orbit = labels.get("orbit_state"), labels.get("relative_orbit")
        SatExtension.ext(item, add_if_missing=True).apply(
            OrbitState(state) if state else None, int(orbit) if orbit else None
        )


def _describe_grid(item: pystac.Item, stored: StoredMap) -> None:
    crs = require_north_up(stored.grid).proj
    authority = crs.to_authority(min_confidence=100)
    bounds = stored.grid.boundingbox
    ProjectionExtension.ext(item, add_if_missing=True).apply(
        code=":".join(authority) if authority else None,
        wkt2=None if authority else crs.to_wkt(),
        shape=list(stored.grid.shape),
        transform=[float(number) for number in stored.grid.affine[:6]],
        bbox=[bounds.left, bounds.bottom, bounds.right, bounds.top],
    )


def _dimensions(stored: StoredMap) -> dict[str, Dimension]:
    crs = require_north_up(stored.grid).proj
    system = crs.to_epsg(min_confidence=100) or crs.to_json_dict()
    values, extent = ([_stamp(time) for time in times] for times in (stored.times, stored.span))
    found: dict[str, dict[str, Any]] = {
        str(stored.time_dim): {
            "type": "temporal",
            "extent": extent,
            "values": values,
        }
    }
    for axis in ("y", "x"):
        centres = stored.coords[axis].values
        found[axis] = {
            "type": "spatial",
            "axis": axis,
            "extent": [float(centres.min()), float(centres.max())],
            "step": abs(float(getattr(stored.grid.resolution, axis))),
            "reference_system": system,
        }
    return {name: Dimension.from_dict(content) for name, content in found.items()}


def _stamp(time: pd.Timestamp) -> str:
    return f"{time:%Y-%m-%dT%H:%M:%SZ}"


def _variables(stored: StoredMap) -> dict[str, Variable]:
    return {
        variable.name: Variable(
            {
                "dimensions": list(variable.dims),
                "type": "data",
                "description": str(variable.attrs.get("long_name", variable.name)),
                "unit": str(variable.attrs.get("units", "1")),
            }
        )
        for variable in stored.variables
    }


def _zarr_asset(places: _Places) -> pystac.Asset:
    return pystac.Asset(
        places.store, title="Zarr store of all dates", media_type=ZARR_TYPE, roles=["data"]
    )


def _describe_bands(
    owner: pystac.Item | pystac.Collection, key: str, variables: tuple[StoredVariable, ...]
) -> None:
    bands = [_band(variable) for variable in variables]
    RasterExtension.ext(owner.assets[key], add_if_missing=True).apply(bands)
    if any("flag_masks" in variable.attrs for variable in variables):
        ClassificationExtension.add_to(owner)


def _band(variable: StoredVariable) -> RasterBand:
    nodata = variable.missing
    band = RasterBand.create(
        data_type=DataType(variable.dtype.name),
        nodata=NoDataStrings.NAN if nodata is not None and nodata != nodata else nodata,
        unit=str(variable.attrs.get("units", "1")),
        scale=variable.packing.scale,
        offset=variable.packing.offset,
    )
    band.properties["name"] = variable.name
    if "flag_masks" in variable.attrs:
        ClassificationExtension.ext(band).apply(bitfields=_bitfields(variable))
    return band


def _bitfields(variable: StoredVariable) -> list[Bitfield]:
    names = str(variable.attrs["flag_meanings"]).split()
    return [
        Bitfield.create(
            offset=int(mask).bit_length() - 1,
            length=1,
            name=name,
            classes=[
                Classification.create(value=value, name=text, description=f"{name}: {text}")
                for value, text in ((0, "no"), (1, "yes"))
            ],
        )
        for mask, name in zip(variable.attrs["flag_masks"], names, strict=True)
    ]
