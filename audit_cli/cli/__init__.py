"""The command line: the only place that prints, catches and exits.

Exit codes 0 and 1 are verdicts; whatever goes wrong must end in another one. So commands *return* their exit code, and
`run` drives the parsed command itself: Typer's own entry point would turn a crash and a broken pipe into 1, and drop
what a command returns. Nothing but the standard library is imported before `run` can map an error.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TextIO

from audit_cli.errors import AuditError
from audit_cli.report.sanitise import clean

if TYPE_CHECKING:
    import typer

USAGE, ERROR, INTERRUPTED, TERMINATED = 2, 4, 130, 143

# command -> where its function lives; a space in the name makes a group. These modules import torch inside functions.
COMMANDS = {
    "scan": "audit_cli.cli.scan:scan",
    "repair": "audit_cli.cli.repair:repair",
    "inspect": "audit_cli.cli.checkpoint:inspect",
    "convert": "audit_cli.cli.checkpoint:convert",
    "verify": "audit_cli.cli.verdict:verify",
    "calibrate": "audit_cli.cli.calibrate:calibrate",
    "tune": "audit_cli.cli.tune:tune",
    "poison": "audit_cli.cli.poison:poison",
    "bench zoo": "audit_cli.cli.bench:zoo",
    "bench detectability": "audit_cli.cli.bench:detectability",
    "bench robustness": "audit_cli.cli.bench:robustness",
    "bench table": "audit_cli.cli.bench_table:table",
    "data check": "audit_cli.cli.data:check",
    "rules": "audit_cli.cli.reference:rules",
    "explain": "audit_cli.cli.reference:explain",
    "schema": "audit_cli.cli.reference:schema",
    "doctor": "audit_cli.cli.reference:doctor",
    "version": "audit_cli.cli.reference:version",
}

GROUPS = {
    "bench": "Train populations of victims and play the papers' games on them.",
    "data": "Look at trusted data without a model.",
}

HELP = """Hunts for planted backdoors in an image-model checkpoint and writes a verdict.

Exit codes: 0 pass, 1 fail, 2 usage, 3 inconclusive, 4 error, 130 or 143 interrupted.
"""


class _Terminated(BaseException):
    """SIGTERM arrived. Not an Exception, so that no `except Exception` on the way mistakes it for a failed step."""


def build_app() -> typer.Typer:
    """The Typer application with every command of `COMMANDS`."""
    import typer

    # Names from checkpoints end up in messages: no markup, no pretty tracebacks.
    plain = {"rich_markup_mode": None, "pretty_exceptions_enable": False, "add_completion": False}
    app = typer.Typer(name="audit-cli", help=HELP, **plain)  # type: ignore[arg-type]

    @app.callback()
    def options(
        debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error (or AUDIT_CLI_DEBUG=1)."),
    ) -> None:
        """`run` takes --debug out of the arguments, wherever it stands; declared here for --help."""

    options.__doc__ = HELP
    groups: dict[str, typer.Typer] = {}
    for path, target in COMMANDS.items():
        group, _, name = path.rpartition(" ")
        if group and group not in groups:
            groups[group] = typer.Typer(**plain)  # type: ignore[arg-type]
            app.add_typer(groups[group], name=group, help=GROUPS[group])
        module, _, function = target.partition(":")
        (groups[group] if group else app).command(name)(getattr(importlib.import_module(module), function))
    return app


def run(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code; prints at most one line about what went wrong."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments or os.environ.get("AUDIT_CLI_DEBUG", "") not in ("", "0")
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started the program, as by `2>&-`
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 - open to the end
    for stream in (sys.stdout, sys.stderr):  # a name that the terminal's encoding lacks must not crash the report
        with contextlib.suppress(AttributeError, OSError, ValueError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        with _sigterm_raises():
            code = _dispatch([argument for argument in arguments if argument != "--debug"])
            sys.stdout.flush()
    except BaseException as error:  # noqa: BLE001 - an error of any kind must not leave with a verdict's exit code
        code, message = _explain(error)
        if debug:
            _write(sys.stderr, traceback.format_exc())
        _write(sys.stderr, f"error: {clean(message, 600)}\n")
        _discard_broken_stdout()
    return code


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """The console script."""
    raise SystemExit(run(argv))


def _dispatch(arguments: list[str]) -> int:
    import typer
    from typer.main import get_command

    command = get_command(build_app())
    try:
        with command.make_context("audit-cli", arguments) as context:
            code = command.invoke(context)
    except typer.Exit as end:  # --help
        code = end.exit_code
    if code is None:
        return 0
    if type(code) is not int or not 0 <= code <= 255:
        raise TypeError(f"a command returned {code!r} instead of an exit code; this is a bug in audit-cli")
    return code


def _explain(error: BaseException) -> tuple[int, str]:
    """Exit code and message for an error; never 0, never 1."""
    if isinstance(error, AuditError):
        return error.exit_code, str(error)
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED, "interrupted"
    if isinstance(error, _Terminated):
        return TERMINATED, "terminated"
    if usage := _usage_message(error):
        return USAGE, usage
    if isinstance(error, BrokenPipeError):
        return ERROR, "the reader of the output went away before it was complete"
    if isinstance(error, SystemExit):
        return ERROR, f"something tried to end the program with exit code {error.code!r}; that is no verdict"
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
        return ERROR, "out of memory; use fewer trusted images, another --device or a machine with more memory"
    return ERROR, f"{type(error).__name__}: {error} (run again with --debug for the traceback)"


def _usage_message(error: BaseException) -> str | None:
    """What the command-line parser complains about, or None when the error is not one of its own."""
    try:
        import typer
    except ImportError:
        return None
    parser_error = typer.BadParameter.__mro__[2]  # ClickException: Typer exports no name for it
    if not isinstance(error, parser_error):
        return None
    context = getattr(error, "ctx", None)
    path = context.command_path if context else "audit-cli"
    return f"{error.format_message().rstrip('.')}; see `{path} --help`"  # type: ignore[attr-defined]


@contextlib.contextmanager
def _sigterm_raises() -> Iterator[None]:
    """SIGTERM unwinds the stack like Ctrl-C does, so that temporary files are removed."""

    def terminate(signum: int, frame: object) -> None:
        raise _Terminated

    try:
        before = signal.signal(signal.SIGTERM, terminate)
    except ValueError:  # not the main thread: leave signals alone
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _write(stream: TextIO, text: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        stream.write(text)
        stream.flush()


def _discard_broken_stdout() -> None:
    """What is still buffered for a reader that left must not fail again at interpreter exit (code 120)."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
