"""The catalogs that ship with smgrid: complete, openable, and true to what they describe."""

import os
import socket
from datetime import date

import pytest
import yaml
from odc.geo.geobox import GeoBox

from smgrid.catalog import Catalog, open_catalog, require_credentials
from smgrid.catalogtext import CatalogText
from smgrid.cube.build import load_cube
from smgrid.errors import CatalogError, ConfigError
from smgrid.schema import catalog_folder, get_variable
from smgrid.simulate.catalog_file import write_catalog_file
from smgrid.yamltext import check_model, read_yaml

SHIPPED = sorted(path.stem for path in catalog_folder().glob("*.yml") if path.stem != "variables")
SOURCES = {
    f"{name}:{source}": (name, source)
    for name in SHIPPED
    for source in yaml.safe_load((catalog_folder() / f"{name}.yml").read_text())["sources"]
}


@pytest.fixture
def text():
    def read(catalog, source):
        content = read_yaml(catalog_folder() / f"{catalog}.yml", error=CatalogError)
        return check_model(content, CatalogText).sources[source]

    return read


def test_the_catalogs_of_the_issue_are_there():
    assert set(SHIPPED) >= {"planetary-computer", "earthdata", "weather", "soilgrids", "simulated"}


@pytest.mark.parametrize("name", SOURCES)
def test_every_entry_is_complete(name, text):
    source = text(*SOURCES[name])
    assert source.licence.strip()
    assert source.citation.strip()
    assert source.cadence.strip()
    assert source.units
    stored = set(source.provides) & set(source.assets)
    assert stored <= set(source.units), "the units as stored of every variable that is read"
    kinds = {get_variable(variable).kind for variable in source.provides}
    if {"vv", "vh"} & set(source.provides):
        assert source.convention in ("sigma0", "gamma0")
    if kinds == {"series"}:
        assert source.native_resolution
    if source.credentials:
        assert any(name in source.note for name in source.credentials), "how to get it"
    if source.stac and source.stac.sign == "earthdata":
        assert source.credentials == ["EARTHDATA_TOKEN"]


