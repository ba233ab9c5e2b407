"""Products of OPERA RTC-S1 for tests: bursts and static layers in their true form, small."""

import numpy as np

from tests.builders import make_item, utm_grid, write_cog

GRID = utm_grid((4, 6), 120)
FINE = GRID.zoom_to((16, 24))  # 30 m
RTC = {"vv": "0_VV", "vh": "0_VH", "mask": "0_mask"}
STATIC = {"angle": "0_incidence_angle", "gamma0_to_sigma0": "0_rtc_anf_gamma0_to_sigma0"}
# Bursts of one pass, and where their pixels lie in FINE: neighbours overlap, outside is NaN.
BURSTS = {
    "T088-187178-IW1": (slice(0, 10), slice(0, 14)),
    "T088-187178-IW2": (slice(0, 10), slice(10, 24)),
    "T088-187179-IW1": (slice(8, 16), slice(0, 14)),
    "T088-187179-IW2": (slice(8, 16), slice(10, 24)),
}


def pixels(value, part):
    values = np.full(FINE.shape, np.nan, "float32")
    values[part] = value
    return values


def mask_of(part, masked):
    """Return 0 inside the burst and 255 outside, with the given (row, column, reason)."""
    mask = np.full(FINE.shape, 255, "uint8")
    mask[part] = 0
    for row, column, reason in masked:
        mask[row, column] = reason
    return mask


def write_burst(folder, burst, start, *, value=0.1, unit="A", made="20240401T000000Z", masked=()):
    """Write the files of one burst as the product does; return its item as CMR-STAC gives it."""
    stamp = start.replace("-", "").replace(":", "")
    name = f"OPERA_L2_RTC-S1_{burst}_{stamp}Z_{made}_S1{unit}_30_v1.0"
    part = BURSTS[burst]
    mask = mask_of(part, masked)
    files = {
        "0_VV": write_cog(folder / f"{name}_VV.tif", pixels(value, part), FINE, nodata=np.nan),
        "0_VH": write_cog(folder / f"{name}_VH.tif", pixels(value / 4, part), FINE, nodata=np.nan),
        "0_mask": write_cog(folder / f"{name}_mask.tif", mask, FINE, nodata=255),
    }
    return make_item(name, FINE, files, start=start, end=start, projection="absent")


def write_layers(folder, burst, factor, angle=39.0, *, since="20140403", masked=()):
    """Write the static layers of one burst; return their item."""
    name = f"OPERA_L2_RTC-S1-STATIC_{burst}_{since}_S1A_30_v1.0"
    part = BURSTS.get(burst, (slice(None), slice(None)))
    layers = {"incidence_angle": angle, "rtc_anf_gamma0_to_sigma0": factor}
    files = {
        f"0_{layer}": write_cog(
            folder / f"{name}_{layer}.tif", pixels(value, part), FINE, nodata=np.nan
        )
        for layer, value in layers.items()
    }
    mask = mask_of(part, masked)
    files["0_mask"] = write_cog(folder / f"{name}_mask.tif", mask, FINE, nodata=255)
    return make_item(name, FINE, files, start=since, end=since, projection="absent")


def one_pass(folder, day="2024-03-05", **kwargs):
    seconds = [6, 7, 9, 10]
    return [
        write_burst(folder, burst, f"{day}T17:32:{second:02d}", **kwargs)
        for burst, second in zip(BURSTS, seconds, strict=True)
    ]
