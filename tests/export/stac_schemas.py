"""JSON schemas with which stac-validator runs without a network.

Those of STAC 1.1 itself come with pystac. Those of extensions are fetched by URL in the wild; here
stand the rules of their documentation for the fields that smgrid writes, in words of our own: what
must be there, what type it has, and that no field of the prefix is misspelt.
"""

import json
from importlib.resources import files

CORE = "https://schemas.stacspec.org/v1.1.0"
_PARTS = ("basics", "bands", "common", "data-values", "datetime", "instrument", "licensing")
_TYPES = ["int8", "int16", "int32", "uint8", "uint16", "uint32", "float32", "float64"]

NUMBER, TEXT, INTEGER = {"type": "number"}, {"type": "string", "minLength": 1}, {"type": "integer"}


def _object(required, /, *, closed=False, **properties):
    return {
        "type": "object",
        "required": list(required),
        "properties": properties,
        **({"additionalProperties": False} if closed else {}),
    }


def _list(items, *, least=1, most=None):
    limit = {} if most is None else {"maxItems": most}
    return {"type": "array", "minItems": least, "items": items, **limit}


def _fields(prefix, **properties):
    """Fields of an extension: known ones have their form, unknown ones are an error."""
    return {
        "type": "object",
        "properties": {f"{prefix}:{name}": rule for name, rule in properties.items()},
        "patternProperties": {f"^(?!{prefix}:)": True},
        "additionalProperties": False,
    }


def _everywhere(url, fields, *, item=(), collection=()):
    """An extension whose fields may stand in Item properties, assets and Collections."""
    listed = {"type": "array", "contains": {"const": url}}
    assets = {"type": "object", "additionalProperties": fields}
    as_item = _object(
        ["properties", "assets", "stac_extensions"],
        stac_extensions=listed,
        properties={"allOf": [fields, {"required": list(item)}]},
        assets=assets,
    )
    as_collection = {
        "allOf": [
            fields,
            _object(
                ["stac_extensions", *collection],
                stac_extensions=listed,
                assets=assets,
                item_assets=assets,
            ),
        ]
    }
    feature = {"properties": {"type": {"const": "Feature"}}}
    return {"$id": url, "if": feature, "then": as_item, "else": as_collection}


def _datacube(url):
    space = _object(
        ["type", "axis", "extent"],
        type={"const": "spatial"},
        axis={"enum": ["x", "y"]},
        extent=_list(NUMBER, least=2, most=2),
        step={"type": ["number", "null"]},
        reference_system={"type": ["integer", "string", "object"]},
    )
    stamp = {"type": "string", "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$"}
    time = _object(
        ["type", "extent"],
        type={"const": "temporal"},
        extent=_list(stamp, least=2, most=2),
        values=_list(stamp),
    )
    variable = _object(
        ["dimensions", "type"],
        closed=True,
        dimensions=_list(TEXT),
        type={"enum": ["data", "auxiliary"]},
        description=TEXT,
        unit=TEXT,
    )
    fields = _fields(
        "cube",
        dimensions={"type": "object", "additionalProperties": {"oneOf": [space, time]}},
        variables={"type": "object", "additionalProperties": variable},
    )
    return _everywhere(url, fields, collection=["cube:dimensions"])


def _projection(url):
    fields = _fields(
        "proj",
        code={"type": ["string", "null"], "pattern": "^[^:]+:[^:]+$"},
        wkt2={"type": ["string", "null"]},
        bbox=_list(NUMBER, least=4, most=4),
        shape=_list(INTEGER, least=2, most=2),
        transform=_list(NUMBER, least=6, most=9),
    )
    return _everywhere(url, fields)


def _classification(url):
    name = {"type": "string", "pattern": "^[0-9A-Za-z-_]+$"}
    one = _object(["value", "name"], value=INTEGER, name=name, description=TEXT)
    field = _object(
        ["offset", "length", "classes"],
        offset={"type": "integer", "minimum": 0},
        length={"type": "integer", "minimum": 1},
        classes={**_list(one), "uniqueItems": True},
        name=TEXT,
    )
    band = _fields("classification", bitfields={**_list(field), "uniqueItems": True})
    asset = {"allOf": [band, _object([], **{"raster:bands": _list(band)})]}
    return _everywhere(url, asset)


def _raster(url):
    band = _object(
        [],
        data_type={"enum": _TYPES},
        nodata={"anyOf": [NUMBER, {"enum": ["nan", "inf", "-inf"]}]},
        scale=NUMBER,
        offset=NUMBER,
        unit={"type": "string"},
    )
    return _everywhere(url, _fields("raster", bands=_list(band)))


