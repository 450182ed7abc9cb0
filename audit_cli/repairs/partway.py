"""Part of the way: weights between the pivot's and the repaired model's.

    θ = θ~ + share · (θ_repaired − θ~)

Along this line the accuracy comes back sooner than the backdoor does, so a repair that cost too much need not be run
again, only taken less far: no further optimisation, one measurement.

Wortsman et al.: Robust fine-tuning of zero-shot models, 2022, https://arxiv.org/abs/2109.01903, who so keep what a
model knew before it was fine-tuned.
"""

from __future__ import annotations

from itertools import chain

import torch

from audit_cli.classifier import Classifier


@torch.no_grad()
def partway(pivot: Classifier, repaired: Classifier, share: float) -> Classifier:
    """A classifier `share` of the way from `pivot` to `repaired`, which have one architecture; both are untouched.
    Running statistics go along; counters are the repaired model's. Raises ValueError unless 0 <= share <= 1."""
    if not 0 <= share <= 1:
        raise ValueError(f"partway({share=}): must be in [0, 1]")
    found = repaired.clone()
    theirs = chain(pivot.parameters(), pivot.buffers())
    for ours, start in zip(chain(found.parameters(), found.buffers()), theirs, strict=True):
        if ours.is_floating_point():
            ours.copy_(torch.lerp(start.to(ours), ours, share))
    return found
