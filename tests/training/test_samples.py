import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from torch.utils.data import DataLoader

from smgrid.cube.store import open_cube, write_cube
from smgrid.errors import ConfigError, NoDataError, SchemaError
from smgrid.features.layout import get_layout
from smgrid.grid import transform_points
from smgrid.inference.predict import predict
from smgrid.models.ensemble import predict_samples
from smgrid.training.samples import collect_samples, stream_samples
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


def places(samples):
    """Pixel centres in the CRS of the cube; the grid has whole metres."""
    x, y = transform_points(samples.longitude, samples.latitude, "EPSG:4326", "EPSG:32631")
    return {"time": samples.time, "y": y.round(2), "x": x.round(2)}


def keys(samples):
    return sorted(zip(*(v.tolist() for v in places(samples).values()), strict=True))


@pytest.mark.parametrize("chunks", [None, 4, 5, 13])
def test_every_labelled_pixel_comes_once_edges_included(chunks):
    cube = make_cube(chunks=chunks)
    labels = labelled(cube, share=0.7)
    samples = collect_samples(stream_samples(cube, labels, layout=LAYOUT, batch_size=50))
    expected = labels.to_series().dropna()
    assert len(samples) == len(expected)
    index = pd.MultiIndex.from_arrays(list(places(samples).values()))
    found = pd.Series(samples.label.numpy(), index=index)
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
    at = {d: xr.DataArray(v, dims="sample") for d, v in places(samples).items()}
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
    assert torch.isfinite(samples.features).all()


def test_labels_in_per_cent_or_of_another_shape_are_refused():
    cube = make_cube()
    labels = labelled(cube)
    with pytest.raises(ConfigError, match="units '%'"):
        stream_samples(cube, labels.assign_attrs(units="%"), layout=LAYOUT)
    with pytest.raises(ConfigError, match="one value per acquisition"):
        stream_samples(cube, labels.isel(time=0), layout=LAYOUT)


def days_later(labels, days):
    return labels.assign_coords(time=labels["time"].values + np.timedelta64(days, "D"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda da: da.sortby("y"),
            r"y runs .* off by up to 12 pixels; .*south to north: labels\.",
        ),
        (lambda da: da.isel(x=slice(None, None, -1)), r"x runs .* east to west: labels\.sortby"),
        (lambda da: da.assign_coords(x=da["x"] + 100), "x runs .* up to 1 pixels; .*collocate_lab"),
        (lambda da: da.assign_coords(y=da["y"] + 0.2), r"y runs .* up to 0\.002 pixels; "),
        (lambda da: da.assign_coords(y=da["y"] * np.nan), "y runs from nan"),
        (lambda da: da.isel(time=[0, 2, 1]), r"at 2 of 3 steps, first at step 1: .*sortby\('time'"),
        (lambda da: days_later(da, 1), r"3 of 3 .* 2021-03-03 05:30:00, expected 2021-03-02 05:30"),
        (lambda da: da.assign_coords(time=da["time"].dt.floor("D")), "3 of 3 .* collocate_labels"),
        (lambda da: da.assign_coords(time=[0, 1, 2]), "time has the type int64, expected datetime"),
    ],
)
@pytest.mark.parametrize("as_dataset", [False, True])
def test_labels_on_other_times_or_pixels_are_refused(change, message, as_dataset):
    cube = make_cube(chunks=5)
    labels = change(labelled(cube))
    with pytest.raises(ConfigError, match=message):
        stream_samples(
            cube, labels.to_dataset(name="label") if as_dataset else labels, layout=LAYOUT
        )


@pytest.mark.parametrize(
    "change",
    [
        lambda da: da.assign_coords(x=da["x"] - 0.05, y=da["y"] + 1e-7),
        lambda da: da.drop_vars(list(da.coords)),
        lambda da: da.assign_coords(orbit_state=("time", ["x", "y", "z"])),
        lambda da: da.assign_coords(time=da["time"].values.astype("M8[s]")),
    ],
)
def test_labels_that_lie_there_but_for_noise_are_those_of_the_cube(change):
    cube = make_cube(chunks=5)
    labels = labelled(cube, share=0.7)
    expected = collect_samples(stream_samples(cube, labels, layout=LAYOUT))
    found = collect_samples(stream_samples(cube, change(labels), layout=LAYOUT))
    assert same([expected], [found])


def test_an_empty_stream_says_why():
    cube = make_cube()
    labels = labelled(cube) * np.nan
    with pytest.raises(NoDataError, match=r"no sample: .* label \(0 < sm <= 0\.7 m3 m-3\)"):
        collect_samples(stream_samples(cube, labels.assign_attrs(units="m3 m-3"), layout=LAYOUT))


def same(one, other):
    return all(
        torch.equal(a.features, b.features)
        and torch.equal(a.label, b.label)
        and keys(a) == keys(b)
        and (a.time == b.time).all()
        for a, b in zip(one, other, strict=True)
    )


