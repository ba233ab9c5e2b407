"""The command line: each command is one stage and runs alone on what the former left.

Exit codes: 0 done, 1 unexpected failure, 2 bad usage or configuration, 3 an input is missing or
wrong, 4 a store cannot be written or read, 5 the model and the cube do not fit.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from smgrid import __version__
from smgrid.errors import ConfigError, SmgridError, StoreError

if TYPE_CHECKING:  # heavy; a command imports what it needs, so that --help is quick
    from smgrid.cube.store import Progress as UnitProgress
    from smgrid.cube.store import WriteReport

Convention = Literal["sigma0", "gamma0"]
Window = Literal["causal", "published"]
Layout = Literal["smgrid-1", "released-9km", "published"]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Field-scale soil moisture from open data: build a cube, train, map, inspect.",
)
_out = Console()
_err = Console(stderr=True)


def main() -> None:
    """Run the command line and turn errors that smgrid foresees into one line and an exit code."""
    try:
        app()
    except SmgridError as error:
        text = f"[bold red]error:[/] {escape(str(error))}"
        _err.print(text, highlight=False, soft_wrap=True)
        sys.exit(error.exit_code)


@contextmanager
def _bar() -> Iterator[Progress]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=_err, transient=True) as bar:
        yield bar


class _Units:
    """Draws the progress events of a writer, one line per group of the store."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, event: "UnitProgress") -> None:
        if event.group not in self._tasks:
            self._tasks[event.group] = self._bar.add_task(event.group, total=event.total)
        task = self._tasks[event.group]
        self._bar.update(task, completed=event.done, total=event.total)


def _version(show: bool) -> None:
    if show:
        _out.print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None: ...


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

    with _bar() as bar, epoch_bar(bar) as on_epoch:
        report = run_demo(
            out,
            size_km=size_km,
            seed=seed,
            on_stage=lambda text: bar.console.print(f"- {text}"),
            progress=_Units(bar),
            on_epoch=on_epoch,
        )
    _print_rows(report.table(), "Held-out months in the held-out half, against the truth")
    _out.print(
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
    with _bar() as bar:
        report = write_cube(cube, store, shard=tile, progress=_Units(bar))
    _print_report(store, report)


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
    _print_rows(
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
) -> None:
    """Map an ensemble over a cube and write soil moisture, spread and flags.

    Example: smgrid map cube.zarr --ensemble densesm-9km --out soil_moisture.zarr
    """
    from smgrid.cube.store import open_cube, write_cube
    from smgrid.inference.coverage import require_values
    from smgrid.inference.predict import predict
    from smgrid.models.bundle import load_ensemble

    cube = open_cube(store)
    model = load_ensemble(ensemble, layout=layout)
    sm = predict(cube, model, as_of=as_of, window=window)
    require_values(sm, cube, layout=model.layout)
    with _bar() as bar:
        report = write_cube(sm, out, progress=_Units(bar))
    _print_report(out, report)


@app.command()
def plot(
    store: Annotated[str, typer.Argument(help="Map that smgrid wrote: a folder or a URL.")],
    out: Annotated[Path, typer.Option(help="PNG file to write.")],
    date: Annotated[str | None, typer.Option(help="Show the acquisition nearest to it.")] = None,
    cube: Annotated[
        str | None, typer.Option(help="Cube of the map, to draw the rain beside it.")
    ] = None,
) -> None:
    """Draw a map, its spread, and the mean of the region over time.

    Example: smgrid plot soil_moisture.zarr --cube cube.zarr --out soil_moisture.png
    """
    from smgrid.cube.store import open_cube, open_map
    from smgrid.export.plot import mean_rain, plot_overview

    sm = open_map(store)
    if "soil_moisture" not in sm.data_vars:
        raise StoreError(f"{store} has no soil_moisture to draw; give the store of a map")
    rain = None if cube is None else mean_rain(open_cube(cube), sm)
    plot_overview(sm, out, date=date, rain=rain)
    _out.print(str(out))


@app.command()
def inspect(
    store: Annotated[str, typer.Argument(help="Cube or map: a folder or a URL.")],
) -> None:
    """Show what a store holds: variables, grids, completeness, size, provenance.

    Example: smgrid inspect cube.zarr
    """
    from smgrid.cube.inspect import inspect as inspect_store

    _say(str(inspect_store(store)))


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

    with _bar() as bar:
        report = update_cube(
            store,
            until=until,
            catalog=catalog,
            provisional_days=provisional_days,
            provisional_scene_days=provisional_scene_days,
            progress=_Units(bar),
        )
    _say(f"{store}: {report.written} of {report.total} units written now, complete")
    for group, steps in report.late.items():
        _say(f"  /{group}: too late to be added, build a new store for {', '.join(steps)}")
    for group, steps in report.withdrawn.items():
        _say(f"  /{group}: kept, though not offered any more: {', '.join(steps)}")


@app.command()
def verify(
    store: Annotated[str, typer.Argument(help="Cube or map: a folder or a URL.")],
) -> None:
    """Read a whole store and compare it with what was written; exit code 4 if it is not sound.

    Example: smgrid verify cube.zarr
    """
    from smgrid.cube.verify import verify as verify_store

    report = verify_store(store)
    _say(str(report))
    if not report.ok:
        raise typer.Exit(StoreError.exit_code)


@app.command()
def mend(
    store: Annotated[str, typer.Argument(help="Cube or map: a folder or a URL.")],
) -> None:
    """Delete the damaged shards of a store; build or update it again to add them.

    Example: smgrid mend cube.zarr
    """
    from smgrid.cube.verify import drop_damaged
    from smgrid.cube.verify import verify as verify_store

    dropped = drop_damaged(verify_store(store))
    _say(f"{store}: {dropped} damaged shards deleted; build or update it again to add them")


def _print_report(store: str, report: "WriteReport") -> None:
    _say(f"{store}: {report.written} of {report.total} units written now, complete")


def _say(text: str) -> None:
    """Print paths and lists as they are: brackets are no markup, long lines stay whole."""
    _out.print(text, markup=False, highlight=False, soft_wrap=True)


def _print_rows(rows: list[dict[str, str]], title: str) -> None:
    table = Table(title=title, title_justify="left")
    for name in rows[0]:
        table.add_column(name)
    for row in rows:
        table.add_row(*row.values())
    _out.print(table)
