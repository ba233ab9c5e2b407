"""Batch job: from a region and a period to a soil-moisture map, `build_cube` and the map after it.

    python pipelines/map_region.py config.yml

Every stage resumes where a former run stopped. What it did is one line of JSON on standard output
and a file beside the cube. The exit code is that of `smgrid`: 0 done, 2 configuration, 3 inputs,
4 stores, 5 model and cube do not fit.
"""

import sys

import build_cube
import map_soil_moisture

from smgrid.cluster import open_scheduler
from smgrid.jobs import Job, run_job


class Config(build_cube.Config, map_soil_moisture.Config):
    """What both jobs need, in one file."""


def work(config: Config, job: Job) -> None:
    """Build the cube, then map it."""
    with open_scheduler(config.scheduler, options=config.cluster):
        build_cube.build(config, job)
        map_soil_moisture.map_cube(config, job)


if __name__ == "__main__":
    sys.exit(run_job("map_region", __doc__, Config, work))
