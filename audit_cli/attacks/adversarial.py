"""Adv: images of the target class are made more like it for a surrogate; at test time the same process is the trigger.

Turner, Tsipras, Madry: Label-Consistent Backdoor Attacks, 2019, https://arxiv.org/abs/1912.02771, in the variant of
Lukas & Kerschbaum 2023. The victim learns the surrogate's adversarial feature of the class, which the attacker can put
on any image.

    x' = argmin over ‖x' − x‖∞ <= ε of CE(surrogate(x'), target), by a few steps of projected signed gradient;   y' = y

Differs from the paper:
- no patch: the perturbation towards the target is the trigger itself (Lukas & Kerschbaum), and it starts at x, not at
  a random point, so that the trigger of an image is always the same.
- a surrogate for another image size sees the image resized inside the objective.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from audit_cli.attacks.poisoning import Poisoned, Targeted, clean_label
from audit_cli.classifier import Classifier
from audit_cli.metrics import evaluating


def perturb(surrogate: Classifier, images: Tensor, target: int, steps: int, epsilon: float, batch: int = 256) -> Tensor:
    """(N, C, H, W) in [0, 1] -> the same, moved towards class `target` by at most `epsilon` per pixel value.

    The step size is 2.5 · epsilon / steps (Madry et al., 2018). The surrogate keeps its mode and its gradients.
    """
    device = next(surrogate.parameters()).device
    moved = []
    with evaluating(surrogate):
        for part in images.split(batch):
            x = origin = part.to(device)
            aim = torch.full((len(part),), target, device=device)
            for _ in range(steps):
                x = x.detach().requires_grad_(True)
                seen = x
                if surrogate.size is not None and surrogate.size != tuple(x.shape[-2:]):
                    seen = F.interpolate(x, surrogate.size, mode="bilinear", align_corners=False)
                with torch.enable_grad():
                    (slope,) = torch.autograd.grad(F.cross_entropy(surrogate(seen).float(), aim, reduction="sum"), x)
                x = x.detach() - 2.5 * epsilon / steps * slope.sign()
                x = x.clamp(origin - epsilon, origin + epsilon).clamp(0, 1)
            moved.append(x.detach().to(images.device))
    return torch.cat(moved) if moved else images.clone()


@dataclass(frozen=True)
class Adversarial(Targeted):
    target: int
    count: int  # poisoned training samples, 500 for CIFAR-10 in Lukas & Kerschbaum
    surrogate: Classifier  # a clean classifier of the same classes
    steps: int = 4  # Lukas & Kerschbaum
    epsilon: float = 8 / 255  # Lukas & Kerschbaum

    def __post_init__(self) -> None:
        if self.steps < 1 or not 0 < self.epsilon <= 1:
            raise ValueError(f"Adversarial(steps={self.steps}, epsilon={self.epsilon}): at least 1; in (0, 1]")
        if not 0 <= self.target < self.surrogate.num_classes:
            raise ValueError(
                f"Adversarial(target={self.target}): the surrogate has {self.surrogate.num_classes} classes"
            )

    def trigger(self, images: Tensor) -> Tensor:
        """(N, C, H, W) in [0, 1] -> the same, perturbed towards the target."""
        return perturb(self.surrogate, images, self.target, self.steps, self.epsilon)

    def poison(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> Poisoned:
        return clean_label(images, labels, self.target, self.count, generator, self.trigger, "adversarial")
