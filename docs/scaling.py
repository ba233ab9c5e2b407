"""What a map of a country or a continent takes: the table of `scaling.md`, recomputed.

    python docs/scaling.py

Prints the table. The figures are measurements; where each comes from stands in `scaling.md`.
"""

import sys
from dataclasses import dataclass
from math import ceil

TILE_PX = 512
PIXEL_M = 100.0
BANDS = 2  # vv and vh
FINE_PX_PER_PX = 100.0  # 10 m scenes in a pixel of 100 m
REQUEST_PX = 512 * 512  # a block of a cloud-optimised GeoTIFF
SHARDS_PER_UNIT = 3  # vv, vh and angle; mean, spread and flags

# Measured; `scaling.md` says where each comes from.
MAP_PX_DATES_PER_CPU_S = 16_600.0
READ_FINE_PX_PER_CPU_S = 8 * 5000**2 / 4.7
BUILD_OVERHEAD = 1.05
DRIVER_S_PER_UNIT = 0.68e-3
SCENE_BYTES_PER_PX_DATE = 2.5
MAP_BYTES_PER_PX_DATE = 2.5
STATIC_BYTES_PER_PX = 7 * 1.6

# Assumed: float32 that deflates by a fifth, as speckle does.
FINE_BYTES_PER_PX = 4 * 0.8


@dataclass(frozen=True)
class Region:
    """What is mapped."""

    name: str
    km2: float
    dates: int


@dataclass(frozen=True)
class Prices:
    """In dollars."""

    core_hour: float = 0.04
    gb_month: float = 0.02
    thousand_writes: float = 0.005
    thousand_reads: float = 0.0004


PRICES = Prices()


@dataclass(frozen=True)
class Needs:
    """What a region takes."""

    px_dates: float
    units: int
    """Of the cube's scenes, and as many of the map."""
    build_core_hours: float
    map_core_hours: float
    driver_hours: float
    stored_gb: float
    read_gb: float
    requests: float
    dollars: float
    """Once, with the stores kept for a month."""


REGIONS = (
    Region("a country", 331_000, 60),
    Region("a continent", 10_000_000, 60),
)


def needs(region: Region, prices: Prices = PRICES) -> Needs:
    """Return what a region takes; the formulas stand in `scaling.md`."""
    px = region.km2 * 1e6 / PIXEL_M**2
    px_dates = px * region.dates
    units = ceil(px / TILE_PX**2) * region.dates
    fine_px = px_dates * FINE_PX_PER_PX * BANDS
    build = fine_px / READ_FINE_PX_PER_CPU_S * BUILD_OVERHEAD / 3600
    mapping = px_dates / MAP_PX_DATES_PER_CPU_S / 3600
    per_date = SCENE_BYTES_PER_PX_DATE + MAP_BYTES_PER_PX_DATE
    stored = (px_dates * per_date + px * STATIC_BYTES_PER_PX) / 1e9
    reads, writes = fine_px / REQUEST_PX, 2.0 * units * SHARDS_PER_UNIT
    dollars = (
        (build + mapping) * prices.core_hour
        + stored * prices.gb_month
        + reads / 1e3 * prices.thousand_reads
        + writes / 1e3 * prices.thousand_writes
    )
    return Needs(
        px_dates=px_dates,
        units=units,
        build_core_hours=build,
        map_core_hours=mapping,
        driver_hours=2 * units * DRIVER_S_PER_UNIT / 3600,
        stored_gb=stored,
        read_gb=fine_px * FINE_BYTES_PER_PX / 1e9,
        requests=reads + writes,
        dollars=dollars,
    )


def table() -> str:
    """Return the table in Markdown."""
    columns = [needs(region) for region in REGIONS]
    heads = [f"{r.name}, {r.km2:,.0f} km², {r.dates} dates" for r in REGIONS]
    rows = {
        "pixels × dates": [f"{n.px_dates:.2g}" for n in columns],
        "units of the cube, and of the map": [f"{n.units:,}" for n in columns],
        "core-hours to build the cube": [f"{n.build_core_hours:,.0f}" for n in columns],
        "core-hours to map it": [f"{n.map_core_hours:,.0f}" for n in columns],
        "hours on 100 cores": [
            f"{(n.build_core_hours + n.map_core_hours) / 100:,.1f}" for n in columns
        ],
        "hours of the driver": [f"{n.driver_hours:.2g}" for n in columns],
        "stored, GB": [f"{n.stored_gb:,.0f}" for n in columns],
        "read, GB": [f"{n.read_gb:,.0f}" for n in columns],
        "requests": [f"{n.requests:.2g}" for n in columns],
        "cost, $": [f"{n.dollars:,.0f}" for n in columns],
    }
    lines = ["| | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    lines += [f"| {name} | {' | '.join(values)} |" for name, values in rows.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(f"{table()}\n")
