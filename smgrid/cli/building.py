"""Commands that make things: a demo, a cube, an ensemble, a map, and later dates of a cube."""

from dataclasses import asdict
from math import nan
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from smgrid.cli.application import app
from smgrid.cli.console import OUT, UnitBars, print_rows, progress_bar, say, say_report
from smgrid.errors import ConfigError, StoreError

Convention = Literal["sigma0", "gamma0"]
Window = Literal["causal", "published"]
Layout = Literal["smgrid-1", "released-9km", "published"]
Value = Literal["mean", "last"]


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything that the demo makes.")] = Path(
        "demo"
    ),
    size_km: Annotated[float, typer.Option(help="Edge of the simulated region.")] = 13.0,
    seed: Annotated[int, typer.Option(help="Of the world, the samples and the weights.")] = 0,
) -> None:
    """Simulate a world, build its cube, train, map held-out months and score the map.

    Example: smgrid demo --out demo
    """
    from smgrid.demo import run_demo
    from smgrid.training.progress import epoch_bar

    with progress_bar() as bar, epoch_bar(bar) as on_epoch:
        report = run_demo(
            out,
            size_km=size_km,
            seed=seed,
            on_stage=lambda text: bar.console.print(f"- {text}"),
            progress=UnitBars(bar),
            on_epoch=on_epoch,
        )
    print_rows(report.table(), "Held-out months in the held-out half")
    OUT.print(
        f"map      {out / 'soil_moisture.zarr'}\npictures {out / 'map.png'}, {out / 'series.png'}"
    )


@app.command()
def build(
    store: Annotated[
        str, typer.Argument(help="Zarr store to write or to go on writing: a folder or a URL.")
    ],
    period: Annotated[
        tuple[str, str], typer.Option(help="First and last day of all inputs (over a year).")
    ],
    catalog: Annotated[
        list[str] | None,
        typer.Option(
            help="Shipped catalog or your own file, default planetary-computer; repeat it to "
            "combine several, or take single sources: earthdata:smap-l3."
        ),
    ] = None,
    bbox: Annotated[
        tuple[float, float, float, float] | None,
        typer.Option(help="West south east north, degrees."),
    ] = None,
    outline: Annotated[
        Path | None, typer.Option(help="GeoJSON, GeoPackage or shapefile instead of a bbox.")
    ] = None,
    resolution: Annotated[float, typer.Option(help="Pixel size in units of the CRS.")] = 100.0,
    crs: Annotated[str, typer.Option(help="'utm' or any CRS, e.g. EPSG:32631.")] = "utm",
    scenes: Annotated[
        tuple[str, str] | None, typer.Option(help="Restrict the acquisitions to these days.")
    ] = None,
    convention: Annotated[
        Convention | None,
        typer.Option(
            help="Convert backscatter: by the product's own factor, else by the ellipsoid angle."
        ),
    ] = None,
    tile: Annotated[int, typer.Option(help="Edge of a tile in pixels: memory per unit.")] = 512,
) -> None:
    """Read every input of a catalog onto one grid and write it as a resumable Zarr cube.

    Example: smgrid build cube.zarr --bbox 105.8 20.0 106.6 20.7 --period 2024-01-01 2025-02-05
    """
    from smgrid.cube.build import load_cube
    from smgrid.cube.store import write_cube
    from smgrid.grid import make_grid

    grid = make_grid(bbox, outline=outline, resolution=resolution, crs=crs)
    cube = load_cube(
        grid,
        period,
        catalog=catalog or "planetary-computer",
        scenes=scenes,
        convention=convention,
        chunks=tile,
    )
    with progress_bar() as bar:
        report = write_cube(cube, store, shard=tile, progress=UnitBars(bar))
    say_report(store, report)


