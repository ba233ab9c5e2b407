import json
import re

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from odc.geo.geobox import GeoBox

from smgrid.cube.template import differences, digest_of, make_template
from smgrid.errors import SchemaError, StoreError
from smgrid.grid import grid_coords
from smgrid.schema import describe


def datasets(cube):
    return {node.path.strip("/"): node.to_dataset() for node in cube.subtree}


def metadata(groups, shard=16):
    files = make_template(groups, shard=shard).files()
    return {key: json.loads(v) for key, v in files.items() if key.endswith("zarr.json")}


def test_a_template_holds_metadata_and_coordinates_but_no_data(cube):
    files = make_template(datasets(cube), shard=16).files()
    data = {f"base/{n}" for n in ("vv", "vh", "sand")} | {"x2/ndvi", "x90/t2m", "x90/tp"}
    assert not [key for key in files for name in data if key.startswith(f"{name}/c")]
    assert {f"{name}/zarr.json" for name in data} <= set(files)
    assert {"base/time/c/0", "base/platform/c/0", "x2/date/c/0", "x90/spatial_ref/c"} <= set(files)
    # The root comes last: it says that all the others are there.
    assert list(files)[-1] == "zarr.json"


def test_nothing_is_computed_for_a_template():
    def fail(block):
        raise AssertionError("computed")

    lazy = da.zeros((2, 9, 9), chunks=3, dtype="f4").map_blocks(fail, dtype="f4", meta=np.zeros(0))
    grid = GeoBox.from_bbox((0, 0, 900, 900), crs="EPSG:32648", resolution=100)
    times = np.array(["2024-01-01", "2024-01-02"], "datetime64[ns]")
    ds = xr.Dataset({"own": (("time", "y", "x"), lazy)}, {**grid_coords(grid), "time": times})
    assert make_template({"": ds}, shard=4).files()


def test_arrays_follow_the_conventions(soil_map):
    found = metadata({"": soil_map})
    packed = found["soil_moisture/zarr.json"]
    assert packed["data_type"] == "int16"
    assert packed["chunk_grid"]["configuration"]["chunk_shape"] == [1, 16, 16]
    assert packed["dimension_names"] == ["time", "y", "x"]
    assert packed["fill_value"] == packed["attributes"]["_FillValue"] == -32768
    assert (
        packed["attributes"]
        | {
            "units": "m3 m-3",
            "standard_name": "volume_fraction_of_condensed_water_in_soil",
            "valid_range": [-30000, 30000],  # CF: in the values on disk
            "scale_factor": 1e-4,
            "grid_mapping": "spatial_ref",
        }
        == packed["attributes"]
    )
    sharding = packed["codecs"][0]
    assert sharding["name"] == "sharding_indexed"
    assert sharding["configuration"]["chunk_shape"] == [1, 16, 16]
    assert sharding["configuration"]["codecs"][1]["configuration"]["cname"] == "zstd"
    spread = found["soil_moisture_std/zarr.json"]
    assert (spread["data_type"], spread["fill_value"]) == ("uint16", 65535)
    assert spread["attributes"]["_FillValue"] == 65535


def test_flags_have_a_fill_value_and_masks_but_stay_integers(soil_map):
    flags = metadata({"": soil_map})["flags/zarr.json"]
    assert (flags["data_type"], flags["fill_value"]) == ("uint16", 65535)
    assert "_FillValue" not in flags["attributes"]
    assert flags["attributes"]["flag_masks"] == [1, 2, 4, 8]
    assert flags["attributes"]["flag_meanings"].startswith("input_missing ")


def test_floats_are_filled_with_nan(cube):
    found = metadata(datasets(cube))["base/vv/zarr.json"]
    assert (found["data_type"], found["fill_value"]) == ("float32", "NaN")
    assert "_FillValue" in found["attributes"]
    assert found["attributes"]["convention"] == "sigma0"


def test_dates_are_seconds_since_1970(cube):
    for key in ("base/time", "x2/date"):
        found = metadata(datasets(cube))[f"{key}/zarr.json"]
        assert found["data_type"] == "int64"
        assert found["attributes"]["units"] == "seconds since 1970-01-01"


