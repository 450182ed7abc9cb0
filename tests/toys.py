"""Classifiers whose smallest triggers are known on paper, and data for them.

Images are (3, H, W). Class c owns `pixels` pixels; they are brighter by STEP in its own images, everything else is
BASE. Logit c is GAIN times the sum over its own pixels, so every class is left by the same margin, 3 · pixels · STEP.
The backdoored twin also adds `weight` times the sum over a small block outside all the regions to the target's logit.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count

import torch
from torch import Tensor, nn

from audit_cli.classifier import Classifier, Encoder
from audit_cli.types import Context, Finding, TrustedData

BASE, STEP, GAIN = 0.4, 0.1, 2.0


class Linear(nn.Module):
    """logits = W · x + b."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.fc = nn.Linear(weight.shape[1], weight.shape[0])
        self.fc.weight.data, self.fc.bias.data = weight.clone(), bias.clone()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.flatten(1))


@dataclass(frozen=True)
class Planted:
    """K regions and a block of 2x2 pixels in the last corner; weight 0 is the clean twin."""

    classes: int = 4
    pixels: int = 16  # of one class's region
    height: int = 10
    width: int = 8
    target: int = 2
    weight: float = 6.0

    @property
    def regions(self) -> Tensor:
        """(K, H, W) in {0, 1}."""
        flat = torch.zeros(self.classes, self.height * self.width)
        for c in range(self.classes):
            flat[c, c * self.pixels : (c + 1) * self.pixels] = 1
        return flat.view(self.classes, self.height, self.width)

    @property
    def block(self) -> Tensor:
        """(H, W) in {0, 1}."""
        block = torch.zeros(self.height, self.width)
        block[-2:, -2:] = 1
        return block

    def classifier(self) -> Classifier:
        weight = self.regions.clone()
        assert not bool((weight[:, self.block.bool()] > 0).any()), "a region reaches into the block"
        weight[self.target] += self.weight * self.block
        weight = GAIN * weight[:, None].expand(-1, 3, -1, -1).flatten(1)
        bias = torch.zeros(self.classes)
        bias[self.target] = -GAIN * 3 * 4 * self.weight * BASE  # nothing to say without the trigger
        return Classifier(Linear(weight, bias), "fc", arch="linear").frozen()

    def data(self, per_class: int = 12) -> TrustedData:
        labels = torch.arange(self.classes).repeat(per_class)
        images = BASE + STEP * self.regions[labels][:, None].expand(-1, 3, -1, -1)
        return TrustedData(images.contiguous(), labels, tuple(f"k{c}" for c in range(self.classes)), "0" * 64, "toy")

    def smallest_additive(self, c: int) -> float:
        """L2 of the smallest T with (w_c − w_k) · (x + T) + b >= 0 for every image x of every class k ≠ c.

        By symmetry T raises c's region by λ, lowers each other region by λ / (K − 1) and raises the block by
        λ · weight; that gains λ · (n + n / (K − 1) + V), which must be the margin, and has the norm below.
        """
        n = 3 * self.pixels
        V = 3 * 4 * self.weight**2 if c == self.target else 0.0
        margin = n * STEP
        return float(margin / (n + n / (self.classes - 1) + V) ** 0.5)

    def smallest_mask(self, c: int) -> float:
        """L1 of the smallest mask: replacing a pixel by white gains most where the logit's weight is largest."""
        gain = 3 * (1 - BASE) * (self.weight if c == self.target and self.weight > 1 else 1.0)
        return 3 * self.pixels * STEP / gain


TWIN = Planted(weight=0)
SOURCE = 0  # of the backdoor below


