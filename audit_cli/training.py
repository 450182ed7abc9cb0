"""The one fit loop: every victim, reference model and repair is trained here.

The whole dataset lies on the device as one tensor, augmentation is done on batches, and the loss is a function given
by the caller, so that an algorithm is its loss and its settings and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audit_cli.classifier import Classifier
from audit_cli.resume import Resume, Run
from audit_cli.types import Context

Loss = Callable[[Classifier, Tensor, Tensor], Tensor]


class Tamper(Protocol):
    """Hands in the training itself; each method is called once per step, in this order."""

    def batch(self, step: int, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The batch to train on instead of images (B, 3, H, W) and labels (B,), before augmentation."""
        ...

    def gradients(self, step: int, classifier: Classifier) -> None:
        """May change the gradients, after the backward pass and clipping, before the update."""
        ...

    def updated(self, step: int, classifier: Classifier) -> None:
        """May change the weights, after the update."""
        ...


class Honest:
    """The Tamper that leaves everything as it is."""

    def batch(self, step: int, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return images, labels

    def gradients(self, step: int, classifier: Classifier) -> None: ...

    def updated(self, step: int, classifier: Classifier) -> None: ...


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
    # sgd | adam (decoupled decay, no momentum of ours). Not in the recipe of a run that may resume: that is always SGD.
    optimiser: str = field(default="sgd", repr=False)

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1 or self.lr <= 0:
            raise ValueError(f"Fit(steps={self.steps}, batch={self.batch}, lr={self.lr}): must be positive")
        if self.schedule not in ("constant", "cosine", "one-cycle") or self.batch_norm not in ("train", "frozen"):
            raise ValueError(f"Fit(schedule={self.schedule!r}, batch_norm={self.batch_norm!r}): unknown")
        if self.optimiser not in ("sgd", "adam"):
            raise ValueError(f"Fit(optimiser={self.optimiser!r}): unknown")

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
        tamper: Tamper | None = None,
        resume: Resume | None = None,
    ) -> Classifier:
        """Trains `classifier` in place on images (N, 3, H, W) in [0, 1] and labels (N,), and returns it in eval mode.

        Moves the classifier to the context's device. `after_step(step)` runs after every update. tamper: an attacker's
        hands in the loop. resume: go on where a run with the same settings, data and seed was stopped; with SGD only.
        """
        if resume is not None and self.optimiser != "sgd":
            raise ValueError(f"Fit(optimiser={self.optimiser!r}): only sgd can be resumed")
        tamper = tamper or Honest()
        classifier.on(context.device).requires_grad_(True)
        classifier.train(self.batch_norm == "train")
        images, labels = images.to(context.device), labels.to(context.device)
        run = Run(
            classifier, self._optimiser(classifier), context.generator(stream=1), torch.empty(0, dtype=torch.int64)
        )
        recipe = f"{self}, seed {context.seed}, {len(labels)} images, {type(loss).__name__}, {type(tamper).__name__}"
        context.progress.stage(stage, self.steps)
        if resume is not None:
            resume.load(run, recipe)
            context.progress.advance(run.step)
        with torch.random.fork_rng([context.device] if context.device.type == "cuda" else []):
            while run.step < self.steps:
                torch.manual_seed(context.mixed(run.step))  # dropout draws from the global generator
                value = self._step(run, images, labels, context, loss, tamper)
                after_step(run.step)
                context.advance(note=f"loss {value.item():.3f}" if run.step % 10 == 0 else "")
                run.step += 1
                if resume is not None and (run.step % resume.every == 0 or run.step == self.steps):
                    resume.save(run, recipe)
        return classifier.eval()

    def _optimiser(self, classifier: Classifier) -> torch.optim.Optimizer:
        parameters = list(classifier.parameters())
        if self.optimiser == "adam":
            return torch.optim.AdamW(parameters, lr=self.lr, weight_decay=self.weight_decay)
        return torch.optim.SGD(
            parameters, lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay, nesterov=True
        )

    def _step(self, run: Run, images: Tensor, labels: Tensor, context: Context, loss: Loss, tamper: Tamper) -> Tensor:
        """One update; the objective () of its batch."""
        while len(run.order) < min(self.batch, len(labels)):
            run.order = torch.cat([run.order, torch.randperm(len(labels), generator=run.generator)])
        index, run.order = run.order[: self.batch].to(context.device), run.order[self.batch :]
        for group in run.optimiser.param_groups:
            group["lr"] = self.rate(run.step)
        x, y = tamper.batch(run.step, images[index], labels[index])
        x = crop_and_flip(x, run.generator, self.pad, self.flip)
        with context.autocast():
            objective = loss(run.classifier, x.contiguous(memory_format=torch.channels_last), y)
        run.optimiser.zero_grad(set_to_none=True)
        objective.backward()
        if self.clip is not None:
            nn.utils.clip_grad_norm_(run.classifier.parameters(), self.clip)
        tamper.gradients(run.step, run.classifier)
        run.optimiser.step()
        tamper.updated(run.step, run.classifier)
        return objective.detach()
