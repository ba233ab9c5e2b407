"""The variables: their facts, packing on disk, validation and units."""

import tomllib
from pathlib import Path

import dask.array
import numcodecs
import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from smgrid import schema
from smgrid.errors import SchemaError
from smgrid.schema import Packing, get_variable, load_variables

# Name -> canonical units, from the CF standard name table (version 85).
CF_NAMES = {
    "air_temperature": "K",
    "angle_of_incidence": "degree",
    "ground_slope_angle": "degree",
    "lwe_thickness_of_precipitation_amount": "m",
    "normalized_difference_vegetation_index": "1",
    "number_of_observations": "1",
    "quality_flag": "1",
    "surface_altitude": "m",
    "volume_fraction_of_condensed_water_in_soil": "1",
}
CANONICAL_UNITS = {
    "vv": "dB",
    "vh": "dB",
    "angle": "degree",
    "ndvi": "1",
    "t2m": "K",
    "tp": "m",
    "sand": "g kg-1",
    "clay": "g kg-1",
    "bdod": "cg cm-3",
    "elevation": "m",
    "slope": "degree",
    "aspect_sin": "1",
    "aspect_cos": "1",
    "smap_soil_moisture": "m3 m-3",
    "soil_moisture": "m3 m-3",
    "soil_moisture_std": "m3 m-3",
}


def scene(name="vv", value=-10.0, **changes):
    da = xr.DataArray(np.full((1, 2, 2), value, "float32"), dims=("time", "y", "x"))
    da = schema.describe(da, name)
    return da.assign_attrs(changes).to_dataset(name=name)


def test_units_of_every_variable():
    variables = load_variables()
    assert {name: variables[name].units for name in CANONICAL_UNITS} == CANONICAL_UNITS


@pytest.mark.parametrize("name", load_variables())
def test_every_variable_is_complete_and_fits_on_disk(name):
    variable = get_variable(name)
    assert variable.kind in schema._DIMS
    assert variable.long_name[0].isupper()
    np.dtype(variable.packing.dtype)
    if variable.valid_range:
        limits = np.array(variable.valid_range)
        assert limits[0] < limits[1]
        variable.packing.encode(limits)


@pytest.mark.parametrize("name", load_variables())
def test_standard_names_agree_with_cf(name):
    variable = get_variable(name)
    if variable.standard_name is None:
        return
    same = {"m3 m-3": "1"}
    assert CF_NAMES[variable.standard_name] == same.get(variable.units, variable.units)


def test_the_list_cannot_be_changed_by_accident():
    with pytest.raises(TypeError):
        load_variables()["vv"] = None


def test_unknown_variable_suggests_the_nearest():
    with pytest.raises(
        SchemaError, match="'clya' is not a variable of smgrid; did you mean 'clay'"
    ):
        get_variable("clya")


def test_catalog_folder_of_a_checkout_and_of_a_wheel(tmp_path, monkeypatch):
    assert (schema.catalog_folder() / "variables.yml").is_file()
    package = tmp_path / "site-packages" / "smgrid"
    (package / "catalogs").mkdir(parents=True)
    monkeypatch.setattr(schema, "__file__", str(package / "schema.py"))
    assert schema.catalog_folder() == package / "catalogs"


