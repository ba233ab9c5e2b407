"""Batch job: map an ensemble over a cube.

    python pipelines/map_soil_moisture.py config.yml

It resumes where a former run stopped, and does nothing when all is there. What it did is one line
of JSON on standard output and a file beside the store. The exit code is that of `smgrid`: 0 done,
2 configuration, 3 inputs, 4 stores, 5 model and cube do not fit.
"""

import sys
from typing import Literal

from pydantic import Field

from smgrid import inspect, load_ensemble, open_cube, predict, write_cube
from smgrid.cluster import open_scheduler
from smgrid.errors import StoreError
from smgrid.export.manifest import map_manifest
from smgrid.inference.coverage import require_values
from smgrid.jobs import Job, JobConfig, run_job


class Config(JobConfig):
    """What the job maps, and with what."""

    cube: str = Field(description="Zarr store of the inputs")
    ensemble: str = "densesm-9km"
    layout: Literal["smgrid-1", "released-9km", "published"] | None = Field(
        None, description="what checkpoints of others were trained on"
    )
    window: Literal["causal", "published"] | None = None
    as_of: str | None = Field(None, description="a date, or acquisition, for runs near real time")
    interval: float | None = Field(None, description="share of the truth in the interval")
    quantiles: list[float] = Field([], description="of the members, such as 0.05")
    device: str = Field("cpu", description="where networks run: cpu, cuda or cuda:1")
    overviews: Literal["write", "none"] = Field("write", description="coarser levels of the map")
    tile: int = Field(512, description="edge of a tile in pixels")
    map: str = Field(description="Zarr store to write")


def map_cube(config: Config, job: Job) -> None:
    """Map the cube."""
    cube = open_cube(config.cube)
    ensemble = load_ensemble(config.ensemble, layout=config.layout)
    call = {name: getattr(config, name) for name in ("as_of", "window", "interval", "quantiles")}
    sm = predict(cube, ensemble, **call, device=config.device)
    manifest = map_manifest(config.cube, ensemble, ensemble_path=config.ensemble, call=call)
    with job.stage("map", config.map) as stage:
        if not _is_begun(config.map):
            require_values(sm, cube, layout=ensemble.layout)
        report = write_cube(
            sm,
            config.map,
            shard=config.tile,
            progress=stage.progress,
            manifest=manifest,
        )
        stage.finish(report)
    if config.overviews == "write":
        job.add_overviews(config.map)


def work(config: Config, job: Job) -> None:
    """Map the cube where the configuration says."""
    with open_scheduler(config.scheduler, options=config.cluster):
        map_cube(config, job)


def _is_begun(path: str) -> bool:
    """Whether a former run has found that the map will hold something."""
    try:
        return inspect(path).units.done > 0
    except StoreError:
        return False


if __name__ == "__main__":
    sys.exit(run_job("map_soil_moisture", __doc__, Config, work))
