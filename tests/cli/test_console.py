from __future__ import annotations

import contextlib
import io
import re
import sys

import pytest

from audit_cli.cli import console
from audit_cli.cli.console import PlainProgress, make_progress


class Terminal(io.StringIO):
    """A stderr that says it is a terminal."""

    def isatty(self) -> bool:
        return True


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    stream = Terminal()
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    return stream


def work(stream: Terminal | None = None) -> None:
    with contextlib.redirect_stderr(stream or sys.stderr), make_progress(quiet=False) as progress:
        progress.stage("invert \x1b[31m[red]mask", 4)
        progress.advance(2, note="class 3 [bold]cat[/bold]\n::error::")
        progress.advance(2)
        progress.stage("repair", 2)
        progress.advance()


class TestPlain:
    def test_begin_end_and_a_line_per_interval(self) -> None:
        lines: list[str] = []
        clock = Clock()
        progress = PlainProgress(lines.append, clock)
        progress.stage("invert", 100)
        for _ in range(100):
            clock.now += 0.25
            progress.advance(note="class 3")
        progress.stage("repair", 10)
        clock.now += 4000
        progress.advance(5)
        progress.close()
        assert lines == [
            "invert: begins",
            "invert: 40/100, 0:10 elapsed, about 0:15 left (class 3)",
            "invert: 80/100, 0:20 elapsed, about 0:05 left (class 3)",
            "invert: done in 0:25",
            "repair: begins",
            "repair: 5/10, 1:06:40 elapsed, about 1:06:40 left",
            "repair: done in 1:06:40",
        ]

    def test_is_used_where_stderr_is_no_terminal(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("FORCE_COLOR", "1")  # common in CI; a log must stay a log
        work()
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.splitlines()[0] == "invert [red]mask: begins"
        assert "\x1b" not in captured.err

    def test_says_when_a_stage_was_cut_short(self, capsys: pytest.CaptureFixture[str]) -> None:
        def fail() -> None:
            with make_progress(quiet=False) as progress:
                progress.stage("invert", 4)
                raise KeyError

        with pytest.raises(KeyError):
            fail()
        assert "invert: stopped after 0:00" in capsys.readouterr().err

    def test_tolerates_advances_without_a_stage_and_beyond_the_total(self) -> None:
        clock = Clock()
        progress = PlainProgress(lambda line: None, clock)
        progress.advance()
        progress.stage("x", 0)
        clock.now = 100.0
        progress.advance(5)
        progress.close()


class TestTerminal:
    @pytest.mark.parametrize("width", [40, 80])
    def test_bars_fit_the_width(self, width: int, terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("COLUMNS", str(width))
        monkeypatch.setenv("NO_COLOR", "1")
        work(terminal)
        shown = terminal.getvalue()
        assert "\x1b[31m" not in shown
        assert "invert [red]m" in shown
        for line in shown.replace("\r", "\n").split("\n"):
            assert len(console.clean(line, 1000)) <= width

    def test_no_color(self, terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
        work(terminal)
        assert re.search(r"\x1b\[[0-9;]*3[0-9]", terminal.getvalue())
        terminal.truncate(0)
        monkeypatch.setenv("NO_COLOR", "1")
        work(terminal)
        assert not re.search(r"\x1b\[[0-9;]*3[0-9]", terminal.getvalue())
        assert not console.colour(terminal)

    def test_dumb_terminals_get_lines(self, terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TERM", "dumb")
        work(terminal)
        assert "\x1b" not in terminal.getvalue()
        assert "repair: begins" in terminal.getvalue()


def test_quiet_says_nothing(terminal: Terminal) -> None:
    with contextlib.redirect_stderr(terminal), make_progress(quiet=True) as progress:
        progress.stage("x", 3)
        progress.advance(3, "note")
        console.say("hello", quiet=True)
    assert terminal.getvalue() == ""


def test_say_is_one_clean_line(capsys: pytest.CaptureFixture[str]) -> None:
    console.say("\n::error::\x1b[31mx")
    assert capsys.readouterr().err == ": :error: :x\n"