@pytest.mark.parametrize("name", SOURCES)
def test_numbers_of_an_entry_are_stated_where_files_hold_counts(name, text):
    source = text(*SOURCES[name])
    if source.loader.endswith((":load_modis", ":load_viirs", ":load_sentinel2")):
        assert all(factor == 0.0001 for factor in source.scale.values())
        assert source.scale.keys() & {"ndvi", "red"}
    if source.loader.endswith(":load_modis"):
        assert source.nodata == -3000
    if "sand" in source.provides and source.loader.startswith("smgrid.sources.soilgrids"):
        assert (source.crs, source.nodata) == ("ESRI:54052", -32768)


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Empty files where the catalogs of local data expect theirs."""
    for name in ("SITE", "ERA5", "WORLD"):
        monkeypatch.setenv(f"SMGRID_{name}", str(tmp_path))
    for name in SHIPPED:
        content = (catalog_folder() / f"{name}.yml").read_text()
        for source in yaml.safe_load(content)["sources"].values():
            paths = source.get("paths", []) + list(source.get("assets", {}).values())
            paths.append(source.get("stac", {}).get("href", ""))
            for path in paths:
                if path.startswith("${"):
                    file = tmp_path / path.partition("}/")[2].replace("*", "x")
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.touch()


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_catalog_opens(name):
    opened = open_catalog(name)
    assert isinstance(opened, Catalog)
    assert opened.name == name
    assert opened.title
    for spec in opened.loaded:
        assert opened.chain_of(spec)[0] is spec


def test_what_a_user_needs_on_the_first_day_goes_together():
    opened = open_catalog(["planetary-computer", "weather", "soilgrids", "earthdata:smap-l3"])
    provided = {variable for spec in opened.loaded for variable in spec.provides}
    assert provided >= {"vv", "vh", "angle", "ndvi", "t2m", "tp", "sand", "clay", "bdod"}
    assert provided >= {"elevation", "slope", "aspect_sin", "aspect_cos", "smap_soil_moisture"}
    assert opened.provider_of("vv").convention == "gamma0"
    assert opened.provider_of("vv").stac.sign == "planetary-computer"


def test_sigma0_takes_the_place_of_gamma0():
    rest = "planetary-computer:sentinel-1-angle,modis-13q1,copernicus-dem"
    opened = open_catalog(["planetary-computer-grd", rest, "weather", "soilgrids"])
    assert opened.provider_of("vv").convention == "sigma0"
    with pytest.raises(CatalogError, match="'vv' is provided by sentinel-1-rtc"):
        open_catalog(["planetary-computer", "planetary-computer-grd"])


def test_the_planetary_computer_needs_no_account(monkeypatch):
    for name in os.environ:
        if "TOKEN" in name or "KEY" in name:
            monkeypatch.delenv(name)
    opened = open_catalog("planetary-computer")
    require_credentials(opened.sources.values())
    with pytest.raises(CatalogError, match="no source provides 'sand'"):
        opened.provider_of("sand")
    others = open_catalog(["weather", "earthdata"])
    with pytest.raises(ConfigError, match=r"EDH_TOKEN(?s:.*)EARTHDATA_TOKEN") as raised:
        require_credentials(others.sources.values())
    assert "earthdatahub" in str(raised.value)


@pytest.mark.parametrize("catalog", ["earthdata", "weather", "weather-ecmwf"])
def test_a_cube_without_its_token_fails_before_any_request(catalog, monkeypatch):
    for name in ("EARTHDATA_TOKEN", "EDH_TOKEN", "CDSAPI_KEY"):
        monkeypatch.delenv(name, raising=False)

    def refuse(*_args, **_kwargs):
        raise AssertionError("connected")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    grid = GeoBox.from_bbox((500_000, 5_629_000, 501_000, 5_630_000), "EPSG:32631", resolution=100)
    with pytest.raises(ConfigError) as raised:
        load_cube(grid, ("2022-01-01", "2023-03-01"), catalog=catalog)
    needing = [spec for spec in open_catalog(catalog).loaded if spec.credentials]
    assert len(str(raised.value).splitlines()) == len(needing)
    assert all(spec.name in str(raised.value) for spec in needing)


def test_modis_is_continued():
    for name, follower in (("planetary-computer", "sentinel-2-ndvi"), ("earthdata", "viirs-13a1")):
        opened = open_catalog(name)
        chain = opened.chain_of(opened.provider_of("ndvi"))
        assert [spec.name for spec in chain] == ["modis-13q1", follower]
        assert chain[1].first_day > date(2010, 1, 1)


def test_the_simulated_world_is_the_one_that_worlds_come_with(tmp_path, monkeypatch, files):
    """The shipped entry reads what the world's own catalog reads, in the same way."""
    write_catalog_file(tmp_path / "catalog.yml", spacing=10.0)
    monkeypatch.setenv("SMGRID_WORLD", str(tmp_path))
    own, shipped = open_catalog(tmp_path / "catalog.yml"), open_catalog("simulated")
    assert own.title == shipped.title
    assert list(own.sources) == list(shipped.sources)
    fields = ("loader", "provides", "paths", "stac", "assets", "scale", "offset", "nodata", "crs")
    for name, spec in own.sources.items():
        for field in (*fields, "convention", "options", "licence", "note"):
            assert getattr(spec, field) == getattr(shipped.sources[name], field), (name, field)
        assert spec.units.items() <= shipped.sources[name].units.items()
        if spec.kind == "series":
            assert spec.native_resolution == shipped.sources[name].native_resolution


def test_the_block_shown_in_planetary_computer_is_valid(tmp_path):
    content = (catalog_folder() / "planetary-computer.yml").read_text()
    shown = [line[2:] for line in content.splitlines() if line.startswith("#   ")]
    path = tmp_path / "mine.yml"
    head = "smgrid_catalog: 1\nname: mine\ntitle: Mine\nsources:\n"
    path.write_text(head + "\n".join(shown) + "\n")
    others = "planetary-computer:copernicus-dem,modis-13q1,sentinel-1-rtc"
    opened = open_catalog([path, others])
    assert opened.provider_of("angle").name == "site"