def test_worker_processes_make_the_same_stream(tmp_path):
    cube = make_cube(chunks=5)
    write_cube(cube, tmp_path / "cube.zarr", shard=5)
    options = {"layout": LAYOUT, "batch_size": 64, "buffer": 200, "share": 0.6}
    cube = open_cube(tmp_path / "cube.zarr")
    stream = stream_samples(cube, labelled(cube), **options)
    alone, helped = list(stream), list(stream_samples(cube, labelled(cube), **options, workers=2))
    assert len(alone) > 2
    assert same(alone, helped)
    # The same through a loader of the user, whose workers share the blocks among them.
    shared = list(
        DataLoader(stream, batch_size=None, num_workers=2, multiprocessing_context="spawn")
    )
    assert keys(collect_samples(shared)) == keys(collect_samples(alone))


def test_another_epoch_has_the_same_samples_in_another_order():
    cube = make_cube(chunks=5)
    stream = stream_samples(cube, labelled(cube), layout=LAYOUT, batch_size=64, buffer=200)
    first, second = list(stream), list(stream.epoch(1))
    assert same(first, list(stream))
    assert not torch.equal(first[0].label, second[0].label)
    assert keys(collect_samples(first)) == keys(collect_samples(second))


def test_a_share_of_the_pixels_is_drawn_anew_in_every_epoch():
    cube = make_cube(chunks=5)
    stream = stream_samples(cube, labelled(cube), layout=LAYOUT, share=0.3)
    drawn = [set(keys(collect_samples(stream.epoch(k)))) for k in range(3)]
    total = 3 * 13 * 17
    assert all(0.2 * total < len(d) < 0.4 * total for d in drawn)
    assert drawn[0] != drawn[1] != drawn[2]
    assert drawn[0] == set(keys(collect_samples(stream)))


def test_samples_without_labels():
    cube = make_cube(chunks=5)
    samples = collect_samples(stream_samples(cube, None, layout=LAYOUT))
    assert len(samples) == 3 * 13 * 17
    assert torch.isnan(samples.label).all()
    assert (samples.weight == 1).all()


def test_lag_and_station_come_with_the_labels():
    cube = make_cube(chunks=5)
    vv = cube["base"].to_dataset()["vv"]
    code = np.full(vv.shape[1:], -1, np.int32)
    code[3, 4], code[12, 16] = 0, 1
    labels = xr.Dataset(
        {
            "label": labelled(cube),
            "lag": ("time", np.float32([1, -2, np.nan])),
            "station": (("y", "x"), code, {"stations": ["a", "b"], "networks": ["n", "m"]}),
        }
    )
    samples = collect_samples(stream_samples(cube, labels, layout=LAYOUT))
    assert sorted(set(zip(samples.station, samples.network, strict=True))) == [
        ("", ""),
        ("a", "n"),
        ("b", "m"),
    ]
    one = samples.take(samples.station == "a")
    assert places(one)["x"].tolist() == [float(vv["x"][4])] * 3
    assert places(one)["y"].tolist() == [float(vv["y"][3])] * 3
    order = np.argsort(one.time)
    np.testing.assert_array_equal(one.lag[order], np.float32([1, -2, np.nan]))


def stations_of(cube, **attrs):
    code = np.full(cube["base"]["vv"].shape[1:], -1, np.int32)
    code[3, 4] = 0
    attrs = {"stations": ["Merelbeke"], "networks": ["FR_Aqui"]} | attrs
    return xr.Dataset({"label": labelled(cube), "station": (("y", "x"), code, attrs)})


