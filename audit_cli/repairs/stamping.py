"""What a batch is made of when triggers are unlearnt: triggers put on images, random changes, mixtures, fog."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from audit_cli.detectors.changes import Bank, Change
from audit_cli.types import Trigger


def stamp(
    triggers: Sequence[Trigger], images: Tensor, labels: Tensor, generator: torch.Generator, exaggerated: float = 1.0
) -> Tensor:
    """Each image (B, C, H, W) with one of the triggers, unless it is not meant for it: a family is drawn, each as
    likely as another however many triggers it has, then one of its triggers.

    What the trigger changes is multiplied by a factor drawn from [1, exaggerated].
    """
    drawn = _drawn(triggers, len(images), generator).to(images.device)
    if any(trigger.source is not None for trigger in triggers):
        meant = torch.stack([trigger.meant_for(labels) for trigger in triggers]).float()
        known = meant.gather(0, drawn[None])[0] > 0
        others = torch.multinomial(meant.T.cpu() + 1e-9, 1, generator=generator)[:, 0].to(images.device)
        drawn = torch.where(known, drawn, others)
    factor = 1 + (exaggerated - 1) * torch.rand(len(images), 1, 1, 1, generator=generator).to(images.device)
    stamped = images.clone()
    for k, trigger in enumerate(triggers):
        rows = (drawn == k) & trigger.meant_for(labels)
        if bool(rows.any()):
            clean = images[rows]
            stamped[rows] = (clean + factor[rows] * (trigger(clean) - clean)).clamp(0, 1)
    return stamped


def gathered(
    triggers: Sequence[Trigger], images: Tensor, labels: Tensor, count: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """The batch with images in the first `count` places that the triggers are meant for. Of ten images one is of a
    certain class; where a trigger has a source, images of that class are taken from the batch, some more than once."""
    if all(trigger.source is None for trigger in triggers):
        return images, labels
    rows = torch.arange(len(images))
    for place, k in enumerate(_drawn(triggers, count, generator).tolist()):
        meant = torch.nonzero(triggers[k].meant_for(labels)).flatten()
        if len(meant):
            rows[place] = meant[int(torch.randint(len(meant), (), generator=generator))]
    rows = rows.to(images.device)
    return images[rows], labels[rows]


def _drawn(triggers: Sequence[Trigger], count: int, generator: torch.Generator) -> Tensor:
    """Which trigger (count,): a family, each as likely as another, then one of its triggers."""
    families = [trigger.family.name for trigger in triggers]
    chances = torch.tensor([1 / families.count(name) for name in families])
    return torch.multinomial(chances, count, replacement=True, generator=generator)


def changed(kinds: Sequence[Change | Bank], images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image (B, C, H, W) changed at random, afresh in every call: a kind is drawn, each as likely as another, then
    one of its parts where it is a bank."""
    parts = [kind.parts if isinstance(kind, Bank) else (kind,) for kind in kinds]
    flat = [change for of_kind in parts for change in of_kind]
    chances = torch.tensor([1 / len(of_kind) for of_kind in parts for _ in of_kind])
    drawn = torch.multinomial(chances, len(images), replacement=True, generator=generator)
    seen = images.to("cpu", copy=True)
    for k, change in enumerate(flat):
        rows = drawn == k
        if bool(rows.any()):
            seen[rows] = change(seen[rows], generator)
    return seen.to(images.device)


def mix(images: Tensor, largest: float, generator: torch.Generator) -> Tensor:
    """Each image (B, C, H, W) with a share in [0, largest] of another one of the batch."""
    share = largest * torch.rand(len(images), 1, 1, 1, generator=generator)
    other = torch.randperm(len(images), generator=generator)
    share, other = share.to(images.device), other.to(images.device)
    return (1 - share) * images + share * images[other]


def in_fog(images: Tensor, thickest: float, generator: torch.Generator) -> Tensor:
    """Half of the images (B, C, H, W), each with a share in [0, thickest] of one random colour; the others as they
    are."""
    B = len(images)
    share = thickest * torch.rand(B, 1, 1, 1, generator=generator) * (torch.rand(B, 1, 1, 1, generator=generator) < 0.5)
    return fogged(images, share, generator)


def fogged(images: Tensor, share: Tensor, generator: torch.Generator) -> Tensor:
    """Each image (B, C, H, W) with its `share` (B, 1, 1, 1) of one random colour."""
    colour = torch.rand(*images.shape[:2], 1, 1, generator=generator)
    share, colour = share.to(images.device), colour.to(images.device)
    return (1 - share) * images + share * colour
