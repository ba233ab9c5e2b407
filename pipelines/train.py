"""Batch job: pre-train on SMAP at 9 km, adapt to 100 m with few stations, and report how well.

    python pipelines/train.py config.yml

Samples, ensembles and ``report.json`` stay in the folder ``out``, the result as ``out/ensemble``. A
stage whose result is there is not run again, and training goes on where it was interrupted. The
exit code is that of `smgrid`: 0 done, 2 configuration, 3 inputs, 4 stores, 5 model and cube do not
fit.
"""

import json
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import numpy as np
import numpy.typing as npt
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
    call_each,
    check_leakage,
    collect_samples,
    collocate_labels,
    epoch_bar,
    finetune,
    get_layout,
    inspect,
    join_ensembles,
    load_ensemble,
    log_to_tensorboard,
    open_cube,
    open_samples,
    open_stations,
    predict_samples,
    pretrain,
    save_ensemble,
    score,
    split_samples,
    station_labels,
    stream_samples,
    write_samples,
)
from smgrid.cluster import open_scheduler
from smgrid.errors import ConfigError, NoDataError, SourceError, StoreError
from smgrid.jobs import Job, JobConfig, run_job
from smgrid.training.loop import OnEpoch
from smgrid.training.plan import ADAPTATION, PRETRAINING, PUBLISHED_SIZES, SMALL_SIZES
from smgrid.training.uncertainty import with_uncertainty

SIZES = {"published": PUBLISHED_SIZES, "small": SMALL_SIZES}


