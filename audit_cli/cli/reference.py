"""The commands that explain: rules, explain, schema, doctor, version."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import typer

from audit_cli.cli.console import colour, columns, emit
from audit_cli.errors import AuditError
from audit_cli.report.sanitise import clean
from audit_cli.resources import bundled, rule_page, rule_pages
from audit_cli.resources import schema as read_schema
from audit_cli.resources import version as installed_version


def version() -> int:
    """Print the version."""
    emit(f"audit-cli {installed_version()}")
    return 0


def rules(
    policy: Annotated[str, typer.Option(help="default, strict, thresholds or a TOML file.")] = "default",
    output: Annotated[Literal["table", "json"], typer.Option("--format", help="How to print them.")] = "table",
) -> int:
    """List the rules with their severity and threshold under a policy."""
    from audit_cli.policy import Policy

    pages, known = rule_pages(), Policy.load(policy).rules
    rows = [
        {
            "id": rule_id,
            "title": page.title,
            "severity": known[rule_id].severity,
            "threshold": {"default": known[rule_id].threshold, **known[rule_id].families},
        }
        for rule_id, page in pages.items()
    ]
    if output == "json":
        emit(json.dumps(rows, indent=2))
        return 0
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("rule", no_wrap=True)
    table.add_column("severity", no_wrap=True)
    table.add_column("fires at", justify="right", no_wrap=True)
    table.add_column("title")
    for rule_id, page in pages.items():
        limits = sorted({known[rule_id].threshold, *known[rule_id].families.values()})
        span = f"{limits[0]:g}" if len(limits) == 1 else f"{limits[0]:g}–{limits[-1]:g}"
        table.add_row(rule_id, known[rule_id].severity, span, page.title)
    Console(file=sys.stdout, width=columns(sys.stdout), no_color=not colour(sys.stdout), markup=False).print(table)
    return 0


def explain(rule: Annotated[str, typer.Argument(help="A rule id such as BD001.")]) -> int:
    """Print what a rule measures, why it matters and what to do."""
    emit(rule_page(rule).text)
    return 0


def schema(name: Annotated[Literal["verdict", "policy", "calibration"], typer.Argument(help="Which one.")]) -> int:
    """Print the JSON Schema of a verdict or a policy."""
    emit(json.dumps(read_schema(name), indent=2))
    return 0


def doctor() -> int:
    """Say what an audit would run on here.

    Exit code 4 when something needed is missing.
    """
    healthy = True
    for label, probe in PROBES.items():
        try:
            line = probe()
        except Exception as error:  # noqa: BLE001 - a broken installation is what this command is for
            healthy = False
            line = f"PROBLEM: {str(error) if isinstance(error, AuditError) else f'{type(error).__name__}: {error}'}"
        emit(f"{label:<10} {clean(line, 300)}")
    return 0 if healthy else 4


def _torch() -> str:
    import torch
    import torchvision

    return f"{torch.__version__}, torchvision {torchvision.__version__}"


def _device() -> str:
    import torch

    if not torch.cuda.is_available():
        return f"cpu only, {platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return f"cuda ({torch.version.cuda}): {', '.join(names)}"


def _threads() -> str:
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{torch.get_num_threads()} for torch, {cores} cores usable"


def _bf16() -> str:
    import torch

    if torch.cuda.is_available():
        return "yes, on cuda" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    flags = Path("/proc/cpuinfo")
    known = {"avx512_bf16", "amx_bf16", "bf16"} & set(flags.read_text().split()) if flags.exists() else set()
    return f"yes, on cpu ({', '.join(sorted(known))})" if known else "not in hardware; float32 is faster here"


def _memory() -> str:
    page = os.sysconf("SC_PAGE_SIZE")
    total = f"{os.sysconf('SC_PHYS_PAGES') * page / 1e9:.1f} GB"
    if "SC_AVPHYS_PAGES" not in os.sysconf_names:  # Linux has it, macOS has not
        return total
    return f"{os.sysconf('SC_AVPHYS_PAGES') * page / 1e9:.1f} GB free of {total}"


def _rules() -> str:
    from audit_cli.policy import BUNDLED, Policy

    names = [Policy.load(name).name for name in BUNDLED]
    read_schema("verdict")
    return f"{len(rule_pages())} rules, policies {', '.join(names)}"


def _fixtures() -> str:
    return f"{sum(path.is_file() for path in bundled('fixtures').rglob('*'))} files"


PROBES: dict[str, Callable[[], str]] = {
    "audit-cli": installed_version,
    "python": lambda: f"{platform.python_version()} on {platform.system()}",
    "torch": _torch,
    "device": _device,
    "threads": _threads,
    "bfloat16": _bf16,
    "memory": _memory,
    "rules": _rules,
    "fixtures": _fixtures,
}
