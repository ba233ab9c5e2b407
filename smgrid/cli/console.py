"""What commands print: one-line results and tables on stdout, bars and errors on stderr."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

if TYPE_CHECKING:
    from smgrid.cube.store import Progress as UnitProgress
    from smgrid.cube.store import WriteReport

OUT = Console()
ERR = Console(stderr=True)


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """Show a bar on stderr until the block ends."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=ERR, transient=True) as bar:
        yield bar


class UnitBars:
    """Draws the progress events of a writer, one line per group of the store."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, event: "UnitProgress") -> None:
        """Draw one event."""
        if event.group not in self._tasks:
            self._tasks[event.group] = self._bar.add_task(event.group, total=event.total)
        task = self._tasks[event.group]
        self._bar.update(task, completed=event.done, total=event.total)


def say_report(store: str, report: "WriteReport") -> None:
    """Say what was written to a store."""
    say(f"{store}: {report.written} of {report.total} units written now, complete")


def say(text: str) -> None:
    """Print paths and lists as they are: brackets are no markup, long lines stay whole."""
    OUT.print(text, markup=False, highlight=False, soft_wrap=True)


def print_rows(rows: list[dict[str, str]], title: str) -> None:
    """Print rows as a table; the keys of the first are its columns."""
    table = Table(title=title, title_justify="left")
    for name in rows[0]:
        table.add_column(name)
    for row in rows:
        table.add_row(*row.values())
    OUT.print(table)
