import numpy as np
import pytest
import torch

from smgrid.training import shuffle
from smgrid.training.shuffle import shuffled
from smgrid.training.table import make_samples


def make_tables(sizes, *, series=4, read=None):
    """Tables whose label is their number and whose longitude numbers the rows of all."""
    start = 0
    for number, size in enumerate(sizes):
        if read is not None:
            read.append(size)
        rows = np.arange(start, start + size)
        yield make_samples(
            torch.from_numpy(rows[:, None].astype("f4")),
            (10 * number + torch.arange(series)).reshape(-1, 1, 1).expand(-1, 3, 46),
            torch.from_numpy(rows % series),
            label=float(number),
            longitude=rows,
        )
        start += size


def batches_of(sizes, *, batch_size=10, buffer=40, seed=0, **options):
    rng = np.random.default_rng(seed)
    return list(
        shuffled(make_tables(sizes, **options), batch_size=batch_size, buffer=buffer, rng=rng)
    )


SIZES = {
    "large": [300] * 5,
    "small": [3] * 200,
    "mixed": [1, 250, 0, 7, 90, 2, 2, 2, 400, 31],
    "one": [95],
    "few": [4],
    "none": [],
    "empty": [0, 0],
}


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
@pytest.mark.parametrize("buffer", [1, 40, 5000])
@pytest.mark.parametrize("batch_size", [1, 10, 64])
def test_every_row_comes_once_with_what_belongs_to_it(sizes, buffer, batch_size):
    batches = batches_of(sizes, buffer=buffer, batch_size=batch_size)
    assert {len(batch) for batch in batches[:-1]} <= {batch_size}
    rows = np.concatenate([np.empty(0), *(batch.longitude for batch in batches)])
    np.testing.assert_array_equal(np.sort(rows), np.arange(sum(sizes)))
    number = np.repeat(np.arange(len(sizes)), sizes)
    for batch in batches:
        row = batch.longitude.astype(int)
        np.testing.assert_array_equal(batch.snapshot[:, 0], row)
        np.testing.assert_array_equal(batch.label, number[row])
        own = batch.series[batch.series_index][:, 0, 0]
        np.testing.assert_array_equal(own, 10 * number[row] + row % 4)
        assert len(batch.series) <= len(batch)


def test_tables_larger_than_the_buffer_are_mixed_from_the_first_batch_to_the_last():
    batches = batches_of([400] * 8, batch_size=20, buffer=40)
    mixed = [len(batch.label.unique()) for batch in batches]
    assert min(mixed[:-1]) >= 2
    assert np.median(mixed) >= 4
    # No table is most of a batch but for the two that the stream begins with.
    most = [int(batch.label.unique(return_counts=True)[1].max()) for batch in batches[20:-1]]
    assert max(most) < 17


def test_the_tables_do_not_follow_one_another_in_a_batch():
    for batch in batches_of([400] * 8, batch_size=40)[:-1]:
        assert int((batch.label.diff() != 0).sum()) > len(batch.label.unique())


def test_small_tables_are_joined_once_and_not_in_every_batch(monkeypatch):
    joined = []
    join = shuffle.join_samples
    monkeypatch.setattr(shuffle, "join_samples", lambda p: joined.append(len(p)) or join(p))
    batches = batches_of([2] * 600, batch_size=100, buffer=400)
    assert sum(joined) <= 600 + 10 * len(batches)


def test_a_table_in_the_buffer_is_shuffled_as_a_whole():
    """Rows of small tables meet whatever others there are, not only those beside them."""
    batches = batches_of([2] * 100, batch_size=20, buffer=1000)
    place = np.concatenate([batch.longitude for batch in batches])
    assert abs(np.corrcoef(place, np.arange(200))[0, 1]) < 0.25
    assert min(len(batch.label.unique()) for batch in batches) > 12


def test_tables_are_read_when_they_are_needed_and_dropped_when_they_are_used_up():
    for size, buffer, most in ((300, 40, 6), (300, 600, 6), (30, 400, 31)):
        read, drawn = [], np.zeros(30, int)
        tables, rng = make_tables([size] * 30, read=read), np.random.default_rng(0)
        for batch in shuffled(tables, batch_size=10, buffer=buffer, rng=rng):
            assert sum(read) - drawn.sum() >= buffer or len(read) == 30
            drawn += np.bincount(batch.label.numpy().astype(int), minlength=30)
            # Whole tables in memory: twice what is left to draw from, and the one just read.
            assert len(read) - (drawn == size).sum() <= most
            assert sum(read) - drawn.sum() < max(buffer, 2 * size) + max(size, buffer // 4 + size)


def test_the_order_follows_from_the_seed():
    one, again, other = (batches_of([90] * 9, seed=seed) for seed in (1, 1, 2))
    for a, b in zip(one, again, strict=True):
        np.testing.assert_array_equal(a.longitude, b.longitude)
        assert torch.equal(a.features, b.features)
    assert not np.array_equal(one[0].longitude, other[0].longitude)
