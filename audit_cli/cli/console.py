"""Conversation on stderr and artefact on stdout: everything commands print goes through here."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, TextIO

from audit_cli.report.sanitise import clean

if TYPE_CHECKING:
    import rich.progress

    from audit_cli.types import Progress

PLAIN_INTERVAL = 10.0  # seconds between two lines of a log
NARROW = 60  # columns under which the note and the elapsed time give way to the bar


def emit(text: str) -> None:
    """The artefact: to stdout, as it is."""
    sys.stdout.write(text if text.endswith("\n") else text + "\n")


def say(text: str, *, quiet: bool = False) -> None:
    """One sanitised line of conversation on stderr."""
    if not quiet:
        sys.stderr.write(clean(text, 600) + "\n")
        sys.stderr.flush()


def colour(stream: TextIO) -> bool:
    """May `stream` be given ANSI colours? Only a terminal that is not dumb, and never against NO_COLOR."""
    return _terminal(stream) and not os.environ.get("NO_COLOR")


def columns(stream: TextIO) -> int:
    """Width of the terminal behind `stream`, else 80."""
    with contextlib.suppress(OSError, ValueError):
        return os.get_terminal_size(stream.fileno()).columns or 80
    return 80


def make_progress(quiet: bool) -> AbstractContextManager[Progress]:
    """Where a command's long work reports to: bars on a terminal, sparse lines in a log, nothing when `quiet`."""
    if quiet:
        return contextlib.nullcontext(_Quiet())
    return _bars() if _terminal(sys.stderr) else _lines()


def _terminal(stream: TextIO) -> bool:
    """Asked of the stream itself: FORCE_COLOR in a CI job must not animate its log."""
    return stream.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")


class _Quiet:
    def stage(self, name: str, total: int) -> None: ...

    def advance(self, steps: int = 1, note: str = "") -> None: ...


class PlainProgress:
    """Lines for a log: one when a stage begins, one when a long one ends, in between at most one per PLAIN_INTERVAL."""

    def __init__(self, write: Callable[[str], None] = say, clock: Callable[[], float] = time.monotonic) -> None:
        self._write, self._clock = write, clock
        self._name, self._total, self._done = "", 0, 0
        self._began = self._spoke = 0.0

    def stage(self, name: str, total: int) -> None:
        self.close()
        self._name, self._total, self._done = clean(name, 60), total, 0
        self._began = self._spoke = self._clock()
        self._write(f"{self._name}: begins")

    def advance(self, steps: int = 1, note: str = "") -> None:
        self._done += steps
        now = self._clock()
        if now - self._spoke < PLAIN_INTERVAL:
            return
        self._spoke = now
        took = now - self._began
        left = (
            f", about {_clock_text(took * (self._total / self._done - 1))} left" if 0 < self._done < self._total else ""
        )
        remark = f" ({clean(note, 80)})" if note else ""
        self._write(f"{self._name}: {self._done}/{self._total}, {_clock_text(took)} elapsed{left}{remark}")

    def close(self, outcome: str = "done in") -> None:
        """Ends the current stage; that a stage of less than a second is done goes without saying."""
        took = self._clock() - self._began
        if self._name and (took >= 1 or outcome != "done in"):
            self._write(f"{self._name}: {outcome} {_clock_text(took)}")
        self._name = ""


@contextlib.contextmanager
def _lines() -> Iterator[Progress]:
    progress = PlainProgress()
    try:
        yield progress
    except BaseException:
        progress.close("stopped after")
        raise
    progress.close()


class _RichProgress:
    def __init__(self, bars: rich.progress.Progress) -> None:
        self._bars = bars
        self._task: rich.progress.TaskID | None = None

    def stage(self, name: str, total: int) -> None:
        self.close()
        self._task = self._bars.add_task(clean(name, 60), total=total, note="")

    def advance(self, steps: int = 1, note: str = "") -> None:
        if self._task is None:
            return
        self._bars.advance(self._task, steps)
        if note:
            self._bars.update(self._task, note=clean(note, 80))

    def close(self) -> None:
        """A finished stage keeps its line, full, and its clock stops."""
        if self._task is not None:
            self._bars.update(self._task, completed=self._bars.tasks[self._task].total, note="")
            self._bars.stop_task(self._task)
            self._task = None


@contextlib.contextmanager
def _bars() -> Iterator[Progress]:
    from rich import progress as rich_progress
    from rich.console import Console
    from rich.table import Column

    console = Console(stderr=True, markup=False, highlight=False, emoji=False)
    name = Column(no_wrap=True, overflow="ellipsis", max_width=24 if console.width >= NARROW else 14)
    columns: list[rich_progress.ProgressColumn] = [
        rich_progress.TextColumn("{task.description}", markup=False, table_column=name),
        rich_progress.BarColumn(bar_width=None),
        rich_progress.TaskProgressColumn(),
    ]
    if console.width >= NARROW:
        note = Column(no_wrap=True, overflow="ellipsis", max_width=28)
        columns.append(rich_progress.TextColumn("{task.fields[note]}", markup=False, table_column=note))
        columns.append(rich_progress.TimeElapsedColumn())
    columns.append(rich_progress.TimeRemainingColumn(compact=True))
    with rich_progress.Progress(*columns, console=console, refresh_per_second=4, expand=True) as bars:
        progress = _RichProgress(bars)
        yield progress
        progress.close()  # only when nothing failed: a bar that stopped halfway should say so


def _clock_text(seconds: float) -> str:
    minutes, rest = divmod(int(max(seconds, 0)), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"
