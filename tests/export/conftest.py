# Before the netCDF library loads filters to read Zarr, and with them an HDF5 that is not h5py's.
import h5py  # noqa: F401
import pytest

from tests.export.maps import make_map, write_map


@pytest.fixture(scope="session")
def sm():
    return make_map()


@pytest.fixture(scope="session")
def store(sm, tmp_path_factory):
    return write_map(sm, tmp_path_factory.mktemp("map") / "soil_moisture.zarr")
