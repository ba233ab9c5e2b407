"""Batch job: read every input of a region and a period onto one grid.

    python pipelines/build_cube.py config.yml

It resumes where a former run stopped, and does nothing when all is there. What it did is one line
of JSON on standard output and a file beside the store. The exit code is that of `smgrid`: 0 done,
2 configuration, 3 inputs, 4 stores.
"""

import sys
from pathlib import Path
from typing import Literal

from pydantic import Field

from smgrid import load_cube, make_grid, write_cube
from smgrid.cluster import open_scheduler
from smgrid.jobs import Job, JobConfig, run_job


class Config(JobConfig):
    """What the job reads and makes."""

    bbox: tuple[float, float, float, float] | None = Field(None, description="W S E N, degrees")
    outline: Path | None = Field(None, description="GeoJSON, GeoPackage or shapefile")
    resolution: float = Field(100.0, description="pixel size in units of the CRS")
    crs: str = "utm"
    period: tuple[str, str] = Field(description="first and last day of all inputs")
    scenes: tuple[str, str] | None = Field(None, description="acquisitions to read")
    catalog: str | list[str] = "planetary-computer"
    convention: Literal["sigma0", "gamma0"] | None = None
    tile: int = Field(512, description="edge of a tile in pixels")
    cube: str = Field(description="Zarr store to write")


def build(config: Config, job: Job) -> None:
    """Build the cube."""
    grid = make_grid(
        config.bbox, outline=config.outline, resolution=config.resolution, crs=config.crs
    )
    cube = load_cube(
        grid,
        config.period,
        catalog=config.catalog,
        scenes=config.scenes,
        convention=config.convention,
        chunks=config.tile,
    )
    with job.stage("cube", config.cube) as stage:
        stage.finish(write_cube(cube, config.cube, shard=config.tile, progress=stage.progress))


def work(config: Config, job: Job) -> None:
    """Build the cube where the configuration says."""
    with open_scheduler(config.scheduler, options=config.cluster):
        build(config, job)


if __name__ == "__main__":
    sys.exit(run_job("build_cube", __doc__, Config, work))
