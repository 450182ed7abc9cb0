"""Calibrated trigger inversion, the default detector.

For every class and trigger family it finds the smallest trigger that works, and measures two things on images the
search never saw:

- size: how much smaller that trigger is than the model's own median class needs at the same success (BD001);
- gap: how much of its success is lost on a reference model, the suspect after Pivotal Tuning (BD002).

Lukas, Kerschbaum: Pick your Poison: Undetectability versus Robustness in Data Poisoning Attacks, 2023,
https://arxiv.org/abs/2305.09671 (Algorithm 4), and Wang et al.: Neural Cleanse, 2019,
https://doi.org/10.1109/SP.2019.00031.

Differs from the papers:
- the trigger is made small, where Algorithm 4 leaves it free: an unbounded pattern is found for every class of every
  model, clean ones included, and the gap alone does not tell them apart. `published` is Algorithm 4 as it stands.
- sizes are compared as a ratio to the median of the other classes; Neural Cleanse's deviation over ten classes is
  unstable.
- the reference model is tuned for fewer steps: here it supports the evidence and decides nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from audit_cli.classifier import Classifier
from audit_cli.inversion.additive import Additive
from audit_cli.inversion.engine import Search, State
from audit_cli.inversion.mask import Mask
from audit_cli.inversion.racing import Race
from audit_cli.metrics import asr, predict
from audit_cli.repairs.pivotal_tuning import PivotalTuning
from audit_cli.types import Context, Finding, Repair, Trigger, TriggerFamily, TrustedData


@dataclass(frozen=True)
class Calibrated:
    """families: the kinds of trigger searched for. reference: the repair whose result is the reference model."""

    families: tuple[TriggerFamily, ...] = (Mask(), Additive())
    search: Search = field(default_factory=Search)
    race: Race = field(default_factory=Race)
    reference: Repair = field(default_factory=lambda: PivotalTuning(steps=200))  # ours, see above
    fit_share: float = 0.5  # ours: share of trusted images that searching and tuning may use; the rest measures

    def __call__(self, suspect: Classifier, trusted: TrustedData, context: Context) -> Iterator[Finding]:
        """BD001 and BD002 for every class that ran to the end of the race in each family; BD107 at the end."""
        fit, holdout = trusted.split(self.fit_share, context.generator(stream=5))
        suspect = suspect.clone().on(context.device).frozen()
        reference = self.reference(suspect, fit, context).frozen()
        reached: set[int] = set()
        for family in self.families:
            state = self.race.run(suspect, family, fit, self.search, context)
            reached.update(state.classes[state.reached].tolist())
            context.progress.stage(f"{family.name} triggers on unseen images", len(state.classes))
            for row, ratio in enumerate(size_ratios(state).tolist()):
                trigger = state.trigger(row, family)
                yield from self._findings(
                    suspect, reference, trigger, ratio, bool(state.reached[row]), holdout, context
                )
                context.advance()
        yield uncompared(set(state.classes.tolist()) - reached, suspect.num_classes, self.search.success)

    def _findings(
        self,
        suspect: Classifier,
        reference: Classifier,
        trigger: Trigger,
        ratio: float,
        reached: bool,
        holdout: TrustedData,
        context: Context,
    ) -> Iterator[Finding]:
        before, after = success(suspect, trigger, holdout, context), success(reference, trigger, holdout, context)
        family, target = trigger.family.name, trigger.target
        size = Finding(
            rule_id="BD001",
            score=ratio,
            message=f"smallest {family} trigger is {ratio:.2f} times smaller than the median class needs",
            detector="calibrated",
            family=family,
            target_class=target,
            target_name=holdout.class_names[target] if target < len(holdout.class_names) else None,
            asr_before=before,
            asr_after=after,
            trigger_norm=trigger.size,
            details={"reached": reached, "matched_success": self.search.success},
            trigger=trigger,
        )
        yield size
        message = f"{family} trigger: success {before:.2f} on the model, {after:.2f} on the reference"
        yield replace(size, rule_id="BD002", score=before - after, message=message)


def uncompared(classes: set[int], total: int, wanted: float) -> Finding:
    """BD107: the classes for which no family found a trigger of the wanted success, so that no size is known."""
    message = f"for {len(classes)} of {total} classes no trigger reached {wanted:.0%} success"
    return Finding("BD107", float(len(classes)), message, details={"searched": total - len(classes)})


def size_ratios(state: State) -> Tensor:
    """(K,) median smallest-trigger size of the other classes over this class's; 1 = ordinary, large = suspicious.

    A class for which no trigger worked has an unknown, large size: it counts as at least the largest size that worked
    and gets the ratio 0. With no class reached all ratios are 0.
    """
    sizes, reached = state.best_size, state.reached
    if not bool(reached.any()):
        return torch.zeros_like(sizes)
    sizes = torch.where(reached, sizes, sizes[reached].max())
    ratios = [torch.cat([sizes[:k], sizes[k + 1 :]]).median() / sizes[k] for k in range(len(sizes))]
    return torch.where(reached, torch.stack(ratios), torch.zeros_like(sizes))


def success(classifier: Classifier, trigger: Trigger, data: TrustedData, context: Context) -> float:
    """asr of `trigger` on `data`."""
    others = data.labels != trigger.target
    stamped = trigger(data.images[others])
    return asr(predict(classifier, stamped, context), data.labels[others], trigger.target)
