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

Ours; what they are worth: fixtures/results/profile-study.json and rises-study.json.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from audit_cli.classifier import Classifier
from audit_cli.detectors.changes import CHANGES, Change
from audit_cli.metrics import predict
from audit_cli.types import Context, TrustedData

MOST = 3.0  # ours: of a model that hardly knows the right class, nothing more is told


@dataclass(frozen=True)
class Profile:
    """changes: under which the rise is measured. Every trusted image is used once for each, and once as it is."""

    changes: tuple[Change, ...] = CHANGES
    name: str = "profile"

    @property
    def families(self) -> tuple[str, ...]:
        """Its own, and one for each change."""
        return (self.name, *(f"{self.name}_{change.name}" for change in self.changes))

    def by_family(self, suspect: Classifier, trusted: TrustedData, context: Context) -> Iterator[tuple[str, Tensor]]:
        """The profile (K,) under its name, and its rise (K,) under each change, by family; otherwise as `values`."""
        plain = self.values(suspect, trusted, context)
        yield self.name, plain
        for family, change in zip(self.families[1:], self.changes, strict=True):
            changed = replace(trusted, images=change(trusted.images, context.generator(stream=13)))
            yield family, self.values(suspect, changed, context) - plain

    def values(self, suspect: Classifier, trusted: TrustedData, context: Context) -> Tensor:
        """(K,) profile of every class, without unit, mostly in (-1, 0) and cut off at ±MOST, on the CPU; NaN where no
        image is of another class, or where the right class is not answered more than the others. The suspect must be
        frozen and on the context's device."""
        logits = predict(suspect, trusted.images, context).float()
        centred = logits - logits.mean(1, keepdim=True)
        classes = range(suspect.num_classes)
        known = [centred[trusted.labels == c, c].mean() for c in classes if bool((trusted.labels == c).any())]
        right = torch.stack(known).mean()
        others = torch.stack([centred[trusted.labels != c, c].mean() for c in classes])
        return torch.where(right > 0, (others / right).clamp(-MOST, MOST), torch.nan)
