"""What domain adaptation gains: ensembles trained with 1, 5 and 20 stations on simulated worlds.

    python benchmarks/adaptation.py FOLDER [--quick]

For each climate a coarse world of 150 km is put on SMAP's grid and pre-trained on, and a fine world
of 13 km, made from other seeds, has 80 stations. Three ways use the same few of them: training from
random weights, plain fine-tuning of the pre-trained ensemble, and multi-scale domain adaptation
with the coarse samples and unlabelled pixels of the fine world (transductive: the map that is
scored is the one that is adapted to, as published). Scores are the unbiased errors on 40 unseen
stations and, against the truth, on pixels and dates of the whole map; a mean and a spread over
climates, seeds and draws of stations. Worlds and samples stay in FOLDER. The last line is one JSON
object.
"""

import argparse
import json
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import xarray as xr

import smgrid
from smgrid import Ensemble, FitPlan, Samples
from smgrid.simulate.weather import Climate
from smgrid.simulate.world import World
from smgrid.training.plan import ADAPTATION

LAYOUT = smgrid.get_layout("smgrid-1")
SIZES = ((1, 16), (2, 32), (3, 32))
STATIONS = (1, 5, 20)
# Plausible for the latitude (None: the Duero basin), and a cool, wet place with rain all year.
CLIMATES: dict[str, Climate | None] = {
    "summer-dry": None,
    "wet": Climate(
        temperature=9.5,
        temperature_range=7.5,
        temperature_spread=3.0,
        warmest_day=205,
        wettest_day=330,
        rain_seasonality=0.15,
        wet_after_dry=0.38,
        wet_after_wet=0.68,
        rain_shape=0.75,
        rain_scale=6.0,
    ),
}


def coarse_samples(folder: Path, climate: Climate | None, seed: int) -> Samples:
    """Cells of SMAP's grid with its retrievals as labels."""
    table = folder / "coarse_samples.zarr"
    if not table.exists():
        world = smgrid.simulate_world(
            folder / "coarse",
            size_km=150,
            resolution=1000,
            spacing=1000,
            looks=4.4 * 2500,
            start="2019-08-01",
            months=24,
            seed=seed,
            stations=1,
            climate=climate,
        )
        box = world.grid.extent.to_crs("EPSG:4326").boundingbox
        inside = (box.left + 0.1, box.bottom + 0.1, box.right - 0.1, box.top - 0.1)
        cube = stored(world, smgrid.ease_grid(9, inside), folder / "coarse.zarr")
        smap = cube["labels"].to_dataset()["smap_soil_moisture"]
        labels = smgrid.collocate_labels(smap, cube, tolerance_hours=36)
        stream = smgrid.stream_samples(cube, labels, layout=LAYOUT)
        smgrid.write_samples(stream, table, layout=LAYOUT)
    return smgrid.open_samples(table)


def fine_samples(folder: Path, climate: Climate | None, seed: int) -> tuple[Samples, Samples]:
    """Sample the stations, and one per cent of all pixels and dates with the truth as label."""
    tables = folder / "stations.zarr", folder / "map.zarr"
    if not tables[1].exists():
        world = smgrid.simulate_world(
            folder / "fine",
            size_km=13,
            spacing=50,
            looks=4.4 * 6.25,
            start="2019-08-01",
            months=36,
            seed=seed,
            stations=80,
            climate=climate,
        )
        cube = stored(world, world.grid, folder / "fine.zarr")
        measured = smgrid.station_labels(smgrid.open_stations(world.stations), cube)
        truth = true_labels(world, cube)
        for path, labels, share in ((tables[0], measured, 1.0), (tables[1], truth, 0.01)):
            if not path.exists():
                stream = smgrid.stream_samples(cube, labels, layout=LAYOUT, share=share)
                smgrid.write_samples(stream, path, layout=LAYOUT)
    return smgrid.open_samples(tables[0]), smgrid.open_samples(tables[1])


def stored(world: World, grid: object, path: Path) -> xr.DataTree:
    """Build a cube of a world, or go on with it."""
    lazy = smgrid.load_cube(grid, world.period, catalog=world.catalog, scenes=world.scenes)
    smgrid.write_cube(lazy, path)
    return smgrid.open_cube(path)


