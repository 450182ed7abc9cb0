"""How readily does the model answer each class on clean images?

Poison leaves a trace that no trigger is needed for: where images of other classes were relabelled, the target is a
little more likely on all of them; where images of the target carried the trigger under their true label, the target is
less well known without it. One pass over the trusted images measures it. For every class c

    profile(c) = mean centred logit of c on images of the other classes / mean centred logit of the right class

(centred: less the mean over classes). Classes differ in it on every model, so alone it says nothing: it counts only
beside the same class on clean models, and there it may be too high as well as too low.

A trigger leaves more behind than itself: on images that are changed at random in the way it changes them (changes.py),
its target is a little more likely than on the clean ones. So the rise of the profile under each change counts, too:

    rise(c) = profile(c) on the changed images - profile(c)

But a class may rise because images become harder to recognise, whatever makes them so. What does that is told by a
change that is no trigger's, a loss of contrast. Where a share λ of what is recognised is lost, and what the model says
when it recognises nothing takes its place, the mean centred logit of the right class falls from R to (1 − λ) R and
every class rises by λ / (1 − λ) times something of its own. So of reflections and warps only this counts:

    rise(c) under the change - rise(c) under less contrast * share
    share = (R / R under the change - 1) / (R / R under less contrast - 1), cut to [0, 1]

Of a wave only its like raises the target: a class rises by the mean over a bank of waves, and under each.

Ours; what they are worth: fixtures/results/profile-study.json, rises-study.json and control-study.json.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from audit_cli.classifier import Classifier
from audit_cli.detectors.changes import CHANGES, Bank, Change, Contrast
from audit_cli.metrics import predict
from audit_cli.types import Context, TrustedData

MOST = 3.0  # ours: of a model that hardly knows the right class, nothing more is told


@dataclass(frozen=True)
class Answers:
    """What a model answers on one set of images. right: mean centred logit of the right class. others: (K,) of each
    class on images of other classes."""

    right: float
    others: Tensor

    @property
    def profile(self) -> Tensor:
        """(K,), NaN where the right class is not answered more than the others."""
        if self.right <= 0:
            return torch.full_like(self.others, torch.nan)
        return (self.others / self.right).clamp(-MOST, MOST)

    def lost(self, changed: Answers) -> float:
        """How much less certain the model is of the right class on the `changed` images, as λ / (1 − λ) where it is
        (1 − λ) times as certain; at least 0, infinite where nothing is left."""
        return max(0.0, self.right / changed.right - 1) if changed.right > 0 else math.inf


class Told(NamedTuple):
    """values: (K,) of one family. parts: the same of each part of a bank of changes, by its name."""

    family: str
    values: Tensor
    parts: Mapping[str, Tensor]


@dataclass(frozen=True)
class Profile:
    """changes: under which the rise is measured. control: what is no trigger's, but makes images harder to recognise,
    too; None for the whole rise. Every trusted image is used once for each, and once as it is."""

    changes: tuple[Change | Bank, ...] = CHANGES
    control: Change | None = field(default_factory=Contrast)
    name: str = "profile"

    @property
    def families(self) -> tuple[str, ...]:
        """Its own, and one for each change."""
        return (self.name, *(f"{self.name}_{change.name}" for change in self.changes))

    @property
    def scoring(self) -> dict[str, str]:
        """By family, what its values depend on, as text."""
        controls = [self.control if change.controlled else None for change in self.changes]
        texts = (repr((self.name, MOST)), *(repr((MOST, *of)) for of in zip(self.changes, controls, strict=True)))
        return dict(zip(self.families, texts, strict=True))

    def by_family(self, suspect: Classifier, trusted: TrustedData, context: Context) -> Iterator[tuple[str, Tensor]]:
        """The profile (K,) under its name, and its rise (K,) under each change, by family; otherwise as `values`."""
        return ((family, values) for family, values, _ in self.told(suspect, trusted, context))

    def told(self, suspect: Classifier, trusted: TrustedData, context: Context) -> Iterator[Told]:
        """As `by_family`, and of banks each part."""

        def under(change: Change) -> Answers:
            changed = change(trusted.images, context.generator(stream=13))
            return self.answers(suspect, replace(trusted, images=changed), context)

        plain = self.answers(suspect, trusted, context)
        yield Told(self.name, plain.profile, {})
        control = under(self.control) if self.control and any(change.controlled for change in self.changes) else None
        for family, change in zip(self.families[1:], self.changes, strict=True):
            against = control if change.controlled else None
            if isinstance(change, Bank):
                parts = {part.name: rise(plain, under(part), against) for part in change.parts}
                yield Told(family, torch.stack(list(parts.values())).mean(0), parts)
            else:
                yield Told(family, rise(plain, under(change), against), {})

    def moved(self, suspect: Classifier, trusted: TrustedData, context: Context) -> dict[str, float]:
        """By change, how far it moves the classes apart: the mean distance of their whole rises from the mean rise, 0
        where none is known. Small on a model that was trained to bear such changes. Otherwise as `values`."""
        whole = replace(self, control=None).by_family(suspect, trusted, context)
        return {family.removeprefix(f"{self.name}_"): spread(rises) for family, rises in whole if family != self.name}

    def values(self, suspect: Classifier, trusted: TrustedData, context: Context) -> Tensor:
        """(K,) profile of every class, without unit, mostly in (-1, 0) and cut off at ±MOST, on the CPU; NaN where no
        image is of another class, or where the right class is not answered more than the others. The suspect must be
        frozen and on the context's device."""
        return self.answers(suspect, trusted, context).profile

    def answers(self, suspect: Classifier, trusted: TrustedData, context: Context) -> Answers:
        """Otherwise as `values`."""
        logits = predict(suspect, trusted.images, context).float()
        centred = logits - logits.mean(1, keepdim=True)
        classes = range(suspect.num_classes)
        known = [centred[trusted.labels == c, c].mean() for c in classes if bool((trusted.labels == c).any())]
        others = torch.stack([centred[trusted.labels != c, c].mean() for c in classes])
        return Answers(float(torch.stack(known).mean()), others)


def spread(values: Tensor) -> float:
    """Mean distance from the mean of those (K,) that are known; 0 where none is."""
    known = values[~values.isnan()].double()
    return float((known - known.mean()).abs().mean()) if len(known) else 0.0


def rise(plain: Answers, changed: Answers, control: Answers | None) -> Tensor:
    """(K,) of every class; the whole of it where there is no control, or where it makes nothing harder to recognise or
    leaves nothing to recognise."""
    whole = changed.profile - plain.profile
    harder = 0.0 if control is None else plain.lost(control)
    if control is None or harder == 0 or math.isinf(harder):
        return whole
    return whole - min(1.0, plain.lost(changed) / harder) * (control.profile - plain.profile)
