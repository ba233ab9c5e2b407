import io
import subprocess
import sys

import pytest
from rich.console import Console
from typer.testing import CliRunner

import smgrid
from smgrid.cli import app
from smgrid.cube.store import write_cube
from smgrid.errors import ConfigError
from tests.cubes import make_cube
from tests.export.maps import make_map, write_map
from tests.training.tables import random_samples

runner = CliRunner()


def run(*args, cwd=None):
    """The command as a user starts it, in a process of its own."""
    command = [sys.executable, "-c", "from smgrid.cli import main; main()", *map(str, args)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "command",
    [
        *("demo", "build", "train", "map", "plot", "inspect", "update", "verify", "mend"),
        *("export", "stac"),
    ],
)
def test_help_of_every_command_has_an_example(command):
    result = runner.invoke(app, [command, "--help"])
    assert result.exit_code == 0
    assert f"Example: smgrid {command}" in result.output


def test_version():
    assert runner.invoke(app, ["--version"]).output.strip() == smgrid.__version__


def test_help_loads_neither_torch_nor_xarray():
    code = (
        "import sys; from typer.testing import CliRunner; from smgrid.cli import app;"
        "[CliRunner().invoke(app, [name, '--help']) for name in ('map', 'export', 'stac')];"
        "heavy = {'torch', 'xarray', 'dask', 'rasterio', 'netCDF4', 'pystac', 'zarr'};"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["build", "c.zarr", "--period", "2024-01-01", "2025-03-01"], 2, "bbox"),
        (
            [
                *["build", "c.zarr", "--bbox", 5, 50, 5.1, 50.1, "--catalog", "nowhere.yml"],
                *["--period", "2024-01-01", "2025-03-01"],
            ],
            2,
            "nowhere.yml",
        ),
        (["inspect", "nowhere.zarr"], 4, "nowhere.zarr"),
        (["map", "nowhere.zarr", "--out", "sm.zarr"], 4, "nowhere.zarr"),
        (["export", "nowhere.zarr", "--to", "cog", "--out", "cogs"], 4, "nowhere.zarr"),
        (["export", "a.zarr", "--to", "cog", "--out", "cogs", "--per", "day"], 2, "--per day"),
        (["stac", "nowhere.zarr", "--out", "stac"], 4, "nowhere.zarr"),
    ],
)
def test_foreseen_errors_are_one_message_and_a_meaningful_code(args, code, message, tmp_path):
    result = run(*args, cwd=tmp_path)
    assert result.returncode == code, result.stderr
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())


def test_train_writes_an_ensemble_and_draws_its_epochs(tmp_path, monkeypatch):
    """The command around real splits and training; its inputs are made up."""
    for name in ("cube.store.open_cube", "sources.stations.open_stations"):
        monkeypatch.setattr(f"smgrid.{name}", lambda place: place)
    monkeypatch.setattr("smgrid.training.labels.station_labels", lambda stations, cube: stations)
    monkeypatch.setattr("smgrid.training.samples.stream_samples", lambda *_, **__: None)
    monkeypatch.setattr("smgrid.training.samples.collect_samples", lambda _: random_samples(60))
    stream = io.StringIO()
    terminal = Console(file=stream, force_terminal=True, width=120)
    monkeypatch.setattr("smgrid.training.progress.Console", lambda **_: terminal)
    monkeypatch.setenv("TERM", "xterm")
    args = ["train", "cube.zarr", "--stations", "ismn.zip", "--out", str(tmp_path / "ensemble")]
    result = runner.invoke(app, [*args, "--seed", "3"], catch_exceptions=False)
    assert result.exit_code == 0
    assert "samples to train" in result.stdout
    ensemble = smgrid.load_ensemble(tmp_path / "ensemble")
    assert ensemble.layout.name == "smgrid-1"
    plan = ensemble.card["training"]["plan"]
    assert plan["seed"] == 3
    assert ensemble.card["split"]["rows"]["training"] > 0
    assert f"{plan['epochs']}/{plan['epochs']}" in stream.getvalue()
    assert "ubRMSE" in stream.getvalue()
    again = runner.invoke(app, args)
    assert isinstance(again.exception, ConfigError)
    assert "exists already" in str(again.exception)


def test_public_names_exist_and_are_documented():
    for name in smgrid.__all__:
        assert (getattr(smgrid, name).__doc__ or "").strip(), name
    assert set(smgrid.__all__) == set(smgrid._MODULE_OF)


def test_import_is_light():
    code = "import sys, smgrid; assert not {'torch', 'xarray', 'pystac_client'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_damaged_store_is_found_mended_and_written_again(tmp_path):
    store = tmp_path / "cube.zarr"
    write_cube(make_cube(chunks=None), store)
    assert run("verify", store).returncode == 0
    shard = next(path for path in (store / "base/vv/c").rglob("*") if path.is_file())
    good = shard.read_bytes()
    shard.write_bytes(good[:-7])
    found = run("verify", store)
    assert found.returncode == 4
    assert "base/vv" in found.stdout
    assert "1 damaged shards deleted" in run("mend", store).stdout
    write_cube(make_cube(chunks=None), store)
    assert shard.read_bytes() == good
    assert run("verify", store).returncode == 0


def test_a_map_is_exported_and_described(tmp_path):
    write_map(make_map((20, 30)), tmp_path / "map.zarr")

    def smgrid_(*args):
        result = run(*args, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        return result.stdout

    some = ["--variables", "flags", "--variables", "soil_moisture", "--dates", "2024-01-05"]
    some.append("2024-01-31")
    assert "cogs: 4 written\n" in smgrid_(
        "export", "map.zarr", "--to", "cog", "--out", "cogs", *some
    )
    assert len(list((tmp_path / "cogs").glob("*.tif"))) == 4
    text = smgrid_("export", "map.zarr", "--to", "cog", "--out", "cogs")
    assert "cogs: 5 written, 4 were there already\n" in text
    smgrid_("export", "map.zarr", "--to", "netcdf", "--out", "files", "--per", "month")
    assert len(list((tmp_path / "files").glob("*.nc"))) == 2
    smgrid_("export", "map.zarr", "--to", "zarr2", "--out", "v2.zarr")
    assert (tmp_path / "v2.zarr" / ".zmetadata").exists()
    smgrid_("stac", "map.zarr", "--out", "stac", "--cogs", "cogs")
    assert (tmp_path / "stac" / "catalog.json").exists()
    write_cube(make_cube(chunks=None), tmp_path / "cube.zarr")
    grid = ["--group", "base", "--variables", "sand"]
    smgrid_("export", "cube.zarr", "--to", "cog", "--out", "soil", *grid)
    assert [p.name for p in (tmp_path / "soil").iterdir()] == ["sm_sand.tif"]
