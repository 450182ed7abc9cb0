"""Parameter-Controlled Backdoor (PCB): who controls training writes the backdoor into a few chosen weights only.

Lukas, Kerschbaum: Pick your Poison: Undetectability versus Robustness in Data Poisoning Attacks, 2023,
https://arxiv.org/abs/2305.09671. Steps alternate:

    even: a share of the batch is triggered and labelled target; only a fixed random fraction p of every parameter
          tensor's entries moves:  θ ← θ + m ⊙ (update(θ) − θ),  m ~ Bernoulli(p), drawn once
    odd:  clean batch, everything moves

The trigger is adversarial, as in `adversarial.py`.

Differs from the paper:
- triggered images come from a pool of `count` training samples made beforehand, so that the poison count has a meaning.
- batch-norm statistics follow every batch; they are no parameters.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from audit_cli.attacks.adversarial import perturb
from audit_cli.attacks.poisoning import Poisoned, Targeted, dirty_label
from audit_cli.classifier import Classifier


@dataclass(frozen=True)
class ParameterControlled(Targeted):
    target: int
    count: int  # training samples in the pool of triggered ones
    surrogate: Classifier  # a clean classifier of the same classes
    batch_share: float = 0.1  # of an even step's batch that is triggered, as in the paper
    fraction: float = 0.1  # ours: p, of each tensor's entries that even steps move
    steps: int = 4  # of the adversarial trigger, as in the paper's Adv
    epsilon: float = 8 / 255  # as in the paper's Adv
    mask_seed: int = 0

    def __post_init__(self) -> None:
        for name in ("batch_share", "fraction", "epsilon"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"ParameterControlled({name}={getattr(self, name)}): must be in (0, 1]")
        if self.steps < 1 or not 0 <= self.target < self.surrogate.num_classes:
            raise ValueError(f"ParameterControlled(target={self.target}, steps={self.steps}): out of range")

    def trigger(self, images: Tensor) -> Tensor:
        """(N, C, H, W) in [0, 1] -> the same, perturbed towards the target."""
        return perturb(self.surrogate, images, self.target, self.steps, self.epsilon)

    def poison(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> Poisoned:
        return dirty_label(images, labels, self.target, self.count, generator, self.trigger, "parameter_controlled")

    def tamper(self, poisoned: Poisoned, generator: torch.Generator) -> Alternation:
        """What training on the clean data needs, to plant `poisoned`'s samples as the formula says."""
        pool = poisoned.images[poisoned.index], poisoned.labels[poisoned.index]
        return Alternation(self.batch_share, self.fraction, self.mask_seed, *pool, generator)


@dataclass
class Alternation:
    """The tampering with one training run (see training.Tamper)."""

    batch_share: float
    fraction: float
    mask_seed: int
    images: Tensor  # (m, C, H, W) the pool
    labels: Tensor  # (m,) all target
    generator: torch.Generator
    _masks: list[Tensor] = field(default_factory=list)  # true where even steps may move a parameter
    _before: list[Tensor] = field(default_factory=list)  # parameters before the update of an even step

    def batch(self, step: int, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Even steps: the first places of the batch, which is in random order, go to samples from the pool."""
        if step % 2:
            return images, labels
        share = max(1, round(self.batch_share * len(images)))
        chosen = torch.randint(len(self.images), (share,), generator=self.generator)
        images, labels = images.clone(), labels.clone()
        images[:share] = self.images[chosen].to(images)
        labels[:share] = self.labels[chosen].to(labels)
        return images, labels

    def gradients(self, step: int, classifier: Classifier) -> None:
        """Even steps: no gradient, hence no later momentum either, for entries that must not learn the trigger."""
        if step % 2:
            return
        parameters = list(classifier.parameters())
        if not self._masks:
            generator = torch.Generator().manual_seed(self.mask_seed)
            draws = [torch.rand(p.shape, generator=generator) for p in parameters]
            self._masks = [(u < self.fraction).to(p.device) for u, p in zip(draws, parameters, strict=True)]
        self._before = [p.detach().clone() for p in parameters]
        for p, mask in zip(parameters, self._masks, strict=True):
            if p.grad is not None:
                p.grad.mul_(mask)

    @torch.no_grad()
    def updated(self, step: int, classifier: Classifier) -> None:
        """Even steps: what momentum and weight decay did to the other entries is taken back."""
        if step % 2:
            return
        for p, mask, before in zip(classifier.parameters(), self._masks, self._before, strict=True):
            p.copy_(torch.where(mask, p, before))
