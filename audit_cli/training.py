"""The one fit loop: every victim, reference model and repair is trained here.

The whole dataset lies on the device as one tensor, augmentation is done on batches, and the loss is a function given
by the caller, so that an algorithm is its loss and its settings and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audit_cli.classifier import Classifier
from audit_cli.types import Context

Loss = Callable[[Classifier, Tensor, Tensor], Tensor]


def cross_entropy(classifier: Classifier, images: Tensor, labels: Tensor) -> Tensor:
    """The default loss, on one batch: images (B, 3, H, W) in [0, 1], labels (B,)."""
    return F.cross_entropy(classifier(images).float(), labels)


def crop_and_flip(images: Tensor, generator: torch.Generator, pad: int, flip: bool) -> Tensor:
    """Each image of (B, C, H, W) shifted by up to `pad` pixels with reflected borders, mirrored with chance 1/2."""
    B, _, H, W = images.shape
    if pad:
        dy, dx = (torch.randint(0, 2 * pad + 1, (2, B), generator=generator)).to(images.device)
        rows = dy[:, None] + torch.arange(H, device=images.device)  # (B, H)
        columns = dx[:, None] + torch.arange(W, device=images.device)  # (B, W)
        padded = F.pad(images, (pad, pad, pad, pad), mode="reflect").permute(0, 2, 3, 1)
        here = torch.arange(B, device=images.device)[:, None, None]
        images = padded[here, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    if flip:
        mirrored = (torch.rand(B, generator=generator) < 0.5).to(images.device)
        images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
    return images


@dataclass(frozen=True)
class Fit:
    """Settings of one training run. Steps are optimiser updates; a batch is drawn without replacement per epoch."""

    steps: int
    lr: float
    batch: int = 128
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: str = "constant"  # constant | cosine | one-cycle (linear warm-up over a fifth, then linear to zero)
    pad: int = 4  # pixels of random shift
    flip: bool = True
    batch_norm: str = "train"  # train: statistics follow the batches | frozen: the model stays in eval mode
    clip: float | None = None  # largest gradient norm

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1 or self.lr <= 0:
            raise ValueError(f"Fit(steps={self.steps}, batch={self.batch}, lr={self.lr}): must be positive")
        if self.schedule not in ("constant", "cosine", "one-cycle") or self.batch_norm not in ("train", "frozen"):
            raise ValueError(f"Fit(schedule={self.schedule!r}, batch_norm={self.batch_norm!r}): unknown")

    def rate(self, step: int) -> float:
        """The learning rate of `step` in [0, steps)."""
        done = (step + 0.5) / self.steps
        if self.schedule == "cosine":
            return self.lr * 0.5 * (1 + math.cos(math.pi * done))
        if self.schedule == "one-cycle":
            return self.lr * min(done / 0.2, (1 - done) / 0.8)
        return self.lr

    def run(
        self,
        classifier: Classifier,
        images: Tensor,
        labels: Tensor,
        context: Context,
        loss: Loss = cross_entropy,
        after_step: Callable[[int], None] = lambda step: None,
        stage: str = "train",
    ) -> Classifier:
        """Trains `classifier` in place on images (N, 3, H, W) in [0, 1] and labels (N,), and returns it in eval mode.

        Moves the classifier to the context's device. `after_step(step)` runs after every update.
        """
        classifier.on(context.device).requires_grad_(True)
        classifier.train(self.batch_norm == "train")
        images, labels = images.to(context.device), labels.to(context.device)
        generator = context.generator(stream=1)
        optimiser = torch.optim.SGD(
            classifier.parameters(), lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay, nesterov=True
        )
        context.progress.stage(stage, self.steps)
        order = torch.empty(0, dtype=torch.int64)
        for step in range(self.steps):
            while len(order) < min(self.batch, len(labels)):
                order = torch.cat([order, torch.randperm(len(labels), generator=generator)])
            index, order = order[: self.batch].to(context.device), order[self.batch :]
            for group in optimiser.param_groups:
                group["lr"] = self.rate(step)
            x = crop_and_flip(images[index], generator, self.pad, self.flip)
            with context.autocast():
                objective = loss(classifier, x.contiguous(memory_format=torch.channels_last), labels[index])
            optimiser.zero_grad(set_to_none=True)
            objective.backward()
            if self.clip is not None:
                nn.utils.clip_grad_norm_(classifier.parameters(), self.clip)
            optimiser.step()
            after_step(step)
            context.advance(note=f"loss {objective.item():.3f}" if step % 10 == 0 else "")
        return classifier.eval()
