"""What leaves the process: exit codes of everything that can go wrong. 0 and 1 are verdicts and nothing else's."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from audit_cli import cli
from audit_cli.cli import build_app, main, run
from audit_cli.errors import AuditError, BudgetExceeded, CheckpointError, UnsupportedError, UsageError

PYTHON = [sys.executable, "-m", "audit_cli"]


def process(code: str, *arguments: str, **settings: object) -> subprocess.CompletedProcess[str]:
    """Runs `main` in a fresh process in which `version` is replaced by the body `code`."""
    script = (
        "import sys, audit_cli.cli.reference as reference\nfrom audit_cli.cli import main\n"
        f"def version() -> int:\n{textwrap.indent(textwrap.dedent(code), '    ')}\n"
        "reference.version = version\nmain(sys.argv[1:])\n"
    )
    command = [sys.executable, "-c", script, "version", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **settings)  # type: ignore[call-overload, no-any-return]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Puts a function in the place of `audit-cli version`."""

    def replace(function: Callable[[], object]) -> None:
        def version() -> int:
            return function()  # type: ignore[return-value]

        monkeypatch.setattr("audit_cli.cli.reference.version", version)

    return replace


def raising(error: BaseException) -> Callable[[], object]:
    def fail() -> object:
        raise error

    return fail


@pytest.mark.parametrize("code", [0, 1, 2, 3, 4])
def test_a_command_returns_its_exit_code(code: int, command: Callable[[object], None]) -> None:
    command(lambda: code)
    assert run(["version"]) == code


