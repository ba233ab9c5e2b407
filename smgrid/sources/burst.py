"""What the id of an OPERA product says: burst, relative orbit, satellite, direction of flight.

The items of OPERA's products in CMR-STAC state no orbit, but each is one burst, and its id is built
on ESA's burst id: a number that counts along the whole repeat cycle, so that it tells where on its
orbit the satellite is.
"""

import re
from dataclasses import dataclass

# OPERA_L2_RTC-S1_T102-217155-IW1_20240703T162341Z_20240703T220516Z_S1A_30_v1.0
# OPERA_L2_RTC-S1-STATIC_T004-006637-IW3_20140403_S1A_30_v1.0
_PRODUCT = re.compile(
    r"OPERA_L2_RTC-S1(?:-STATIC)?_(?P<burst>T(?P<track>\d{3})-(?P<number>\d{6})-IW[123])"
    r"_\d{8}(?:T\d{6}Z_\d{8}T\d{6}Z)?_S1(?P<unit>[A-D])_\d+_v(?P<version>[\d.]+)"
)
# Sentinel-1 Level 1 Detailed Algorithm Definition (DI-MPC-IPFDPM), section 9.25, table 9-7:
# number = 1 + floor((time since the node + (track - 1) orbits - preamble) / beam cycle), for IW.
_ORBIT = 12 * 24 * 3600 / 175  # [s]
_BEAM_CYCLE = 2.758273  # [s]
_PREAMBLE = 2.299849  # [s]


@dataclass(frozen=True)
class Burst:
    """The burst that an OPERA product holds."""

    name: str
    """``"T102-217155-IW1"``, the same in each repeat cycle."""
    relative_orbit: int
    """1 to 175."""
    orbit_state: str
    """``"ascending"`` or ``"descending"``."""
    platform: str
    """``"sentinel-1a"``."""
    version: str
    """Of the product, ``"1.0"``."""


def parse_burst(item_id: str) -> Burst | None:
    """Return the burst that an id names; None if it is not of an OPERA RTC-S1 product."""
    found = _PRODUCT.match(item_id)
    if found is None:
        return None
    return Burst(
        name=found["burst"],
        relative_orbit=int(found["track"]),
        orbit_state=_direction(int(found["number"])),
        platform=f"sentinel-1{found['unit'].lower()}",
        version=found["version"],
    )


def _direction(number: int) -> str:
    """Return the direction of flight of a burst, by its time since the ascending node.

    The satellite flies south from a quarter of its orbit after the ascending node, the
    northernmost point, to three quarters. The nominal times are good to seconds, so only bursts at
    the turning points, beyond 81 degrees of latitude, may be told wrongly.
    """
    since_node = ((number - 1) * _BEAM_CYCLE + _PREAMBLE) % _ORBIT
    return "descending" if _ORBIT / 4 < since_node < 3 * _ORBIT / 4 else "ascending"
