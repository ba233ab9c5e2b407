"""The main job on the embedded default: a simulated world becomes a scored soil-moisture map.

Every stage is the one that real data goes through, and leaves its result in a folder: the world
in the providers' own formats, the cube, the ensemble, the map, the pictures and the scores. A
stage whose result is there already is not run again.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch
import xarray as xr

from smgrid.cube.build import load_cube
from smgrid.cube.store import ProgressFunction, open_cube, open_map, write_cube
from smgrid.errors import ConfigError, StoreError
from smgrid.export.plot import plot_maps, plot_series
from smgrid.features.layout import get_layout
from smgrid.inference.predict import predict
from smgrid.metrics import Scores, coverage, score
from smgrid.models.bundle import load_ensemble, save_ensemble
from smgrid.models.calibration import Calibration
from smgrid.models.ensemble import Ensemble
from smgrid.resample import nearest
from smgrid.simulate import World, simulate_world
from smgrid.sources.stations import open_stations
from smgrid.training.fit import fit
from smgrid.training.labels import station_labels
from smgrid.training.loop import EpochEnd
from smgrid.training.plan import FitPlan
from smgrid.training.samples import collect_samples, stream_samples
from smgrid.training.splits import split_samples
from smgrid.training.table import Samples
from smgrid.training.uncertainty import COVERAGES, fit_calibration

# Samples of one square of this size [km] train or validate together.
BLOCK_KM = 2.0

# The world: two and a half years to learn from, and the half year from the wet end of winter into
# the dry summer to map. Networks learn what rain does from the dates they see, so the archive is
# long; scenes come multi-looked to 50 m, 4.4 looks per 20 m pixel, which quarters their volume.
START, MONTHS, HELD_OUT_MONTHS = "2019-08-01", 36, 6
STATIONS = 80
SPACING, LOOKS = 50.0, 4.4 * (50 / 20) ** 2
# Days between training and held-out dates: the top soil layer forgets over about that time.
GAP = pd.Timedelta(days=10)

# The held-out half has stations too. None of them is trained on, but they tell how far the ensemble
# is off in that half, which the few western stations beside the training ones cannot: intervals are
# fitted on them, at training dates only. What they measured afterwards is left to score.
CALIBRATED_ON = "stations of the eastern half at training dates"
AT_STATIONS = "smgrid, at stations"


@dataclass(frozen=True)
class DemoReport:
    """What the demo made and how well it did.

    Attributes
    ----------
    folder
        Where everything lies.
    scores
        Agreement with the simulated truth on held-out dates in the held-out half of the area, of
        the map and of each baseline; and of the map with the stations there.
    coverage
        Share of the truth, and of what the stations measured, inside the calibrated intervals: by
        the name of the map's score and by nominal coverage ("0.9").
    """

    folder: Path
    scores: dict[str, Scores]
    coverage: dict[str, dict[str, float]]

    def table(self) -> list[dict[str, str]]:
        """Rows for people, one per estimate; as a table they fit on a terminal of 80 columns."""
        levels = "/".join(f"{100 * c:g}" for c in COVERAGES)
        return [
            {
                "estimate": name,
                "bias": f"{s.bias:+.3f}",
                "RMSE": f"{s.rmse:.3f}",
                "ubRMSE": f"{s.ubrmse:.3f}",
                "R": "-" if np.isnan(s.r) else f"{s.r:.2f}",
                f"in {levels} %": self._shares(name),
            }
            for name, s in self.scores.items()
        ]

    def _shares(self, name: str) -> str:
        """Say how much lies in the intervals of each nominal coverage [%]; nothing without any."""
        held = self.coverage.get(name, {})
        shares = (held.get(f"{c:g}") for c in COVERAGES)
        said = ["-" if share is None else f"{100 * share:.1f}" for share in shares]
        return "/".join(said) if held else ""


def run_demo(
    folder: str | PathLike[str],
    *,
    size_km: float = 13.0,
    seed: int = 0,
    plan: FitPlan | None = None,
    on_stage: Callable[[str], None] = lambda _: None,
    progress: ProgressFunction | None = None,
    on_epoch: Callable[[EpochEnd], None] | None = None,
) -> DemoReport:
    """Simulate, build, train, map, score and draw.

    Parameters
    ----------
    folder
        Where the results go; made if needed.
    size_km
        Edge of the simulated region.
    seed
        Of the world, the samples and the weights.
    plan
        How the ensemble is trained.
    on_stage, progress, on_epoch
        Told what is going on.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    on_stage("simulate a world in the providers' own formats")
    world = simulate_world(
        folder / "world",
        size_km=size_km,
        start=START,
        months=MONTHS,
        seed=seed,
        stations=STATIONS,
        spacing=SPACING,
        looks=LOOKS,
    )
    on_stage("build the cube")
    lazy = load_cube(world.grid, world.period, catalog=world.catalog, scenes=world.scenes)
    write_cube(lazy, folder / "cube.zarr", progress=progress)
    cube = _open_tree(folder / "cube.zarr")
    split = _held_out(world)
    on_stage("train on the stations of the western half, without the last six months")
    ensemble = _trained(world, cube, split, folder / "ensemble", plan, seed, on_epoch)
    on_stage("calibrate intervals on the stations of the eastern half, without the last six months")
    ensemble, calibration = _calibrated(ensemble, folder, world, cube, split, seed)
    on_stage("map the held-out months")
    held_out = _select(cube, split.test)
    write_cube(predict(held_out, ensemble), folder / "soil_moisture.zarr", progress=progress)
    on_stage("score against the simulated truth")
    sm = open_map(folder / "soil_moisture.zarr")
    truth = _truth_at(world, sm)
    stations = station_labels(open_stations(world.stations), held_out)["label"]
    references = {"smgrid": truth, AT_STATIONS: stations.reindex_like(truth)}
    report = _report(folder, cube, sm, references, split, calibration)
    _draw(folder, cube, sm, truth, split)
    (folder / "scores.json").write_text(
        json.dumps(
            {
                "scores": {k: asdict(v) for k, v in report.scores.items()},
                "coverage": report.coverage,
            },
            indent=1,
        )
    )
    return report


