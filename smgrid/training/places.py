"""Which samples belong together: the station, the cell of EASE-Grid 2.0 or the year they are of.

Keys are whole numbers that follow the sorted facts, so that they do not depend on the order of the
rows; a draw over keys then gives the same part to a sample wherever it stands in the table.
"""

from collections.abc import Iterable
from itertools import product
from numbers import Integral

import numpy as np
import numpy.typing as npt
import pandas as pd

from smgrid.ease import EASE_CRS, ease_position
from smgrid.errors import ConfigError
from smgrid.grid import transform_points
from smgrid.training.table import JOINED, Samples

IntArray = npt.NDArray[np.int64]

_DIGITS = 6  # of a degree: 0.1 m, so that a pixel met in two tables is one position
_SNAP = 1e-6  # fraction of a cell that is floating-point noise


def list_facts(*tables: Samples) -> pd.DataFrame:
    """List where and when the rows of all tables were taken; longitudes count from -180 to 180."""
    frames = (
        pd.DataFrame(
            {
                "network": table.network,
                "station": table.station,
                "longitude": _wrap(table.longitude.round(_DIGITS)).round(_DIGITS),
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

    A pixel that holds several stations has one key with all of them. So has a station without a
    network with those of its name in any network, of which it may be one.

    Raises
    ------
    ConfigError
        Samples have neither.
    """
    named = facts["station"] != ""
    where = facts[["longitude", "latitude"]]
    require_known(named | where.notna().all(axis=1), "station and no position")
    names = facts[["network", "station"]].where(named, "")
    key = _key(where.mask(named, 0.0).join(names))
    return _join_names(names.iloc[np.unique(key, return_index=True)[1]])[key]


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


def list_stations(samples: Samples) -> set[tuple[str, str]]:
    """Return network and name of every station, those that share a pixel each by itself."""
    joined = {*zip(samples.network.tolist(), samples.station.tolist(), strict=True)}
    return {
        pair
        for network, station in joined
        if station
        for pair in _pair_names(network.split(JOINED), station.split(JOINED))
    }


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


def check_seed(seed: int) -> None:
    """Refuse a seed that no draw can start from."""
    if not isinstance(seed, Integral) or seed < 0:
        raise ConfigError(f"seed: expected a whole number, 0 or more, found {seed!r}")


def _wrap(longitude: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return (longitude + 180) % 360 - 180


def _join_names(names: pd.DataFrame) -> IntArray:
    """Give rows that share a station, by way of others or not, the number of the first one."""
    number = np.arange(len(names))
    single = pd.DataFrame(
        [
            (row, *pair)
            for row, (network, station) in enumerate(names.itertuples(index=False))
            if station
            for pair in _pair_names(network.split(JOINED), station.split(JOINED))
        ],
        columns=["row", "network", "station"],
    )
    anywhere = single["station"].isin(single.loc[single["network"] == "", "station"])
    single["network"] = single["network"].mask(anywhere, "")
    row = single["row"].to_numpy(np.int64)
    number[row] = join_keys(row, _key(single[["network", "station"]]))
    return number


def _pair_names(networks: list[str], stations: list[str]) -> Iterable[tuple[str, str]]:
    """Pair stations with their networks, of which there is one for all or one for each."""
    if len(networks) == len(stations):
        return zip(networks, stations, strict=True)
    return product(networks, stations)


def _key(frame: pd.DataFrame) -> IntArray:
    groups = frame.groupby(list(frame), sort=True, dropna=False)
    return np.asarray(groups.ngroup(), np.int64)