def test_none_is_zero(command: Callable[[object], None]) -> None:
    command(lambda: None)
    assert run(["version"]) == 0


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (AuditError("broken; mend it"), 4, "error: broken; mend it"),
        (UsageError("wrong"), 2, "error: wrong"),
        (CheckpointError("hostile \x1b[31m\n::error::x"), 2, "error: hostile : :error: :x"),
        (UnsupportedError("unknown"), 3, "error: unknown"),
        (BudgetExceeded("time"), 3, "error: time"),
        (KeyboardInterrupt(), 130, "error: interrupted"),
        (MemoryError(), 4, "error: out of memory; use fewer trusted images, "),
        (RuntimeError("CUDA out of memory. Tried to allocate"), 4, "error: out of memory; use fewer trusted images, "),
        (torch.cuda.OutOfMemoryError("CUDA out of memory"), 4, "error: out of memory"),
        (RuntimeError("[red]x\n[/red]"), 4, "error: RuntimeError: [red]x [/red] (run again with --debug"),
        (OSError(28, "No space left on device"), 4, "error: OSError: "),
        (BrokenPipeError(32, "Broken pipe"), 4, "error: the reader of the output went away"),
        (EOFError(), 4, "error: EOFError"),
        (RecursionError("deep"), 4, "error: RecursionError"),
        (ZeroDivisionError("0"), 4, "error: ZeroDivisionError"),
        (SystemExit(0), 4, "error: something tried to end the program with exit code 0"),
        (SystemExit(1), 4, "error: something tried to end"),
        (SystemExit(None), 4, "error: something tried to end"),
        (GeneratorExit(), 4, "error: GeneratorExit"),
    ],
)
def test_errors_map_to_codes_and_one_line(
    error: BaseException, code: int, line: str, command: Callable[[object], None], capsys: pytest.CaptureFixture[str]
) -> None:
    command(raising(error))
    assert run(["version"]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(line)
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize("value", ["0", 1.0, True, False, -1, 256, []])
def test_nonsense_returned_is_an_error(value: object, command: Callable[[object], None]) -> None:
    command(lambda: value)
    assert run(["version"]) == 4


@pytest.mark.parametrize(
    "arguments",
    [[], ["nonsense"], ["version", "extra"], ["version", "--nonsense"], ["explain"], ["schema", "nonsense"], ["data"]],
)
def test_usage_errors(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("error: ")
    assert "--help`" in error


def test_help_is_zero(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    assert "Exit codes: 0 pass, 1 fail" in capsys.readouterr().out
    assert run(["explain", "--help"]) == 0


def test_debug_shows_the_traceback_wherever_it_stands(
    command: Callable[[object], None], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command(raising(RuntimeError("deep inside")))
    for arguments in (["--debug", "version"], ["version", "--debug"]):
        assert run(arguments) == 4
        assert "Traceback" in capsys.readouterr().err
    monkeypatch.setenv("AUDIT_CLI_DEBUG", "1")
    assert run(["version"]) == 4
    assert "Traceback" in capsys.readouterr().err
    monkeypatch.setenv("AUDIT_CLI_DEBUG", "0")
    run(["version"])
    assert "Traceback" not in capsys.readouterr().err


def test_main_exits_with_the_code(command: Callable[[object], None]) -> None:
    command(lambda: 3)
    with pytest.raises(SystemExit) as end:
        main(["version"])
    assert end.value.code == 3


def test_signal_handler_is_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    run(["version"])
    assert signal.getsignal(signal.SIGTERM) is before


def test_every_registered_command_exists() -> None:
    for target in cli.COMMANDS.values():
        module, _, function = target.partition(":")
        assert callable(getattr(importlib.import_module(module), function))
    build_app()


class TestProcess:
    def test_crash_is_four(self) -> None:
        result = process("raise RuntimeError('boom')")
        assert result.returncode == 4
        assert result.stderr == "error: RuntimeError: boom (run again with --debug for the traceback)\n"

    @pytest.mark.parametrize("missing", ["typer", "rich", "jsonschema", "torch"])
    def test_a_broken_installation_is_no_verdict(self, missing: str) -> None:
        code = f"import sys; sys.modules[{missing!r}] = None; from audit_cli.cli import main; main(['rules'])"
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
        assert result.returncode == (0 if missing == "torch" else 4)
        assert "Traceback" not in result.stderr

    @pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
    def test_signals_unwind(self, number: int, code: int, tmp_path: Path) -> None:
        body = f"""
            import pathlib, time
            try:
                pathlib.Path({str(tmp_path / "started")!r}).touch()
                try:
                    for _ in range(3000):  # a signal just before one long sleep would wait for its end
                        time.sleep(0.01)
                except Exception:
                    return 0
            finally:
                pathlib.Path({str(tmp_path / "cleaned")!r}).touch()
            """
        script = (
            # What a shell starts in the background inherits an ignored SIGINT, and so would the tests' own children.
            "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
            "import sys, audit_cli.cli.reference as reference\nfrom audit_cli.cli import main\n"
            f"def version() -> int:\n{textwrap.indent(textwrap.dedent(body), '    ')}\n"
            "reference.version = version\nmain(['version'])\n"
        )
        child = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True)
        with child:
            deadline = time.monotonic() + 30
            while not (tmp_path / "started").exists() and time.monotonic() < deadline:
                time.sleep(0.02)
            child.send_signal(number)
            _, stderr = child.communicate(timeout=30)
        assert child.returncode == code
        assert (tmp_path / "cleaned").exists()
        assert stderr.count("\n") == 1

    def test_broken_pipe(self) -> None:
        reader, writer = os.pipe()
        os.close(reader)
        try:
            result = subprocess.run(
                [*PYTHON, "explain", "BD001"], stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60, check=False
            )
        finally:
            os.close(writer)
        assert result.returncode == 4
        assert result.stderr == "error: the reader of the output went away before it was complete\n"

    @pytest.mark.parametrize("closed", ["2>&-", ">&-", ">&- 2>&-"])
    @pytest.mark.parametrize(("arguments", "code"), [(["inspect", "/nope.safetensors"], 2), (["version"], 0)])
    def test_closed_streams(self, closed: str, arguments: list[str], code: int) -> None:
        command = ["sh", "-c", f'exec "$@" {closed}', "sh", *PYTHON, *arguments]
        result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert result.returncode == code
        assert "Traceback" not in result.stderr

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
    def test_full_disk(self) -> None:
        with Path("/dev/full").open("w") as full:
            result = subprocess.run(
                [*PYTHON, "version"], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False
            )
        assert result.returncode == 4
        assert "Traceback" not in result.stderr

    def test_ascii_terminal(self) -> None:
        environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
        result = process("print('‘cat’ – 猫'); return 0", env=environment)
        assert (result.returncode, result.stdout) == (0, "\\u2018cat\\u2019 \\u2013 \\u732b\n")

    def test_light_commands_do_not_import_torch(self) -> None:
        code = (
            "import sys; from audit_cli.cli import run; codes = [run(a.split()) for a in sys.argv[1:]];"
            "assert not codes.count(4); assert 'torch' not in sys.modules, 'torch'"
        )
        arguments = ["version", "--help", "rules", "explain BD001", "schema policy", "scan --help", "verify --help"]
        result = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60, check=False
        )
        assert result.returncode == 0, result.stderr
