"""A whole world in a folder: simulate once, write every provider's files, keep the truth apart.

Forcing and static layers are written without error: what a retrieval does not know is speckle,
roughness, the noise of NDVI, and the state of groundwater and plants. Formulas and their sources
stand in the modules beside this one and in the world's catalog.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from secrets import token_hex
from typing import Any, Protocol

from odc.geo.geobox import GeoBox

from smgrid.errors import StoreError
from smgrid.grid import pixel_centres
from smgrid.simulate import copernicus_dem, modis, sentinel1
from smgrid.simulate.catalog_file import write_catalog_file
from smgrid.simulate.copernicus_dem import write_dem
from smgrid.simulate.era5_land import write_weather
from smgrid.simulate.evolution import Day, Land, evolve, make_land
from smgrid.simulate.frame import make_frame
from smgrid.simulate.ismn import StationWriter
from smgrid.simulate.modis import ModisWriter
from smgrid.simulate.plan import RECORD, WorldPlan, check_same, read_plan
from smgrid.simulate.sentinel1 import Sentinel1Writer
from smgrid.simulate.smap import SmapWriter
from smgrid.simulate.soilgrids import write_soil
from smgrid.simulate.stac import write_catalog
from smgrid.simulate.truth import TruthWriter
from smgrid.simulate.weather import Climate, Weather, climate_at, make_weather
from smgrid.windows import Period

DEFAULT_CENTRE = (-5.4, 41.3)  # longitude, latitude [degree]: the Duero basin in Spain


class _Observer(Protocol):
    """Something that looks at every day."""

    def observe(self, day: Day) -> None: ...


@dataclass(frozen=True)
class World:
    """A simulated world on disk."""

    path: Path
    """Its folder."""
    grid: GeoBox
    """The region: grid of the truth, in UTM."""
    scenes: Period
    """Days of Sentinel-1, SMAP, stations and truth."""
    period: Period
    """Days of weather, and starts of the NDVI composites."""
    plan: WorldPlan
    """What it was made from."""

    @property
    def catalog(self) -> Path:
        """Catalog for `load_cube`."""
        return self.path / "catalog.yml"

    @property
    def stac(self) -> Path:
        """Root of the static STAC catalog."""
        return self.path / "stac" / "catalog.json"

    @property
    def stations(self) -> Path:
        """ISMN archive for `open_stations`."""
        return self.path / "ismn"

    @property
    def truth(self) -> Path:
        """Zarr store of the daily true soil moisture and the static fields."""
        return self.path / "truth.zarr"


def simulate_world(
    path: str | PathLike[str],
    *,
    centre: tuple[float, float] = DEFAULT_CENTRE,
    size_km: float = 13.0,
    bbox: tuple[float, float, float, float] | None = None,
    resolution: float = 100.0,
    spacing: float = 20.0,
    start: Any = "2022-01-01",
    months: int = 15,
    seed: int = 0,
    stations: int = 40,
    looks: float = 4.4,
    climate: Climate | None = None,
) -> World:
    """Write a world whose soil moisture is known, in the formats of the real providers.

    Parameters
    ----------
    path
        Folder of the world; a world of the same parameters that is there is returned unchanged.
    centre, size_km
        Middle (longitude, latitude) [degree] and edge [km] of the region.
    bbox
        (west, south, east, north) [degree]; instead of `centre` and `size_km`.
    resolution, spacing
        Pixels of the truth and of the Sentinel-1 scenes [m]; the real scenes have 10 m.
    start, months
        First day and length of Sentinel-1, SMAP, stations and truth. Weather and NDVI begin 13
        months earlier and end 16 days later.
    seed
        The same seed and parameters make the same files.
    stations, looks
        Number of in-situ stations, and equivalent number of looks of the speckle in one pixel.
    climate
        What the weather is like; by default plausible for the latitude.

    Raises
    ------
    ConfigError, GridError
        A parameter makes no world.
    TemplateMismatchError
        The folder holds something else.
    """
    region = {"centre": centre, "size_km": size_km} if bbox is None else {"bbox": bbox}
    plan = WorldPlan(
        **region,
        resolution=resolution,
        spacing=spacing,
        start=f"{Period.parse(start).start:%Y-%m-%d}",
        months=months,
        seed=seed,
        stations=stations,
        looks=looks,
        climate=climate,
    )
    _ensure_world(Path(path), plan)
    return _describe(Path(path), plan)


def open_world(path: str | PathLike[str]) -> World:
    """Return the world in a folder.

    Raises
    ------
    StoreError
        There is none of this version.
    """
    plan = read_plan(Path(path))
    if plan is None:
        raise StoreError(f"{path}: holds no simulated world of this version; run simulate_world")
    return _describe(Path(path), plan)


def _ensure_world(folder: Path, plan: WorldPlan) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        check_same(folder, plan)
        return
    with _whole_folder(folder) as partial:
        _write_world(partial, plan)


def _describe(folder: Path, plan: WorldPlan) -> World:
    return World(folder, plan.grid(), plan.scenes, plan.period, plan)


@contextmanager
def _whole_folder(folder: Path) -> Iterator[Path]:
    """Folder beside `folder` that takes its place when all went well, and else disappears."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.parent / f".{folder.name}.partial-{token_hex(4)}"
    partial.mkdir()
    try:
        yield partial
        if folder.exists():
            folder.rmdir()  # it is empty
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_world(root: Path, plan: WorldPlan) -> None:
    frame = make_frame(plan.grid())
    land = make_land(frame, plan.seed)
    latitude = float(pixel_centres(frame.base, "EPSG:4326")[1].mean())
    climate = plan.climate or climate_at(latitude)
    days = plan.simulated.days
    weather = make_weather(frame, land.terrain, climate=climate, days=days, seed=plan.seed)
    write_weather(root / "era5_land.zarr", weather, plan.period)
    write_soil(root / "soilgrids", land)
    tiles = write_dem(root / "stac" / copernicus_dem.COLLECTION.id, land)
    radar, optical = _live_through(root, plan, land, weather, climate)
    collections = [
        (sentinel1.RTC, radar.items),
        (sentinel1.ANGLE, radar.write_angles()),
        (modis.COLLECTION, optical.items),
        (copernicus_dem.COLLECTION, tiles),
    ]
    write_catalog(root / "stac", collections)
    write_catalog_file(root / "catalog.yml", spacing=plan.spacing)
    _write_record(root / RECORD, plan.record())


def _live_through(
    root: Path, plan: WorldPlan, land: Land, weather: Weather, climate: Climate
) -> tuple[Sentinel1Writer, ModisWriter]:
    """Show every day to every writer."""
    scenes, seed = plan.scenes, plan.seed
    radar = Sentinel1Writer(
        root / "stac", land, scenes=scenes, spacing=plan.spacing, looks=plan.looks, seed=seed
    )
    optical = ModisWriter(root / "stac", land, weather=weather, period=plan.period, seed=seed)
    smap = SmapWriter(root / "smap", land, scenes=scenes, seed=seed)
    stations = StationWriter(root / "ismn", land, scenes=scenes, count=plan.stations, seed=seed)
    truth = TruthWriter(root / "truth.zarr", land, scenes=scenes)
    observers: list[_Observer] = [radar, optical, smap, stations, truth]
    for day in evolve(land, weather, climate):
        for observer in observers:
            observer.observe(day)
    stations.finish()
    truth.finish()
    return radar, optical


def _write_record(path: Path, record: dict[str, Any]) -> None:
    path.write_text(json.dumps(record, indent=1), encoding="utf-8")
