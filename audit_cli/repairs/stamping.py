"""What a batch is made of when triggers are unlearnt: triggers put on images, mixtures of images, fog."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from audit_cli.types import Trigger


def stamp(
    triggers: Sequence[Trigger], images: Tensor, labels: Tensor, generator: torch.Generator, exaggerated: float = 1.0
) -> Tensor:
    """Each image (B, C, H, W) with one of the triggers, unless it is of that trigger's target: a family is drawn, each
    as likely as another however many triggers it has, then one of its triggers.

    What the trigger changes is multiplied by a factor drawn from [1, exaggerated].
    """
    families = [trigger.family.name for trigger in triggers]
    chances = torch.tensor([1 / families.count(name) for name in families])
    drawn = torch.multinomial(chances, len(images), replacement=True, generator=generator).to(images.device)
    factor = 1 + (exaggerated - 1) * torch.rand(len(images), 1, 1, 1, generator=generator).to(images.device)
    stamped = images.clone()
    for k, trigger in enumerate(triggers):
        rows = (drawn == k) & (labels != trigger.target)
        if bool(rows.any()):
            clean = images[rows]
            stamped[rows] = (clean + factor[rows] * (trigger(clean) - clean)).clamp(0, 1)
    return stamped


def mix(images: Tensor, largest: float, generator: torch.Generator) -> Tensor:
    """Each image (B, C, H, W) with a share in [0, largest] of another one of the batch."""
    share = largest * torch.rand(len(images), 1, 1, 1, generator=generator)
    other = torch.randperm(len(images), generator=generator)
    share, other = share.to(images.device), other.to(images.device)
    return (1 - share) * images + share * images[other]


def in_fog(images: Tensor, thickest: float, generator: torch.Generator) -> Tensor:
    """Half of the images (B, C, H, W), each with a share in [0, thickest] of one random colour; the others as they
    are."""
    B, C = images.shape[:2]
    share = thickest * torch.rand(B, 1, 1, 1, generator=generator) * (torch.rand(B, 1, 1, 1, generator=generator) < 0.5)
    colour = torch.rand(B, C, 1, 1, generator=generator)
    share, colour = share.to(images.device), colour.to(images.device)
    return (1 - share) * images + share * colour