def test_groups_carry_the_crs_and_the_extent(cube):
    base = metadata(datasets(cube))["base/zarr.json"]["attributes"]
    assert base["Conventions"] == "CF-1.11"
    assert base["proj:code"] == "EPSG:32648"
    assert base["proj:wkt2"].startswith("PROJCRS[")
    assert base["spatial:dimensions"] == ["y", "x"]
    assert base["spatial:transform"] == [100, 0, 500_000, 0, -100, 2_203_000]
    assert base["spatial:bbox"] == [500_000, 2_200_000, 504_000, 2_203_000]
    assert base["spatial:shape"] == [30, 40]
    assert base["spatial:registration"] == "pixel"
    assert {entry["name"] for entry in base["zarr_conventions"]} == {"proj", "spatial"}


def test_a_crs_without_an_epsg_code_has_its_authority_and_wkt(grid):
    goode = GeoBox(grid.shape, grid.affine, "ESRI:54052")
    ds = xr.Dataset({"own": (("y", "x"), np.zeros(grid.shape, "f4"))}, grid_coords(goode))
    found = metadata({"": ds})["zarr.json"]["attributes"]
    assert found["proj:code"] == "ESRI:54052"


def test_the_root_has_format_status_and_consolidated_metadata(cube):
    root = metadata(datasets(cube))["zarr.json"]
    assert root["attributes"]["smgrid_format"] == 1
    assert root["attributes"]["smgrid_status"] == "incomplete"
    assert root["attributes"]["smgrid_catalog"] == "test"
    assert {"base/vv", "x2/ndvi", "x90"} <= set(root["consolidated_metadata"]["metadata"])


def test_a_single_pixel_keeps_its_resolution(cube):
    x90 = datasets(cube)["x90"].isel(y=[0], x=[0])
    found = metadata({"x90": x90, "": xr.Dataset()})
    assert found["x90/x/zarr.json"]["attributes"]["resolution"] == 9000
    assert found["x90/zarr.json"]["attributes"]["spatial:shape"] == [1, 1]


@pytest.mark.parametrize(
    ("dtype", "on_disk", "fill"),
    [("float64", "float32", "NaN"), ("int32", "int32", -(2**31)), ("uint8", "uint8", 255)],
)
def test_variables_of_a_user_keep_their_type_but_floats_are_float32(grid, dtype, on_disk, fill):
    ds = xr.Dataset({"own": (("y", "x"), np.ones(grid.shape, dtype))}, grid_coords(grid))
    found = metadata({"": ds})["own/zarr.json"]
    assert (found["data_type"], found["fill_value"]) == (on_disk, fill)
    assert "scale_factor" not in found["attributes"]


def test_what_an_input_file_left_behind_is_not_written(soil_map):
    soil_map["flags"].attrs["nodata"] = 0
    soil_map["soil_moisture"].attrs |= {"_FillValue": "0", "scale_factor": "0.5"}
    soil_map["soil_moisture"].encoding |= {"chunks": (4, 3, 3), "dtype": "float64"}
    clean = metadata({"": soil_map})
    assert clean["soil_moisture/zarr.json"]["attributes"]["scale_factor"] == 1e-4
    assert clean["soil_moisture/zarr.json"]["data_type"] == "int16"
    assert "nodata" not in clean["flags/zarr.json"]["attributes"]


def test_the_digest_depends_on_the_content_alone(cube):
    first = make_template(datasets(cube), shard=16).record()
    again = make_template(datasets(cube.copy(deep=True)), shard=16).record()
    assert digest_of(first) == digest_of(again)
    assert differences(first, again) == []
    # What the store read back from disk says is the same.
    assert json.loads(json.dumps(first)) == first


