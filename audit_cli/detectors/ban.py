"""Adversarial noise on the neurons: a backdoored model falls towards its target.

Xu, Liu, Koffas, Yu, Picek: BAN: Detecting Backdoors Activated by Adversarial Neuron Noise, 2024,
https://arxiv.org/abs/2405.19928; the noise is that of Wu, Wang: Adversarial Neuron Pruning Purifies Backdoored Deep
Models, 2021, https://arxiv.org/abs/2110.14430.
Scale and shift of every BatchNorm channel are multiplied by 1 + δ, |δ| <= ε, so that the loss on trusted images grows
as large as it can:

    maximise over |δ| <= ε  CE(f(x; γ(1 + δ_γ), β(1 + δ_β)), y)        score_c = share of images not of c sent to c

The fewer neurons a class needs to take everything, the more of the images end there. Clean models lose up to half of
the images to one class as well, so this supports other evidence and is none by itself.

Differs from the paper: there the noise, a larger one, is the first step of a search for a feature mask, which decides;
here the noise alone is measured.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from audit_cli.classifier import Classifier
from audit_cli.types import Context, Finding, TrustedData


@dataclass(frozen=True)
class BAN:
    """Projected sign-gradient ascent on the noise."""

    radius: float = (
        0.05  # ε, relative; ours: the 0.3 of adversarial neuron pruning sends all images of any model astray
    )
    steps: int = 20  # ours
    batch: int = 128  # ours: images a step

    def __post_init__(self) -> None:
        if min(self.radius, self.steps, self.batch) <= 0:
            raise ValueError(f"{self}: radius, steps and batch must be positive")

    def __call__(self, suspect: Classifier, trusted: TrustedData, context: Context) -> Iterator[Finding]:
        """BD006 for every class; one that says so when the model has no BatchNorm with weights."""
        suspect = suspect.clone().on(context.device).frozen()
        neurons = batch_norms(suspect)
        if not neurons:
            message = "does not apply: the model has no BatchNorm scales to disturb"
            yield Finding("BD006", 0.0, message, "ban", details={"applies": False})
            return
        noisy = self.disturbed(suspect, neurons, trusted, context)
        found = self._classes(suspect, noisy, trusted.images, context)
        for c in range(suspect.num_classes):
            others = trusted.labels != c
            share = float((found[others] == c).double().mean()) if bool(others.any()) else 0.0
            yield Finding(
                rule_id="BD006",
                score=share,
                message=f"{share:.0%} of the images of other classes go here under noise on the neurons",
                detector="ban",
                target_class=c,
                target_name=trusted.class_names[c] if c < len(trusted.class_names) else None,
                details={"radius": self.radius, "applies": True},
            )

    def disturbed(
        self, suspect: Classifier, neurons: dict[str, Tensor], trusted: TrustedData, context: Context
    ) -> dict[str, Tensor]:
        """The parameters `neurons` under the noise that hurts most, by name."""
        context.progress.stage("neuron noise", self.steps)
        generator = context.generator(stream=8)
        step = 2.5 * self.radius / self.steps  # reaches the edge from anywhere, as usual for projected ascent
        noise = {
            name: (torch.rand(value.shape, generator=generator) * 2 - 1).to(value) * self.radius
            for name, value in neurons.items()
        }
        for _ in range(self.steps):
            drawn = torch.randperm(len(trusted), generator=generator)[: self.batch]
            x, y = trusted.images[drawn].to(context.device), trusted.labels[drawn].to(context.device)
            leaves = {name: delta.detach().requires_grad_() for name, delta in noise.items()}
            with context.autocast():
                logits = functional_call(suspect, _apply(neurons, leaves), (x,)).float()
            loss = F.cross_entropy(logits, y)
            gradients = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)  # 0 of idle layers
            for (name, delta), gradient in zip(noise.items(), gradients, strict=True):
                noise[name] = (delta + step * gradient.sign()).clamp(-self.radius, self.radius)
            context.advance()
        return _apply(neurons, noise)

    @torch.no_grad()
    def _classes(self, suspect: Classifier, noisy: dict[str, Tensor], images: Tensor, context: Context) -> Tensor:
        """Predicted classes (N,) under the noise, on the CPU."""
        found = []
        for part in images.split(self.batch):
            context.budget.check()
            with context.autocast():
                found.append(functional_call(suspect, noisy, (part.to(context.device),)).argmax(1).cpu())
        return torch.cat(found)


def batch_norms(suspect: Classifier) -> dict[str, Tensor]:
    """Scales and shifts of all BatchNorm layers, by parameter name."""
    return {
        f"{name}.{kind}": parameter
        for name, module in suspect.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        for kind, parameter in module.named_parameters(recurse=False)
    }


def _apply(neurons: dict[str, Tensor], noise: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value * (1 + noise[name]) for name, value in neurons.items()}
