"""Which clean models a bench's cells are compared with: like with like, whatever the detector is called.

`sizes`, `compared` and `calibrated` say the same of a trigger family, but not all of them of every family: a largest
score over five families has no counterpart among clean models that have three of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from audit_cli.calibration import RULE
from audit_cli.games.by_class import BY_CLASS, clean_models, families_compared, with_by_class
from audit_cli.games.summary import Statistic, statistics

Cells = Sequence[Mapping[str, Any]]


def comparable(cells: Cells, others: Cells, statistic: Statistic) -> list[Mapping[str, Any]]:
    """Of the `others` the clean models, each once, that have every score which `statistic` is made of in the `cells`;
    none where these have no such score."""
    wanted = {key for cell in cells for key in cell["scores"] if statistic.counts(key)}
    return clean_models([cell for cell in others if wanted and wanted <= cell["scores"].keys()])


@dataclass(frozen=True)
class Against:
    """The cells of one detector. others: those of benches whose clean models are compared with; none: the cells' own.

    Class by class the families count that the cells have; further ones of the others are left aside.
    """

    cells: Cells
    others: Cells = ()

    @cached_property
    def scored(self) -> list[Mapping[str, Any]]:
        """The cells with what a calibration of the clean models would say of them, see `with_by_class`; as they are
        where the others have no clean models to compare with."""
        if self.others and not self._known:
            return list(self.cells)
        return with_by_class(self.cells, self._known, self._families)

    @property
    def statistics(self) -> list[Statistic]:
        """What tables can be made of, whether or not there are clean models to compare with."""
        return statistics(self.cells) + ([Statistic(BY_CLASS)] if self._families else [])

    def reference(self, statistic: Statistic) -> list[Mapping[str, Any]] | None:
        """The clean models of the others that `statistic` can be compared with; None: the cells' own."""
        if not self.others:
            return None
        return self._standing if statistic.rule == BY_CLASS else comparable(self.cells, self.others, statistic)

    @cached_property
    def _families(self) -> tuple[str, ...]:
        return families_compared(self.cells)

    @cached_property
    def _known(self) -> list[Mapping[str, Any]]:
        return comparable(self.cells, self.others, Statistic(RULE, self._families))

    @cached_property
    def _standing(self) -> list[Mapping[str, Any]]:
        """The clean models class by class, each among the others."""
        return with_by_class(self._known, (), self._families)