def _over(base: Any) -> Callable[[Any], Any]:
    """Take what a mapping states over the values of a plan."""

    def merge(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        unknown = sorted({str(name) for name in value} - set(asdict(base)))
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


class Config(JobConfig):
    """What the job learns from, and how."""

    coarse: Coarse | None = Field(None, description="needed unless there is an ensemble to start")
    fine: Fine
    out: Path = Field(description="folder of everything that the job makes")
    start: str | None = Field(
        None, description="ensemble to adapt instead of pre-training one, such as densesm-9km"
    )
    layout: Literal["smgrid-1", "released-9km", "published"] = Field(
        "smgrid-1", description="of the pre-training; an ensemble to start from brings its own"
    )
    sizes: Literal["published", "small"] = "published"
    pretraining: Annotated[FitPlan, BeforeValidator(_over(PRETRAINING))] = PRETRAINING
    adaptation: Annotated[FitPlan, BeforeValidator(_over(ADAPTATION))] = ADAPTATION
    msda: Annotated[MSDA, BeforeValidator(_over(MSDA()))] = MSDA()
    repeats: int = Field(
        1, ge=1, description="adaptations with seeds one after the other, each with its stations"
    )
    tensorboard: Path | None = Field(None, description="folder of curves to write")
    seed: int = Field(0, ge=0, description="of samples and splits; plans have their own")
    device: Literal["cpu", "cuda"] = "cpu"


def run(config: Config) -> dict[str, Any]:
    """Pre-train, adapt and score; returns the report that is written beside the ensembles."""
    if config.adaptation.series != "plain":
        raise ConfigError("adaptation: members that have learned already need series: plain")
    try:
        config.out.mkdir(parents=True, exist_ok=True)
    except OSError as cause:
        raise ConfigError(f"out: {config.out} is no folder and cannot be made: {cause}") from cause
    given = None if config.start is None else load_ensemble(config.start)
    if given is None and config.coarse is None:
        raise ConfigError("give coarse, to pre-train on, or start, an ensemble to adapt")
    layout = get_layout(config.layout) if given is None else given.layout
    data = _data(config)
    # All samples before days of training.
    coarse = None if config.coarse is None else _coarse_samples(config, config.coarse, layout, data)
    stations = _station_samples(config, layout, data)
    unlabelled = _unlabelled(config, layout, data)
    split = split_samples(
        stations,
        by="station",
        share=(0.6, 0.15, 0.25),
        coarse_km=config.fine.coarse_km,
        seed=config.seed,
    )
    check_leakage(split.training, split.test, by="station", coarse_km=config.fine.coarse_km)
    start = given or _pretrain(
        config, layout, cast(Coarse, config.coarse), cast(Samples, coarse), data
    )
    adapted = {
        f"r{number}": _adapt(config, number, start, split, unlabelled, coarse, data)
        for number in range(config.repeats)
    }
    result = _join(adapted, split) if len(adapted) > 1 else adapted["r0"]
    _replace_ensemble(result, config.out / "ensemble")
    report = {
        "scores": {"start": _scores(start, split.test), "adapted": _scores(result, split.test)},
        "repeats": {name: one.card["training"]["scores"] for name, one in adapted.items()},
        "coverage": None if result.calibration is None else result.calibration.coverage,
        "ensemble": str(config.out / "ensemble"),
        "split": asdict(split.report),
        "trained_on": {name: one.card["stations"] for name, one in adapted.items()},
        "data": data,
        "notes": ["adapted to pixels of the whole fine cube, those of the test among them"],
    }
    (config.out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    return report


def _join(adapted: Mapping[str, Ensemble], split: Split) -> Ensemble:
    """Join the repeats, and find anew how wrong they are together and where they are at home."""
    joined = join_ensembles(adapted)
    stations = [name for one in adapted.values() for name in one.card["stations"]]
    training = split.training.take(np.isin(_station_names(split.training), stations))
    parts = {"training": training, "validation": split.validation, "test": split.test}
    found, notes = with_uncertainty(joined, parts, learned="training")
    return replace(found, card={**found.card, **notes})


def _replace_ensemble(ensemble: Ensemble, path: Path) -> None:
    """Write the result, in the place of that of a job with other repeats."""
    if path.exists():
        there = load_ensemble(path)
        if (there.digest, there.calibration) == (ensemble.digest, ensemble.calibration):
            return
        shutil.rmtree(path)
    save_ensemble(ensemble, path)


def _pretrain(
    config: Config,
    layout: FeatureLayout,
    scale: Coarse,
    coarse: Samples,
    data: Mapping[str, Any],
) -> Ensemble:
    squares = split_samples(
        coarse, by="block", block_km=scale.blocks_km, share=(0.9, 0, 0.1), seed=config.seed
    )
    out = config.out / "pretraining"
    with _watch(config, out) as on_epoch:
        return pretrain(
            squares.training,
            squares.test,
            layout=layout,
            sizes=SIZES[config.sizes],
            plan=config.pretraining,
            out=out,
            device=config.device,
            on_epoch=on_epoch,
            card={"split": asdict(squares.report), "data": data},
        )


def _adapt(
    config: Config,
    number: int,
    start: Ensemble,
    split: Split,
    unlabelled: Samples,
    coarse: Samples | None,
    data: Mapping[str, Any],
) -> Ensemble:
    training = _some_stations(split.training, config.fine.train_on, seed=config.seed + number)
    names = np.unique(_station_names(training)).tolist()
    out = config.out / "adaptation" / f"r{number}"
    with _watch(config, out) as on_epoch:
        return finetune(
            start,
            training,
            validation=split.validation,
            test=split.test,
            unlabelled=unlabelled,
            coarse=coarse,
            plan=replace(config.adaptation, seed=config.adaptation.seed + number),
            msda=config.msda,
            out=out,
            device=config.device,
            on_epoch=on_epoch,
            card={"split": asdict(split.report), "stations": names, "data": data},
        )


@contextmanager
def _watch(config: Config, out: Path) -> Iterator[OnEpoch]:
    """Show the epochs in the terminal, and in TensorBoard if that is wanted."""
    with ExitStack() as stack:
        callbacks = [stack.enter_context(epoch_bar())]
        if config.tensorboard is not None:
            board = config.tensorboard / out.relative_to(config.out)
            callbacks.append(stack.enter_context(log_to_tensorboard(board)))
        yield call_each(*callbacks)


def _coarse_samples(
    config: Config, coarse: Coarse, layout: FeatureLayout, data: Mapping[str, Any]
) -> Samples:
    def make() -> Samples:
        cube = open_cube(coarse.cube)
        labels = collocate_labels(_find_smap(cube), cube, tolerance_hours=coarse.tolerance_hours)
        return collect_samples(stream_samples(cube, labels, layout=layout, seed=config.seed))

    made_from = {"cube": data["coarse"]["sha256"], "tolerance_hours": coarse.tolerance_hours}
    return _kept(config, "coarse", layout, made_from, make)


def _find_smap(cube: xr.DataTree | xr.Dataset) -> xr.DataArray:
    nodes = cube.subtree if isinstance(cube, xr.DataTree) else []
    for node in nodes:
        if "smap_soil_moisture" in node.data_vars:
            return node.to_dataset()["smap_soil_moisture"]
    raise NoDataError(
        "the coarse cube has no smap_soil_moisture; add a source of SMAP to its catalog"
    )


def _station_samples(config: Config, layout: FeatureLayout, data: Mapping[str, Any]) -> Samples:
    fine = config.fine

    def make() -> Samples:
        cube, stations = open_cube(fine.cube), open_stations(fine.stations)
        labels = station_labels(stations, cube, tolerance_hours=fine.tolerance_hours)
        return collect_samples(stream_samples(cube, labels, layout=layout, seed=config.seed))

    made_from = {
        "cube": data["fine"]["sha256"],
        "stations": data["stations"]["sha256"],
        "tolerance_hours": fine.tolerance_hours,
    }
    return _kept(config, "stations", layout, made_from, make)


def _unlabelled(config: Config, layout: FeatureLayout, data: Mapping[str, Any]) -> Samples:
    """Draw pixels of the whole fine cube, about as many as wanted."""
    wanted = config.fine.unlabelled

    def make() -> Samples:
        cube = open_cube(config.fine.cube)
        inputs = stream_samples(cube, None, layout=layout).blocks.inputs
        pixels = int(inputs.windows.complete.sum()) * int(np.prod(inputs.grid.shape))
        share = min(1.0, 1.2 * wanted / pixels)
        drawn = stream_samples(cube, None, layout=layout, seed=config.seed, share=share)
        return collect_samples(drawn)

    made_from = {"cube": data["fine"]["sha256"], "count": wanted}
    return _kept(config, "unlabelled", layout, made_from, make)


def _kept(
    config: Config,
    name: str,
    layout: FeatureLayout,
    made_from: Mapping[str, Any],
    make: Callable[[], Samples],
) -> Samples:
    """Return a table of samples, from the folder of the job if it is there."""
    path, note = config.out / f"{name}.zarr", config.out / f"{name}.json"
    origin = {**made_from, "layout": layout.digest, "seed": config.seed}
    if not path.exists():
        samples = make()
        note.write_text(json.dumps(origin, indent=1) + "\n")
        write_samples(samples, path, layout=layout)
        return samples
    found = _read_note(note)
    changed = [key for key in origin if found.get(key) != origin[key]]
    if changed:
        raise ConfigError(
            f"{path} holds samples of another job, which differs in {', '.join(changed)}; see "
            f"{note.name}. Remove both, or give another out"
        )
    return open_samples(path, layout=layout)


def _read_note(note: Path) -> dict[str, Any]:
    """Return what a table was made from; nothing where that is lost."""
    try:
        found = json.loads(note.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _cube_facts(path: str) -> dict[str, Any]:
    """Tell a cube from another one, and from what it was before an update."""
    report = inspect(path)
    sums = report.provenance.get("smgrid_manifest_sha256")
    if sums is None:
        raise StoreError(f"{path} is {report.status}; finish it with write_cube or smgrid build")
    return {"path": report.path, "sha256": sums}


def _file_facts(path: Path) -> dict[str, Any]:
    """Tell an archive from another one by the contents of its files."""
    if not path.exists():
        raise SourceError(f"stations: {path} does not exist; give an ISMN archive, zip or folder")
    digest = sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]:
        digest.update(f"{file.relative_to(path)}\n".encode())
        with file.open("rb") as content:
            digest.update(file_digest(content, "sha256").digest())
    return {"path": str(path), "sha256": digest.hexdigest()}


def _data(config: Config) -> dict[str, Any]:
    coarse = {} if config.coarse is None else {"coarse": _cube_facts(config.coarse.cube)}
    return {
        **coarse,
        "fine": _cube_facts(config.fine.cube),
        "stations": _file_facts(config.fine.stations),
    }


def _station_names(samples: Samples) -> npt.NDArray[np.str_]:
    return np.char.add(np.char.add(samples.network, "/"), samples.station)


def _some_stations(training: Samples, count: int | None, *, seed: int) -> Samples:
    """Keep the samples of so many stations, drawn at random; of all by default."""
    if count is None:
        return training
    names = _station_names(training)
    chosen = np.random.default_rng(seed).permutation(np.unique(names))[:count]
    return training.take(np.isin(names, chosen))


def _scores(ensemble: Ensemble, test: Samples) -> dict[str, float | None]:
    """Agreement of the ensemble's mean with stations that training has not seen."""
    mean = predict_samples(ensemble, test.features).mean(axis=0)
    found = asdict(score(xr.DataArray(mean), xr.DataArray(test.label.numpy())))
    return {name: None if np.isnan(value) else value for name, value in found.items()}


def work(config: Config, job: Job) -> None:
    """Run the job where the configuration says; samples are read there, networks learn here."""
    torch.set_num_threads(1)  # small matrix products lose most of their speed on several
    if config.summary is None:
        job.tell_to(config.out / "summary.json")
    with open_scheduler(config.scheduler, options=config.cluster):
        report = run(config)
    job.facts |= {"ensemble": report["ensemble"], "scores": report["scores"]}


if __name__ == "__main__":
    sys.exit(run_job("train", __doc__, Config, work))