def _sat(url):
    fields = _fields(
        "sat",
        orbit_state={"enum": ["ascending", "descending", "geostationary"]},
        relative_orbit={"type": "integer", "minimum": 1},
    )
    return _everywhere(url, fields)


def _mlm(url):
    shape, order = _list({"type": "integer", "minimum": -1}), _list({"pattern": "^[a-z-_]+$"})
    array = _object(
        ["shape", "dim_order", "data_type"],
        shape=shape,
        dim_order={**order, "uniqueItems": True},
        data_type={"enum": _TYPES},
    )
    scaling = _object(
        ["type", "minimum", "maximum"], type={"const": "min-max"}, minimum=NUMBER, maximum=NUMBER
    )
    expression = _object(["format", "expression"], format=TEXT, expression={})
    given = _object(
        ["name", "bands", "input"],
        name=TEXT,
        bands=_list(TEXT, least=0),
        input=array,
        value_scaling=_list(scaling),
        pre_processing_function=expression,
    )
    tasks = _list({"enum": ["regression", "classification"]})
    made = _object(["name", "tasks", "result"], name=TEXT, tasks=tasks, result=array)
    in_item = _fields(
        "mlm",
        name={"type": "string", "pattern": r"^[a-zA-Z][a-zA-Z0-9_.\-\s]+[a-zA-Z0-9]$"},
        architecture=TEXT,
        tasks=tasks,
        framework={"enum": ["PyTorch"]},
        framework_version={"type": "string", "pattern": r"^\d+\.\d+\.\d+(\+[0-9a-zA-Z.-]+)?$"},
        accelerator={"type": ["string", "null"]},
        pretrained_source={"type": ["string", "null"]},
        total_parameters=INTEGER,
        memory_size=INTEGER,
        input=_list(given),
        output=_list(made),
        hyperparameters={
            "type": "object",
            "minProperties": 1,
            "propertyNames": {"pattern": "^[0-9a-zA-Z_.-]+$"},
        },
    )
    asset = {
        **_fields("mlm", artifact_type=TEXT),
        "if": _object(["roles"], roles={"contains": {"const": "mlm:model"}}),
        "then": {"required": ["mlm:artifact_type"]},
        "else": {"not": {"required": ["mlm:artifact_type"]}},
    }
    required = ["name", "architecture", "tasks", "input", "output"]
    described = _object(["name"], name=TEXT)
    # The bands that the inputs refer to stand in the asset of the model.
    model = _object(["raster:bands"], **{"raster:bands": _list(described)})
    return {
        "$id": url,
        "type": "object",
        "required": ["properties", "assets", "stac_extensions"],
        "properties": {
            "stac_extensions": {"contains": {"const": url}},
            "properties": {"allOf": [in_item, {"required": [f"mlm:{name}" for name in required]}]},
            "assets": {
                "additionalProperties": asset,
                "required": ["model"],
                "properties": {"model": {"allOf": [asset, model]}},
            },
        },
    }


_EXTENSIONS = {
    "datacube/v2.2.0": _datacube,
    "projection/v2.0.0": _projection,
    "classification/v2.0.0": _classification,
    "raster/v1.1.0": _raster,
    "sat/v1.0.0": _sat,
    "mlm/v1.4.0": _mlm,
}


def schema_map(folder):
    """Write all schemas to a folder; return their paths by URL, as stac-validator takes them."""
    core = files("pystac.validation") / "jsonschemas"
    found = {}
    for kind in ("item", "collection", "catalog"):
        url = f"{CORE}/{kind}-spec/json-schema/{kind}.json"
        found[url] = core / "stac-spec" / "v1.1.0" / f"{kind}.json"
    for part in (*_PARTS, "provider"):
        for kind in ("item", "collection", "catalog"):
            url = f"{CORE}/{kind}-spec/json-schema/{part}.json"
            found[url] = core / "stac-spec" / "v1.1.0" / f"{part}.json"
    for name in ("Feature", "Geometry"):
        found[f"https://geojson.org/schema/{name}.json"] = core / "geojson" / f"{name}.json"
    for name, make in _EXTENSIONS.items():
        url = f"https://stac-extensions.github.io/{name}/schema.json"
        path = folder / f"{name.replace('/', '-')}.json"
        path.write_text(json.dumps(make(url)))
        found[url] = path
    return {url: str(path) for url, path in found.items()}
