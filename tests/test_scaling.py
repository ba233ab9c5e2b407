"""The page on scaling shows what its formulas give, and these follow the area."""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[1] / "docs"


@pytest.fixture
def scaling(monkeypatch):
    spec = importlib.util.spec_from_file_location("scaling", DOCS / "scaling.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "scaling", module)
    spec.loader.exec_module(module)
    return module


def test_the_page_shows_the_table_of_today(scaling):
    page = (DOCS / "scaling.md").read_text(encoding="utf-8")
    assert scaling.table() in page


def test_a_country_by_hand(scaling):
    found = scaling.needs(scaling.Region("a country", 331_000, 60))
    px_dates = 331_000 * 100 * 60
    assert found.px_dates == px_dates
    assert found.units == 127 * 60  # 33.1 million pixels in tiles of 262 144
    assert found.map_core_hours == pytest.approx(px_dates / 16_600 / 3600)
    assert found.read_gb == pytest.approx(px_dates * 100 * 2 * 3.2 / 1e9)


def test_everything_grows_with_the_dates(scaling):
    region = scaling.Region("a country", 331_000, 60)
    once, twice = scaling.needs(region), scaling.needs(replace(region, dates=120))
    for name in ("units", "build_core_hours", "map_core_hours", "read_gb", "driver_hours"):
        assert getattr(twice, name) == pytest.approx(2 * getattr(once, name))
