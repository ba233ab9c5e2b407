"""Batch job: extend a cube to a later day, and its map by the acquisitions that are new.

    python pipelines/update.py config.yml

What is older keeps its bytes, apart from weather and NDVI of the cube's last months, which were
provisional. A second run changes nothing. What it did is one line of JSON on standard output and a
file beside the cube. The exit code is that of `smgrid`: 0 done, 2 configuration, 3 inputs,
4 stores, 5 model and cube do not fit.
"""

import sys
from typing import Literal

from pydantic import Field

from smgrid import load_ensemble, open_cube, predict, update_cube
from smgrid.cluster import open_scheduler
from smgrid.cube.extend_map import extend_map
from smgrid.cube.update import PROVISIONAL_DAYS, UpdateReport
from smgrid.export.manifest import map_manifest
from smgrid.jobs import Job, JobConfig, Stage, run_job, say


class Config(JobConfig):
    """What the job extends, and to when."""

    cube: str = Field(description="Zarr store of the inputs")
    until: str = Field(description="last day of all inputs")
    catalog: str | list[str] | None = Field(None, description="where it is now, if it was moved")
    provisional_days: int = Field(
        PROVISIONAL_DAYS, ge=0, description="days of weather and NDVI to compute again"
    )
    provisional_scene_days: int = Field(0, ge=0, description="the same for acquisitions")
    map: str | None = Field(None, description="Zarr store of the map to extend")
    ensemble: str = Field("densesm-9km", description="that of the map")
    layout: Literal["smgrid-1", "released-9km", "published"] | None = None
    window: Literal["causal", "published"] | None = None
    as_of: str | None = None
    interval: float | None = None
    quantiles: list[float] = Field([], description="those of the map")
    device: str = "cpu"
    overviews: Literal["write", "none"] = "write"
    tile: int = Field(512, description="edge of a tile of a new map in pixels")


def work(config: Config, job: Job) -> None:
    """Update the cube, then the map."""
    with open_scheduler(config.scheduler, options=config.cluster):
        with job.stage("cube", config.cube) as stage:
            report = update_cube(
                config.cube,
                until=config.until,
                catalog=config.catalog,
                provisional_days=config.provisional_days,
                provisional_scene_days=config.provisional_scene_days,
                progress=stage.progress,
            )
            _note(stage, report)
        if config.map is None:
            return
        ensemble = load_ensemble(config.ensemble, layout=config.layout)
        call = {k: getattr(config, k) for k in ("as_of", "window", "interval", "quantiles")}
        sm = predict(open_cube(config.cube), ensemble, **call, device=config.device)
        with job.stage("map", config.map) as stage:
            manifest = map_manifest(config.cube, ensemble, ensemble_path=config.ensemble, call=call)
            extended = extend_map(
                sm,
                config.map,
                shard=config.tile,
                progress=stage.progress,
                manifest=manifest,
            )
            _note(stage, extended)
        if config.overviews == "write":
            job.add_overviews(config.map)


def _note(stage: Stage, report: UpdateReport) -> None:
    stage.finish(report)
    for name, groups in (("added", report.added), ("late", report.late)):
        stage.facts[name] = {f"/{group}": list(steps) for group, steps in groups.items()}
    for group, steps in report.late.items():
        say(f"{stage.what}: /{group}: too late to be added, build a new store for", steps)


if __name__ == "__main__":
    sys.exit(run_job("update", __doc__, Config, work))
