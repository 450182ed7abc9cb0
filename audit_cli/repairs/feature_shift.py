"""Feature-shift tuning: start the head anew, pointing away from where it pointed, and let the features follow.

Min, Qin, Shen, Cheng: Towards Stable Backdoor Purification through Feature Shift Tuning, 2023,
https://arxiv.org/abs/2310.01875.
With few poisoned samples, triggered and clean features lie close together, and fine-tuning has no reason to part them.
A head that may not keep its old direction forces the features to move.

    W re-initialised;   L = CE(f(x; θ), y) + α · ⟨W, W~⟩        subject to ‖W‖ = ‖W~‖        W~: the pivot's head

Differs from the paper: none. Defaults: CIFAR-10.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from audit_cli.classifier import Classifier
from audit_cli.errors import UnsupportedError
from audit_cli.repairs.watch import Watch, unwatched
from audit_cli.training import Fit, cross_entropy
from audit_cli.types import Context, TrustedData


@dataclass(frozen=True)
class FeatureShift:
    """Fine-tuning with a new, repelled head."""

    steps: int = 400  # ours: the paper's 10 epochs of 2,500 images are 200
    lr: float = 0.01  # section 5
    repulsion: float = 0.2  # α, section 5
    batch: int = 128  # section 5
    pad: int = 4  # pixels of random shift, as Pivotal Tuning
    flip: bool = True

    def __post_init__(self) -> None:
        if min(self.steps, self.lr, self.batch) <= 0 or self.repulsion < 0:
            raise ValueError(f"{self}: steps, lr and batch must be positive, repulsion not negative")

    def __call__(
        self, pivot: Classifier, trusted: TrustedData, context: Context, watch: Watch = unwatched
    ) -> Classifier:
        """A tuned clone of `pivot`, on the context's device, in eval mode; `pivot` is untouched.

        Raises UnsupportedError when the head is no parameter of the model, as that of a zero-shot classifier.
        """
        if not isinstance(pivot.head.weight, nn.Parameter):
            raise UnsupportedError(
                f"{pivot.arch}: its head is made of text and has no parameters, so it cannot start anew; "
                "choose another repair"
            )
        repaired = pivot.clone().on(context.device)
        weight = repaired.head.weight
        old = weight.detach().clone()
        bound = 1 / math.sqrt(weight.shape[1])  # PyTorch's initialisation of a linear layer
        with torch.no_grad():
            fresh = torch.empty(weight.shape).uniform_(-bound, bound, generator=context.generator(stream=7))
            weight.copy_(fresh * (old.norm().cpu() / fresh.norm()))
            if repaired.head.bias is not None:
                repaired.head.bias.zero_()

        def loss(classifier: Classifier, x: Tensor, y: Tensor) -> Tensor:
            return cross_entropy(classifier, x, y) + self.repulsion * (classifier.head.weight * old).sum()

        def after_step(step: int) -> None:
            with torch.no_grad():
                weight.mul_(old.norm() / weight.norm())
            watch(step, repaired)

        fit = Fit(self.steps, self.lr, self.batch, schedule="cosine", pad=self.pad, flip=self.flip)
        return fit.run(
            repaired, trusted.images, trusted.labels, context, loss, after_step, stage="feature-shift tuning"
        )
