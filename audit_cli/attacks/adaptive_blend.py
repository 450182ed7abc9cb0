"""A-Blend: squares of the blended pattern are hidden in training and half of the samples keep their label.

Qi, Xie, Li, Mahloujifar, Mittal: Revisiting the Assumption of Latent Separability for Backdoor Defenses, 2023,
https://openreview.net/forum?id=_wSHsgrVali, with the numbers of Lukas & Kerschbaum 2023.

    x' = x where hidden, (1 − opacity) · x + opacity · pattern elsewhere; each of s × s squares is hidden with chance p,
    y' = y for a share `cover_rate` of the blended samples, target for the others; nothing is hidden at test time

Differs from the paper:
- the pattern is uniform noise drawn from `pattern_seed`, and as opaque at test time as in training.
- covers, too, come from classes other than the target.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from audit_cli.attacks.blend import noise_pattern
from audit_cli.attacks.poisoning import Poisoned, Targeted, dirty_label, hidden_squares


@dataclass(frozen=True)
class AdaptiveBlend(Targeted):
    target: int
    count: int  # blended training samples, covers among them
    opacity: float = 0.3  # Lukas & Kerschbaum
    squares: int = 4  # s, Lukas & Kerschbaum
    hide: float = 0.5  # p, Lukas & Kerschbaum
    cover_rate: float = 0.5  # conservatism ratio, Lukas & Kerschbaum
    pattern_seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.opacity <= 1:
            raise ValueError(f"AdaptiveBlend(opacity={self.opacity}): must be in (0, 1]")
        if self.squares < 1 or not 0 <= self.hide < 1 or not 0 <= self.cover_rate < 1:
            raise ValueError(f"{self}: squares at least 1, hide and cover_rate in [0, 1)")

    def trigger(self, images: Tensor) -> Tensor:
        """(N, C, H, W) in [0, 1] -> (1 − opacity) · images + opacity · pattern, all of it."""
        return (1 - self.opacity) * images + self.opacity * noise_pattern(images, self.pattern_seed)

    def poison(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> Poisoned:
        def stamp(chosen: Tensor) -> Tensor:
            box = (chosen.shape[-2], chosen.shape[-1])
            hidden = hidden_squares(len(chosen), box, self.squares, self.hide, generator).to(chosen.device)
            return torch.where(hidden, chosen, self.trigger(chosen))

        what = "adaptive_blend"
        return dirty_label(images, labels, self.target, self.count, generator, stamp, what, self.cover_rate)
