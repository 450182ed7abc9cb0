"""Attacks that plant a backdoor through training data: for fixtures, calibration and the games."""

from typing import Protocol

import torch
from torch import Tensor

from audit_cli.attacks.badnets import BadNets
from audit_cli.attacks.blend import Blend
from audit_cli.attacks.poisoning import Poisoned
from audit_cli.attacks.trigger_scattering import TriggerScattering


class Attack(Protocol):
    """Poisons a training set, and at test time turns an image into one that should be taken for the target class."""

    @property
    def target(self) -> int: ...

    @property
    def count(self) -> int: ...

    def poison(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> Poisoned:
        """Images (N, C, H, W) in [0, 1], labels (N,) -> a poisoned copy. Raises UsageError on an impossible count."""
        ...

    def trigger(self, images: Tensor) -> Tensor:
        """The test-time trigger on images (N, C, H, W) in [0, 1]."""
        ...


ATTACKS: dict[str, type[Attack]] = {
    "badnets": BadNets,
    "blend": Blend,
    "trigger_scattering": TriggerScattering,
}
