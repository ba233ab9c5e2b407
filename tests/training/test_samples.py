import numpy as np
import pandas as pd
import pytest
import xarray as xr

from smgrid.errors import ConfigError, NoDataError
from smgrid.features.layout import get_layout
from smgrid.inference.predict import predict
from smgrid.models.ensemble import predict_samples
from smgrid.training.labels import station_labels
from smgrid.training.samples import collect_samples, split_by_block, stream_samples
from tests.cubes import make_cube
from tests.inference.test_predict import ensemble  # noqa: F401  (a fixture)

LAYOUT = get_layout("released-9km")


def labelled(cube, share=1.0, seed=0):
    vv = cube["base"].to_dataset()["vv"]
    rng = np.random.default_rng(seed)
    values = rng.uniform(0.05, 0.5, vv.shape).astype(np.float32)
    values[rng.random(vv.shape) > share] = np.nan
    data = xr.DataArray(values, dims=vv.dims, coords=vv.coords, attrs={"units": "m3 m-3"})
    return data.chunk() if vv.chunks else data


def keys(samples):
    return sorted(zip(samples.time.tolist(), samples.y.tolist(), samples.x.tolist(), strict=True))


@pytest.mark.parametrize("chunks", [None, 4, 5, 13])
def test_every_labelled_pixel_comes_once_edges_included(chunks):
    cube = make_cube(chunks=chunks)
    labels = labelled(cube, share=0.7)
    samples = collect_samples(stream_samples(cube, labels, layout=LAYOUT, batch_size=50))
    expected = labels.to_series().dropna()
    assert len(samples) == len(expected)
    times = [pd.Timestamp(t) for t in samples.time]
    found = pd.Series(samples.label, index=pd.MultiIndex.from_arrays([times, samples.y, samples.x]))
    found.index.names = ["time", "y", "x"]
    pd.testing.assert_series_equal(
        found.sort_index(), expected.sort_index(), check_names=False, check_index_type=False
    )


def test_features_are_those_that_prediction_uses(ensemble):  # noqa: F811
    """What a network is trained on is what it is asked about."""
    cube = make_cube(chunks=5)
    samples = collect_samples(stream_samples(cube, labelled(cube), layout=LAYOUT))
    members = predict_samples(ensemble, samples.features)
    mapped = predict(cube, ensemble)["soil_moisture"].compute()
    at = {d: xr.DataArray(getattr(samples, d), dims="sample") for d in ("time", "y", "x")}
    np.testing.assert_allclose(members.mean(axis=0), mapped.sel(at), atol=1e-6)


def test_same_seed_same_order_other_seed_other_order():
    cube = make_cube(chunks=5)
    first, again, other = (
        list(stream_samples(cube, labelled(cube), layout=LAYOUT, batch_size=64, seed=s, buffer=200))
        for s in (3, 3, 4)
    )
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a.features, b.features)
    assert not np.array_equal(first[0].label, other[0].label)
    assert keys(collect_samples(first)) == keys(collect_samples(other))


def test_small_buffer_still_mixes_blocks_and_keeps_the_batch_size():
    cube = make_cube(chunks=5)
    batches = list(stream_samples(cube, labelled(cube), layout=LAYOUT, batch_size=32, buffer=96))
    assert {len(b) for b in batches[:-1]} == {32}
    assert len({(t, x // 500, y // 500) for b in batches[:1] for t, x, y in keys(b)}) > 1


def test_labels_out_of_range_and_incomplete_inputs_are_left_out():
    cube = make_cube()
    labels = labelled(cube)
    labels[0, 0, 0], labels[0, 0, 1] = 0.9, 0.0
    cube["base"]["clay"].values[5, 5] = np.nan
    samples = collect_samples(stream_samples(cube, labels, layout=LAYOUT))
    assert len(samples) == labels.size - 2 - 3
    assert np.isfinite(samples.features).all()


def test_labels_in_per_cent_or_of_another_shape_are_refused():
    cube = make_cube()
    labels = labelled(cube)
    with pytest.raises(ConfigError, match="units '%'"):
        stream_samples(cube, labels.assign_attrs(units="%"), layout=LAYOUT)
    with pytest.raises(ConfigError, match="one value per acquisition"):
        stream_samples(cube, labels.isel(time=0), layout=LAYOUT)


def test_an_empty_stream_says_why():
    cube = make_cube()
    labels = labelled(cube) * np.nan
    with pytest.raises(NoDataError, match="no sample"):
        collect_samples(stream_samples(cube, labels.assign_attrs(units="m3 m-3"), layout=LAYOUT))


def test_split_by_block_keeps_squares_whole_and_covers_all():
    cube = make_cube(chunks=5)
    samples = collect_samples(stream_samples(cube, labelled(cube), layout=LAYOUT))
    one, two = split_by_block(samples, size=500, share=0.3, seed=1)
    assert len(one) + len(two) == len(samples)

    def squares(part):
        return set(zip((part.x // 500).tolist(), (part.y // 500).tolist(), strict=True))

    assert not squares(one) & squares(two)
    with pytest.raises(ConfigError, match="smaller size"):
        split_by_block(samples, size=1e7)


def make_stations(cube, *, where, values, shift=0.3):
    """Stations ``shift`` pixels south-east of the centres of pixels (row, column)."""
    from pyproj import Transformer

    base = cube["base"].to_dataset()
    days = pd.DatetimeIndex(base["time"].values).normalize().unique()
    to_lonlat = Transformer.from_crs("EPSG:32631", "EPSG:4326", always_xy=True)
    x = [base["x"].values[0] + 100 * (c + shift) for _, c in where]
    y = [base["y"].values[0] - 100 * (r + shift) for r, _ in where]
    lon, lat = to_lonlat.transform(x, y)
    return xr.Dataset(
        {"soil_moisture": (("station", "time"), np.float32(values))},
        coords={
            "station": [f"s{i}" for i in range(len(where))],
            "longitude": ("station", lon),
            "latitude": ("station", lat),
            "time": days,
        },
    )


@pytest.mark.parametrize("shift", [-0.45, 0.45])
@pytest.mark.parametrize("chunks", [None, 4])
def test_stations_fall_in_the_pixels_that_contain_them(chunks, shift):
    cube = make_cube(chunks=chunks)
    where = [(0, 0), (12, 16), (4, 7), (4, 7), (40, 3)]
    values = [[0.1, 0.2], [0.3, np.nan], [0.2, 0.2], [0.4, np.nan], [0.5, 0.5]]
    stations = make_stations(cube, where=where, values=values, shift=shift)
    labels = station_labels(stations, cube).compute()
    assert int(labels.notnull().sum()) == 3 + 2 + 3  # two acquisitions on the first day
    assert labels[0, 0, 0] == labels[1, 0, 0] == np.float32(0.1)
    assert labels[2, 0, 0] == np.float32(0.2)
    np.testing.assert_allclose(labels[:, 4, 7], [0.3, 0.3, 0.2], rtol=1e-6)
    assert np.isnan(labels[2, 12, 16])


def test_stations_elsewhere_are_an_error_that_counts_them():
    cube = make_cube()
    with pytest.raises(NoDataError, match="0 of 1 stations lie in the grid"):
        station_labels(make_stations(cube, where=[(500, 500)], values=[[0.1, 0.1]]), cube)
