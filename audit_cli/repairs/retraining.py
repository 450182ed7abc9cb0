"""Clean re-training: a few epochs of plain fine-tuning on trusted images, hoping the backdoor is forgotten.

Truong, Jones, Hutchinson, August, Praggastis, Jasper, Nichols, Tuor: Systematic Evaluation of Backdoor Data Poisoning
Attacks on Image Classifiers, 2020, https://arxiv.org/abs/2004.11514 (the persistence of triggers after re-training).

    L = CE(f(x; θ), y)

Differs from the paper: it re-trains on the clean part of the training set; here only the trusted images are at hand.
"""

from __future__ import annotations

from dataclasses import dataclass

from audit_cli.classifier import Classifier
from audit_cli.repairs.watch import Watch, after_step, unwatched
from audit_cli.training import Fit
from audit_cli.types import Context, TrustedData


@dataclass(frozen=True)
class CleanRetraining:
    """Plain fine-tuning for whole epochs over the trusted images."""

    epochs: int = 20  # ours: the paper re-trains for a few epochs of a hundred times as many images
    lr: float = 1e-3  # as the other fine-tuning baselines
    batch: int = 128
    pad: int = 4  # pixels of random shift, as Pivotal Tuning
    flip: bool = True

    def __post_init__(self) -> None:
        if min(self.epochs, self.lr, self.batch) <= 0:
            raise ValueError(f"{self}: epochs, lr and batch must be positive")

    def __call__(
        self, pivot: Classifier, trusted: TrustedData, context: Context, watch: Watch = unwatched
    ) -> Classifier:
        """A fine-tuned clone of `pivot`, on the context's device, in eval mode; `pivot` is untouched."""
        repaired = pivot.clone()
        steps = self.epochs * -(-len(trusted) // self.batch)
        fit = Fit(steps, self.lr, self.batch, pad=self.pad, flip=self.flip)
        return fit.run(
            repaired,
            trusted.images,
            trusted.labels,
            context,
            after_step=after_step(watch, repaired),
            stage="clean re-training",
        )
