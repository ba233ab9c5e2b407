"""Commands that hand a store to other tools: files that they read, catalogs that they search."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from smgrid.cli.application import app
from smgrid.cli.console import UnitBars, progress_bar, say
from smgrid.errors import ConfigError

Format = Literal["cog", "netcdf", "zarr2"]
Per = Literal["all", "year", "month", "day"]


@app.command()
def export(
    store: Annotated[str, typer.Argument(help="Map or cube: a folder or a URL.")],
    to: Annotated[Format, typer.Option(help="What the other tool reads.")],
    out: Annotated[
        str, typer.Option(help="Folder of GeoTIFFs, NetCDF file (or folder, with --per), store.")
    ],
    dates: Annotated[
        tuple[str, str] | None, typer.Option(help="First and last day; default: all.")
    ] = None,
    variables: Annotated[
        list[str] | None, typer.Option(help="Repeat it for several; default: all.")
    ] = None,
    group: Annotated[str | None, typer.Option(help="Grid of a cube, for instance base.")] = None,
    per: Annotated[Per, typer.Option(help="What one NetCDF file holds.")] = "all",
) -> None:
    """Copy a store to GeoTIFF, NetCDF or Zarr format 2, for tools that cannot read format 3.

    Example: smgrid export soil_moisture.zarr --to cog --out cogs
    """
    from smgrid.export.cog import write_cogs
    from smgrid.export.netcdf import write_netcdf
    from smgrid.export.zarr2 import write_zarr2

    if per != "all" and to != "netcdf":
        raise ConfigError(f"--per {per} is for NetCDF files, not for {to}; leave it out")
    with progress_bar() as bar:
        chosen: dict[str, Any] = {"variables": variables, "dates": dates, "group": group}
        chosen["progress"] = UnitBars(bar)
        if to == "cog":
            report = write_cogs(store, out, **chosen)
        elif to == "netcdf":
            report = write_netcdf(store, out, per=per, **chosen)
        else:
            report = write_zarr2(store, out, **chosen)
    there = f", {len(report.kept)} were there already" if report.kept else ""
    say(f"{report.path}: {len(report.written)} written{there}")


@app.command()
def stac(
    store: Annotated[str, typer.Argument(help="Map that smgrid wrote: a folder or a URL.")],
    out: Annotated[Path, typer.Option(help="Folder of the catalog to make.")],
    href_base: Annotated[
        str | None, typer.Option(help="URL that the store will have, for links to it.")
    ] = None,
    cogs: Annotated[
        Path | None, typer.Option(help="Folder of `smgrid export --to cog`, as assets.")
    ] = None,
    ensemble: Annotated[
        str | None, typer.Option(help="Bundle that the map was made with, as an item of its own.")
    ] = None,
) -> None:
    """Describe a map as a static STAC Collection with an Item per acquisition.

    Example: smgrid stac soil_moisture.zarr --out stac --cogs cogs
    """
    from smgrid.export.stac import write_stac

    path = write_stac(store, out, href_base=href_base, cogs=cogs, ensemble=ensemble)
    say(str(path))
