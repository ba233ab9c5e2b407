"""Legends of land-cover products: which code of a file means which of the groups that all share."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

GROUPS = ("water", "urban", "wetland", "snow", "tree", "shrub", "grass", "crop", "bare")
"""Groups of classes, in the order of the values 1, 2, ... of ``landcover``."""

UNKNOWN = -1
"""What `Legend.table` gives for a code that the product does not define."""


@dataclass(frozen=True)
class Legend:
    """The codes of one product."""

    groups: Mapping[int, str]
    """Code -> one of `GROUPS`."""
    missing: frozenset[int]
    """Codes of pixels without a class: no data, clouds."""
    citation: str
    """Where the codes are defined."""

    @property
    def table(self) -> npt.NDArray[np.int8]:
        """Place in `GROUPS` by code 0..255; `len(GROUPS)` where missing, else `UNKNOWN`."""
        table = np.full(256, UNKNOWN, dtype="int8")
        for code, group in self.groups.items():
            table[code] = GROUPS.index(group)
        table[list(self.missing)] = len(GROUPS)
        return table


# Mangroves stand in water and count as wetland. Moss and lichen, mostly on rock, count as bare.
_WORLDCOVER = Legend(
    groups={
        10: "tree",
        20: "shrub",
        30: "grass",
        40: "crop",
        50: "urban",
        60: "bare",
        70: "snow",
        80: "water",
        90: "wetland",
        95: "wetland",
        100: "bare",
    },
    missing=frozenset({0}),
    citation="ESA WorldCover Product User Manual V2.0 (Van De Kerchove et al. 2022), table 3",
)
# The first edition tells grass (3) from scrub (6); the annual one calls both rangeland (11).
_IO_LULC = Legend(
    groups={
        1: "water",
        2: "tree",
        3: "grass",
        4: "wetland",
        5: "crop",
        6: "shrub",
        7: "urban",
        8: "bare",
        9: "snow",
        11: "grass",
    },
    missing=frozenset({0, 10}),
    citation="Karra et al. 2021, doi:10.1109/IGARSS47720.2021.9553499; file:values of the items",
)
_DYNAMIC_WORLD = Legend(
    groups={
        0: "water",
        1: "tree",
        2: "grass",
        3: "wetland",
        4: "crop",
        5: "shrub",
        6: "urban",
        7: "bare",
        8: "snow",
    },
    missing=frozenset(),
    citation="Brown et al. 2022, doi:10.1038/s41597-022-01307-4, table 2",
)
_FORESTS = (111, 112, 113, 114, 115, 116, 121, 122, 123, 124, 125, 126)
_COPERNICUS_100M = Legend(
    groups={
        20: "shrub",
        30: "grass",
        40: "crop",
        50: "urban",
        60: "bare",
        70: "snow",
        80: "water",
        90: "wetland",
        100: "bare",
        **dict.fromkeys(_FORESTS, "tree"),
        200: "water",
    },
    missing=frozenset({0, 255}),
    citation="Buchhorn et al. 2020, Copernicus Global Land Cover Layers, doi:10.3390/rs12061044",
)

LEGENDS: Mapping[str, Legend] = MappingProxyType(
    {
        "esa-worldcover": _WORLDCOVER,
        "io-lulc": _IO_LULC,
        "dynamic-world": _DYNAMIC_WORLD,
        "copernicus-100m": _COPERNICUS_100M,
    }
)
"""By the name that the option ``product`` of a source takes."""
