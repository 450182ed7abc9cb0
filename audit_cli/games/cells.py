"""Cells: the units a bench is made of. Each finished one is a JSON file of its own, so that a killed run goes on where
it stopped and the cells of several machines are merged by copying files.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from audit_cli.checkpoint.save import write_atomically
from audit_cli.errors import BudgetExceeded, UsageError
from audit_cli.report.sanitise import clean

Facts = dict[str, object]


@dataclass(frozen=True)
class Cell:
    """name: of its file, without suffix. play: its result, without what every cell records of itself."""

    name: str
    play: Callable[[], Facts]


@dataclass(frozen=True)
class Part:
    """The `number`-th of `of` parts of the cells, counted from 1: each machine or process plays one."""

    number: int = 1
    of: int = 1

    @classmethod
    def parse(cls, text: str) -> Part:
        """`2/3` -> Part(2, 3). Raises UsageError."""
        number, slash, of = text.partition("/")
        if not (slash and number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
            raise UsageError(f"--part {clean(text, 20)}: expected NUMBER/OF, such as 1/2")
        return cls(int(number), int(of))

    def take(self, cells: Sequence[Cell]) -> list[Cell]:
        return list(cells[self.number - 1 :: self.of])


def play(
    cells: Iterable[Cell], folder: Path, about: Callable[[float], Facts], say: Callable[[str], None] = lambda line: None
) -> int:
    """Plays the cells that have no file in `folder` yet; how many are left when a budget ended the run.

    about: what every file also says, given the cell's seconds: command, device, versions.
    """
    left = [cell for cell in cells if not (folder / f"{cell.name}.json").exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for done, cell in enumerate(left):
        began = time.monotonic()
        try:
            facts = cell.play()
        except BudgetExceeded as error:
            say(f"stopped: {error}")
            return len(left) - done
        document = {**facts, "made": about(time.monotonic() - began)}
        write_atomically(folder / f"{cell.name}.json", json.dumps(document, indent=1, allow_nan=False) + "\n")
        say(f"{done + 1}/{len(left)} {cell.name}")
    return 0


def read_cells(folder: Path) -> list[Facts]:
    """All finished cells in `folder`, by name. Raises UsageError when a file is none."""
    cells = []
    for path in sorted(folder.glob("*.json")):
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UsageError(f"{path}: cannot be read as a bench cell; remove it and play again") from error
        if not isinstance(document, dict):
            raise UsageError(f"{path}: is no bench cell; remove it and play again")
        cells.append(document)
    return cells
