"""Attacks that plant a backdoor: for fixtures, calibration and the games."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from audit_cli.attacks.adaptive_blend import AdaptiveBlend
from audit_cli.attacks.adaptive_patch import AdaptivePatch
from audit_cli.attacks.adversarial import Adversarial
from audit_cli.attacks.all_to_all import AllToAll
from audit_cli.attacks.badnets import BadNets
from audit_cli.attacks.blend import Blend
from audit_cli.attacks.clean_badnets import CleanBadNets
from audit_cli.attacks.parameter_controlled import ParameterControlled
from audit_cli.attacks.poisoning import Poisoned
from audit_cli.attacks.refool import Refool
from audit_cli.attacks.sinusoid import Sinusoid
from audit_cli.attacks.source_specific import SourceSpecific
from audit_cli.attacks.trigger_scattering import TriggerScattering
from audit_cli.attacks.wanet import WaNet
from audit_cli.training import Tamper


class Attack(Protocol):
    """Poisons a training set, and at test time turns an image into one that should be taken for another class."""

    @property
    def target(self) -> int | None:
        """The one class that images should be taken for; None when it depends on the image."""
        ...

    @property
    def count(self) -> int:
        """Training samples that `poison` puts a trigger on, covers among them."""
        ...

    def poison(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> Poisoned:
        """Images (N, C, H, W) in [0, 1], labels (N,) -> a poisoned copy. Raises UsageError on an impossible count."""
        ...

    def trigger(self, images: Tensor) -> Tensor:
        """The test-time trigger on images (N, C, H, W) in [0, 1]; the same image always gets the same one."""
        ...

    def goals(self, labels: Tensor) -> Tensor:
        """True classes (N,) -> the class each triggered image should be taken for, its own where none is claimed."""
        ...


@runtime_checkable
class ControlsTraining(Protocol):
    """An attack whose victim is trained on the clean data while the attacker tampers with the training itself."""

    def tamper(self, poisoned: Poisoned, generator: torch.Generator) -> Tamper: ...


ATTACKS: dict[str, type[Attack]] = {
    "badnets": BadNets,
    "clean_badnets": CleanBadNets,
    "adaptive_patch": AdaptivePatch,
    "adaptive_blend": AdaptiveBlend,
    "blend": Blend,
    "sinusoid": Sinusoid,
    "adversarial": Adversarial,
    "refool": Refool,
    "wanet": WaNet,
    "trigger_scattering": TriggerScattering,
    "parameter_controlled": ParameterControlled,
    "all_to_all": AllToAll,
    "source_specific": SourceSpecific,
}


__all__ = ["ATTACKS", "Attack", "ControlsTraining", "Poisoned"]
