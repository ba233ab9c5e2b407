"""One small world for all tests of the written files."""

import pytest

from smgrid.simulate import simulate_world


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    path = tmp_path_factory.mktemp("simulate") / "world"
    return simulate_world(path, size_km=2, months=2, stations=4, seed=3)
