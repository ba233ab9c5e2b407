import json
import shutil
from functools import reduce
from operator import getitem
from pathlib import Path

import numpy as np
import odc.stac
import pandas as pd
import pystac
import pytest
import rasterio
import torch
from pystac.extensions.classification import ClassificationExtension
from pystac.extensions.datacube import DatacubeExtension
from pystac.extensions.mlm import MLMExtension
from pystac.extensions.projection import ProjectionExtension
from pystac.extensions.raster import RasterExtension
from shapely.geometry import Point, shape
from stac_validator.validate import StacValidate

from smgrid.errors import ConfigError, StoreError
from smgrid.export.attributes import global_attrs
from smgrid.export.cog import write_cogs
from smgrid.export.stac import write_stac
from smgrid.export.stored import open_stored
from smgrid.features.layout import get_layout
from smgrid.grid import grid_coords, make_grid
from smgrid.models.bundle import save_ensemble
from smgrid.models.densesm import DenseSM
from tests.export.maps import MEANINGS, counts, make_map, write_map
from tests.export.stac_schemas import schema_map
from tests.networks import make_ensemble

TRAINING = {
    "method": "supervised, from random weights",
    "plan": {"epochs": 3, "learning_rate": 0.004},
    "samples": {"fine": {"count": 7, "period": ["2019-08-01T05:00:00", "2021-03-02T17:00:00"]}},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A map, its COGs and its bundle side by side, and the catalog of all."""
    place = tmp_path_factory.mktemp("stac")
    sizes = ((1, 8), (2, 8))
    ensemble = make_ensemble(sizes, layout="smgrid-1", card={"training": TRAINING})
    save_ensemble(ensemble, place / "ensemble")
    sm = make_map((60, 70)).assign_attrs(smgrid_ensemble=ensemble.digest)
    write_map(sm, place / "soil_moisture.zarr")
    write_cogs(place / "soil_moisture.zarr", place / "cogs")
    path = write_stac(
        place / "soil_moisture.zarr",
        place / "stac",
        cogs=place / "cogs",
        ensemble=place / "ensemble",
    )
    assert path == place / "stac" / "catalog.json"
    return place


@pytest.fixture(scope="module")
def schemas(tmp_path_factory):
    return schema_map(tmp_path_factory.mktemp("schemas"))


@pytest.fixture
def items(place):
    catalog = pystac.Catalog.from_file(place / "stac" / "catalog.json")
    return list(catalog.get_child("soil_moisture-maps").get_items())


@pytest.fixture
def model(place):
    catalog = pystac.Catalog.from_file(place / "stac" / "catalog.json")
    (item,) = catalog.get_child("soil_moisture-model").get_items()
    return item


def faults(path, schemas):
    """What stac-validator finds, with extensions and without a network."""
    run = StacValidate(str(path), schema_map=dict(schemas))
    run.run()
    (message,) = run.message
    checked = len(message["schema"])
    return [] if message["valid_stac"] else [message["error_message"]], checked


def test_every_document_passes_stac_validator(place, schemas):
    """The core by its own schemas, extensions by those of `stac_schemas`."""
    checked = {}
    for path in sorted((place / "stac").rglob("*.json")):
        found, checked[path.stem] = faults(path, schemas)
        assert found == [], path.name
    assert len(checked) == 4 + 3 - 1  # both collections are called collection.json
    assert checked["soil_moisture_20240105T172312Z"] == 1 + 5


@pytest.mark.parametrize(
    "change",
    [
        {"properties": {"datetime": "in January"}},
        {"properties": {"proj:shape": ["60", "70"]}},
        {"properties": {"proj:transfrom": [100, 0, 0, 0, -100, 0]}},
        {"properties": {"cube:variables": {"flags": {"dimensions": []}}}},
        {"properties": {"sat:relative_orbit": 0}},
        {"assets": {"flags": {"href": "a", "raster:bands": [{"data_type": "integer"}]}}},
    ],
)
def test_stac_validator_would_find_what_is_wrong(place, schemas, tmp_path, change):
    (path,) = (place / "stac").rglob("soil_moisture_20240105T172312Z.json")
    content = json.loads(path.read_text())
    for key, values in change.items():
        content[key] |= values
    (tmp_path / "item.json").write_text(json.dumps(content))
    found, _ = faults(tmp_path / "item.json", schemas)
    assert found


@pytest.mark.parametrize(
    "keys",
    [
        ("properties", "mlm:input"),
        ("properties", "mlm:architecture"),
        ("assets", "model", "mlm:artifact_type"),
        ("assets", "model", "raster:bands"),
    ],
)
def test_stac_validator_would_find_a_model_without(place, schemas, tmp_path, keys):
    (path,) = (place / "stac" / "soil_moisture-model").glob("*/*.json")
    content = json.loads(path.read_text())
    reduce(getitem, keys[:-1], content).pop(keys[-1])
    (tmp_path / "item.json").write_text(json.dumps(content))
    found, _ = faults(tmp_path / "item.json", schemas)
    assert found


def test_items_say_when_where_and_by_which_satellite(items):
    assert [item.id for item in items] == [
        "soil_moisture_20240105T172312Z",
        "soil_moisture_20240117T054107Z",
        "soil_moisture_20240210T172313Z",
    ]
    item = items[1]
    assert item.datetime == pd.Timestamp("2024-01-17T05:41:07Z")
    assert item.properties["platform"] == "sentinel-1b"
    assert item.properties["sat:relative_orbit"] == 37
    projection = ProjectionExtension.ext(item)
    assert projection.code == "EPSG:32631"
    assert projection.shape == [60, 70]
    assert projection.transform == [100, 0, 500_300, 0, -100, 5_629_100]
    # UTM 31N, 503 800 m east and 5 626 100 m north: the middle of the map.
    assert shape(item.geometry).contains(Point(3.0538, 50.7864))
    assert not shape(item.geometry).contains(Point(3.0538, 50.82))
    cube = DatacubeExtension.ext(item)
    assert cube.dimensions["time"].extent == ["2024-01-17T05:41:07Z"] * 2
    assert cube.dimensions["y"].extent == [5_623_150, 5_629_050]
    assert cube.variables["soil_moisture"].dimensions == ["time", "y", "x"]


def test_the_collection_covers_all_dates(items):
    collection = items[0].get_collection()
    first, last = collection.extent.temporal.intervals[0]
    assert (first, last) == (items[0].datetime, items[-1].datetime)
    cube = DatacubeExtension.ext(collection)
    assert len(cube.dimensions["time"].values) == 3
    assert collection.assets["manifest"].href.endswith("soil_moisture.zarr/_smgrid/manifest.json")


def test_bands_say_how_values_are_stored(items):
    (sm,) = RasterExtension.ext(items[0].assets["soil_moisture"]).bands
    assert (sm.nodata, sm.scale, sm.unit, sm.data_type) == (-32768, 1e-4, "m3 m-3", "int16")
    (flags,) = RasterExtension.ext(items[0].assets["flags"]).bands
    assert flags.nodata is None
    fields = ClassificationExtension.ext(flags).bitfields
    assert [(f.name, 1 << f.offset) for f in fields] == list(
        zip(MEANINGS, (1, 2, 4, 8), strict=True)
    )
    names = [b.properties["name"] for b in RasterExtension.ext(items[0].assets["zarr"]).bands]
    assert names == ["soil_moisture", "soil_moisture_std", "flags"]


def path_of(asset):
    return Path(asset.get_absolute_href()).resolve()


def test_links_lead_to_the_files(items, place, model):
    for item in items:
        assert all(path_of(asset).exists() for asset in item.assets.values())
        assert all(place in path_of(asset).parents for asset in item.assets.values())
        (link,) = item.get_links("derived_from")
        assert link.resolve_stac_object().target.id == model.id
    with rasterio.open(items[2].assets["flags"].get_absolute_href()) as src:
        np.testing.assert_array_equal(src.read(1), counts(make_map((60, 70)), "flags")[2])


def test_no_document_knows_the_machine(place):
    for path in (place / "stac").rglob("*.json"):
        assert str(place) not in path.read_text()


def test_the_catalog_may_move_with_what_it_describes(place, tmp_path):
    moved = shutil.copytree(place, tmp_path / "moved")
    catalog = pystac.Catalog.from_file(moved / "stac" / "catalog.json")
    for item in catalog.get_items(recursive=True):
        assert all(moved in path_of(asset).parents for asset in item.assets.values())


def test_odc_stac_loads_the_cogs(items, place):
    loaded = odc.stac.load(items, bands=["soil_moisture"], crs="EPSG:32631", resolution=100)
    sm = make_map((60, 70))
    assert loaded.odc.geobox == sm.odc.geobox
    np.testing.assert_array_equal(loaded["soil_moisture"], counts(sm, "soil_moisture"))
    np.testing.assert_array_equal(loaded["time"], sm["time"])


def test_the_model_is_an_mlm_item(model, place):
    card = json.loads((place / "ensemble" / "card.json").read_text())
    found = MLMExtension.ext(model)
    assert found.architecture == "DenseSM"
    assert (found.framework, found.framework_version) == ("PyTorch", torch.__version__)
    layout = get_layout("smgrid-1")
    snapshot, series = found.input
    assert snapshot.bands == list(layout.column_names[: len(layout.snapshot)])
    described = RasterExtension.ext(model.assets["model"]).bands
    assert [band.properties["name"] for band in described] == snapshot.bands + series.bands
    assert snapshot.input.shape == [-1, len(layout.snapshot)]
    assert series.input.shape == [-1, 3, 46]
    scaling = snapshot.properties["value_scaling"]
    assert [(s["minimum"], s["maximum"]) for s in scaling] == [
        (column.low, column.high) for column in layout.snapshot
    ]
    assert found.output[0].name == "soil_moisture"
    networks = (DenseSM(1, 8), DenseSM(2, 8))
    assert found.total_parameters == sum(p.numel() for n in networks for p in n.parameters())
    hyper = found.hyperparameters.to_dict()
    assert (hyper["members"], hyper["depths"], hyper["epochs"]) == (2, [1, 2], 3)
    assert model.properties["smgrid_ensemble"] == card["digest"]
    assert model.properties["smgrid_training"] == TRAINING
    assert model.common_metadata.start_datetime == pd.Timestamp("2019-08-01T05:00Z")
    assert path_of(model.assets["card"]) == place / "ensemble" / "card.json"


def test_links_below_a_url(place, tmp_path):
    path = write_stac(
        place / "soil_moisture.zarr",
        tmp_path / "stac",
        href_base="https://example.org/data/",
        cogs=place / "cogs",
        ensemble=place / "ensemble",
    )
    catalog = pystac.Catalog.from_file(path)
    item = next(catalog.get_child("soil_moisture-maps").get_items())
    base = "https://example.org/data"
    assert item.assets["zarr"].href == f"{base}/soil_moisture.zarr"
    name = "sm_20240105T172312Z_flags.tif"
    assert item.assets["flags"].href == f"{base}/cogs/{name}"
    (model,) = catalog.get_child("soil_moisture-model").get_items()
    assert model.assets["model"].href == f"{base}/ensemble"


def test_without_cogs_and_model_the_store_is_the_only_asset(place, tmp_path):
    catalog = pystac.Catalog.from_file(write_stac(place / "soil_moisture.zarr", tmp_path / "stac"))
    assert [child.id for child in catalog.get_children()] == ["soil_moisture-maps"]
    assert all(list(item.assets) == ["zarr"] for item in catalog.get_items(recursive=True))


def test_the_same_again_does_nothing_and_other_content_is_refused(place, tmp_path):
    chosen = {"cogs": place / "cogs", "ensemble": place / "ensemble"}
    before = {p: p.stat().st_mtime_ns for p in (place / "stac").rglob("*")}
    write_stac(place / "soil_moisture.zarr", place / "stac", **chosen)
    with pytest.raises(StoreError, match="stac exists already and is the export of something"):
        write_stac(place / "soil_moisture.zarr", place / "stac")
    assert {p: p.stat().st_mtime_ns for p in (place / "stac").rglob("*")} == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "catalog.json").write_text("[]")
    with pytest.raises(StoreError, match="mine exists already and is not an export"):
        write_stac(place / "soil_moisture.zarr", tmp_path / "mine")


def test_the_same_again_from_elsewhere_does_nothing(place, tmp_path, monkeypatch):
    """Paths as they are typed, or where all of it lies together, make no other catalog."""
    moved = shutil.copytree(place, tmp_path / "moved")
    before = (moved / "stac" / "catalog.json").stat().st_mtime_ns
    monkeypatch.chdir(moved)
    write_stac("soil_moisture.zarr", "stac", cogs="cogs", ensemble="ensemble")
    monkeypatch.chdir(tmp_path)
    chosen = {"cogs": "moved/../moved/cogs", "ensemble": moved / "ensemble"}
    write_stac("moved/soil_moisture.zarr", "moved/stac", **chosen)
    assert (moved / "stac" / "catalog.json").stat().st_mtime_ns == before
    shutil.copytree(moved / "cogs", moved / "others")
    with pytest.raises(StoreError, match="the export of something else"):
        write_stac("moved/soil_moisture.zarr", "moved/stac", **chosen | {"cogs": "moved/others"})


def test_across_the_antimeridian(tmp_path):
    sm = make_map((30, 40), times=("2024-01-05T17:23:12",))
    here = make_grid((179.8, -17, 180, -16.8), resolution=1000)[:30, :40]
    ensemble = make_ensemble(((1, 8),), layout="smgrid-1")
    save_ensemble(ensemble, tmp_path / "ensemble")
    sm = sm.drop_vars("spatial_ref").assign_coords(grid_coords(here))
    path = write_map(sm.assign_attrs(smgrid_ensemble=ensemble.digest), tmp_path / "map.zarr")
    catalog = write_stac(path, tmp_path / "stac", ensemble=tmp_path / "ensemble")
    items = list(pystac.Catalog.from_file(catalog).get_items(recursive=True))
    (collection,) = {item.get_collection() for item in items[:1]}
    for west, _, east, _ in (*(i.bbox for i in items), *collection.extent.spatial.bboxes):
        assert 179.7 < west < 180
        assert -180 < east < -179.7
    assert len(items) == 2
    assert all(shape(item.geometry).area < 0.2 for item in items)
    attrs = global_attrs(open_stored(path), form="NetCDF")
    assert attrs["geospatial_lon_min"] == pytest.approx(items[0].bbox[0])
    assert attrs["geospatial_lon_max"] == pytest.approx(items[0].bbox[2])


def test_links_below_a_url_are_encoded(tmp_path):
    sm = make_map((20, 30), times=("2024-01-05T17:23:12",))[["flags"]]
    path = write_map(sm, tmp_path / "m p ü#1.zarr")
    write_cogs(path, tmp_path / "c o")
    chosen = {"href_base": "https://example.org/my%20data/", "cogs": tmp_path / "c o"}
    catalog = pystac.Catalog.from_file(write_stac(path, tmp_path / "stac", **chosen))
    (item,) = catalog.get_items(recursive=True)
    base = "https://example.org/my%20data"
    assert item.assets["zarr"].href == f"{base}/m%20p%20%C3%BC%231.zarr"
    assert item.assets["flags"].href == f"{base}/c%20o/sm_20240105T172312Z_flags.tif"


def test_a_map_without_dates(tmp_path):
    path = write_map(make_map((20, 30)).isel(time=[]), tmp_path / "map.zarr")
    with pytest.raises(ConfigError, match=r"map\.zarr has no dates"):
        write_stac(path, tmp_path / "stac")


def test_a_cog_that_is_none(place, tmp_path):
    cogs = shutil.copytree(place / "cogs", tmp_path / "cogs")
    (cogs / "sm_20240117T054107Z_flags.tif").write_text("mine")
    with pytest.raises(ConfigError, match=r"sm_20240117T054107Z_flags\.tif cannot be read"):
        write_stac(place / "soil_moisture.zarr", tmp_path / "stac", cogs=cogs)


def test_cogs_and_models_of_something_else(place, tmp_path):
    store = place / "soil_moisture.zarr"
    with pytest.raises(ConfigError, match=r"has no sm_20240105T172312Z_soil_moisture\.tif"):
        write_stac(store, tmp_path / "stac", cogs=tmp_path)
    other = write_map(make_map((60, 70), seed=1), tmp_path / "other.zarr")
    with pytest.raises(ConfigError, match=r"was not made from .*other\.zarr as it is now"):
        write_stac(other, tmp_path / "stac", cogs=place / "cogs")
    with pytest.raises(ConfigError, match="give the bundle that it was made with"):
        write_stac(other, tmp_path / "stac", ensemble=place / "ensemble")
    assert not (tmp_path / "stac").exists()