CHANGES = {
    "shards": (lambda ds: ds, 32, r"base\.arrays\.vv\.shards: the store has \[1, 16, 16\], this"),
    "times": (lambda ds: ds.isel(time=slice(0, 3)), 16, r"base\.coords\.time\.size: .*4, .*3"),
    "orbit": (
        lambda ds: ds.assign_coords(relative_orbit=("time", np.zeros(4, "int16"))),
        16,
        r"base\.coords\.relative_orbit\.ends: the store has \['128', '128'\], .*\['0', '0'\]",
    ),
    "grid": (
        lambda ds: ds.assign_coords(x=ds.x + 100),
        16,
        r"base\.transform: the store has \[100\.0, 0\.0, 500000\.0",
    ),
    "crs": (lambda ds: ds.odc.assign_crs("EPSG:32649"), 16, r"base\.crs: .*48N.*"),
    "group attribute": (
        lambda ds: ds.assign_attrs(smgrid_convention="gamma0"),
        16,
        r"base\.attrs\.smgrid_convention: the store has 'sigma0', this write 'gamma0'",
    ),
    "variable": (lambda ds: ds.drop_vars("vh"), 16, r"base\.arrays\.vh\..*this write nothing"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_differences_say_what_changed(cube, what):
    change, shard, expected = CHANGES[what]
    groups = datasets(cube)
    stored = make_template(groups, shard=16).record()
    wanted = make_template(groups | {"base": change(groups["base"])}, shard=shard).record()
    assert digest_of(stored) != digest_of(wanted)
    assert any(re.search(expected, line) for line in differences(stored, wanted))


def test_titles_and_history_may_change(cube):
    groups = datasets(cube)
    stored = make_template(groups, shard=16).record()
    groups["base"] = groups["base"].assign_attrs(title="another", history="today")
    assert make_template(groups, shard=16).record() == stored


def no_crs(ds):
    ds = ds.drop_vars("spatial_ref")
    return ds.assign_coords(y=ds.y.values, x=ds.x.values)


def two_dims(ds):
    return ds.assign_coords(lon=(("y", "x"), np.zeros((30, 40))))


BAD = {
    "no CRS": (no_crs, r"/base has y and x but no grid with a CRS"),
    "uneven": (
        lambda ds: ds.isel(x=[0, 1, 5, 30]),
        r"/base has y and x but no grid with a CRS; give it evenly spaced",
    ),
    "south up": (lambda ds: ds.isel(y=slice(None, None, -1)), r"/base: .*sortby\('y', ascending="),
    "2-D coordinate": (two_dims, r"/base: the coordinate lon has the dims \('y', 'x'\)"),
    "order": (lambda ds: ds.isel(time=[1, 0, 2, 3]), r"/base: time is not strictly increasing"),
    "twice": (lambda ds: ds.isel(time=[0, 0, 2, 3]), r"/base: time is not strictly increasing"),
    "fraction": (
        lambda ds: ds.assign_coords(time=ds.time + np.timedelta64(500, "ms")),
        r"/base: time has fractions of a second \(2024-01-01T22:45:11\.5",
    ),
    "no date": (
        lambda ds: ds.assign_coords(time=ds.time.where(ds.time != ds.time[2])),
        r"/base: time has missing dates",
    ),
    "no text": (
        lambda ds: ds.assign_coords(platform=("time", np.array(["a", np.nan, "b", ""], object))),
        r"/base, platform holds nan, expected text",
    ),
    "text": (
        lambda ds: ds.assign(own=("time", np.array(["a", "b", "c", ""]))),
        r"/base, own is <U1, expected numbers",
    ),
    "scalar": (lambda ds: ds.assign(own=3.0), r"/base, own has no dims"),
    "attribute": (
        lambda ds: ds.assign_attrs(own={1: object()}),
        r"/base, own, 1: <object .*cannot",
    ),
    "infinite": (lambda ds: ds.assign_attrs(own=np.inf), r"/base, own: inf .*finite numbers"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_has_no_form_on_disk_is_refused(cube, what):
    change, message = BAD[what]
    with pytest.raises(StoreError, match=message):
        make_template({"base": change(datasets(cube)["base"])}, shard=16)


def test_variables_of_the_schema_are_held_to_it(soil_map):
    with pytest.raises(SchemaError, match="soil_moisture has the units 'percent', expected 'm3"):
        make_template(
            {
                "": soil_map.assign(
                    soil_moisture=soil_map.soil_moisture.assign_attrs(units="percent")
                )
            },
            shard=16,
        )
    loud = describe(xr.full_like(soil_map.soil_moisture, 4.0).compute(), "soil_moisture")
    with pytest.raises(SchemaError, match="found 4, expected -3 to 3"):
        make_template({"": soil_map.assign(soil_moisture=loud)}, shard=16)
