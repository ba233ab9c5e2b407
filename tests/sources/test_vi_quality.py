"""Quality words: every bit where the user's guides put it, names, CF attributes."""

import numpy as np
import pytest
import xarray as xr

from smgrid.sources.vi_quality import FIELDS, decode_vi_quality, vi_quality_attrs

WORDS = np.arange(1 << 16).astype("uint16")
# Lowest and highest bit of each field, from table 5 of the MODIS user's guide.
BITS = {
    "modland_qa": (0, 1),
    "usefulness": (2, 5),
    "aerosol": (6, 7),
    "adjacent_cloud": (8, 8),
    "brdf_corrected": (9, 9),
    "mixed_clouds": (10, 10),
    "land_water": (11, 13),
    "snow_ice": (14, 14),
    "shadow": (15, 15),
}


@pytest.mark.parametrize("product", ["mod13", "vnp13"])
def test_every_word_against_its_digits(product):
    some = WORDS[::7]
    decoded = decode_vi_quality(xr.DataArray(some, dims="word"), product=product)
    assert list(decoded) == list(BITS)
    digits = [f"{word:016b}"[::-1] for word in some]  # bit 0 first
    for name, (low, high) in BITS.items():
        expected = [int(text[low : high + 1][::-1], 2) for text in digits]
        np.testing.assert_array_equal(decoded[name].astype(int), expected)
        assert decoded[name].dtype == ("bool" if low == high else "uint8")


def test_words_seen_in_products():
    # 2112 is a clear view of land; 65535 is what is written where nothing was processed.
    decoded = decode_vi_quality(xr.DataArray([2112, 0b1100_1101_1011_1010, 65535, np.nan]))
    assert decoded["modland_qa"].values.tolist() == [0, 2, 3, 3]
    assert decoded["usefulness"].values.tolist() == [0, 14, 15, 15]
    assert decoded["aerosol"].values.tolist() == [1, 2, 3, 3]
    assert decoded["adjacent_cloud"].values.tolist() == [False, True, True, True]
    assert decoded["mixed_clouds"].values.tolist() == [False, True, True, True]
    assert decoded["land_water"].values.tolist() == [1, 1, 7, 7]
    assert decoded["snow_ice"].values.tolist() == [False, True, True, True]


def test_land_and_water_differ_between_the_products():
    word = xr.DataArray(np.uint16(0b011 << 11))
    for product, meaning in (("mod13", "shallow_inland_water"), ("vnp13", "sea_water")):
        field = decode_vi_quality(word, product=product)["land_water"]
        position = field.attrs["flag_values"].tolist().index(field.item())
        assert field.attrs["flag_meanings"].split()[position] == meaning


@pytest.mark.parametrize("product", ["mod13", "vnp13"])
def test_cf_attributes_say_the_same_as_the_fields(product):
    attrs = vi_quality_attrs(product)
    names = attrs["flag_meanings"].split()
    masks, values = attrs["flag_masks"], attrs["flag_values"]
    assert len(names) == len(set(names)) == len(masks) == len(values)
    some = WORDS[::31]
    decoded = decode_vi_quality(xr.DataArray(some, dims="word"), product=product)
    for name, mask, value in zip(names, masks, values, strict=True):
        holds = (some & mask) == value  # as CF defines it
        field = next(f for f in FIELDS[product] if name.startswith(f.name))
        code = value >> field.first
        np.testing.assert_array_equal(holds, decoded[field.name].astype(int) == code)


def test_lazy():
    words = xr.DataArray(WORDS.reshape(256, 256), dims=("y", "x")).chunk(y=100)
    decoded = decode_vi_quality(words)
    assert all(field.chunks is not None for field in decoded.values())
    assert decoded["aerosol"].dims == ("y", "x")