@dataclass(frozen=True)
class _Split:
    """Held-out dates and half: training sees neither."""

    train: slice
    test: slice
    middle: float


def _open_tree(path: Path) -> xr.DataTree:
    cube = open_cube(path)
    if not isinstance(cube, xr.DataTree):
        raise StoreError(f"{path} holds one grid, expected a cube; remove it")
    return cube


def _held_out(world: World) -> _Split:
    first = world.scenes.start + pd.DateOffset(months=MONTHS - HELD_OUT_MONTHS)
    box = world.grid.boundingbox
    return _Split(
        train=slice(None, first - GAP), test=slice(first, None), middle=(box.left + box.right) / 2
    )


def _select(cube: xr.DataTree, times: slice) -> xr.DataTree:
    nodes = {f"/{name}": node.to_dataset() for name, node in cube.children.items()}
    nodes["/base"] = nodes["/base"].sel(time=times)
    return xr.DataTree.from_dict(nodes)


def _trained(
    world: World,
    cube: xr.DataTree,
    split: _Split,
    path: Path,
    plan: FitPlan | None,
    seed: int,
    on_epoch: Callable[[EpochEnd], None] | None,
) -> Ensemble:
    plan = plan or FitPlan(seed=seed)
    if path.exists():
        return _trained_before(path, plan)
    samples = _station_samples(world, _select(cube, split.train), split, "west", seed)
    # Squares keep apart what is near; whole coarse cells would leave nothing to validate on.
    parts = split_samples(
        samples, by="block", block_km=BLOCK_KM, coarse_km=None, share=(0.8, 0, 0.2), seed=seed
    )
    _save_means(samples, path.parent / "training_means.json")
    with _one_thread():
        ensemble = fit(
            parts.training,
            parts.test,
            layout=get_layout("smgrid-1"),
            plan=plan,
            on_epoch=on_epoch,
            card={"split": asdict(parts.report)},
        )
    save_ensemble(ensemble, path)
    return ensemble


def _trained_before(path: Path, plan: FitPlan) -> Ensemble:
    ensemble = load_ensemble(path)
    found, wanted = ensemble.card["training"]["plan"], json.loads(json.dumps(asdict(plan)))
    changes = [f"{k} {found.get(k)!r} -> {v!r}" for k, v in wanted.items() if found.get(k) != v]
    if changes:
        raise ConfigError(
            f"{path} was trained by another plan ({'; '.join(changes)}); give another folder or "
            "remove it"
        )
    return ensemble


def _station_samples(
    world: World, tree: xr.DataTree, split: _Split, half: Literal["west", "east"], seed: int
) -> Samples:
    labels = station_labels(open_stations(world.stations), tree)
    wanted = (labels["x"] < split.middle) == (half == "west")
    labels = labels.assign(label=labels["label"].where(wanted))
    return collect_samples(stream_samples(tree, labels, layout=get_layout("smgrid-1"), seed=seed))


def _calibrated(
    ensemble: Ensemble, folder: Path, world: World, cube: xr.DataTree, split: _Split, seed: int
) -> tuple[Ensemble, Calibration]:
    known = ensemble.calibration
    if known is not None and known.fitted_on == CALIBRATED_ON:
        return ensemble, known
    before, after = (
        _station_samples(world, _select(cube, times), split, "east", seed)
        for times in (split.train, split.test)
    )
    found = fit_calibration(ensemble, before, test=after, name=CALIBRATED_ON)
    calibrated = replace(ensemble, calibration=found)
    for outdated in ("ensemble.calibrated", "soil_moisture.zarr"):  # begun, or without these bounds
        if (folder / outdated).exists():
            shutil.rmtree(folder / outdated)
    save_ensemble(calibrated, folder / "ensemble.calibrated")
    shutil.rmtree(folder / "ensemble")
    (folder / "ensemble.calibrated").rename(folder / "ensemble")
    return calibrated, found


