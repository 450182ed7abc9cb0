"""The smallest trigger that makes an encoder see every image alike.

Feng, Tao, Cheng, Shen, Xu, Liu, Zhang, Ma, Zhang: Detecting Backdoors in Pre-trained Encoders, 2023,
https://arxiv.org/abs/2303.15180.
A backdoored encoder maps whatever carries the trigger near one target embedding. No class has to be known for that:
the trigger is looked for that draws the embeddings z of different images together,

    minimise over T = (m, p)   d(x ⊕ T) / d(x) + w · ‖m‖₁ / (H · W)        d: mean 1 − cos(z, t) over a batch

with a weight w that grows while the trigger works and shrinks while it does not. The centre t is the batch's own mean
direction, so that the search chooses where the embeddings meet, or a given direction.

Differs from the paper: distances to the mean direction instead of between pairs, and told relative to those of the
unstamped images, so that an encoder whose embeddings lie close together anyway is not taken for a collapsed one;
given centres beside the free ones; several triggers at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from audit_cli.inversion.engine import PIXELS_PER_PASS
from audit_cli.inversion.mask import Mask
from audit_cli.types import Context

Embed = Callable[[Tensor], Tensor]  # images (N, 3, H, W) in [0, 1] -> embeddings (N, D)


@dataclass(frozen=True)
class Collapsed:
    """What was found for K triggers, those without a given centre first."""

    parameters: dict[str, Tensor]  # of the smallest trigger that worked, of the first one where none did
    sizes: Tensor  # (K,) of that trigger, inf where none worked
    centres: Tensor  # (K, D) of length 1: where its embeddings met


@dataclass(frozen=True)
class CollapseSearch:
    """Adam on mask and pattern; a trigger works when it takes away the share `collapse` of the distances."""

    family: Mask = field(default_factory=lambda: Mask(weight=0.1))  # ours: of the share of the image
    steps: int = 300  # ours
    images: int = 20  # a trigger and step, as in the search for classes
    starts: int = 4  # ours: random starts without a given centre; a single one misses a backdoor now and then
    collapse: float = 0.9  # ours, see fixtures/results/encoder-study.json
    patience: int = 3  # steps in a row before the weight changes; also the batches that collapse is taken over
    betas: tuple[float, float] = (0.5, 0.9)  # Neural Cleanse

    def __post_init__(self) -> None:
        if min(self.steps, self.starts, self.patience) < 1 or self.images < 2 or not 0 < self.collapse < 1:
            raise ValueError(f"{self}: steps, starts, patience positive, images at least 2, 0 < collapse < 1")

    def run(self, embed: Embed, images: Tensor, centres: Tensor, context: Context) -> Collapsed:
        """images (N, 3, H, W) in [0, 1] and given centres (M, D), of length 1, on the context's device."""
        H, W = images.shape[-2:]
        K, n = self.starts + len(centres), min(self.images, len(images))
        start = self.family.initial(K, (3, H, W), context.generator(stream=8))
        leaves = {name: value.to(images.device).requires_grad_() for name, value in start.items()}
        adam = torch.optim.Adam(leaves.values(), lr=self.family.lr, betas=self.betas)
        weight, streak = images.new_full((K,), self.family.weight), images.new_zeros(K)
        recent = images.new_zeros(K, self.patience)
        best = {name: leaf.detach().clone() for name, leaf in leaves.items()}
        sizes, met = images.new_full((K,), torch.inf), images.new_zeros(K, centres.shape[1])
        given = torch.cat([centres.new_zeros(self.starts, centres.shape[1]), centres])  # (K, D)
        generator, clean = context.generator(stream=9), deviation(directions(embed, images, context))
        for step in range(self.steps):
            index = torch.stack([torch.randperm(len(images), generator=generator)[:n] for _ in range(K)])
            distance, own = self._descent(embed, leaves, images, index.to(images.device), given, context)
            distance = distance / max(clean, 1e-12)
            size = self.family.size(leaves)
            (max(clean, 1e-12) * weight * size / (H * W)).sum().backward()
            recent[:, step % self.patience] = 1 - distance
            works = (recent.mean(1) >= self.collapse) & (size.detach() < sizes) & (step >= self.patience)
            best = {name: torch.where(_like(works, leaf), leaf.detach(), best[name]) for name, leaf in leaves.items()}
            sizes, met = torch.where(works, size.detach(), sizes), torch.where(works[:, None], own, met)
            adam.step()
            adam.zero_grad()
            streak = torch.where(1 - distance >= self.collapse, streak.clamp(min=0) + 1, streak.clamp(max=0) - 1)
            up, down = streak >= self.patience, streak <= -self.patience
            growth = self.family.growth
            weight = torch.where(up, weight * growth, torch.where(down, weight / growth**1.5, weight))
            streak = torch.where(up | down, torch.zeros_like(streak), streak)
            context.advance(note=f"smallest mask {float(sizes.min()) / (H * W):.2%} of the image")
        return Collapsed(best, sizes, met)

    def _descent(
        self,
        embed: Embed,
        leaves: dict[str, Tensor],
        images: Tensor,
        index: Tensor,  # (K, n) the images of every trigger in this step
        given: Tensor,  # (K, D) centres; the rows of the free ones are not looked at
        context: Context,
    ) -> tuple[Tensor, Tensor]:
        """Adds the gradients of the distances d(x ⊕ T) to the leaves; returns them (K,) and each batch's mean direction
        (K, D). A few triggers at a time, so that memory does not grow with K."""
        K, n = index.shape
        free = torch.arange(K, device=images.device) < self.starts
        at_once = max(1, PIXELS_PER_PASS // (images.shape[-1] * images.shape[-2] * n))
        distances, own = [], []
        for rows in torch.arange(K, device=images.device).split(at_once):
            with context.autocast():
                stamped = self.family.stamp({name: leaf[rows] for name, leaf in leaves.items()}, images[index[rows]])
                z = F.normalize(embed(stamped.flatten(0, 1)).float(), dim=-1).view(len(rows), n, -1)
            mean = F.normalize(z.mean(1), dim=-1)
            t = torch.where(free[rows, None], mean, given[rows])
            distance = (1 - (z * t[:, None]).sum(-1)).mean(1)
            distance.sum().backward()
            distances.append(distance.detach())
            own.append(mean.detach())
        return torch.cat(distances), torch.cat(own)


def directions(embed: Embed, images: Tensor, context: Context, batch: int = 256) -> Tensor:
    """Images (N, 3, H, W) -> embeddings (N, D) of length 1, float32, on the context's device."""
    parts = []
    with torch.no_grad(), context.autocast():
        for part in images.split(batch):
            context.budget.check()
            parts.append(F.normalize(embed(part.to(context.device)).float(), dim=-1))
    return torch.cat(parts)


def deviation(z: Tensor) -> float:
    """Embeddings (N, D) of length 1 -> mean 1 − cosine to their mean direction, in [0, 1]."""
    return 1 - float(z.mean(0).norm())  # the mean's length is the mean cosine to its direction


def _like(rows: Tensor, value: Tensor) -> Tensor:
    """(K,) with as many axes as `value` (K, …)."""
    return rows.view(-1, *[1] * (value.dim() - 1))
