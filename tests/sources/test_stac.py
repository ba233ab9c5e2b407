"""Lattices of items, and their pixels."""

import json

import numpy as np
import pystac
import pytest

from smgrid.errors import SourceError
from smgrid.sources.stac import split_by_lattice
from tests.builders import make_item, stac_spec, utm_grid, write_cog

GRID = utm_grid((4, 5), 100)
SCENE = GRID.pad(2)


def item(name, *, geobox=SCENE):
    return make_item(name, geobox, {"vv": f"/data/{name}.tif"}, start="2024-03-05T17:32:00")


def test_items_are_split_by_their_lattice(tmp_path):
    shifted = utm_grid((40, 50), 10, left=500_004)
    other_zone = utm_grid((40, 50), 10, crs="EPSG:32632")
    items = [
        item("a", geobox=utm_grid((40, 50), 10)),
        item("b", geobox=utm_grid((10, 10), 10, left=500_730, top=5_600_110)),
        item("c", geobox=shifted),
        item("d", geobox=other_zone),
        item("e", geobox=utm_grid((20, 25), 20)),
    ]
    lattices = split_by_lattice(stac_spec("nowhere"), items, ["vv"])
    assert [[one.id for one in members] for _, members in lattices] == [
        ["a", "b"],
        ["c"],
        ["d"],
        ["e"],
    ]


def test_assets_of_one_item_on_two_grids_are_refused(tmp_path):
    coarse = write_cog(tmp_path / "coarse.tif", np.zeros((4, 5), "float32"), GRID)
    fine = write_cog(tmp_path / "fine.tif", np.zeros((40, 50), "float32"), GRID.zoom_to((40, 50)))
    one = make_item("a", GRID, {"vv": coarse, "vh": fine}, start="2024-03-05", projection="absent")
    for key, geobox in (("vv", GRID), ("vh", GRID.zoom_to((40, 50)))):
        stated = pystac.extensions.projection.ProjectionExtension.ext(
            one.assets[key], add_if_missing=True
        )
        stated.apply(
            code="EPSG:32631", shape=list(geobox.shape.yx), transform=list(geobox.affine)[:6]
        )
    with pytest.raises(SourceError, match="a: its assets vv, vh lie on different grids"):
        split_by_lattice(stac_spec("nowhere"), [one], ["vv", "vh"])


def test_lattices_of_recorded_items(shared):
    folder = shared / "data" / "real" / "stac_responses" / "planetary_computer"
    documents = json.loads((folder / "search_items_sentinel-1-rtc.json").read_text())
    documents = documents if isinstance(documents, list) else documents["features"]
    items = [pystac.Item.from_dict(document) for document in documents]
    lattices = split_by_lattice(stac_spec("nowhere"), items, ["vv", "vh"])
    assert sum(len(members) for _, members in lattices) == len(items) > 1
    for geobox, _ in lattices:
        assert geobox.resolution.xy == (10, -10)
        assert geobox.crs.epsg // 100 == 326
