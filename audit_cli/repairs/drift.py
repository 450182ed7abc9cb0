"""Bounded drift: a tuned network stays in a ball around the one it came from.

    ‖θ − θ~‖ ≤ drift · ‖θ~‖        over all parameters θ; outside, θ ← θ~ + (θ − θ~) · drift · ‖θ~‖ / ‖θ − θ~‖

Projected gradient descent on the weights. Where a penalty on the distance has to be weighed against the loss, the ball
holds whatever the step size is, which matters for networks that were trained on far more than a repair ever sees.
"""

from __future__ import annotations

import torch
from torch import nn

from audit_cli.classifier import Classifier


def layer_normalised(classifier: Classifier) -> bool:
    """Has it layer normalisation, as transformers have? Such a network has no running statistics to be thrown off."""
    return any(isinstance(module, nn.LayerNorm) for module in classifier.modules())


@torch.no_grad()
def drift(classifier: Classifier, pivot: Classifier) -> float:
    """‖θ − θ~‖ / ‖θ~‖ of two networks of one architecture; buffers are left out."""
    ours, theirs = list(classifier.parameters()), list(pivot.parameters())
    distance = torch.stack([(a - b).norm() for a, b in zip(ours, theirs, strict=True)]).norm()
    return float(distance / torch.stack([b.norm() for b in theirs]).norm())


@torch.no_grad()
def bound(classifier: Classifier, pivot: Classifier, largest: float) -> None:
    """Pulls the parameters of `classifier` back, in place, to a drift of at most `largest` from `pivot`."""
    moved = drift(classifier, pivot)
    if moved <= largest:
        return
    for ours, theirs in zip(classifier.parameters(), pivot.parameters(), strict=True):
        ours.copy_(theirs + (ours - theirs) * (largest / moved))
