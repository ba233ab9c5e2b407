"""What a training job can tell while it runs: a bar in the terminal, curves in TensorBoard.

Both are context managers that give a function for the ``on_epoch`` of `fit`, `pretrain` and
`finetune`, and end with the block, whether the job ran all epochs, stopped early or failed::

    with epoch_bar() as bar, log_to_tensorboard("board") as board:
        fit(..., on_epoch=call_each(bar, board))
"""

import math
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column

from smgrid.errors import ConfigError, MissingDependencyError

if TYPE_CHECKING:  # these load torch, which a bar does not need
    from smgrid.training.loop import EpochEnd, OnEpoch


@contextmanager
def epoch_bar(progress: Progress | None = None) -> Iterator["OnEpoch"]:
    """Show the epochs of a job, its loss terms and the members' mean ubRMSE [m3 m-3].

    Parameters
    ----------
    progress
        A display of rich that is running, to add a line to. Default: one of its own on standard
        error, which vanishes at the end and is silent where that is no terminal.

    Yields
    ------
    OnEpoch
        For ``on_epoch`` of `fit`, `pretrain` or `finetune`.
    """
    with _own_display() if progress is None else nullcontext(progress) as display:
        # A display of others gets its line when there is something to tell.
        task = display.add_task("training", total=None, visible=progress is None)

        def draw(end: "EpochEnd") -> None:
            terms = ", ".join(f"{name} {value:.4f}" for name, value in end.loss.items())
            display.update(
                task,
                total=end.epochs,
                completed=end.epoch + 1,
                description=f"training: {terms}; ubRMSE {end.ubrmse:.3f}",
                visible=True,
            )

        yield draw


@contextmanager
def log_to_tensorboard(folder: str | os.PathLike[str]) -> Iterator["OnEpoch"]:
    """Write what each epoch tells as scalars for TensorBoard.

    ``loss/<term>`` is the mean over steps and members, ``validation/<score>`` the mean over
    members, ``members/ubrmse_<k>`` [m3 m-3] the score of each member, from 1 in the order of the
    ensemble; the step is the epoch, from 0.

    Parameters
    ----------
    folder
        One per job; made if needed. A job that goes on there replaces the epochs that it runs
        again, a new job those of the former.

    Yields
    ------
    OnEpoch
        For ``on_epoch`` of `fit`, `pretrain` or `finetune`. Each epoch is in the file when the
        call returns.

    Raises
    ------
    MissingDependencyError
        Without the extra ``tensorboard``.
    ConfigError
        The folder cannot be made.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as cause:
        msg = (
            "curves of the training need tensorboard; install it with "
            "pip install 'smgrid[tensorboard]'"
        )
        raise MissingDependencyError(msg) from cause
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)  # fails now rather than after an epoch
    except OSError as cause:
        raise ConfigError(
            f"TensorBoard: {folder} is no folder and cannot be made: {cause}"
        ) from cause
    with ExitStack() as stack:
        writer: SummaryWriter | None = None

        def write(end: "EpochEnd") -> None:
            nonlocal writer
            if writer is None:  # only now it is known where the job goes on
                writer = stack.enter_context(SummaryWriter(os.fspath(folder), purge_step=end.epoch))
            for tag, value in _scalars(end).items():
                writer.add_scalar(tag, value, end.epoch)
            writer.flush()

        yield write


def call_each(*callbacks: "OnEpoch") -> "OnEpoch":
    """Return one function for ``on_epoch`` that calls several in their order."""

    def call(end: "EpochEnd") -> None:
        for callback in callbacks:
            callback(end)

    return call


def _own_display() -> Progress:
    console = Console(stderr=True)
    return Progress(
        # Wraps, so that a narrow terminal takes nothing away.
        TextColumn("{task.description}", table_column=Column()),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not (console.is_terminal or console.is_jupyter),
        transient=True,
        # By default the rate is that of the last 30 s, which may be less than an epoch.
        speed_estimate_period=math.inf,
    )


def _scalars(end: "EpochEnd") -> dict[str, float]:
    """Return everything that an epoch tells by its tag."""
    scores = [name for name in end.members[0] if name not in end.loss]
    return {
        **{f"loss/{name}": value for name, value in end.loss.items()},
        **{f"validation/{s}": float(np.mean([m[s] for m in end.members])) for s in scores},
        **{f"members/ubrmse_{k}": member["ubrmse"] for k, member in enumerate(end.members, 1)},
    }
