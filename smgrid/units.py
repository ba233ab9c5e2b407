"""Units as providers spell them, and the exact conversions to those of smgrid."""

import math
from collections.abc import Mapping

from smgrid.errors import SchemaError

# Spellings of one and the same unit, found in provider files; the value is smgrid's spelling.
_SPELLINGS: Mapping[str, str] = {
    "": "1",
    "dimensionless": "1",
    "db": "dB",
    "degrees": "degree",
    "deg": "degree",
    "kelvin": "K",
    "C": "degC",
    "°C": "degC",
    "celsius": "degC",
    "Celsius": "degC",
    "degree_Celsius": "degC",
    "degrees_Celsius": "degC",
    "metre": "m",
    "meter": "m",
    "metres": "m",
    "meters": "m",
    "m of water equivalent": "m",
    "mm/day": "mm",
    "mm d-1": "mm",
    "mm day-1": "mm",
    "%": "percent",
    "g/kg": "g kg-1",
    "cg/cm3": "cg cm-3",
    "cg/cm³": "cg cm-3",
    "g/cm3": "g cm-3",
    "g/cm³": "g cm-3",
    "kg/dm3": "g cm-3",
    "kg/dm³": "g cm-3",
    "kg dm-3": "g cm-3",
    "kg/m3": "kg m-3",
    "kg/m³": "kg m-3",
    "m3/m3": "m3 m-3",
    "cm3/cm3": "m3 m-3",
    "cm3 cm-3": "m3 m-3",
    "cm**3/cm**3": "m3 m-3",
    "m**3 m**-3": "m3 m-3",
}

# (from, to): (factor, offset), exact by the definition of the units. A daily total in kg m-2 is
# its depth in millimetres at the conventional density of water of 1000 kg m-3.
_CONVERSIONS: Mapping[tuple[str, str], tuple[float, float]] = {
    ("degC", "K"): (1.0, 273.15),
    ("mm", "m"): (1e-3, 0.0),
    ("cm", "m"): (1e-2, 0.0),
    ("kg m-2", "m"): (1e-3, 0.0),
    ("percent", "g kg-1"): (10.0, 0.0),
    ("g cm-3", "cg cm-3"): (100.0, 0.0),
    ("kg m-3", "cg cm-3"): (0.1, 0.0),
    ("percent", "m3 m-3"): (1e-2, 0.0),
    ("rad", "degree"): (180.0 / math.pi, 0.0),
}


def find_conversion(stored: str, units: str, *, name: str) -> tuple[float, float]:
    """Return factor and offset that turn values in the units `stored` into `units`.

    Parameters
    ----------
    stored
        As the provider spells them.
    units
        One of smgrid's.
    name
        The variable, for the message.

    Raises
    ------
    SchemaError
        If no exact conversion is listed.
    """
    spelled = _SPELLINGS.get(stored.strip(), stored.strip())
    if spelled == units:
        return 1.0, 0.0
    if (spelled, units) in _CONVERSIONS:
        return _CONVERSIONS[spelled, units]
    known = sorted(start for start, end in _CONVERSIONS if end == units)
    msg = (
        f"{name}: no exact conversion from {stored!r} to {units!r}; "
        f"known for {units!r}: {', '.join([units, *known])}"
    )
    raise SchemaError(msg)