@app.command()
def train(
    store: Annotated[str, typer.Argument(help="Cube to draw samples from.")],
    stations: Annotated[Path, typer.Option(help="ISMN archive: zip file or folder.")],
    out: Annotated[Path, typer.Option(help="Folder of the ensemble to write.")],
    layout: Annotated[Layout, typer.Option(help="Named feature layout.")] = "smgrid-1",
    block: Annotated[
        float, typer.Option(help="Edge of the squares that validate together, m.")
    ] = 2000.0,
    seed: Annotated[int, typer.Option(help="Of the samples and the weights.")] = 0,
) -> None:
    """Train a small ensemble on stations, stopping early on places it has not seen.

    Example: smgrid train cube.zarr --stations ismn.zip --out ensemble
    """
    from smgrid.cube.store import open_cube
    from smgrid.features.layout import get_layout
    from smgrid.models.bundle import save_ensemble
    from smgrid.sources.stations import open_stations
    from smgrid.training.fit import fit
    from smgrid.training.labels import station_labels
    from smgrid.training.plan import FitPlan
    from smgrid.training.progress import epoch_bar
    from smgrid.training.samples import collect_samples, stream_samples
    from smgrid.training.splits import split_samples

    if out.exists():
        raise ConfigError(f"{out} exists already: choose another --out or remove it")
    cube, columns = open_cube(store), get_layout(layout)
    labels = station_labels(open_stations(stations), cube)
    samples = collect_samples(stream_samples(cube, labels, layout=columns, seed=seed))
    split = split_samples(
        samples, by="block", block_km=block / 1000, coarse_km=None, share=(0.8, 0, 0.2), seed=seed
    )
    with epoch_bar() as on_epoch:
        ensemble = fit(
            split.training,
            split.test,
            layout=columns,
            plan=FitPlan(seed=seed),
            on_epoch=on_epoch,
            card={"split": asdict(split.report)},
        )
    save_ensemble(ensemble, out)
    print_rows(
        [
            {k: f"{m.get(k, nan):.3g}" for k in ("depth", "width", "epoch", "rmse", "ubrmse", "r")}
            for m in ensemble.card["training"]["members"]
        ],
        f"{len(split.training)} samples to train, {len(split.test)} elsewhere to stop; {out}",
    )


@app.command("map")
def map_(
    store: Annotated[str, typer.Argument(help="Cube to read: a folder or a URL.")],
    out: Annotated[str, typer.Option(help="Zarr store of the map: a folder or a URL.")],
    ensemble: Annotated[
        str, typer.Option(help="'densesm-9km', a bundle, or a folder of checkpoints.")
    ] = "densesm-9km",
    layout: Annotated[
        Layout | None, typer.Option(help="What checkpoints of others were trained on.")
    ] = None,
    window: Annotated[
        Window | None, typer.Option(help="Replace the layout's rule; published is for parity.")
    ] = None,
    as_of: Annotated[
        str | None, typer.Option(help="A date, or 'acquisition', for runs near real time.")
    ] = None,
    interval: Annotated[
        float | None,
        typer.Option(help="Share of the truth in the interval; default 0.9 if calibrated."),
    ] = None,
    quantile: Annotated[
        list[float] | None, typer.Option(help="Of the members, such as 0.05; repeat for several.")
    ] = None,
    device: Annotated[str, typer.Option(help="Where networks run: cpu, cuda or cuda:1.")] = "cpu",
) -> None:
    """Map an ensemble over a cube: soil moisture, how sure it is, and flags.

    Example: smgrid map cube.zarr --ensemble densesm-9km --out soil_moisture.zarr
    """
    from smgrid.cube.store import open_cube, write_cube
    from smgrid.export.manifest import map_manifest
    from smgrid.inference.coverage import require_values
    from smgrid.inference.predict import predict
    from smgrid.models.bundle import load_ensemble

    cube = open_cube(store)
    model = load_ensemble(ensemble, layout=layout)
    call: dict[str, Any] = {"as_of": as_of, "window": window, "interval": interval}
    call["quantiles"] = quantile or ()
    sm = predict(cube, model, **call, device=device)
    require_values(sm, cube, layout=model.layout)
    manifest = map_manifest(store, model, ensemble_path=ensemble, call=call)
    with progress_bar() as bar:
        report = write_cube(sm, out, progress=UnitBars(bar), manifest=manifest)
    say_report(out, report)


