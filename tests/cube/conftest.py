"""Small cubes and maps to write."""

from collections.abc import Callable
from pathlib import Path

import dask.array as da
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from odc.geo.geobox import GeoBox

from smgrid.grid import coarsen_grid, grid_coords
from smgrid.schema import describe
from tests.cube.archive import NEW, OLD, write_archive

GRID = GeoBox.from_bbox((500_000, 2_200_000, 504_000, 2_203_000), crs="EPSG:32648", resolution=100)
TIMES = np.array(
    ["2024-01-01T22:45:11", "2024-01-03T11:02:05", "2024-01-03T22:53:40", "2031-08-10T11:02:06"],
    "datetime64[ns]",
)


def _noise(shape: tuple[int, ...], low: float, high: float, seed: int) -> np.ndarray:
    values = np.random.default_rng(seed).uniform(low, high, shape).astype("float32")
    values[..., :3, :5] = np.nan if min(shape[-2:]) > 5 else values[..., :3, :5]
    return values


def _variable(
    name: str, dims: tuple[str, ...], values: np.ndarray, chunk: int = 16
) -> xr.DataArray:
    chunks = tuple({"time": 1, "date": -1}.get(dim, chunk) for dim in dims)
    return describe(xr.DataArray(da.from_array(values, chunks=chunks), dims=dims), name)


@pytest.fixture
def grid() -> GeoBox:
    return GRID


@pytest.fixture
def cube() -> xr.DataTree:
    """Scenes and statics (30 x 40), a composite series and daily weather on nested grids."""
    ny, nx = GRID.shape
    base = xr.Dataset(
        {
            "vv": _variable("vv", ("time", "y", "x"), _noise((4, ny, nx), -20, -5, 0)),
            "vh": _variable("vh", ("time", "y", "x"), _noise((4, ny, nx), -28, -12, 1)),
            "sand": describe(xr.DataArray(_noise((ny, nx), 0, 900, 2), dims=("y", "x")), "sand"),
        },
        coords={
            **grid_coords(GRID),
            "time": TIMES,
            "platform": ("time", np.array(["sentinel-1a", "", "sentinel-1a", "sentinel-1c"])),
            "orbit_state": ("time", np.array(["ascending", "descending", "ascending", ""])),
            "relative_orbit": ("time", np.array([128, 0, 55, 128], "int16")),
        },
        attrs={"title": "a test", "smgrid_convention": "sigma0"},
    )
    base["vv"].attrs |= {"convention": "sigma0", "averaging": "db"}
    half, coarse = coarsen_grid(GRID, 2), coarsen_grid(GRID, 90)
    composites = pd.date_range("2023-01-01", periods=50, freq="8D", unit="ns").values
    days = pd.date_range("2023-01-01", periods=400, unit="ns").values
    dims = ("date", "y", "x")
    ndvi = _variable("ndvi", dims, _noise((50, *half.shape), -0.1, 0.9, 3))
    t2m = _variable(
        "t2m",
        dims,
        280 + np.arange(400, dtype="f4")[:, None, None] / 20 * np.ones(coarse.shape, "f4"),
    )
    tp = _variable("tp", dims, np.full((400, *coarse.shape), 0.004, "float32"))
    return xr.DataTree.from_dict(
        {
            "/": xr.Dataset(attrs={"smgrid_catalog": "test"}),
            "/base": base,
            "/x2": xr.Dataset({"ndvi": ndvi}, coords={**grid_coords(half), "date": composites}),
            "/x90": xr.Dataset(
                {"t2m": t2m, "tp": tp}, coords={**grid_coords(coarse), "date": days}
            ),
        }
    )


@pytest.fixture
def soil_map() -> xr.Dataset:
    """A soil-moisture map (4, 30, 40) with flags, in chunks of 16."""
    shape, dims = (4, *GRID.shape), ("time", "y", "x")
    flags = np.random.default_rng(5).integers(0, 16, shape).astype("uint16")
    ds = xr.Dataset(
        {
            "soil_moisture": _variable("soil_moisture", dims, _noise(shape, 0, 0.6, 3)),
            "soil_moisture_std": _variable("soil_moisture_std", dims, _noise(shape, 0, 0.2, 4)),
            "flags": _variable("flags", dims, flags),
        },
        coords={**grid_coords(GRID), "time": TIMES},
        attrs={"smgrid_layout": "smgrid-1", "smgrid_window": "causal", "smgrid_members": 25},
    )
    ds["flags"].attrs |= {
        "flag_masks": np.array([1, 2, 4, 8], "uint16"),
        "flag_meanings": "input_missing feature_clipped assumed_input outside_valid_range",
    }
    return ds


@pytest.fixture
def files_of() -> Callable[[Path], dict[str, bytes]]:
    """Read every file below a folder, by its path there."""

    def read(folder: Path) -> dict[str, bytes]:
        files = (path for path in folder.rglob("*") if path.is_file())
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}

    return read


@pytest.fixture
def archive(tmp_path):
    write_archive(tmp_path, OLD + NEW)
    return tmp_path
