"""Commands that look into what is there: draw it, describe it, check it, mend it."""

from pathlib import Path
from typing import Annotated

import typer

from smgrid.cli.application import app
from smgrid.cli.console import OUT, say
from smgrid.errors import ConfigError, StoreError


@app.command()
def plot(
    store: Annotated[str, typer.Argument(help="Map that smgrid wrote: a folder or a URL.")],
    out: Annotated[Path, typer.Option(help="PNG file, or an HTML page to look around in.")],
    date: Annotated[str | None, typer.Option(help="Show the acquisition nearest to it.")] = None,
    point: Annotated[
        tuple[float, float] | None, typer.Option(help="Longitude and latitude: its time series.")
    ] = None,
    cube: Annotated[
        str | None, typer.Option(help="Cube of the map, to draw the rain beside it.")
    ] = None,
) -> None:
    """Draw a map and how sure it is, the time series at a point, or an interactive page.

    Example: smgrid plot soil_moisture.zarr --cube cube.zarr --out soil_moisture.png
    """
    from smgrid.cube.store import open_cube, open_map
    from smgrid.export.page import write_page
    from smgrid.export.plot import mean_rain, plot_overview, plot_point

    sm = open_map(store)
    if "soil_moisture" not in sm.data_vars:
        raise StoreError(f"{store} has no soil_moisture to draw; give the store of a map")
    if out.suffix == ".html":
        if point or date or cube:
            raise ConfigError(
                "a page shows all dates and points; leave --point, --date, --cube out"
            )
        write_page(sm, out)
    else:
        rain = None if cube is None else mean_rain(open_cube(cube), sm)
        if point is None:
            plot_overview(sm, out, date=date, rain=rain)
        else:
            plot_point(sm, out, lon=point[0], lat=point[1], rain=rain)
    OUT.print(str(out))


@app.command()
def inspect(
    store: Annotated[str, typer.Argument(help="Cube or map: a folder or a URL.")],
) -> None:
    """Show what a store holds: variables, grids, completeness, size, provenance.

    Example: smgrid inspect cube.zarr
    """
    from smgrid.cube.inspect import inspect as inspect_store

    say(str(inspect_store(store)))


@app.command()
def verify(
    store: Annotated[str, typer.Argument(help="Cube or map: a folder or a URL.")],
) -> None:
    """Read a whole store and compare it with what was written; exit code 4 if it is not sound.

    Example: smgrid verify cube.zarr
    """
    from smgrid.cube.verify import verify as verify_store

    report = verify_store(store)
    say(str(report))
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
    say(f"{store}: {dropped} damaged shards deleted; build or update it again to add them")