def test_a_station_that_is_alone_keeps_its_name_in_a_file(tmp_path):
    cube = make_cube(chunks=5)
    written = stations_of(cube)
    for variable in written.variables.values():
        variable.encoding = {}
    written.to_netcdf(tmp_path / "labels.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "labels.nc", engine="h5netcdf") as labels:
        assert labels["station"].attrs["stations"] == "Merelbeke"
        samples = collect_samples(stream_samples(cube, labels, layout=LAYOUT))
    assert set(samples.station) == {"Merelbeke", ""}
    assert set(samples.network) == {"FR_Aqui", ""}


def test_labels_given_are_left_as_they_are():
    cube = make_cube()
    labels = stations_of(cube, stations="Merelbeke", networks="FR_Aqui")
    before = labels.copy(deep=True)
    collect_samples(stream_samples(cube, labels, layout=LAYOUT))
    xr.testing.assert_identical(labels, before)


def test_every_station_has_its_names():
    cube = make_cube()
    with pytest.raises(ConfigError, match="2 stations and 1 networks"):
        stream_samples(cube, stations_of(cube, stations=["a", "b"]), layout=LAYOUT)
    nameless = stations_of(cube)
    del nameless["station"].attrs["networks"]
    with pytest.raises(ConfigError, match="has no attribute networks, expected"):
        stream_samples(cube, nameless, layout=LAYOUT)
    unknown = stations_of(cube)
    unknown["station"][0, 0] = 7
    with pytest.raises(SchemaError, match=r"found station 7, but .* has 1 names"):
        collect_samples(stream_samples(cube, unknown, layout=LAYOUT))


@pytest.mark.parametrize("dims", [("time", "y", "x"), ("y", "x"), ("time",), ()])
@pytest.mark.parametrize("chunks", [None, 5])
def test_weights_come_with_the_labels(dims, chunks):
    cube = make_cube(chunks=chunks)
    labels = labelled(cube, share=0.7)
    weight = xr.DataArray(
        np.random.default_rng(1).uniform(0, 3, [labels.sizes[d] for d in dims]), dims=dims
    )
    given = xr.Dataset({"label": labels, "weight": weight})
    samples = collect_samples(stream_samples(cube, given, layout=LAYOUT))
    at = {d: xr.DataArray(v, dims="sample") for d, v in places(samples).items()}
    expected = weight.broadcast_like(labels.drop_vars(list(labels.coords)))
    expected = expected.assign_coords({d: labels[d] for d in labels.dims}).sel(at)
    assert samples.weight.dtype == torch.float32
    np.testing.assert_allclose(samples.weight, expected, rtol=1e-6)


@pytest.mark.parametrize(("wrong", "found"), [(np.nan, "nan"), (-1, "-1"), (np.inf, "inf")])
def test_weights_that_make_no_sense(wrong, found):
    cube = make_cube(chunks=5)
    labels = labelled(cube)
    weight = xr.ones_like(labels.compute())
    weight[1, 2, 3] = wrong
    given = xr.Dataset({"label": labels, "weight": weight})
    with pytest.raises(SchemaError, match=f"found a weight of {found}, expected 0 or more"):
        collect_samples(stream_samples(cube, given, layout=LAYOUT))
    # Where there is no label there need be no weight.
    given["label"] = labels.where(np.isfinite(weight) & (weight >= 0))
    given["label"].attrs["units"] = "m3 m-3"
    assert len(collect_samples(stream_samples(cube, given, layout=LAYOUT))) == labels.size - 1


def test_variables_that_nothing_is_known_of_are_refused():
    cube = make_cube()
    labels = xr.Dataset({"label": labelled(cube), "weigth": labelled(cube)})
    with pytest.raises(ConfigError, match=r"variables weigth, .* label, lag, weight, station"):
        stream_samples(cube, labels, layout=LAYOUT)
    spread = xr.Dataset({"label": labelled(cube), "weight": ("member", [1.0, 2.0])})
    with pytest.raises(ConfigError, match=r"weight has dims \('member',\), expected"):
        stream_samples(cube, spread, layout=LAYOUT)
    with pytest.raises(ConfigError, match="have the variables weight, expected label"):
        stream_samples(cube, spread[["weight"]], layout=LAYOUT)
    # Files may have their CRS among the variables.
    opened = labels[["label"]].reset_coords("spatial_ref")
    assert len(list(stream_samples(cube, opened, layout=LAYOUT))) == 1


def test_labels_of_a_block_are_read_once():
    """Label and lag often come from the same files."""
    cube = make_cube(chunks=5)
    read = []

    def note(block, block_info=None):
        if block_info:
            read.append(tuple(block_info[None]["chunk-location"]))
        return block

    labels = labelled(cube)
    source = labels.data.rechunk((1, 5, 5)).map_blocks(note, dtype="f4", meta=np.empty((0, 0, 0)))
    label = labels.copy(data=source)
    given = xr.Dataset({"label": label, "lag": label * 2, "weight": label * 3})
    samples = collect_samples(stream_samples(cube, given, layout=LAYOUT))
    np.testing.assert_allclose(samples.lag, 2 * samples.label)
    assert len(read) == len(set(read)) == 3 * 3 * 4


def test_blocks_larger_than_the_buffer_are_mixed():
    """With a label in every pixel a chunk has more samples than the buffer."""
    days = pd.date_range("2021-03-02T05:30", periods=8, freq="D")
    cube = make_cube(shape=(20, 20), times=days, chunks=20)
    stream = stream_samples(cube, labelled(cube), layout=LAYOUT, batch_size=40, buffer=100)
    dates = [len(np.unique(batch.time)) for batch in stream]
    assert min(dates) >= 2
    assert min(dates[20:]) >= 3


def test_the_random_numbers_of_others_are_left_alone():
    cube = make_cube()
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    next(iter(stream_samples(cube, labelled(cube), layout=LAYOUT)))
    assert torch.rand(1) == expected


def test_memory_is_that_of_the_buffer_not_of_the_stream():
    """What a batch refers to stays small, however many blocks went by."""
    cube = make_cube(chunks=5, shape=(30, 30))
    for batch in stream_samples(cube, labelled(cube), layout=LAYOUT, batch_size=16, buffer=64):
        assert len(batch.series) <= 16


def test_numbers_that_make_no_sense():
    cube = make_cube()
    for options in ({"batch_size": 0}, {"share": 0.0}, {"workers": -1}, {"buffer": 0}):
        with pytest.raises(ConfigError, match="expected at least 1"):
            stream_samples(cube, None, layout=LAYOUT, **options)
