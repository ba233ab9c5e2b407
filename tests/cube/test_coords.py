"""CF names of the axes and the CRS, in CRSs all over the globe."""

import pyproj
import pytest
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox

from smgrid.cube.coords import disk_coords
from smgrid.grid import grid_coords

PROJECTED = ("projection_x_coordinate", "projection_y_coordinate")
LONLAT = ("longitude", "latitude")


def on_disk(crs):
    grid = GeoBox((4, 5), Affine(0.5, 0, 10, 0, -0.25, 50), crs)
    return disk_coords(xr.Dataset(coords=grid_coords(grid)), grid, where="here")


@pytest.mark.parametrize(
    ("crs", "names", "units"),
    [
        ("EPSG:32631", PROJECTED, ("metre", "metre")),
        # Polar: both axes point north, or both south.
        ("EPSG:3413", PROJECTED, ("metre", "metre")),
        ("EPSG:3031", PROJECTED, ("metre", "metre")),
        ("EPSG:3571", PROJECTED, ("metre", "metre")),
        ("EPSG:32661", PROJECTED, ("metre", "metre")),
        ("EPSG:6931", PROJECTED, ("metre", "metre")),
        ("EPSG:6932", PROJECTED, ("metre", "metre")),
        ("+proj=stere +lat_0=90 +units=km", PROJECTED, ("kilometre", "kilometre")),
        ("EPSG:2263", PROJECTED, ("US_survey_foot", "US_survey_foot")),
        ("EPSG:24370", PROJECTED, ("0.9143985307444408 metre",) * 2),  # Indian yard
        ("EPSG:4326", LONLAT, ("degrees_east", "degrees_north")),
        ("EPSG:4807", LONLAT, ("0.01570796326794895 radian",) * 2),  # grads
    ],
)
def test_axes_have_the_names_and_units_of_cf(crs, names, units):
    coords = on_disk(crs)
    for dim, name, unit, step in zip("xy", names, units, (0.5, -0.25), strict=True):
        attrs = {"standard_name": name, "axis": dim.upper(), "units": unit, "resolution": step}
        assert coords[dim].attrs == attrs


@pytest.mark.parametrize(("crs", "pole"), [(3413, 90.0), (3031, -90.0), (32661, 90.0)])
def test_a_polar_stereographic_crs_names_its_pole(crs, pole):
    attrs = on_disk(f"EPSG:{crs}")["spatial_ref"].attrs
    assert attrs["latitude_of_projection_origin"] == pole
    # Without the WKT: the other parameters mean the same CRS.
    rest = {key: value for key, value in attrs.items() if key not in {"crs_wkt", "spatial_ref"}}
    to_metres = pyproj.Transformer.from_crs(4326, pyproj.CRS.from_cf(rest), always_xy=True)
    expected = pyproj.Transformer.from_crs(4326, crs, always_xy=True)
    point = (40.0, pole * 0.8)
    assert to_metres.transform(*point) == pytest.approx(expected.transform(*point), abs=1e-6)