@app.command()
def overviews(
    store: Annotated[str, typer.Argument(help="Map: a folder or a URL.")],
    smallest: Annotated[int, typer.Option(help="Edge in pixels at which to stop.")] = 256,
) -> None:
    """Add coarser levels to a map, for tools that show it at any scale.

    Example: smgrid overviews soil_moisture.zarr
    """
    from smgrid.cube.overviews import write_overviews

    with progress_bar() as bar:
        report = write_overviews(store, smallest=smallest, progress=UnitBars(bar))
    say_report(report.path, report)


@app.command()
def regular(
    store: Annotated[str, typer.Argument(help="Map of acquisitions: a folder or a URL.")],
    out: Annotated[str, typer.Option(help="Zarr store to write: a folder or a URL.")],
    period: Annotated[str, typer.Option(help="8D, 1D, 1MS or any step that pandas knows.")] = "8D",
    value: Annotated[Value, typer.Option(help="Mean or last of the acquisitions.")] = "mean",
    max_age: Annotated[float, typer.Option(help="Days that a value may be carried on.")] = 0.0,
    within: Annotated[
        tuple[str, str] | None, typer.Option(help="First and last day; default: those of the map.")
    ] = None,
) -> None:
    """Turn the irregular acquisitions of a map into regular steps, with the age of each value.

    Example: smgrid regular soil_moisture.zarr --out soil_moisture_8d.zarr
    """
    from smgrid.cube.store import open_map, write_cube
    from smgrid.inference.regular import regular_product

    steps = regular_product(
        open_map(store), period=period, value=value, max_age=max_age, within=within
    )
    with progress_bar() as bar:
        report = write_cube(steps, out, progress=UnitBars(bar))
    say_report(out, report)


@app.command()
def replay(
    store: Annotated[str, typer.Argument(help="Map that smgrid wrote: a folder or a URL.")],
    out: Annotated[str, typer.Option(help="Zarr store of the new map: a folder or a URL.")],
    cube: Annotated[str | None, typer.Option(help="Where the cube is now, if moved.")] = None,
    ensemble: Annotated[str | None, typer.Option(help="The same of the ensemble.")] = None,
) -> None:
    """Make a map again from what its manifest says; exit code 4 unless every byte is the same.

    Example: smgrid replay soil_moisture.zarr --out again.zarr
    """
    from smgrid.export.replay import replay as replay_map

    with progress_bar() as bar:
        report = replay_map(store, out, cube=cube, ensemble=ensemble, progress=UnitBars(bar))
    say(str(report))
    if not report.ok:
        raise typer.Exit(StoreError.exit_code)


@app.command()
def update(
    store: Annotated[str, typer.Argument(help="Cube to extend: a folder or a URL.")],
    until: Annotated[str, typer.Option(help="Last day of all inputs.")],
    catalog: Annotated[
        str | None, typer.Option(help="Where the catalog is now, if it was moved.")
    ] = None,
    provisional_days: Annotated[
        int, typer.Option(help="Days of weather and NDVI to compute again before the old end.")
    ] = 92,
    provisional_scene_days: Annotated[
        int, typer.Option(help="The same for acquisitions; each is read again.")
    ] = 0,
) -> None:
    """Add new acquisitions and days to a cube, from the catalog that it was built with.

    Example: smgrid update cube.zarr --until 2025-03-31
    """
    from smgrid.cube.update import update_cube

    with progress_bar() as bar:
        report = update_cube(
            store,
            until=until,
            catalog=catalog,
            provisional_days=provisional_days,
            provisional_scene_days=provisional_scene_days,
            progress=UnitBars(bar),
        )
    say(f"{store}: {report.written} of {report.total} units written now, complete")
    for group, steps in report.late.items():
        say(f"  /{group}: too late to be added, build a new store for {', '.join(steps)}")
    for group, steps in report.withdrawn.items():
        say(f"  /{group}: kept, though not offered any more: {', '.join(steps)}")