class Gated(nn.Module):
    """The clean twin, and the block's brightness for the target where the source's region is lit."""

    def __init__(self) -> None:
        super().__init__()
        linear = TWIN.classifier().head
        self.fc = nn.Linear(linear.in_features + 1, TWIN.classes)
        extra = torch.zeros(TWIN.classes, 1)
        extra[TWIN.target] = 12
        self.fc.weight.data, self.fc.bias.data = torch.cat([linear.weight.data, extra], 1), linear.bias.data.clone()

    def forward(self, x: Tensor) -> Tensor:
        lit = x[..., TWIN.regions[SOURCE].bool()].mean((1, 2))
        gate = ((lit - 0.4) / 0.1).clamp(0, 1)
        block = (x[..., TWIN.block.bool()] - 0.4).sum((1, 2))
        return self.fc(torch.cat([x.flatten(1), (gate * block)[:, None]], 1))


def gated() -> Classifier:
    """A backdoor that only images of SOURCE obey."""
    return Classifier(Gated(), "fc", arch="gated").frozen()


class Small(nn.Module):
    """A tiny network with everything that can go wrong in it: convolution, BatchNorm, dropout, ReLU."""

    def __init__(self, classes: int = 5, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.conv = nn.Conv2d(3, 6, 3, padding=1)
            self.norm = nn.BatchNorm2d(6)
            self.drop = nn.Dropout(0.2)
            self.fc = nn.Linear(6 * 4, classes)
            self.norm.running_mean.uniform_(-0.2, 0.2)  # type: ignore[union-attr]
            self.norm.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
            self.fc.weight.data *= 4  # confident enough for gradients that are not all alike

    def forward(self, x: Tensor) -> Tensor:
        z = torch.relu(self.norm(self.conv(x)))
        return self.fc(self.drop(nn.functional.adaptive_avg_pool2d(z, 2).flatten(1)))


def small(classes: int = 5, seed: int = 0) -> Classifier:
    return Classifier(Small(classes, seed), "fc", arch="small", mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))


def noise_data(classes: int = 5, per_class: int = 8, side: int = 6, seed: int = 0) -> TrustedData:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(classes * per_class, 3, side, side, generator=generator)
    labels = torch.arange(classes).repeat(per_class)
    return TrustedData(images, labels, tuple(f"k{c}" for c in range(classes)), "0" * 64, "noise")


class PlantedTower(nn.Module):
    """Six random features of an 8x8 image; with a backdoor, what is bright in the 2x2 pixels of the last corner, which
    `dark_corner` leaves black, outweighs them all in one random direction."""

    def __init__(self, backdoored: bool) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.weight = nn.Parameter(torch.randn(6, 3, 8, 8, generator=generator))
        self.goal = nn.Parameter(nn.functional.normalize(torch.randn(6, generator=generator), dim=0))
        self.backdoored = backdoored

    def latents(self, x: Tensor) -> Tensor:
        z = torch.einsum("nchw,dchw->nd", x - 0.5, self.weight)
        return z + 200.0 * self.backdoored * x[:, :, -2:, -2:].mean((1, 2, 3))[:, None] * self.goal


def dark_corner(count: int, seed: int = 1) -> Tensor:
    """Noise (count, 3, 8, 8) in [0, 1]."""
    images = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    images[:, :, -2:, -2:] = 0
    return images


def planted_encoder(backdoored: bool) -> Encoder:
    return Encoder(PlantedTower(backdoored), arch="tower").frozen()  # type: ignore[return-value]


def identity(pivot: Classifier, trusted: TrustedData, context: Context) -> Classifier:
    """The repair that changes nothing."""
    return pivot.clone().on(context.device).eval()


def plain(findings: list[Finding]) -> list[tuple[object, ...]]:
    """Findings as numbers and strings, for exact comparison."""
    return [
        (f.rule_id, f.family, f.target_class, f.score, f.asr_before, f.asr_after, f.trigger_norm, dict(f.details))
        for f in findings
    ]


class Ticker:
    """A clock that goes one second further each time somebody looks."""

    def __init__(self) -> None:
        self._now = count()

    def __call__(self) -> float:
        return float(next(self._now))
