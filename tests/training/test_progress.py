import io
import itertools
import json
import sys
import threading
from dataclasses import fields

import numpy as np
import pytest
from rich.console import Console
from rich.progress import Progress

from smgrid.errors import MissingDependencyError
from smgrid.features.layout import get_layout
from smgrid.metrics import Scores
from smgrid.training import progress as progress_module
from smgrid.training.fit import fit
from smgrid.training.loop import EpochEnd
from smgrid.training.plan import FitPlan
from smgrid.training.progress import call_each, epoch_bar, log_to_tensorboard
from tests.training.tables import random_samples

LOSS = {"fine": 0.012, "domain": 0.003, "total": 0.015}


def epoch(number, *, epochs=10, ubrmse=(0.03, 0.06), bias=0.01):
    members = tuple({**LOSS, "bias": bias, "ubrmse": value} for value in ubrmse)
    return EpochEnd(number, epochs, LOSS, members)


@pytest.fixture
def terminal(monkeypatch):
    """What a bar of its own draws, in a terminal whose clock a test can set."""
    monkeypatch.setenv("TERM", "xterm")
    stream = io.StringIO()
    stream.clock = 0.0

    def open_console(*, stderr):
        assert stderr
        return Console(
            file=stream,
            force_terminal=True,
            color_system=None,
            width=120,
            get_time=lambda: stream.clock,
        )

    monkeypatch.setattr(progress_module, "Console", open_console)
    return stream


def last_frame(stream):
    """The last line drawn; what follows it erases it and shows the cursor again."""
    frame, end = stream.getvalue().rsplit("\n", 1)
    assert end == "\x1b[?25h\r\x1b[1A\x1b[2K"
    return frame.rsplit("\x1b[2K", 1)[1]


def test_bar_shows_terms_and_mean_error_and_vanishes_when_the_job_stops_early(terminal):
    with epoch_bar() as bar:
        bar(epoch(0))
        bar(epoch(1, ubrmse=(0.02, 0.05)))
    frame = last_frame(terminal)
    assert frame.startswith("training: fine 0.0120, domain 0.0030, total 0.0150; ubRMSE 0.035 ")
    assert " 2/10 " in frame


def test_bar_waits_for_the_first_epoch(terminal):
    with epoch_bar():
        pass
    assert " 0/? " in last_frame(terminal)


def test_bar_of_a_job_that_fails_vanishes(terminal):
    def fail():
        with epoch_bar() as bar:
            bar(epoch(0))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert " 1/10 " in last_frame(terminal)


def test_remaining_time_follows_epochs_of_minutes_also_in_a_job_that_goes_on(terminal):
    with epoch_bar() as bar:
        for number in (4, 5, 6):
            terminal.clock += 100
            bar(epoch(number))
    assert last_frame(terminal).rstrip().endswith("7/10 0:05:00")


def test_bar_is_silent_without_a_terminal(capfd, monkeypatch):
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    with epoch_bar() as bar:
        bar(epoch(0))
    assert capfd.readouterr() == ("", "")


def test_bar_can_be_a_line_of_a_running_display():
    display = Progress(console=Console(file=io.StringIO()))
    with display:
        with epoch_bar(display) as bar:
            (task,) = display.tasks
            assert not task.visible
            bar(epoch(2))
            assert (task.visible, task.completed, task.total) == (True, 3, 10)
        assert display.live.is_started


def scalars(folder):
    """Steps and values by tag, as TensorBoard itself reads them."""
    module = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = module.EventAccumulator(str(folder))
    found.Reload()
    return {
        tag: ([e.step for e in found.Scalars(tag)], [e.value for e in found.Scalars(tag)])
        for tag in found.Tags()["scalars"]
    }


def test_tensorboard_holds_the_history_of_a_job_that_stopped_early(tmp_path):
    pytest.importorskip("tensorboard")
    threads = threading.active_count()
    with log_to_tensorboard(tmp_path / "new" / "board") as board:
        fit(
            random_samples(40),
            random_samples(30, seed=1),
            layout=get_layout("smgrid-1"),
            sizes=((1, 4), (1, 8)),
            plan=FitPlan(epochs=30, patience=1, learning_rate=0.5, averaging=0.0),
            out=tmp_path / "run",
            on_epoch=board,
        )
    assert threading.active_count() == threads
    lines = (tmp_path / "run" / "history.jsonl").read_text().splitlines()
    history = [json.loads(line) for line in lines]
    assert 1 < len(history) < 30
    expected = {
        f"loss/{name}": [entry["loss"][name] for entry in history] for name in ("fine", "total")
    }
    for score in {field.name for field in fields(Scores)} - {"n"}:
        members = [[m[score] for m in entry["members"]] for entry in history]
        expected[f"validation/{score}"] = np.mean(members, axis=1)
    for k in (0, 1):
        expected[f"members/ubrmse_{k + 1}"] = [e["members"][k]["ubrmse"] for e in history]
    found = scalars(tmp_path / "new" / "board")
    assert set(found) == set(expected)
    for tag, (steps, values) in found.items():
        assert steps == [entry["epoch"] for entry in history]
        np.testing.assert_allclose(values, expected[tag], rtol=1e-6, err_msg=tag)


def test_each_epoch_is_in_the_file_at_once(tmp_path):
    pytest.importorskip("tensorboard")
    with log_to_tensorboard(tmp_path) as board:
        for number in range(3):
            board(epoch(number))
            assert scalars(tmp_path)["validation/bias"][0] == list(range(number + 1))


def test_job_that_goes_on_replaces_the_epochs_that_it_runs_again(tmp_path):
    pytest.importorskip("tensorboard")
    for bias, numbers in ((0.25, range(4)), (0.5, range(2, 6))):
        with log_to_tensorboard(tmp_path) as board:
            for number in numbers:
                board(epoch(number, bias=bias))
    steps, values = scalars(tmp_path)["validation/bias"]
    assert steps == list(range(6))
    assert values == [0.25] * 2 + [0.5] * 4


def test_missing_tensorboard_is_told_before_the_job_begins(tmp_path, monkeypatch):
    for name in [n for n in sys.modules if n.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with (
        pytest.raises(MissingDependencyError, match=r"pip install 'smgrid\[tensorboard\]'"),
        log_to_tensorboard(tmp_path / "board"),
    ):
        pass
    assert not (tmp_path / "board").exists()


def test_several_callbacks_are_called_in_their_order():
    calls = []
    both = call_each(*(lambda end, n=n: calls.append((n, end.epoch)) for n in "ab"))
    for number in range(2):
        both(epoch(number))
    assert calls == list(itertools.product("ab", [0])) + list(itertools.product("ab", [1]))
