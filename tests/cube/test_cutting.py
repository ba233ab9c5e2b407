"""One task per unit: what units share is computed once per cut, what is large once in all."""

import dask
import dask.array as da
import numpy as np
import pytest
from dask._task_spec import convert_legacy_graph, execute_graph

from smgrid.cube.cutting import UnitGraph
from smgrid.cube.guarding import Failed

UNITS = 12


def compute(graph, *sizes):
    """Compute cut after cut like a cluster that holds what it is told to; return the values."""
    held, values, tasks, start = {}, {}, [], 0
    for size in sizes:
        cut = graph.cut(range(start, start + size))
        start += size
        wanted = [*cut.places, *cut.kept]
        found = execute_graph(dict(cut.tasks), cache=dict(held), keys={*wanted, *held})
        held |= {key: found[key] for key in cut.kept}
        values |= {place: found[key] for key, place in cut.places.items()}
        tasks.append(len(cut.tasks))
    return [values[place] for place in sorted(values)], tasks


def test_what_a_unit_alone_needs_is_in_its_task():
    blocks = da.arange(UNITS, chunks=1) * 3
    values = da.map_blocks(np.add, blocks, (blocks + 1).map_blocks(np.sqrt))
    found, tasks = compute(UnitGraph(values, suffix="x"), 5, 4, 3)
    assert tasks == [5, 4, 3]
    np.testing.assert_array_equal(np.concatenate(found), values.compute())


def test_what_units_share_is_computed_once_for_all_that_are_cut_together():
    calls = []

    def read(block):
        calls.append(1)
        return block + 1

    shared = da.map_blocks(read, da.zeros(1, chunks=1), meta=np.zeros(0))
    values = da.arange(UNITS, chunks=1)[:, None] + shared[None]
    found, tasks = compute(UnitGraph(values, suffix="x"), 6, 6)
    assert (len(calls), tasks) == (2, [8, 8])  # the input and its new axis stay apart
    np.testing.assert_array_equal(np.concatenate(found)[:, 0], np.arange(UNITS) + 1)


def test_a_value_that_units_share_is_sent_once():
    weights = dask.delayed(np.arange(1000.0), pure=False)
    parts = [da.from_delayed(dask.delayed(np.sum)(weights) + i, (), float) for i in range(UNITS)]
    values = da.stack(parts)
    graph = UnitGraph(values, suffix="x")
    first, second = graph.cut(range(6)), graph.cut(range(6, 12))
    assert len(first.kept) == 1
    assert second.kept == []
    assert not set(first.kept) & set(second.tasks)
    assert any(set(first.kept) & set(task.dependencies) for task in second.tasks.values())


def test_what_took_many_tasks_is_computed_once_in_all():
    calls = []

    def read(block):
        calls.append(1)
        return block + 1.0

    blocks = da.map_blocks(read, da.arange(200, chunks=1), meta=np.zeros(0))
    values = da.arange(UNITS, chunks=1) - blocks.mean()
    found, _ = compute(UnitGraph(values, suffix="x"), 4, 4, 4)
    assert len(calls) == 200
    np.testing.assert_allclose(np.concatenate(found), np.arange(UNITS) - 100.5)


def test_sections_are_cut_as_the_whole_is(monkeypatch):
    monkeypatch.setattr("smgrid.cube.cutting._SECTION", 5)
    values = da.arange(UNITS, chunks=1) * 2
    found, _ = compute(UnitGraph(values, suffix="x"), 3, 3, 3, 3)
    np.testing.assert_array_equal(np.concatenate(found), np.arange(UNITS) * 2)


@pytest.mark.parametrize("size", [1, 12])
def test_a_unit_that_fails_does_so_alone(size):
    def fail(block, block_info=None):
        if block_info[0]["chunk-location"] == (3,):
            raise ValueError("no")
        return block

    values = da.map_blocks(fail, da.arange(UNITS, chunks=1), meta=np.zeros(0, int))
    found, _ = compute(UnitGraph(values, suffix="x"), *[size] * (UNITS // size))
    assert [isinstance(value, Failed) for value in found] == [n == 3 for n in range(UNITS)]


def test_many_tasks_stay_apart_for_several_workers():
    blocks = da.ones((1, 100), chunks=1).map_blocks(np.sqrt)
    values = da.map_blocks(np.sum, blocks.rechunk(100), keepdims=True, chunks=(1, 1))
    cut = UnitGraph(values, suffix="x").cut([0])
    assert len(cut.tasks) > 64
    convert_legacy_graph(dict(cut.tasks))