@contextmanager
def _one_thread() -> Iterator[None]:
    """Train on one thread: batches are too small to share, and their sums stay the same."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _save_means(samples: Samples, path: Path) -> None:
    """Keep the training labels' overall and monthly means: the baselines know nothing else."""
    months = pd.Series(samples.label.numpy()).groupby(pd.DatetimeIndex(samples.time).month).mean()
    means = {"all": float(samples.label.mean())} | {str(m): float(v) for m, v in months.items()}
    path.write_text(json.dumps(means))


def _truth_at(world: World, sm: xr.Dataset) -> xr.DataArray:
    """Truth on the day of each acquisition, on the pixels of the map."""
    truth = xr.open_zarr(world.truth)["soil_moisture"]
    days = pd.DatetimeIndex(sm["time"].values).normalize()
    picked: xr.DataArray = truth.sel(time=days).reindex(y=sm["y"], x=sm["x"])
    return picked.assign_coords(time=sm["time"])


def _report(
    folder: Path,
    cube: xr.DataTree,
    sm: xr.Dataset,
    references: dict[str, xr.DataArray],
    split: _Split,
    calibration: Calibration,
) -> DemoReport:
    east = {"x": sm["x"].values[sm["x"].values >= split.middle]}
    estimate, spread = (sm[n].sel(east) for n in ("soil_moisture", "soil_moisture_std"))
    known = {name: reference.sel(east) for name, reference in references.items()}
    rivals = {k: v.sel(east) for k, v in _baselines(folder, cube, sm).items()}
    # The map holds the interval of one coverage; those of the others follow from the same scale.
    day = sm["time"].dt.dayofyear.astype(float)
    scale = xr.apply_ufunc(
        calibration.scale, spread, day, dask="parallelized", output_dtypes=[np.float32]
    )
    levels = [c for c in COVERAGES if c <= calibration.highest_coverage]
    return DemoReport(
        folder=folder,
        scores={name: score(estimate, reference) for name, reference in known.items()}
        | {name: score(rival, known["smgrid"]) for name, rival in rivals.items()},
        coverage={
            name: {
                f"{c:g}": coverage(estimate, scale, reference, factor=calibration.factor(c))
                for c in levels
            }
            for name, reference in known.items()
        },
    )


def _baselines(folder: Path, cube: xr.DataTree, sm: xr.Dataset) -> dict[str, xr.DataArray]:
    """Map what one would without smgrid, on the coordinates of the map."""
    means = json.loads((folder / "training_means.json").read_text())
    flat = xr.zeros_like(sm["soil_moisture"])
    month = sm["time"].dt.month
    monthly = xr.DataArray(
        [means.get(str(m), means["all"]) for m in month.values], dims="time", coords=month.coords
    )
    smap = nearest(cube["labels"].to_dataset()["smap_soil_moisture"], sm.odc.geobox, tolerance=1.0)
    smap = smap.reindex(time=sm["time"], method="nearest", tolerance="3D")
    return {
        "mean map": flat + means["all"],
        "monthly mean": flat + monthly,
        "SMAP 9 km": smap.assign_coords(x=sm["x"], y=sm["y"]),
    }


def _draw(
    folder: Path, cube: xr.DataTree, sm: xr.Dataset, truth: xr.DataArray, split: _Split
) -> None:
    date = int(np.argmax(sm["soil_moisture"].notnull().mean(("y", "x")).values))
    one, real = sm.isel(time=date).compute(), truth.isel(time=date).compute()
    label = f"{pd.Timestamp(one['time'].item()):%Y-%m-%d %H:%M} UTC"
    plot_maps(
        {
            "predicted": one["soil_moisture"],
            "truth": real,
            "predicted - truth": one["soil_moisture"] - real,
            "spread of the members": one["soil_moisture_std"],
        },
        folder / "map.png",
        title=f"Soil moisture on {label}, a held-out date; the eastern half was never trained on",
        differences=("predicted - truth",),
        spreads=("spread of the members",),
    )
    east = {"x": sm["x"].values[sm["x"].values >= split.middle]}
    mean = sm["soil_moisture"].sel(east).mean(("y", "x")).compute()
    spread = sm["soil_moisture_std"].sel(east).mean(("y", "x")).compute()
    weather = next(n.to_dataset() for n in cube.children.values() if "tp" in n)
    rain = weather["tp"].mean(("y", "x")).sel(date=slice(mean["time"][0], mean["time"][-1]))
    plot_series(
        {"predicted": mean, "truth": truth.sel(east).mean(("y", "x")).compute()},
        folder / "series.png",
        title="Mean of the held-out half over the held-out months",
        band=(mean - spread, mean + spread),
        rain=rain.compute(),
    )