def test_the_wheel_carries_the_catalogs():
    project = Path(__file__).resolve().parents[1] / "pyproject.toml"
    build = tomllib.loads(project.read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert build["force-include"] == {"catalogs": "smgrid/catalogs"}


@given(hnp.arrays("float32", (7,), elements=st.floats(-3, 3, width=32)))
def test_integer_packing_is_within_half_a_count_of_the_value(values):
    packed = get_variable("soil_moisture").packing.encode(values)
    assert packed.dtype == "int16"
    np.testing.assert_allclose(packed * 1e-4, values, atol=0.5e-4 * 1.001)


def test_integer_packing_is_read_back_by_cf_decoding():
    packing = Packing(dtype="int16", scale=0.5, offset=10.0, fill=-32768)
    values = np.array([10.0, 11.5, np.nan, -3.0])
    attrs = {"scale_factor": 0.5, "add_offset": 10.0, "_FillValue": np.int16(-32768)}
    stored = xr.Dataset({"a": ("x", packing.encode(values), attrs)})
    np.testing.assert_array_equal(xr.decode_cf(stored)["a"].values, values)


def test_missing_values_become_the_fill_value():
    np.testing.assert_array_equal(
        get_variable("soil_moisture_std").packing.encode([0.1, np.nan]), [1000, 65535]
    )
    np.testing.assert_array_equal(
        get_variable("flags").packing.encode(np.array([3, 0], "uint16")), [3, 0]
    )


@pytest.mark.parametrize("value", [3.3, -3.3, -3.2768, np.inf, -np.inf])
def test_a_value_that_does_not_fit_is_refused_not_wrapped(value):
    with pytest.raises(SchemaError, match=f"soil_moisture: {value} cannot be stored as int16"):
        get_variable("soil_moisture").packing.encode([0.1, value], name="soil_moisture")


def test_missing_values_without_a_fill_value_are_refused():
    with pytest.raises(SchemaError, match="no fill value"):
        Packing(dtype="uint8").encode([1.0, np.nan])


@given(
    hnp.arrays("float32", (9,), elements=st.floats(width=32, allow_nan=True)), st.integers(1, 23)
)
def test_rounded_floats_equal_numcodecs_bitround(values, bits):
    rounded = Packing(dtype="float32", mantissa_bits=bits).encode(values)
    codec = numcodecs.BitRound(keepbits=bits)
    expected = codec.decode(codec.encode(values)).view("float32")
    missing = np.isnan(values)
    np.testing.assert_array_equal(rounded[~missing], expected[~missing])
    np.testing.assert_array_equal(np.isnan(rounded), missing)


def test_every_nan_pattern_stays_missing():
    payload = np.array([0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001], "uint32").view("float32")
    assert np.isnan(Packing(dtype="float32", mantissa_bits=10).encode(payload)).all()


def test_backscatter_rounding_error_is_below_the_promise():
    values = np.linspace(-40, 10, 10001, dtype="float32")
    rounded = get_variable("vv").packing.encode(values)
    assert np.abs(rounded - values).max() <= 40 * 2.0**-11


def test_the_valid_range_on_disk_is_in_counts():
    assert get_variable("soil_moisture").packed_range == (-30000, 30000)
    assert get_variable("ndvi").packed_range == (-1.0, 1.0)
    assert get_variable("flags").packed_range is None


def test_describe_sets_the_schema_attributes_and_keeps_others():
    da = xr.DataArray(
        [1.0], attrs={"units": "furlong", "standard_name": "x", "convention": "gamma0"}
    )
    described = schema.describe(da, "vv")
    assert described.name == "vv"
    assert described.attrs == {
        "convention": "gamma0",
        "units": "dB",
        "long_name": "Sentinel-1 backscatter, vertical transmit and receive",
    }
    assert da.attrs["units"] == "furlong"
    assert schema.describe(da, "tp").attrs["cell_methods"] == "date: sum"


def test_check_range_names_variable_value_range_units_and_place():
    message = r"t2m in era5\.nc: found 20\.5, expected 150 to 340 K \(2 of 4 values are outside\)"
    with pytest.raises(SchemaError, match=message):
        schema.check_range(np.array([280, 20.5, np.nan, 1e9]), "t2m", where="era5.nc")


@pytest.mark.parametrize("value", [-0.001, 2.001, np.inf])
def test_check_range_has_two_sides(value):
    with pytest.raises(SchemaError, match="tp: found"):
        schema.check_range(np.array([value]), "tp")


def test_check_range_lets_missing_values_and_limits_pass():
    schema.check_range(np.array([np.nan, 0.0, 2.0]), "tp")
    schema.check_range(np.array([7], "uint16"), "flags")


def test_validate_accepts_what_the_schema_says():
    schema.validate(scene())
    static = xr.DataArray(np.full((2, 2), 9.0, "float32"), dims=("y", "x"))
    per_orbit = xr.DataArray(np.array([33.0, 40.0], "float32"), dims="relative_orbit")
    schema.validate(
        xr.Dataset(
            {
                "slope": schema.describe(static, "slope"),
                "angle": schema.describe(per_orbit, "angle"),
            }
        )
    )


@pytest.mark.parametrize(
    ("ds", "message"),
    [
        (scene().rename(vv="backscatter"), "'backscatter' is not a variable"),
        (scene(units="1"), "vv has the units '1', expected 'dB'"),
        (scene().astype("float64"), "vv is float64, expected float32"),
        (scene().rename(time="date"), r"vv has the dims \('date', 'y', 'x'\), expected \('time'"),
        (scene().transpose("y", "x", "time"), "vv has the dims"),
        (scene().isel(time=0), "vv has the dims"),
        (scene(value=99.0), "vv: found 99, expected -70 to 50 dB"),
    ],
)
def test_validate_refuses(ds, message):
    with pytest.raises(SchemaError, match=message):
        schema.validate(ds)


def test_validate_never_computes():
    def explode(block):
        raise AssertionError("computed")

    lazy = dask.array.zeros((1, 2, 2), dtype="float32").map_blocks(explode, dtype="float32")
    da = xr.DataArray(lazy, dims=("time", "y", "x"))
    schema.validate(schema.describe(da, "vv").to_dataset())


@pytest.mark.parametrize(
    ("units", "name", "value", "expected"),
    [
        ("degC", "t2m", 20.0, 293.15),
        ("celsius", "t2m", -273.15, 0.0),
        ("K", "t2m", 280.0, 280.0),
        ("mm", "tp", 5.0, 0.005),
        ("mm/day", "tp", 5.0, 0.005),
        ("kg m-2", "tp", 5.0, 0.005),
        ("percent", "sand", 43.0, 430.0),
        ("%", "smap_soil_moisture", 31.0, 0.31),
        ("g/kg", "clay", 120.0, 120.0),
        ("kg/m³", "bdod", 1500.0, 150.0),
        ("g cm-3", "bdod", 1.5, 150.0),
        ("rad", "angle", np.pi / 6, 30.0),
    ],
)
def test_unit_conversions(units, name, value, expected):
    da = xr.DataArray(np.array([value, np.nan]), attrs={"source": "x"})
    converted = schema.convert_units(da, units, name)
    assert converted.dtype == "float32"
    np.testing.assert_allclose(converted, [expected, np.nan], rtol=1e-6, atol=1e-5)
    assert converted.attrs == {"source": "x", "units": get_variable(name).units}


def test_conversion_stays_lazy():
    da = xr.DataArray(dask.array.ones((4,), chunks=2))
    assert schema.convert_units(da, "mm", "tp").chunks == ((2, 2),)


@pytest.mark.parametrize(
    ("units", "name"), [("1", "vv"), ("m", "t2m"), ("K", "tp"), ("mm s-1", "tp")]
)
def test_conversions_that_are_not_exact_are_refused(units, name):
    with pytest.raises(SchemaError, match=f"{name}: no exact conversion from '{units}' to"):
        schema.convert_units(xr.DataArray([1.0]), units, name)
