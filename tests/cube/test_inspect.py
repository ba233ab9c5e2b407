import pytest

from smgrid.cube.inspect import Units, inspect
from smgrid.cube.store import write_cube
from smgrid.errors import StoreError


@pytest.fixture
def store(cube, tmp_path):
    write_cube(cube, tmp_path / "a.zarr", shard=16, manifest={"catalog": "test"})
    return tmp_path / "a.zarr"


def test_a_report_says_what_a_store_holds(store):
    report = inspect(store)
    assert (report.status, report.units, report.smgrid_format) == ("complete", Units(34, 34), 1)
    assert report.provenance["catalog"] == "test"
    assert report.nbytes == sum(p.stat().st_size for p in store.rglob("*") if p.is_file())
    base, x2, x90 = report.groups
    assert (base.path, x2.path, x90.path) == ("base", "x2", "x90")
    assert base.grid is not None
    assert (base.grid.crs, base.grid.shape) == ("EPSG:32648", (30, 40))
    assert base.grid.resolution == (100, 100)
    assert base.grid.bounds == (500_000, 2_200_000, 504_000, 2_203_000)
    assert base.period == ("2024-01-01T22:45:11", "2031-08-10T11:02:06")
    assert x2.period == ("2023-01-01", "2024-01-28")
    vv = base.variables[0]
    assert (vv.name, vv.dims, vv.shape) == ("vv", ("time", "y", "x"), (4, 30, 40))
    assert (vv.dtype, vv.units, vv.shards) == ("float32", "dB", (1, 16, 16))


def test_a_report_counts_units_by_date(store):
    (store / "base/vh/c/1/0/2").unlink()
    (store / "x90/tp/c/1/0/0").unlink()
    report = inspect(store)
    assert (report.status, report.units) == ("incomplete", Units(32, 34))
    base, _, x90 = report.groups
    assert base.units == Units(29, 30)
    assert base.units_by_date == {
        "2024-01-01T22:45:11": Units(6, 6),
        "2024-01-03T11:02:05": Units(5, 6),
        "2024-01-03T22:53:40": Units(6, 6),
        "2031-08-10T11:02:06": Units(6, 6),
    }
    assert x90.units_by_date == {"2023-01-01": Units(1, 1), "2024-01-04": Units(0, 1)}


def test_a_report_reads_as_a_table(store):
    (store / "base/vh/c/1/0/2").unlink()
    text = str(inspect(store))
    assert "a.zarr: incomplete, 33 of 34 units, " in text
    assert "/x90; EPSG:32648, 1 x 1 pixels of 9000 x 9000; 2023-01-01 to 2024-02-04" in text
    assert "  vh    (time, y, x)  4 x 30 x 40  float32  dB\n" in text
    assert "  2024-01-03T11:02:05: 5 of 6 units" in text
    assert "  catalog          test" in text


def test_nothing_is_read_but_metadata(store):
    for path in store.rglob("vv/c/*/*/*"):
        path.write_bytes(b"not a shard")
    assert inspect(store).units == Units(34, 34)


def test_what_is_no_store_is_refused(tmp_path):
    with pytest.raises(StoreError, match="is not a store of smgrid"):
        inspect(tmp_path)
