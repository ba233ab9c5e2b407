"""Which samples belong together: the station, the cell of EASE-Grid 2.0 or the year they are of.

Keys are whole numbers that follow the sorted facts, so that they do not depend on the order of the
rows; a draw over keys then gives the same part to a sample wherever it stands in the table.
"""

import numpy as np
import numpy.typing as npt
import pandas as pd

from smgrid.ease import EASE_CRS, ease_position
from smgrid.errors import ConfigError
from smgrid.grid import transform_points
from smgrid.training.table import Samples

IntArray = npt.NDArray[np.int64]

_DIGITS = 6  # of a degree: 0.1 m, so that a pixel met in two tables is one position
_SNAP = 1e-6  # fraction of a cell that is floating-point noise


def list_facts(*tables: Samples) -> pd.DataFrame:
    """List where and when the rows of all tables were taken."""
    frames = (
        pd.DataFrame(
            {
                "network": table.network,
                "station": table.station,
                "longitude": table.longitude.round(_DIGITS),
                "latitude": table.latitude.round(_DIGITS),
                "time": table.time,
            }
        )
        for table in tables
    )
    return pd.concat(frames, ignore_index=True)


def row_key(samples: Samples) -> IntArray:
    """Key of each distinct sample, told apart by all but series, weight and lag."""
    fact = _key(list_facts(samples))
    values = np.column_stack([samples.label.numpy(), samples.snapshot.numpy()])
    # As bytes: sorting 500 000 rows by twenty columns takes ten times as long.
    rows = np.hstack([fact[:, None].view(np.uint8), values.view(np.uint8)])
    whole = rows.view(f"V{rows.shape[1]}").ravel()
    return np.asarray(np.unique(whole, return_inverse=True)[1], np.int64)


def station_key(facts: pd.DataFrame) -> IntArray:
    """Key of network and station together, or of the position where there is no station.

    Raises
    ------
    ConfigError
        Samples have neither.
    """
    named = facts["station"] != ""
    where = facts[["longitude", "latitude"]]
    require_known(named | where.notna().all(axis=1), "station and no position")
    network = facts["network"].where(named, "")
    return _key(where.mask(named, 0.0).assign(network=network, station=facts["station"]))


def place_key(facts: pd.DataFrame) -> IntArray:
    """Key of the position, or of network and station where there is none.

    Raises
    ------
    ConfigError
        Samples have neither.
    """
    where = facts[["longitude", "latitude"]]
    located = where.notna().all(axis=1)
    unknown = ~located & (facts["station"] == "")
    if unknown.any():
        raise ConfigError(
            f"{int(unknown.sum())} of {len(facts)} samples have neither position nor station, so "
            "places cannot be drawn; give them one, or a plan with places='all'"
        )
    names = facts[["network", "station"]].mask(located, "")
    return _key(where.where(located, 0.0).join(names).assign(located=located))


def cell_key(facts: pd.DataFrame, km: float) -> IntArray:
    """Key of cells of any nominal size, counted from the corner of EASE-Grid 2.0.

    Raises
    ------
    ConfigError
        Samples have no position.
    """
    position = facts[["longitude", "latitude"]]
    require_known(position.notna().all(axis=1), "position")
    longitude, latitude = position.to_numpy().T
    x, y = transform_points(longitude, latitude, "EPSG:4326", EASE_CRS)
    # Not `ease_position(km=km)`: its sizes must divide the globe, and a block may be any size.
    row, column = ease_position(x, y, km=9, convention="centre")
    cells = np.floor(np.stack([row, column], axis=1) * (9 / km) + _SNAP)
    return _key(pd.DataFrame(cells, columns=["row", "column"]))


def year_of(facts: pd.DataFrame) -> IntArray:
    """Calendar year of each sample (UTC); a `ConfigError` if one has no time."""
    require_known(facts["time"].notna(), "time")
    return np.asarray(facts["time"].dt.year, np.int64)


def join_keys(*keys: IntArray) -> IntArray:
    """Key of the smallest groups of rows that none of the keys cuts."""
    group, before = keys[0], None
    while before is None or not np.array_equal(group, before):
        before = group
        for key in keys:
            group = pd.Series(group).groupby(key).transform("min").to_numpy()
    return group


def require_known(known: "pd.Series[bool]", fact: str) -> None:
    """Refuse samples without a fact that a split goes by."""
    if not known.all():
        raise ConfigError(
            f"{int((~known).sum())} of {len(known)} samples have no {fact}, which this split goes "
            'by; leave them out or use by="random"'
        )


def _key(frame: pd.DataFrame) -> IntArray:
    groups = frame.groupby(list(frame), sort=True, dropna=False)
    return np.asarray(groups.ngroup(), np.int64)
