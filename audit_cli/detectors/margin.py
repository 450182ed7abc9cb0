"""The largest margin that any image can give a class: a statistic that needs no data.

Wang, Xiang, Miller, Kesidis: MM-BD: Post-Training Detection of Backdoor Attacks with Arbitrary Backdoor Pattern Types
Using a Maximum Margin Statistic, 2023, https://arxiv.org/abs/2205.06900.
A backdoor makes the model more certain of the target class than ordinary images ever needed it to be. So for every
class an image is looked for, from noise, that the model prefers by the widest margin:

    r_c = max over x in [0, 1] of  f_c(x) − max over j ≠ c of f_j(x)

and the largest r_c is tested against an exponential distribution fitted to the other classes' r.

Differs from the paper: fewer starts and steps, with normalised gradients and momentum; every class is tested, each
against all others, and the p-value of a class counts that it could be the largest of all by chance.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from audit_cli.classifier import Classifier
from audit_cli.inversion.engine import PIXELS_PER_PASS
from audit_cli.types import Context, Finding, TrustedData

LEAST_SPREAD = 1e-3  # ours: of the null, relative; classes that need exactly the same would make any rounding error odd


@dataclass(frozen=True)
class Margin:
    """Projected gradient ascent from uniform noise. The trusted images lend their shape only."""

    starts: int = 4  # ours: images a class; the paper takes 30
    steps: int = 60  # ours; the paper takes 300
    lr: float = 0.1  # ours: length of a step, root mean square over the pixels
    momentum: float = 0.9  # ours

    def __post_init__(self) -> None:
        if min(self.starts, self.steps, self.lr) <= 0 or not 0 <= self.momentum < 1:
            raise ValueError(f"{self}: starts, steps and lr must be positive, 0 <= momentum < 1")

    def __call__(self, suspect: Classifier, trusted: TrustedData, context: Context) -> Iterator[Finding]:
        """BD004 for every class: score −log10 p."""
        suspect = suspect.clone().on(context.device).frozen()
        margins = self.margins(suspect, trusted.shape, context)
        p_values = exponential(margins)
        for c, (margin, p) in enumerate(zip(margins.tolist(), p_values.tolist(), strict=True)):
            yield Finding(
                rule_id="BD004",
                score=-math.log10(max(p, 1e-300)),
                message=f"the widest margin an image gives this class is {margin:.3g} (p = {p:.2g})",
                detector="margin",
                target_class=c,
                target_name=trusted.class_names[c] if c < len(trusted.class_names) else None,
                p_value=p,
                details={"margin": margin},
            )

    def margins(self, suspect: Classifier, shape: tuple[int, int, int], context: Context) -> Tensor:
        """r (K,) on the CPU; `suspect` must be frozen and on the context's device."""
        K = suspect.num_classes
        classes = torch.arange(K).repeat_interleave(self.starts)
        images = torch.rand(len(classes), *shape, generator=context.generator(stream=7))
        per_pass = max(1, PIXELS_PER_PASS // (shape[1] * shape[2]))
        parts = list(zip(images.split(per_pass), classes.split(per_pass), strict=True))
        context.progress.stage("margins", self.steps * len(parts))
        best = torch.cat([self._ascend(suspect, x.to(context.device), c.to(context.device), context) for x, c in parts])
        return best.view(K, self.starts).amax(1).cpu()

    def _ascend(self, suspect: Classifier, x: Tensor, classes: Tensor, context: Context) -> Tensor:
        """Images (B, C, H, W) -> the widest margin (B,) met on the way up."""
        velocity, best = torch.zeros_like(x), x.new_full((len(x),), -torch.inf)
        for _ in range(self.steps):
            x = x.detach().requires_grad_()
            with context.autocast():
                reached = margin(suspect(x).float(), classes)
            best = torch.maximum(best, reached.detach())
            gradient = torch.autograd.grad(reached.sum(), x)[0]
            length = gradient.square().mean((1, 2, 3), keepdim=True).sqrt().clamp_min(1e-12)
            velocity = self.momentum * velocity + (1 - self.momentum) * gradient / length
            x = (x.detach() + self.lr * velocity).clamp(0, 1)
            context.advance()
        return best


def margin(logits: Tensor, classes: Tensor) -> Tensor:
    """Logits (B, K) -> how far the logit of each one's class (B,) lies over the best other one (B,)."""
    own = logits.gather(1, classes[:, None])[:, 0]
    return own - logits.scatter(1, classes[:, None], -torch.inf).amax(1)


def exponential(statistics: Tensor) -> Tensor:
    """p (K,) in [0, 1] of each of the statistics (K,) being so large.

    An exponential distribution, from the least of the others upwards with their mean, is the null of one class; the
    largest of K classes follows it to the power K.
    """
    p = torch.ones(len(statistics), dtype=torch.float64)
    for c in range(len(statistics) if len(statistics) > 2 else 0):  # one other class has no spread
        others = torch.cat([statistics[:c], statistics[c + 1 :]]).double()
        scale = (others.mean() - others.min()).clamp_min(max(LEAST_SPREAD * float(others.abs().mean()), 1e-12))
        tail = (-(statistics[c].double() - others.min()).clamp_min(0) / scale).exp()  # P(one class >= this)
        p[c] = -torch.expm1(len(statistics) * torch.log1p(-tail.clamp(max=1 - 1e-15)))
    return p
