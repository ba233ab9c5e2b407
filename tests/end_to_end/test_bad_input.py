"""What a user can get wrong: one clear error each, and nothing left that looks finished.

Small real files of a simulated world go through the public functions and the command line.
"""

import itertools
import re
import shutil
import signal
import subprocess
import sys
import time

import geopandas
import h5py
import numpy as np
import pytest
import rasterio
import shapely
import xarray as xr
import yaml

import smgrid
from smgrid.cli import main
from smgrid.errors import (
    CatalogError,
    GridError,
    IncompleteStoreError,
    MissingDependencyError,
    NoDataError,
    SchemaError,
    SourceError,
    StoreError,
    TemplateMismatchError,
    UnitsFailedError,
    WindowError,
)
from smgrid.inference.coverage import require_values
from smgrid.inference.quality import FLAGS
from tests.cubes import make_cube
from tests.networks import make_ensemble

MAIN = "from smgrid.cli import main; main()"
S1 = "stac/sentinel-1-rtc"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """2 km, one month of five acquisitions, thirteen months of series before them."""
    folder = tmp_path_factory.mktemp("bad_input") / "world"
    return smgrid.simulate_world(folder, size_km=2, months=1, spacing=50, stations=2)


@pytest.fixture(scope="module")
def whole(world, tmp_path_factory):
    """The store of a build that nothing disturbed."""
    path = tmp_path_factory.mktemp("whole") / "cube.zarr"
    smgrid.write_cube(smgrid.load_cube(region(world), days(world), catalog=world.catalog), path)
    return path


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """Small ensembles of the layouts for gamma0 and sigma0."""
    folder = tmp_path_factory.mktemp("bundles")
    for name, layout in (("gamma0", "smgrid-1"), ("sigma0", "released-9km")):
        smgrid.save_ensemble(make_ensemble(sizes=((1, 4),), layout=layout), folder / name)
    return folder


@pytest.fixture
def store(tmp_path):
    return tmp_path / "cube.zarr"


