"""What a map is made from, and what of it stays the same as the cube goes on."""

import pytest

from smgrid.cube.extend_map import extend_map
from smgrid.cube.inspect import inspect
from smgrid.cube.store import open_cube, write_cube
from smgrid.errors import TemplateMismatchError
from smgrid.export.manifest import map_manifest
from smgrid.inference.predict import predict
from smgrid.models.bundle import load_ensemble
from tests.cube.archive import END, LATER, NEW, OLD, build, update, write_archive
from tests.cubes import make_cube
from tests.export.test_replay import save_bundle

TIMES = ("2021-03-02T05:30", "2021-03-14T05:30")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return save_bundle(tmp_path_factory.mktemp("bundle") / "a", 1)


@pytest.fixture
def origin_of(bundle):
    def describe(cube, ensemble=bundle, **call):
        networks = load_ensemble(ensemble)
        return map_manifest(cube, networks, ensemble_path=ensemble, call=call)["made_from"]

    return describe


def digests(origin):
    return origin["inputs_sha256"], origin["lineage_sha256"]


@pytest.fixture
def archive(tmp_path):
    write_archive(tmp_path, OLD + NEW, provisional="2023-05-01")
    return tmp_path


def test_an_updated_cube_has_other_inputs_and_the_same_lineage(archive, origin_of):
    """Provisional weather is replaced, then dates are added."""
    store = build(archive, END)
    states = [digests(origin_of(store))]
    write_archive(archive, OLD + NEW)
    for until in (END, LATER):
        update(archive, until)
        states.append(digests(origin_of(store)))
    assert len({inputs for inputs, _ in states}) == 3
    assert len({lineage for _, lineage in states}) == 1


def test_a_cube_of_another_catalog_has_another_lineage(archive, origin_of):
    first = digests(origin_of(build(archive, END)))
    again = digests(origin_of(build(archive, END, "again.zarr")))
    assert again == first  # wherever it is
    text = (archive / "catalog.yml").read_text()
    (archive / "catalog.yml").write_text(text.replace("name: growing", "name: other"))
    assert digests(origin_of(build(archive, END, "b.zarr")))[1] != first[1]


def test_ensemble_call_and_static_values_are_of_the_lineage(tmp_path, bundle, origin_of):
    stores = [tmp_path / name for name in ("a.zarr", "b.zarr")]
    for seed, store in enumerate(stores):
        write_cube(make_cube(times=TIMES, seed=seed)["base"].to_dataset(), store, shard=16)
    first = digests(origin_of(stores[0]))
    others = [
        origin_of(stores[1]),
        origin_of(stores[0], save_bundle(tmp_path / "other", 2)),
        origin_of(stores[0], interval=0.5),
    ]
    for other in map(digests, others):
        assert other[0] != first[0]
        assert other[1] != first[1]
    assert digests(origin_of(stores[0], interval=None, quantiles=())) == first


def test_inputs_in_the_manifest_of_a_cube_count_but_for_their_period(tmp_path, origin_of):
    cube = make_cube(times=TIMES)["base"].to_dataset()

    def lineage(**manifest):
        store = tmp_path / f"{len(list(tmp_path.iterdir()))}.zarr"
        write_cube(cube, store, shard=16, manifest=manifest)
        return origin_of(store)["lineage_sha256"]

    first = lineage(scenes_of="orbit 37", period="2020 to 2021")
    assert lineage(scenes_of="orbit 37", period="2020 to 2022") == first
    assert lineage(scenes_of="orbit 110", period="2020 to 2021") != first


def test_a_map_is_not_gone_on_with_from_another_cube(tmp_path, bundle, monkeypatch):
    """Same times, grid and ensemble, other values: once half written, and once complete."""
    ensemble = load_ensemble(bundle)
    cubes = [tmp_path / "a.zarr", tmp_path / "b.zarr"]
    for seed, cube in enumerate(cubes):
        write_cube(make_cube(shape=(8, 8), times=TIMES, chunks=8, seed=seed), cube, shard=8)

    def map_cube(cube, write=write_cube):
        manifest = map_manifest(cube, ensemble, ensemble_path=bundle, call={})
        sm = predict(open_cube(cube), ensemble)
        return write(sm, tmp_path / "sm.zarr", shard=8, manifest=manifest)

    def stop(counter, place):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("smgrid.cube.progress.UnitCounter.count", stop)
        with pytest.raises(KeyboardInterrupt):
            map_cube(cubes[0])
    for status in ("incomplete", "complete"):
        assert inspect(tmp_path / "sm.zarr").status == status
        for write in (write_cube, extend_map):
            with pytest.raises(TemplateMismatchError) as error:
                map_cube(cubes[1], write)
            assert f"cube.path: the store has '{cubes[0]}', this write '{cubes[1]}'" in str(
                error.value
            )
            assert "to a new path" in str(error.value)
        map_cube(cubes[0])
