"""Batch job: from a region and a period to a soil-moisture map, on threads or a Dask cluster.

    python pipelines/map_region.py config.yml

Every stage resumes where a former run stopped. The exit code is that of `smgrid`: 0 done,
2 configuration, 3 inputs, 4 stores, 5 model and cube do not fit.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from smgrid import (
    load_cube,
    load_ensemble,
    make_grid,
    open_cube,
    predict,
    write_cube,
)
from smgrid.errors import SmgridError
from smgrid.inference.coverage import require_values
from smgrid.yamltext import check_model, read_yaml


class Config(BaseModel):
    """What the job reads, makes and where it runs."""

    model_config = ConfigDict(extra="forbid")

    bbox: tuple[float, float, float, float] | None = Field(None, description="W S E N, degrees")
    outline: Path | None = Field(None, description="GeoJSON, GeoPackage or shapefile")
    resolution: float = Field(100.0, description="pixel size in units of the CRS")
    crs: str = "utm"
    period: tuple[str, str] = Field(description="first and last day of all inputs")
    scenes: tuple[str, str] | None = Field(None, description="acquisitions to map")
    catalog: str | list[str] = "planetary-computer"
    ensemble: str = "densesm-9km"
    tile: int = Field(512, description="edge of a tile in pixels")
    cube: str = Field(description="Zarr store of the inputs")
    map: str = Field(description="Zarr store of the result")
    scheduler: str = Field("threads", description="threads, local, or the address of a scheduler")


def read_config(path: Path) -> Config:
    """Read a job's YAML file; a mistake is named with its line."""
    return check_model(read_yaml(path), Config)


@contextmanager
def cluster(scheduler: str) -> Iterator[None]:
    """Run what is computed inside on threads, on local processes or on a running cluster."""
    if scheduler == "threads":
        yield
        return
    from distributed import Client

    # One thread per worker: small matrix products lose most of their speed on shared threads.
    options = {"threads_per_worker": 1} if scheduler == "local" else {"address": scheduler}
    with Client(**options):
        yield


def run(config: Config) -> None:
    """Build the cube, map it, and leave both stores complete."""
    grid = make_grid(
        config.bbox, outline=config.outline, resolution=config.resolution, crs=config.crs
    )
    inputs = load_cube(
        grid, config.period, catalog=config.catalog, scenes=config.scenes, chunks=config.tile
    )
    ensemble = load_ensemble(config.ensemble)
    with cluster(config.scheduler):
        write_cube(inputs, config.cube, shard=config.tile)
        cube = open_cube(config.cube)
        sm = predict(cube, ensemble)
        require_values(sm, cube, layout=ensemble.layout)
        write_cube(sm, config.map, shard=config.tile)


def main() -> int:
    """Read the command line, run the job, and say in one line what went wrong."""
    if len(sys.argv) != 2:
        sys.stderr.write(f"{__doc__}\n")
        return 2
    try:
        run(read_config(Path(sys.argv[1])))
    except SmgridError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
