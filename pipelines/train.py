"""Batch job: pre-train on SMAP at 9 km, adapt to 100 m with few stations, and report how well.

    python pipelines/train.py config.yml

Samples, both ensembles and the report stay in the folder ``out``; a stage whose result is there is
not run again, and training goes on where it was interrupted. The exit code is that of `smgrid`:
0 done, 2 configuration, 3 inputs, 4 stores, 5 model and cube do not fit.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import xarray as xr
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from smgrid import (
    MSDA,
    Ensemble,
    FeatureLayout,
    FitPlan,
    Samples,
    Split,
    check_leakage,
    collect_samples,
    collocate_labels,
    finetune,
    get_layout,
    open_cube,
    open_samples,
    open_stations,
    predict_samples,
    pretrain,
    score,
    split_samples,
    station_labels,
    stream_samples,
    write_samples,
)
from smgrid.errors import ConfigError, NoDataError, SmgridError
from smgrid.training.plan import ADAPTATION, PRETRAINING, PUBLISHED_SIZES, SMALL_SIZES
from smgrid.yamltext import check_model, read_yaml

SIZES = {"published": PUBLISHED_SIZES, "small": SMALL_SIZES}


def _over(base: Any) -> Callable[[Any], Any]:
    """Take what a mapping states over the values of a plan."""

    def merge(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        unknown = sorted(set(value) - set(asdict(base)))
        if unknown:
            raise ValueError(f"unknown {', '.join(unknown)}; there are {', '.join(asdict(base))}")
        return {**asdict(base), **value}

    return merge


class Coarse(BaseModel):
    """The scale that is pre-trained on."""

    model_config = ConfigDict(extra="forbid")

    cube: str = Field(description="store of a cube on ease_grid(9), with SMAP in its labels")
    tolerance_hours: float | None = Field(36, description="SMAP is this near to the acquisition")
    blocks_km: float = Field(36.0, description="edge of the squares that validate together")


class Fine(BaseModel):
    """The scale that is adapted to."""

    model_config = ConfigDict(extra="forbid")

    cube: str = Field(description="store of a cube at the target resolution")
    stations: Path = Field(description="ISMN archive: zip file or folder")
    tolerance_hours: float | None = None
    train_on: int | None = Field(None, ge=1, description="stations to train on, default all")
    coarse_km: float | None = Field(9.0, description="stations of one such cell stay together")
    unlabelled: int = Field(20_000, ge=2, description="pixels without label to adapt to")


class Config(BaseModel):
    """What the job learns from, and how."""

    model_config = ConfigDict(extra="forbid")

    coarse: Coarse
    fine: Fine
    out: Path = Field(description="folder of everything that the job makes")
    layout: Literal["smgrid-1", "released-9km", "published"] = "smgrid-1"
    sizes: Literal["published", "small"] = "published"
    pretraining: Annotated[FitPlan, BeforeValidator(_over(PRETRAINING))] = PRETRAINING
    adaptation: Annotated[FitPlan, BeforeValidator(_over(ADAPTATION))] = ADAPTATION
    msda: Annotated[MSDA, BeforeValidator(_over(MSDA()))] = MSDA()
    seed: int = 0
    device: Literal["cpu", "cuda"] = "cpu"


def run(config: Config) -> dict[str, Any]:
    """Pre-train, adapt and score; returns the report that is written beside the ensembles."""
    layout = get_layout(config.layout)
    config.out.mkdir(parents=True, exist_ok=True)
    coarse = _kept(config, "coarse", layout, lambda: _coarse_samples(config, layout))
    stations = _kept(config, "stations", layout, lambda: _station_samples(config, layout))
    unlabelled = _kept(config, "unlabelled", layout, lambda: _unlabelled(config, layout))
    squares = split_samples(
        coarse,
        by="block",
        block_km=config.coarse.blocks_km,
        share=(0.9, 0, 0.1),
        seed=config.seed,
    )
    start = pretrain(
        squares.training,
        squares.test,
        layout=layout,
        sizes=SIZES[config.sizes],
        plan=replace(config.pretraining, seed=config.seed),
        out=config.out / "pretraining",
        device=config.device,
        card={"split": asdict(squares.report)},
    )
    split = _split_stations(config, stations)
    adapted = finetune(
        start,
        split.training,
        validation=split.validation,
        unlabelled=unlabelled,
        coarse=squares.training,
        plan=replace(config.adaptation, seed=config.seed),
        msda=config.msda,
        out=config.out / "adaptation",
        device=config.device,
        card={"split": asdict(split.report)},
    )
    report = {
        "scores": {
            "pretrained": _scores(start, split.test),
            "adapted": _scores(adapted, split.test),
        },
        "ensemble": str(config.out / "adaptation" / "ensemble"),
        "split": asdict(split.report),
    }
    (config.out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    return report


def _kept(config: Config, name: str, layout: FeatureLayout, make: Callable[[], Samples]) -> Samples:
    """Return a table of samples, from the folder of the job if it is there."""
    path, note = config.out / f"{name}.zarr", config.out / f"{name}.json"
    section = config.coarse if name == "coarse" else config.fine
    origin = {**section.model_dump(mode="json"), "layout": layout.digest, "seed": config.seed}
    if not path.exists():
        note.write_text(json.dumps(origin, indent=1) + "\n")
        write_samples(make(), path, layout=layout)
    elif json.loads(note.read_text()) != origin:
        raise ConfigError(
            f"{path} holds samples of another job, see {note.name}; remove both or give another out"
        )
    return open_samples(path, layout=layout)


def _coarse_samples(config: Config, layout: FeatureLayout) -> Samples:
    cube = open_cube(config.coarse.cube)
    smap = _find_smap(cube)
    labels = collocate_labels(smap, cube, tolerance_hours=config.coarse.tolerance_hours)
    return collect_samples(stream_samples(cube, labels, layout=layout, seed=config.seed))


def _find_smap(cube: xr.DataTree | xr.Dataset) -> xr.DataArray:
    nodes = cube.subtree if isinstance(cube, xr.DataTree) else []
    for node in nodes:
        if "smap_soil_moisture" in node.data_vars:
            return node.to_dataset()["smap_soil_moisture"]
    raise NoDataError(
        "the coarse cube has no smap_soil_moisture; add a source of SMAP to its catalog"
    )


def _station_samples(config: Config, layout: FeatureLayout) -> Samples:
    cube = open_cube(config.fine.cube)
    labels = station_labels(
        open_stations(config.fine.stations), cube, tolerance_hours=config.fine.tolerance_hours
    )
    return collect_samples(stream_samples(cube, labels, layout=layout, seed=config.seed))


def _unlabelled(config: Config, layout: FeatureLayout) -> Samples:
    """Draw pixels of the whole fine cube, about as many as wanted."""
    cube = open_cube(config.fine.cube)
    stream = stream_samples(cube, None, layout=layout, seed=config.seed)
    inputs = stream.blocks.inputs
    pixels = int(inputs.windows.complete.sum()) * int(np.prod(inputs.grid.shape))
    share = min(1.0, 1.2 * config.fine.unlabelled / pixels)
    drawn = stream_samples(cube, None, layout=layout, seed=config.seed, share=share)
    return collect_samples(drawn)


def _split_stations(config: Config, stations: Samples) -> Split:
    split = split_samples(
        stations,
        by="station",
        share=(0.6, 0.15, 0.25),
        coarse_km=config.fine.coarse_km,
        seed=config.seed,
    )
    if config.fine.train_on is not None:
        split = _with_few(split, config.fine.train_on, seed=config.seed)
    check_leakage(split.training, split.test, by="station", coarse_km=config.fine.coarse_km)
    return split


def _with_few(split: Split, count: int, *, seed: int) -> Split:
    """Keep so many of the stations of the training; the report says so."""
    whole = split.training
    pairs = np.char.add(np.char.add(whole.network, "/"), whole.station)
    names = np.unique(pairs)
    chosen = np.random.default_rng(seed).permutation(names)[:count]
    few = whole.take(np.isin(pairs, chosen))
    report = replace(
        split.report,
        rows={**split.report.rows, "training": len(few)},
        groups={**split.report.groups, "training": len(chosen)},
        notes=[*split.report.notes, f"trained on {len(chosen)} of {len(names)} stations"],
    )
    return replace(split, training=few, report=report)


def _scores(ensemble: Ensemble, test: Samples) -> dict[str, float | None]:
    """Agreement of the ensemble's mean with stations that training has not seen."""
    mean = predict_samples(ensemble, test.features).mean(axis=0)
    found = asdict(score(xr.DataArray(mean), xr.DataArray(test.label.numpy())))
    return {name: None if np.isnan(value) else value for name, value in found.items()}


def main() -> int:
    """Read the command line, run the job, and say in one line what went wrong."""
    if len(sys.argv) != 2:
        sys.stderr.write(f"{__doc__}\n")
        return 2
    torch.set_num_threads(1)  # small matrix products lose most of their speed on several
    try:
        report = run(check_model(read_yaml(Path(sys.argv[1])), Config))
    except SmgridError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    sys.stdout.write(json.dumps(report["scores"], indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
