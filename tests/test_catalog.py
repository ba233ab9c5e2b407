"""Catalogs: what is read, and what is refused with file, line and cure."""

import dataclasses
import json
import pickle
from datetime import date

import pytest

from smgrid.catalog import (
    SourceSpec,
    StacQuery,
    check_options,
    find_files,
    json_schema,
    open_catalog,
    require_credentials,
    resolve_loader,
)
from smgrid.errors import CatalogError, ConfigError, SourceError
from smgrid.schema import catalog_folder

HEADER = "smgrid_catalog: 1\nname: flanders\ntitle: A test\nsources:\n"
STAC = """\
  radar:
    loader: smgrid.sources.sentinel1:load_stac
    provides: [vv, vh]
    stac: {href: https://example.org/stac/v1, collection: s1, sign: planetary-computer}
    assets: {vv: vv, vh: vh}
    units: {vv: "1", vh: "1"}
    convention: gamma0
    options: {average: db}
"""
SITE = """\
  site:
    loader: smgrid.sources.site:load
    provides: [sand, clay]
    note: field survey
    options:
      values: {sand: 350, clay: 2.5e2}
"""


def write(folder, body, *, header=HEADER, name="catalog.yml"):
    path = folder / name
    path.write_text(header + body, encoding="utf-8")
    return path


def test_a_catalog_becomes_frozen_specs(tmp_path):
    opened = open_catalog(write(tmp_path, STAC + SITE))
    assert (opened.name, opened.title) == ("flanders", "A test")
    assert list(opened.sources) == ["radar", "site"]
    radar = opened.provider_of("vh")
    assert radar == SourceSpec(
        name="radar",
        loader="smgrid.sources.sentinel1:load_stac",
        provides=("vv", "vh"),
        stac=StacQuery("https://example.org/stac/v1", "s1", "planetary-computer"),
        assets={"vv": "vv", "vh": "vh"},
        units={"vv": "1", "vh": "1"},
        convention="gamma0",
        options={"average": "db"},
        origin="catalog.yml, line 5",
    )
    assert opened.provider_of("sand").options["values"] == {"sand": 350, "clay": 250.0}
    assert opened.provider_of("sand").origin == "catalog.yml, line 13"
    with pytest.raises(dataclasses.FrozenInstanceError):
        radar.loader = "other"
    assert pickle.loads(pickle.dumps(radar)) == radar