def true_labels(world: World, cube: xr.DataTree) -> xr.DataArray:
    """Truth on the day of each acquisition, as labels."""
    vv = cube["base"].to_dataset()["vv"]
    truth = xr.open_zarr(world.truth)["soil_moisture"]
    days = pd.DatetimeIndex(vv["time"].values).normalize()
    picked = truth.sel(time=days).reindex(y=vv["y"], x=vv["x"]).transpose("time", "y", "x")
    chunks = dict(zip(vv.dims, vv.chunks, strict=True))
    return picked.assign_coords(time=vv["time"]).chunk(chunks).assign_attrs(units="m3 m-3")


def ubrmse(ensemble: Ensemble, samples: Samples) -> float:
    """Error of the ensemble's mean without the bias, m3 m-3."""
    mean = smgrid.predict_samples(ensemble, samples.features).mean(axis=0)
    return smgrid.score(xr.DataArray(mean), xr.DataArray(samples.label.numpy())).ubrmse


def start_from(folder: Path, coarse: Samples) -> Ensemble:
    """Pre-train on nine tenths of the squares."""
    split = smgrid.split_samples(coarse, by="block", block_km=36, share=(0.9, 0, 0.1))
    return smgrid.pretrain(
        split.training, split.test, layout=LAYOUT, sizes=SIZES, out=folder / "pretrained"
    )


def three_ways(
    start: Ensemble, few: Samples, unlabelled: Samples, coarse: Samples, seed: int
) -> dict[str, Ensemble]:
    """Train with the same few stations; all epochs, so that nothing is chosen by a validation."""
    watched = few.take(np.arange(8))
    passes = int(np.clip(14 * 1500 / len(few), 14, 60))
    fresh = FitPlan(epochs=passes, patience=passes, keep="last", seed=seed)
    tuned = replace(ADAPTATION, seed=seed)
    return {
        "scratch": smgrid.fit(few, watched, layout=LAYOUT, sizes=SIZES, plan=fresh),
        "fine-tuned": smgrid.finetune(start, few, validation=watched, plan=tuned),
        "adapted": smgrid.finetune(
            start, few, validation=watched, unlabelled=unlabelled, coarse=coarse, plan=tuned
        ),
    }


def one_world(
    folder: Path, climate: Climate | None, seed: int, draws: int
) -> list[dict[str, object]]:
    """All ways with all numbers of stations in one world."""
    coarse = coarse_samples(folder, climate, seed)
    stations, whole = fine_samples(folder, climate, seed + 100)
    start = start_from(folder, coarse)
    names = np.unique(stations.station)
    rows: list[dict[str, object]] = []
    for count in STATIONS:
        for draw in range(draws):
            rng = np.random.default_rng([seed, count, draw])
            order = rng.permutation(names)
            few = stations.take(np.isin(stations.station, order[:count])).compact()
            unseen = stations.take(np.isin(stations.station, order[-40:]))
            pixels = whole.take(rng.choice(len(whole), 5000, replace=False))
            unlabelled = replace(pixels, label=torch.full((len(pixels),), torch.nan)).compact()
            ways = {"pre-trained": start, **three_ways(start, few, unlabelled, coarse, draw)}
            for way, ensemble in ways.items():
                scores = {"stations": ubrmse(ensemble, unseen), "map": ubrmse(ensemble, whole)}
                rows.append({"count": count, "way": way, "seed": seed, **scores})
                print(folder.name, rows[-1], flush=True)
    return rows


def main() -> None:
    """Print the curve over the number of stations, then the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--quick", action="store_true", help="one climate, seed and draw")
    options = parser.parse_args()
    torch.set_num_threads(1)
    climates = ["summer-dry"] if options.quick else list(CLIMATES)
    seeds, draws = ([0], 1) if options.quick else ([0, 1], 2)
    found: dict[str, list[float]] = defaultdict(list)
    for name in climates:
        for seed in seeds:
            folder = options.folder / f"{name}-{seed}"
            folder.mkdir(parents=True, exist_ok=True)
            for row in one_world(folder, CLIMATES[name], seed, draws):
                for where in ("stations", "map"):
                    found[f"{row['way']}_{row['count']}_{where}"].append(float(str(row[where])))
    figures = {key: [float(np.mean(v)), float(np.std(v))] for key, v in found.items()}
    for key, (mean, spread) in figures.items():
        print(f"{key:32s} {mean:.4f} +- {spread:.4f}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
