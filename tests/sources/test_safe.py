"""Files of products: folders, zips and the real items of three STAC catalogs."""

import json
import zipfile
from datetime import UTC, datetime

import numpy as np
import pystac
import pytest

from smgrid.errors import SourceError
from smgrid.sources.safe import open_safe, product_of_item, read_xml
from tests.safe_scene import Scene, ramps
from tests.sources.real_products import ANNOTATIONS, open_real

ORIGIN = "test.yml, line 1"


@pytest.mark.shared
@pytest.mark.parametrize("name", sorted({name for name, _ in ANNOTATIONS}))
def test_the_files_of_real_products(shared, name):
    product = open_real(shared, name)
    assert product.name == name
    assert sorted(product.annotation) == sorted({p for n, p in ANNOTATIONS if n == name})
    assert product.copolarised == "vv"
    assert product.manifest.endswith("manifest.safe")
    assert not product.measurement  # the real products come without images
    with pytest.raises(SourceError, match=f"{name} has no measurement of vv .it has none"):
        product.read_image("vv", (slice(0, 1), slice(0, 1)))


def zip_of(folder, safe):
    path = folder / f"{safe.stem}.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(safe.rglob("*")):
            archive.write(file, f"{safe.name}/{file.relative_to(safe)}")
    return path


def test_folder_zip_and_manifest_are_the_same_product(tmp_path):
    safe = Scene(ramps()).write(tmp_path)
    window = slice(100, 103), slice(7, 9)
    for path in (safe, safe / "manifest.safe", zip_of(tmp_path, safe)):
        product = open_safe(str(path), origin=ORIGIN)
        assert product.name == safe.stem
        assert product.read_annotation("vh").shape == (360, 400)
        assert product.read_calibration("vv").line.size == 3
        assert product.read_noise("vv").masks_border
        assert product.read_manifest().tag.endswith("XFDU")
        image = product.read_image("vv", window)
        np.testing.assert_array_equal(image, np.array([[1500] * 2, [1510] * 2, [1520] * 2]))


def test_a_folder_without_annotation_is_refused(tmp_path):
    (tmp_path / "S1A.SAFE").mkdir()
    with pytest.raises(SourceError, match=r"holds no annotation/\*.xml; name a folder or zip"):
        open_safe(str(tmp_path / "S1A.SAFE"), origin=ORIGIN)


def test_a_broken_zip_is_refused(tmp_path):
    (tmp_path / "S1A.zip").write_bytes(b"PK")
    with pytest.raises(SourceError, match=r"S1A.zip cannot be read as a zip file"):
        open_safe(str(tmp_path / "S1A.zip"), origin=ORIGIN)


def test_an_image_of_another_size_is_refused(tmp_path):
    scene = Scene(ramps())
    safe = scene.write(tmp_path)
    scene.write_image(next((safe / "measurement").glob("*-vv-*")), ramps((300, 400))["vv"])
    with pytest.raises(SourceError, match="has 300 lines of 400 pixels, its annotation says 360"):
        open_safe(str(safe), origin=ORIGIN).read_image("vv", (slice(0, 9), slice(0, 9)))


def test_a_truncated_document_is_named(tmp_path):
    path = tmp_path / "iw-vv.xml"
    path.write_text("<product><adsHeader>")
    with pytest.raises(SourceError, match=r"iw-vv.xml cannot be read as XML .*fetch it again"):
        read_xml(str(path), sign="none", origin=ORIGIN)


def items(shared, name):
    found = json.loads((shared / "data/real/stac_responses" / name).read_text())
    pages = found if isinstance(found, list) else [found]
    for page in pages:
        page = page.get("response", page)
        features = page.get("features", [page] if page.get("type") == "Feature" else [])
        yield from (pystac.Item.from_dict(f) for f in features if "GRD" in f["id"])


@pytest.mark.shared
@pytest.mark.parametrize(
    ("response", "polarisations"),
    [
        ("planetary_computer/items_sentinel-1-grd.json", {"vv", "vh"}),
        ("stactools/item_sentinel1_grd.json", {"vv", "vh"}),
        ("earth_search/search_mixed_sentinel-1-grd.json", None),
    ],
)
def test_products_of_the_real_items(shared, response, polarisations):
    found = list(items(shared, response))
    assert found
    for item in found:
        product = product_of_item(item, sign="none", origin=ORIGIN)
        expected = polarisations or {p.lower() for p in item.properties["sar:polarizations"]}
        assert set(product.annotation) == set(product.measurement) == set(product.noise) == expected
        for name, href in product.annotation.items():
            folder, _, file = href.rpartition("/")
            assert folder.endswith("/annotation"), "not the report on radio interference"
            assert name in file
            assert not file.startswith(("rfi-", "calibration-"))
            assert product.calibration[name].endswith(f"/calibration/calibration-{file}")


@pytest.mark.shared
def test_the_annotation_of_an_item_stands_where_stactools_says(shared):
    item = next(items(shared, "stactools/item_sentinel1_grd.json"))
    product = product_of_item(item, sign="none", origin=ORIGIN)
    assert product.annotation["vv"] == item.assets["schema-product-vv"].href


def test_an_item_of_another_collection_is_refused():
    item = pystac.Item("x", None, None, datetime(2024, 1, 1, tzinfo=UTC), {})
    item.add_asset("vv", pystac.Asset("vv.tif"))
    with pytest.raises(SourceError, match=r"x has no asset schema-calibration-\* \(it has vv\)"):
        product_of_item(item, sign="none", origin=ORIGIN)