def test_files_are_anchored_at_the_catalog_and_the_environment_is_filled_in(tmp_path, monkeypatch):
    for name in ("a [1]/b/one.nc", "a [1]/b/two.nc", "elsewhere/sand.tif"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.setenv("SOIL", str(tmp_path / "elsewhere"))
    body = """\
  radar:
    loader: smgrid.sources.sentinel1:load_netcdf
    provides: [vv]
    paths: [b/*.nc, b/one.nc]
    assets: {vv: VV, time: timestamp}
    convention: sigma0
  soil:
    loader: smgrid.sources.site:load
    provides: [sand]
    assets: {sand: "${SOIL}/sand.tif"}
"""
    path = write(tmp_path / "a [1]", body)
    monkeypatch.chdir(tmp_path)
    opened = open_catalog(path.relative_to(tmp_path))
    folder = tmp_path / "a [1]" / "b"
    radar = opened.sources["radar"]
    assert find_files(radar) == (str(folder / "one.nc"), str(folder / "two.nc"))
    assert radar.assets["vv"] == "VV"
    assert opened.sources["soil"].assets["sand"] == str(tmp_path / "elsewhere" / "sand.tif")


def test_urls_are_not_looked_for_on_disk(tmp_path):
    body = SITE + '    paths: ["https://example.org/x.nc", /vsis3/bucket/y.tif]\n'
    spec = open_catalog(write(tmp_path, body)).sources["site"]
    assert find_files(spec) == ("https://example.org/x.nc", "/vsis3/bucket/y.tif")


def test_a_file_that_has_gone_is_said_when_it_is_wanted(tmp_path):
    spec = SourceSpec("x", "m:f", ("vv",), paths=(str(tmp_path / "*.nc"),), origin="c.yml, line 2")
    with pytest.raises(SourceError, match=r"c\.yml, line 2: no file matches .*\*\.nc"):
        find_files(spec)


def test_text_follows_yaml_1_2(tmp_path):
    body = SITE + "      extra: [17:32, 2024-01-01, no, 1e-3, 010, ~, true, .inf]\n"
    spec = open_catalog(write(tmp_path, body)).sources["site"]
    read = ["17:32", "2024-01-01", "no", 0.001, 10, None, True, float("inf")]
    assert spec.options["extra"] == read


def test_first_and_last_day(tmp_path):
    body = SITE + "    first_day: 2015-01-01\n    last_day: 2016-12-31\n"
    spec = open_catalog(write(tmp_path, body)).sources["site"]
    assert (spec.first_day, spec.last_day) == (date(2015, 1, 1), date(2016, 12, 31))


@pytest.fixture(autouse=True)
def _no_secrets(monkeypatch):
    """So that a path with a secret is refused for that, not because it is not set."""
    for name in ("MY_KEYRING", "KEYRING", "EDH_TOKEN"):
        monkeypatch.setenv(name, "sesame")
    monkeypatch.setenv("SITE_URL", "https://me:sesame@example.org")


def replaced(old, new, body=STAC):
    assert old in body
    return body.replace(old, new)


# body, line of the mistake, what the message says
MISTAKES = {
    "unknown key": (
        replaced("units:", "unit:"),
        10,
        r"sources\.radar\.unit: unknown key; did you mean 'units'\?",
    ),
    "unknown key of stac": (
        replaced("collection: s1", "collection: s1, signed: true"),
        8,
        r"sources\.radar\.stac\.signed: unknown key; did you mean 'sign'\?",
    ),
    "missing key": (
        replaced("loader: smgrid.sources.sentinel1:load_stac", "note: none"),
        5,
        r"sources\.radar\.loader: is missing",
    ),
    "number for text": (
        replaced('vh: "1"', "vh: 1"),
        10,
        r'units\.vh: should be a valid string, found 1; write it in quotes: "1"',
    ),
    "text for number": (
        STAC + "    nodata: none\n",
        13,
        r"nodata: should be a valid number, found 'none'",
    ),
    "text for a list": (
        replaced("[vv, vh]", "vv"),
        7,
        r"provides: should be a valid list, found 'vv'",
    ),
    "no variables": (replaced("[vv, vh]", "[]"), 7, r"provides: List should have at least 1 item"),
    "unknown variable": (
        replaced("[sand, clay]", "[sand, cley]", SITE),
        7,
        r"provides\.1: 'cley' is not a variable of smgrid; did you mean 'clay'\?",
    ),
    "unknown convention": (
        replaced("gamma0", "beta0"),
        11,
        r"convention: should be 'sigma0' or 'gamma0', found 'beta0'",
    ),
    "no convention": (
        replaced("    convention: gamma0\n", ""),
        5,
        r"convention: is missing; backscatter is either sigma0 or gamma0",
    ),
    "bad date": (SITE + "    first_day: 2024-13-45\n", 11, r"first_day: .*found '2024-13-45'"),
    "exchanged dates": (
        SITE + "    first_day: 2024-02-01\n    last_day: 2024-01-01\n",
        12,
        r"last_day: is before first_day \(2024-02-01\)",
    ),
    "duplicate key": (
        replaced("    note: field", "    provides: [bdod]\n    note: field", SITE),
        8,
        r"the key 'provides' is given twice",
    ),
    "duplicate provider": (
        SITE + SITE.replace("site:", "again:", 1).replace("[sand, clay]", "[bdod, clay]"),
        13,
        r"provides\.1: 'clay' is provided by site \(catalog\.yml, line 5\) as well",
    ),
    "missing file": (
        SITE + "    paths:\n      - nowhere/*.nc\n",
        12,
        r"paths\.0: no file matches .*nowhere/\*\.nc; correct it or create the file",
    ),
    "missing static catalog": (
        replaced("https://example.org/stac/v1", "stac/catalog.json"),
        8,
        r"stac\.href: no file matches .*stac/catalog\.json",
    ),
    "missing asset file": (
        SITE + "    assets: {sand: sand.tif}\n",
        11,
        r"assets\.sand: no file matches",
    ),
    "environment": (
        SITE + '    paths: ["${SMGRID_NOT_SET}/x.nc"]\n',
        11,
        r"paths\.0: the environment variable SMGRID_NOT_SET is not set; set it",
    ),
    "loader without function": (
        replaced(":load_stac", ""),
        6,
        r"loader: String should match pattern",
    ),
    "no such module": (
        replaced("sentinel1:load", "sentinel11:load"),
        5,
        r"the loader 'smgrid\.sources\.sentinel11:load_stac' of radar cannot be imported",
    ),
    "no such function": (
        replaced(":load_stac", ":load_stacs"),
        5,
        r"load_stacs' of radar cannot be imported \(.*no attribute 'load_stacs'",
    ),
    "loader that is no function": (
        replaced("smgrid.sources.sentinel1:load_stac", "smgrid.catalogtext:CATALOG_VERSION"),
        5,
        r"is not a function",
    ),
    "series without resolution": (
        replaced("[sand, clay]", "[ndvi]", SITE),
        5,
        r"native_resolution: is missing; ndvi is kept near the provider's pixel size",
    ),
    "resolution of nothing": (
        SITE + "    native_resolution: 0\n",
        11,
        r"native_resolution: should be greater than 0",
    ),
    "scale of nothing": (
        SITE + "    scale: {silt: 0.1}\n",
        11,
        r"scale\.silt: is neither in provides nor in assets; .*",
    ),
    "secret in a path": (
        SITE
        + '    paths: ["https://${MY_KEYRING}@example.org/x.nc"]\n    credentials: [MY_KEYRING]\n',
        11,
        r"paths\.0: \$\{MY_KEYRING\} is a secret, .* name it in credentials: of the source",
    ),
    "secret of another source": (
        SITE
        + '    paths: ["https://example.org/${KEYRING}"]\n'
        + STAC
        + "    credentials: [KEYRING]\n",
        11,
        r"paths\.0: \$\{KEYRING\} is a secret",
    ),
    "secret by its name": (
        replaced("https://example.org/stac/v1", '"https://x:${EDH_TOKEN}@example.org"'),
        8,
        r"stac\.href: \$\{EDH_TOKEN\} is a secret",
    ),
    "password": (
        replaced("https://example.org", "https://x:y@example.org"),
        8,
        r"stac\.href: a URL with a password or signature ends up in stores and logs; use credent",
    ),
    "signature in an option": (
        SITE + '      dem: "https://a.blob.core.windows.net/b/dem.tif?sv=2024&sig=abc"\n',
        11,
        r"options\.dem: a URL with a password or signature",
    ),
    "secret in an option": (
        SITE + '      deep: [1, {path: "/x/${MY_KEYRING}"}]\n    credentials: [MY_KEYRING]\n',
        11,
        r"options\.deep\.1\.path: \$\{MY_KEYRING\} is a secret, and this is written",
    ),
    "password from the environment": (
        SITE + '    paths: ["${SITE_URL}/x.nc"]\n',
        11,
        r"paths\.0: a URL with a password or signature ends up",
    ),
    "value for a credential": (
        SITE + "    credentials: [eyJhbGciOiJ9.secret]\n",
        11,
        r"credentials\.0: String should match pattern",
    ),
    "unknown fallback": (
        SITE + "    fallbacks: [survay]\n" + SITE.replace("site:", "survey:", 1),
        11,
        r"fallbacks\.0: there is no source called 'survay'; did you mean 'survey'\?",
    ),
    "fallback to itself": (
        SITE + "    fallbacks: [site]\n",
        11,
        r"fallbacks\.0: 'site' stands in for site and site for it",
    ),
    "fallbacks in a circle": (
        "".join(
            SITE.replace("site:", f"{one}:", 1) + f"    fallbacks: [{other}]\n"
            for one, other in (("a", "b"), ("b", "c"), ("c", "a"))
        ),
        11,
        r"fallbacks\.0: 'b' stands in for a and a for it; remove one of the two",
    ),
    "fallback with less": (
        SITE
        + "    fallbacks: [survey]\n"
        + SITE.replace("site:", "survey:", 1).replace("[sand, clay]", "[sand, bdod]"),
        11,
        r"fallbacks\.0: 'survey' \(catalog\.yml, line 12\) does not provide 'clay', as site does",
    ),
    "fallback of another kind": (
        SITE
        + "    fallbacks: [survey]\n"
        + SITE.replace("site:", "survey:", 1).replace("[sand, clay]", "[sand, clay, angle]"),
        11,
        r"fallbacks\.0: 'survey' .* is of kind scene, site of static",
    ),
    "fallback of another convention": (
        STAC
        + "    fallbacks: [grd]\n"
        + STAC.replace("radar:", "grd:").replace("gamma0", "sigma0"),
        13,
        r"fallbacks\.0: 'grd' .* is sigma0, radar is gamma0; the two must not be mixed",
    ),
    "broken yaml": (SITE + "    note: [open\n", 12, r"expected ',' or '\]'"),
    "no sources": ("  {}\n", 4, r"sources: Dictionary should have at least 1 item"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_refused_with_its_line(tmp_path, name):
    body, line, message = MISTAKES[name]
    with pytest.raises(CatalogError, match=message) as raised:
        open_catalog(write(tmp_path, body))
    assert str(raised.value).startswith(f"catalog.yml, line {line}:")
    assert "sesame" not in str(raised.value)


def test_every_mistake_of_form_is_listed_at_once(tmp_path):
    body = STAC.replace("units:", "unit:").replace("gamma0", "beta0")
    with pytest.raises(CatalogError) as raised:
        open_catalog(write(tmp_path, body))
    lines = str(raised.value).splitlines()
    assert len(lines) == 2
    assert all(line.startswith("catalog.yml, line 1") for line in lines)


@pytest.mark.parametrize(
    ("header", "line", "message"),
    [
        ("smgrid_catalog: 2\n", 1, "smgrid_catalog: expected version 1, found 2"),
        ("name: x\n", 1, "smgrid_catalog: expected version 1, found nothing"),
        ("- 1\n", 1, "is not a catalog; start with smgrid_catalog: 1"),
        ("", 1, "is not a catalog"),
    ],
)
def test_another_version_or_file_is_refused(tmp_path, header, line, message):
    with pytest.raises(CatalogError, match=f"catalog.yml, line {line}: {message}"):
        open_catalog(write(tmp_path, "", header=header))


def test_the_list_of_variables_is_not_a_catalog():
    with pytest.raises(CatalogError, match=r"smgrid_catalog: expected version 1"):
        open_catalog(catalog_folder() / "variables.yml")
    with pytest.raises(CatalogError, match="no catalog called 'variables' ships"):
        open_catalog("variables")


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00"])
def test_an_unreadable_file_is_refused(tmp_path, content):
    path = tmp_path / "broken.yml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CatalogError, match=r"broken\.yml: cannot be read .* in UTF-8"):
        open_catalog(path)


def test_a_catalog_that_contains_itself_is_refused(tmp_path):
    with pytest.raises(CatalogError, match="is not valid YAML"):
        open_catalog(write(tmp_path, "  site: &a\n    options: *a\n"))


def test_an_unknown_name_suggests_the_shipped_ones():
    message = "no catalog called 'planetary-computr' ships .* did you mean 'planetary-computer'"
    with pytest.raises(CatalogError, match=message):
        open_catalog("planetary-computr")


def test_a_variable_without_a_source_says_what_there_is(tmp_path):
    opened = open_catalog(write(tmp_path, SITE))
    message = (
        r"no source provides 'bdod' \(it has sand, clay\); add a source with provides: \[bdod\]"
    )
    with pytest.raises(CatalogError, match=message):
        opened.provider_of("bdod")


def test_options_that_a_loader_does_not_know():
    spec = SourceSpec("x", "m:f", ("vv",), options={"averge": 1}, origin="c.yml, line 2")
    check_options(spec, "averge")
    with pytest.raises(CatalogError, match=r"c\.yml, line 2: options\.averge of x: unknown key"):
        check_options(spec, "average")
    with pytest.raises(CatalogError, match="m:f has no options"):
        check_options(spec)


def test_a_users_own_loader_is_found(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text("def load(spec, grid, period, *, chunks):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    spec = SourceSpec("x", "mine:load", ("vv",))
    assert resolve_loader(spec).__module__ == "mine"


def test_errors_of_catalogs_are_errors_of_configuration():
    assert issubclass(CatalogError, ConfigError)


def test_the_json_schema_is_up_to_date():
    written = json.loads((catalog_folder() / "catalog.schema.json").read_text())
    assert written == json_schema(), (
        "regenerate it: python -m smgrid.catalog > catalogs/catalog.schema.json"
    )


def test_the_json_schema_describes_every_field_of_a_spec():
    described = json_schema()["$defs"]["SourceText"]["properties"]
    fields = {field.name for field in dataclasses.fields(SourceSpec)} - {"name", "origin"}
    assert set(described) == fields
    assert all(entry["description"] for entry in described.values())


FALLBACKS = SITE + "    fallbacks: [survey]\n" + SITE.replace("site:", "survey:", 1)


def test_a_source_that_stands_in_for_another_is_not_loaded_itself(tmp_path):
    third = SITE.replace("site:", "world:", 1).replace("[sand, clay]", "[clay, sand, bdod]")
    body = FALLBACKS + "    fallbacks: [world]\n" + third + STAC
    opened = open_catalog(write(tmp_path, body))
    assert list(opened.sources) == ["site", "survey", "world", "radar"]
    assert [spec.name for spec in opened.loaded] == ["site", "radar"]
    assert opened.provider_of("sand").name == "site"
    chain = opened.chain_of(opened.sources["site"])
    assert [spec.name for spec in chain] == ["site", "survey", "world"]
    assert opened.chain_of(opened.sources["radar"]) == (opened.sources["radar"],)
    with pytest.raises(CatalogError, match="no source provides 'bdod'"):
        opened.provider_of("bdod")


def test_the_order_of_fallbacks_is_that_of_the_catalog(tmp_path):
    body = SITE + "    fallbacks: [second, first]\n"
    for name, others in (("first", ""), ("second", "    fallbacks: [last]\n"), ("last", "")):
        body += SITE.replace("site:", f"{name}:", 1) + others
    opened = open_catalog(write(tmp_path, body))
    chain = opened.chain_of(opened.sources["site"])
    assert [spec.name for spec in chain] == ["site", "second", "last", "first"]


def test_several_catalogs_are_opened_as_one(tmp_path):
    one = write(tmp_path, STAC, name="one.yml")
    two = write(tmp_path, SITE, header=HEADER.replace("flanders", "soil"), name="two.yml")
    opened = open_catalog([one, str(two)])
    assert list(opened.sources) == ["radar", "site"]
    assert (opened.name, opened.title) == ("flanders, soil", "A test")
    assert opened.paths == (one, two)
    assert opened.sources["site"].origin == "two.yml, line 5"
    with pytest.raises(CatalogError, match=r"^one\.yml, two\.yml: no source provides 'bdod'"):
        opened.provider_of("bdod")
    with pytest.raises(CatalogError, match="no catalog was given"):
        open_catalog([])


def test_a_catalog_knows_how_to_open_it_again(tmp_path, monkeypatch):
    write(tmp_path, STAC + SITE, name="one.yml")
    monkeypatch.chdir(tmp_path)
    opened = open_catalog("one.yml:site, radar")
    assert opened.opened_as == (f"{tmp_path}/one.yml:site,radar",)
    assert open_catalog("one.yml").opened_as == (f"{tmp_path}/one.yml",)
    assert open_catalog("soilgrids:soilgrids").opened_as == ("soilgrids:soilgrids",)
    monkeypatch.chdir("/")
    again = open_catalog(opened.opened_as)
    assert (again.sources, again.opened_as) == (opened.sources, opened.opened_as)


def test_catalogs_that_provide_the_same_do_not_go_together(tmp_path):
    one, two = write(tmp_path, SITE, name="one.yml"), write(tmp_path, SITE, name="two.yml")
    message = r"two\.yml, line 5: sources\.site: one\.yml, line 5 has a source of that name as well"
    with pytest.raises(CatalogError, match=message):
        open_catalog([one, two])
    write(tmp_path, SITE.replace("site:", "survey:", 1), name="two.yml")
    message = (
        r"two\.yml, line 7: sources\.survey\.provides\.0: 'sand' is provided by site \(one\.yml, "
        r"line 5\) as well; .* choose sources \(<catalog>:<source>,\.\.\.\)"
    )
    with pytest.raises(CatalogError, match=message):
        open_catalog([one, two])


def test_a_fallback_may_stand_in_a_later_catalog(tmp_path):
    one = write(tmp_path, SITE + "    fallbacks: [survey]\n", name="one.yml")
    two = write(tmp_path, SITE.replace("site:", "survey:", 1), name="two.yml")
    opened = open_catalog([one, two])
    assert [spec.name for spec in opened.loaded] == ["site"]
    with pytest.raises(CatalogError, match="there is no source called 'survey'"):
        open_catalog(one)


def test_sources_of_a_catalog_can_be_chosen(tmp_path):
    path = write(tmp_path, FALLBACKS + STAC)
    assert list(open_catalog(f"{path}:radar").sources) == ["radar"]
    assert list(open_catalog(f"{path}:site").sources) == ["site", "survey"]
    assert list(open_catalog(f"{path}:radar, survey").sources) == ["survey", "radar"]
    assert list(open_catalog([f"{path}:radar", f"{path}:survey"]).sources) == ["radar", "survey"]
    message = r"catalog\.yml, line 4: sources: has no source called 'rada'; did you mean 'radar'\?"
    with pytest.raises(CatalogError, match=message):
        open_catalog(f"{path}:rada")


def test_what_is_not_chosen_need_not_exist(tmp_path):
    path = write(tmp_path, SITE + STAC + '    paths: ["${SMGRID_NOT_SET}/x.nc"]\n')
    assert list(open_catalog(f"{path}:site").sources) == ["site"]
    with pytest.raises(CatalogError, match="SMGRID_NOT_SET is not set"):
        open_catalog(path)


def test_missing_credentials_are_named_with_source_and_cure(monkeypatch):
    monkeypatch.setenv("SET", "sesame")
    monkeypatch.setenv("EMPTY", "")
    monkeypatch.delenv("NOT_SET", raising=False)
    specs = [
        SourceSpec("one", "m:f", ("vv",), credentials=("SET", "NOT_SET"), origin="c.yml, line 2"),
        SourceSpec("two", "m:f", ("vv",), credentials=("EMPTY",), note="ask them"),
        SourceSpec("three", "m:f", ("vv",), credentials=("SET",)),
    ]
    require_credentials(specs[2:])
    with pytest.raises(ConfigError) as raised:
        require_credentials(specs)
    first, second = str(raised.value).splitlines()
    assert first == (
        "c.yml, line 2: one needs the environment variable NOT_SET, which is not set; set it, or "
        "remove the source"
    )
    assert "two needs the environment variable EMPTY, which is not set (ask them);" in second
    assert "sesame" not in str(raised.value)