@pytest.fixture
def cli(monkeypatch, capsys):
    """Run a command in this process; returns exit code, what it said and the error."""

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["smgrid", *map(str, args)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as done:
            main()
        said = capsys.readouterr()
        error = said.err.strip()
        assert "Traceback" not in error
        assert error.count("error:") == (done.value.code != 0)
        return done.value.code or 0, said.out, error

    return run


def region(world):
    return smgrid.make_grid(bbox(world), resolution=100)


def bbox(world):
    box = world.grid.footprint("EPSG:4326").boundingbox
    return box.left + 0.004, box.bottom + 0.004, box.right - 0.004, box.top - 0.004


def days(world):
    return world.period.start, world.period.end


def entries(world, root=None):
    """The sources of a world's catalog with absolute paths; `root` holds its files instead."""
    root = root or world.path
    sources = yaml.safe_load(world.catalog.read_text())["sources"]
    for source in sources.values():
        if "stac" in source:
            source["stac"]["href"] = str(root / source["stac"]["href"])
        elif "paths" in source:
            source["paths"] = [str(root / path) for path in source["paths"]]
        else:
            source["assets"] = {k: str(root / path) for k, path in source["assets"].items()}
    return sources


def write_catalog(path, sources):
    head = {"smgrid_catalog": 1, "name": "broken", "title": "A catalog with a mistake"}
    path.write_text(yaml.safe_dump(head | {"sources": sources}, sort_keys=False))
    return path


def one_source(world, folder, name, **changes):
    """A catalog of one source with a mistake in it."""
    source = entries(world)[name]
    return write_catalog(folder / "broken.yml", {name: source | changes})


def build(world, catalog, store, **kwargs):
    cube = smgrid.load_cube(region(world), days(world), catalog=catalog, **kwargs)
    return smgrid.write_cube(cube, store)


def build_args(world, catalog, store):
    first, last = (f"{day:%Y-%m-%d}" for day in days(world))
    region = ["--bbox", *bbox(world), "--period", first, last]
    return ["build", store, "--catalog", catalog, *region]


def files_of(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refuses_to_look_finished(store):
    with pytest.raises(IncompleteStoreError, match="is incomplete"):
        smgrid.open_cube(store)
    assert smgrid.inspect(store).status != "complete"
    assert "complete" not in re.findall(
        r'"smgrid_status": "(\w+)"', (store / "zarr.json").read_text()
    )


# Region and period


def test_a_region_without_acquisitions(world, store, cli):
    elsewhere = smgrid.make_grid((10, 45, 10.01, 45.01), resolution=100)
    with pytest.raises(
        NoDataError,
        match=r"sentinel-1 .* no data for .*2020-12-01.* in .* E 44.* N; choose another period",
    ):
        smgrid.load_cube(elsewhere, days(world), catalog=world.catalog)
    args = build_args(world, world.catalog, store)
    at = args.index("--bbox") + 1
    args[at : at + 4] = [10, 45, 10.01, 45.01]
    code, out, error = cli(*args)
    assert (code, out) == (3, "")
    assert "\n" not in error
    assert not store.exists()


def test_days_without_acquisitions(world):
    with pytest.raises(NoDataError, match=r"sentinel-1 .* no data for .*2021-01-31"):
        build(world, world.catalog, "unused", scenes=("2021-01-01", "2021-01-31"))


def test_a_period_shorter_than_the_window(world, store, cli):
    with pytest.raises(WindowError, match=r"has 245 days; .* at least 368 days before"):
        smgrid.load_cube(region(world), ("2021-06-01", "2022-01-31"), catalog=world.catalog)
    args = build_args(world, world.catalog, store)
    args[-2] = "2021-06-01"
    code, _, error = cli(*args)
    assert code == 2
    assert "at least 368 days" in error
    assert not store.exists()


def test_a_cube_in_which_no_acquisition_has_a_year_behind_it(tmp_path, store, bundles, cli):
    smgrid.write_cube(make_cube(start="2020-06-01"), store)
    out = tmp_path / "sm.zarr"
    code, _, error = cli("map", store, "--out", out, "--ensemble", bundles / "sigma0")
    assert code == 2
    assert "none of the 3 acquisitions" in error
    assert "Build the cube with an earlier start" in error
    assert not out.exists()


# CRS


def test_a_raster_without_crs(world, tmp_path, store):
    source = entries(world)["soilgrids"]
    bare = tmp_path / "sand.tif"
    with rasterio.open(source["assets"]["sand"]) as src:
        profile, values = src.profile | {"crs": None}, src.read()
    with rasterio.open(bare, "w", **profile) as dst:
        dst.write(values)
    del source["crs"]
    source["assets"]["sand"] = str(bare)
    catalog = write_catalog(tmp_path / "broken.yml", {"soil": source})
    with pytest.raises(SourceError, match=r"sand\.tif has no CRS; state its CRS as crs: in broken"):
        build(world, catalog, store)
    assert not store.exists()


def test_a_netcdf_file_without_crs(world, tmp_path, store):
    with xr.open_zarr(world.path / "era5_land.zarr") as ds:
        bare = ds.load().drop_vars("spatial_ref", errors="ignore").drop_encoding()
    bare = bare.rename({"latitude": "y", "longitude": "x"})
    for variable in bare.variables.values():
        variable.attrs.pop("grid_mapping", None)
    bare.to_netcdf(tmp_path / "weather.nc")
    catalog = one_source(world, tmp_path, "era5-land", paths=["weather.nc"])
    with pytest.raises(SourceError, match=r"era5-land \(broken.*does not state its CRS; add crs:"):
        build(world, catalog, store)
    assert not store.exists()


def test_a_crs_that_nobody_knows(world, tmp_path):
    catalog = one_source(world, tmp_path, "era5-land", crs="EPSG:999999")
    with pytest.raises(
        CatalogError, match=r"line \d+: .*crs: 'EPSG:999999' is not a CRS; write EPSG:<code>"
    ):
        smgrid.open_catalog(catalog)


def test_an_outline_without_crs(world, tmp_path, store, cli):
    outline = tmp_path / "fields.shp"
    frame = geopandas.GeoDataFrame(geometry=[shapely.box(3e5, 4.5e6, 3.01e5, 4.501e6)])
    with pytest.warns(UserWarning, match="crs"):
        frame.to_file(outline)
    with pytest.raises(GridError, match=r"fields\.shp': the file does not name its CRS; add it"):
        smgrid.make_grid(outline=outline, resolution=100)
    args = build_args(world, world.catalog, store)
    at = args.index("--bbox")
    args[at : at + 5] = ["--outline", outline]
    assert cli(*args)[0] == 2
    assert not store.exists()


# Units


@pytest.mark.parametrize(
    ("units", "message"),
    [
        (
            {"t2m": "degC", "tp": "m"},
            r"era5_land\.zarr states 'K' as .* but units\.t2m .* is 'degC'",
        ),
        ({"t2m": "K", "tp": "mm"}, r"era5_land\.zarr states 'm' as .* but units\.tp .* is 'mm'"),
        ({"t2m": "mm", "tp": "m"}, "t2m: no exact conversion from 'mm' to 'K'; known .* degC"),
        ({"tp": "m"}, r"broken\.yml, line \d+: units\.t2m of era5-land is missing; write the"),
    ],
)
def test_weather_in_other_units_than_its_file_states(world, tmp_path, store, units, message):
    catalog = one_source(world, tmp_path, "era5-land", units=units)
    with pytest.raises((SchemaError, CatalogError), match=message) as caught:
        build(world, catalog, store)
    assert re.match(r"broken\.yml, line \d+: ", str(caught.value))
    assert not store.exists()


@pytest.mark.parametrize(
    ("name", "convert", "units", "right", "message"),
    [
        (
            "t2m",
            lambda k: k - 273.15,
            "K",
            "degC",
            "t2m in .*found [-0-9.]+, expected 150 to 340 K",
        ),
        ("t2m", lambda k: k, "degC", "K", "t2m in .*found [45]..*, expected 150 to 340 K"),
        ("tp", lambda m: m * 1000, "m", "mm", "tp in .*found [0-9.]+, expected 0 to 2 m"),
    ],
)
def test_weather_in_other_units_than_the_catalog_states(
    world, tmp_path, store, name, convert, units, right, message
):
    with xr.open_zarr(world.path / "era5_land.zarr") as ds:
        wrong = ds.load().drop_encoding()
    wrong[name] = convert(wrong[name])
    wrong[name].attrs = {}  # otherwise the file itself gives the mistake away
    wrong.to_netcdf(tmp_path / "weather.nc")
    stated = {"t2m": "K", "tp": "m", name: units}
    change = {"paths": ["weather.nc"], "units": stated}
    catalog = one_source(world, tmp_path, "era5-land", **change)
    with pytest.raises(UnitsFailedError, match=message) as caught:
        build(world, catalog, store)
    assert re.search(
        r"era5-land \(broken\.yml, line \d\): .*write to a new path", str(caught.value)
    )
    refuses_to_look_finished(store)
    # Corrected, the entry makes another store: what has been written may be wrong, too.
    catalog = one_source(world, tmp_path, "era5-land", **change | {"units": stated | {name: right}})
    with pytest.raises(
        TemplateMismatchError, match=rf'source_settings: .*"{units}"(?s:.*)write to a new path'
    ):
        build(world, catalog, store)


def test_decibels_declared_for_power(world, tmp_path, store):
    catalog = one_source(world, tmp_path, "sentinel-1", units={"vv": "dB", "vh": "dB"})
    with pytest.raises(
        UnitsFailedError,
        match=r"v[vh] of S1A.*its units are dB, but all .* above 0 .*units \"1\" in broken\.yml, l",
    ):
        build(world, catalog, store)
    refuses_to_look_finished(store)


def test_power_declared_for_decibels(world, tmp_path, store):
    root = copy_scenes(world, tmp_path, lambda power: 10 * np.log10(np.maximum(power, 1e-4)))
    catalog = write_catalog(
        tmp_path / "broken.yml", {"sentinel-1": entries(world, root)["sentinel-1"]}
    )
    with pytest.raises(
        UnitsFailedError,
        match=r"v[vh] of S1A.*found -\d.*, but power .*in broken\.yml.* write units dB",
    ):
        build(world, catalog, store)
    refuses_to_look_finished(store)


def test_soil_moisture_in_per_cent(world, tmp_path, store, cli):
    folder = tmp_path / "ismn"
    shutil.copytree(world.stations, folder)
    file = min(folder.rglob("*_sm_0.0*.stm"))
    file.write_text(re.sub(r"(:\d\d +)0\.(\d\d)(\d+)", r"\1\2.\3", file.read_text()))
    with pytest.raises(
        SchemaError, match=rf"{re.escape(file.name)}: good readings run .* expected 0 to 1 m3 m-3"
    ):
        smgrid.open_stations(folder)

    (tmp_path / "smap").mkdir()
    for path in sorted((world.path / "smap").glob("*.h5"))[:2]:
        shutil.copy(path, tmp_path / "smap")
        with h5py.File(tmp_path / "smap" / path.name, "r+") as h5:
            for group, name in (("AM", "soil_moisture"), ("PM", "soil_moisture_pm")):
                data = h5[f"Soil_Moisture_Retrieval_Data_{group}"][name]
                values = data[()]
                data[()] = np.where(values >= 0, values * 100, values)
    catalog = one_source(world, tmp_path, "smap", paths=["smap/*.h5"])
    with pytest.raises(
        UnitsFailedError, match=r"smap_soil_moisture in .*\.h5: found \d\d.*0 to 1 m3 m-3"
    ):
        build(world, catalog, store)
    refuses_to_look_finished(store)


def test_labels_in_per_cent(whole):
    cube = smgrid.open_cube(whole)
    labels = xr.full_like(cube["base"]["vv"].compute(), 23.0).assign_attrs(units="m3 m-3")
    stream = smgrid.stream_samples(cube, labels, layout=smgrid.get_layout("smgrid-1"))
    with pytest.raises(SchemaError, match=r"labels: found 23, expected 0 to 1 m3 m-3; .* by 100"):
        smgrid.collect_samples(stream)


# Model and cube


def test_gamma0_given_to_sigma0_weights(whole, bundles, tmp_path, cli):
    out = tmp_path / "sm.zarr"
    code, _, error = cli("map", whole, "--out", out, "--ensemble", bundles / "sigma0")
    assert code == 5
    assert "vv of the cube has convention 'gamma0'" in error
    assert "trained with 'sigma0'" in error
    assert "smgrid build --convention" in error
    assert not out.exists()


# Files


def copy_scenes(world, folder, change, only="*"):
    """A copy of a world's STAC catalog in which the pixels of some scenes are changed."""
    shutil.copytree(world.path / "stac", folder / "stac")
    for path in sorted((folder / S1).glob(f"{only}/*.tiff")):
        with rasterio.open(path) as src:
            profile, values = src.profile, src.read()
        with rasterio.open(path, "w", **profile) as dst:
            dst.write(change(values).astype("float32"))
    return folder


def with_scenes_of(world, folder, root):
    """The catalog of a world with the backscatter of a changed copy."""
    sources = entries(world) | {"sentinel-1": entries(world, root)["sentinel-1"]}
    return write_catalog(folder / "broken.yml", sources)


def first_scene(world):
    return min(path.name for path in (world.path / S1).iterdir() if path.is_dir())


def test_an_all_nan_scene(world, whole, bundles, tmp_path, store, cli):
    empty = first_scene(world)
    root = copy_scenes(world, tmp_path, lambda values: np.full_like(values, -32768), empty)
    catalog = with_scenes_of(world, tmp_path, root)
    build(world, catalog, store)
    ensemble = smgrid.load_ensemble(bundles / "gamma0")
    sm = smgrid.predict(smgrid.open_cube(store), ensemble).compute()
    expected = smgrid.predict(smgrid.open_cube(whole), ensemble).compute()
    assert f"{sm.indexes['time'][0]:%Y%m%dT%H%M%S}" in empty
    assert sm["soil_moisture"][0].isnull().all()
    assert sm["soil_moisture_std"][0].isnull().all()
    assert (sm["flags"][0] & FLAGS["input_missing"]).astype(bool).all()
    xr.testing.assert_equal(sm.isel(time=slice(1, None)), expected.isel(time=slice(1, None)))
    assert expected["soil_moisture"].notnull().all()

    # The same scene alone: nothing could be mapped at all.
    day = f"{sm.indexes['time'][0]:%Y-%m-%d}"
    alone, out = tmp_path / "alone.zarr", tmp_path / "sm.zarr"
    build(world, catalog, alone, scenes=(day, day))
    code, said, error = cli("map", alone, "--out", out, "--ensemble", bundles / "gamma0")
    assert (code, said) == (3, "")
    assert f"no pixel of the 1 acquisitions from {day} to {day} can be mapped" in error
    assert "vv, vh have no value at all. Check nodata" in error
    assert not out.exists()


def test_inputs_that_are_never_there_together():
    cube = make_cube(shape=(4, 6), chunks=3)
    cube["base"]["vv"] = cube["base"]["vv"].where(cube["base"]["x"] < cube["base"]["x"][3])
    cube["base"]["sand"] = cube["base"]["sand"].where(cube["base"]["x"] >= cube["base"]["x"][3])
    ensemble = make_ensemble()
    sm = smgrid.predict(cube, ensemble)
    with pytest.raises(NoDataError, match="each input has values, but nowhere all of them togeth"):
        require_values(sm, cube, layout=ensemble.layout)


def test_a_truncated_cog(world, whole, tmp_path, store, cli):
    scene = first_scene(world)
    shutil.copytree(world.path / "stac", tmp_path / "stac")
    damaged = tmp_path / S1 / scene / "iw-vv.rtc.tiff"
    content = damaged.read_bytes()
    damaged.write_bytes(content[: len(content) // 2])
    catalog = with_scenes_of(world, tmp_path, tmp_path)
    with pytest.raises(
        UnitsFailedError,
        match=r"/base \(vv, vh, angle\), time 2022-01-\S+, tile \(0, 0\).*iw-vv\.rtc\.tiff cannot "
        r"be read .*truncated.* fetch it again.*write again to resume",
    ):
        build(world, catalog, store)
    refuses_to_look_finished(store)

    code, said, _ = cli("inspect", store)
    report = smgrid.inspect(store)
    missing = report.units.total - report.units.done
    assert missing > 0
    assert code == 0
    assert f"incomplete, {report.units.done} of {report.units.total} units" in said
    assert re.search(r"\n  2022-01-\d\dT\S+: 0 of \d units", said)
    code, said, error = cli("map", store, "--out", tmp_path / "sm.zarr")
    assert (code, said) == (4, "")
    assert f"{missing} of {report.units.total} units are missing" in error
    assert not (tmp_path / "sm.zarr").exists()

    damaged.write_bytes(content)  # fetched again
    assert build(world, catalog, store).written == missing
    assert smgrid.inspect(store).status == "complete"
    assert {k: v for k, v in files_of(store).items() if "c" in k.parts} == {
        k: v for k, v in files_of(whole).items() if "c" in k.parts
    }


# Stores


@pytest.mark.slow
def test_a_full_disk(world, tmp_path, store, cli):
    catalog = one_source(world, tmp_path, "copernicus-dem")
    args = [*build_args(world, catalog, store), "--resolution", "10"]
    code = (
        "import resource, sys; limit = 40_000; assert sys.argv.pop(1) == 'full';"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit));" + MAIN
    )
    full = subprocess.run(
        [sys.executable, "-c", code, "full", *map(str, args)], capture_output=True, text=True
    )
    assert full.returncode == 4, full.stderr
    assert "Traceback" not in full.stderr
    assert re.search(r"no space is left for .*cube\.zarr .*Free space .* resume", full.stderr)
    refuses_to_look_finished(store)
    assert cli(*args)[0] == 0
    assert np.isfinite(smgrid.open_cube(store)["base"]["elevation"]).all()
    assert max(len(content) for content in files_of(store).values()) > 40_000


def test_an_existing_store_with_another_template(world, whole, tmp_path, store, cli):
    shutil.copytree(whole, store)
    before = files_of(store)
    cube = smgrid.load_cube(
        region(world), days(world), catalog=world.catalog, scenes=("2022-01-01", "2022-01-15")
    )
    with pytest.raises(
        TemplateMismatchError,
        match=r"(?s)cube\.zarr was made for something else:\n  groups.*time.*write to a new path",
    ) as caught:
        smgrid.write_cube(cube, store)
    assert "sha256" not in str(caught.value)
    code, said, error = cli(*build_args(world, world.catalog, store), "--resolution", "50")
    assert (code, said) == (4, "")
    assert "was made for something else" in error
    assert files_of(store) == before
    foreign = tmp_path / "thesis"
    foreign.mkdir()
    (foreign / "chapter1.tex").write_text("precious")
    code, _, error = cli(*build_args(world, world.catalog, foreign))
    assert code == 4
    assert "it holds 'chapter1.tex'" in error
    assert [path.name for path in foreign.iterdir()] == ["chapter1.tex"]


@pytest.mark.parametrize("name", ["zarr.json", "_smgrid/template.json"])
def test_a_store_with_damaged_metadata(whole, store, cli, name):
    shutil.copytree(whole, store)
    content = (store / name).read_bytes()
    (store / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(StoreError, match=rf"cube\.zarr: {name} is damaged .*copy the store again"):
        smgrid.open_cube(store)
    assert cli("inspect", store)[0] == 4


def test_a_missing_optional_dependency(world, tmp_path, monkeypatch, store, cli):
    (tmp_path / "mission_loader.py").write_text("import grib_of_the_future\n")
    monkeypatch.syspath_prepend(tmp_path)
    catalog = one_source(world, tmp_path, "era5-land", loader="mission_loader:load")
    with pytest.raises(
        MissingDependencyError, match=r"line \d: .*needs the package 'grib_of_the_future', which"
    ):
        smgrid.load_cube(region(world), days(world), catalog=catalog)
    assert cli(*build_args(world, catalog, store))[0] == 2
    missing = one_source(world, tmp_path, "era5-land", loader="no_such_package.io:load")
    with pytest.raises(CatalogError, match=r"'no_such_package.io:load' .* cannot be im"):
        smgrid.load_cube(region(world), days(world), catalog=missing)
    assert not store.exists()


# Commands


def test_commands_run_twice(world, bundles, tmp_path, store, cli):
    sm = tmp_path / "sm [final].zarr"  # brackets are no markup
    commands = [
        (store, build_args(world, world.catalog, store)),
        (sm, ["map", store, "--out", sm, "--ensemble", bundles / "gamma0"]),
    ]
    for path, args in commands:
        code, said, _ = cli(*args)
        assert code == 0
        first = files_of(path)
        assert f"{path}: {smgrid.inspect(path).units.total} of" in said
        code, said, _ = cli(*args)
        assert code == 0
        assert f"{path}: 0 of {smgrid.inspect(path).units.total} units written now" in said
        assert files_of(path) == first
    assert str(sm) in cli("inspect", sm)[1]
    code, _, error = cli("train", store, "--stations", world.stations, "--out", bundles)
    assert code == 2
    assert "exists already" in error


@pytest.mark.slow
def test_a_killed_build_is_taken_up_again(world, whole, store, cli):
    args = build_args(world, world.catalog, store)
    command = [sys.executable, "-c", MAIN, *map(str, args)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
        for _ in itertools.repeat(None, 6000):
            if any(store.glob("base/vv/c/*/0/0")) or child.poll() is not None:
                break
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
    refuses_to_look_finished(store)
    total = smgrid.inspect(store).units.total
    code, said, _ = cli(*args)
    assert code == 0
    written = int(re.search(r": (\d+) of \d+ units written now", said)[1])
    assert 0 < written < total
    assert files_of(store) == files_of(whole)
