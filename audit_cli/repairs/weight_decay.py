"""Weight-decay fine-tuning: plain fine-tuning on trusted images that also shrinks every weight.

The strongest of the plain baselines in Lukas, Kerschbaum: Pick your Poison: Undetectability versus Robustness in Data
Poisoning Attacks, 2023, https://arxiv.org/abs/2305.09671 (Table V): what clean images do not keep alive decays.

    L = CE(f(x; θ), y)        θ ← θ − η · (∇L + λ · θ)

Differs from the paper: none. Defaults: CIFAR-10 at 1 % trusted data.
"""

from __future__ import annotations

from dataclasses import dataclass

from audit_cli.classifier import Classifier
from audit_cli.repairs.watch import Watch, after_step, unwatched
from audit_cli.training import Fit
from audit_cli.types import Context, TrustedData


@dataclass(frozen=True)
class WeightDecay:
    """Fine-tuning with decay."""

    steps: int = 1_000  # Table V
    lr: float = 1e-3  # Table V
    weight_decay: float = 0.01  # Table V
    batch: int = 128  # Table V
    pad: int = 4  # pixels of random shift, as Pivotal Tuning
    flip: bool = True

    def __post_init__(self) -> None:
        if min(self.steps, self.lr, self.batch) <= 0 or self.weight_decay < 0:
            raise ValueError(f"{self}: steps, lr and batch must be positive, weight_decay not negative")

    def __call__(
        self, pivot: Classifier, trusted: TrustedData, context: Context, watch: Watch = unwatched
    ) -> Classifier:
        """A fine-tuned clone of `pivot`, on the context's device, in eval mode; `pivot` is untouched."""
        repaired = pivot.clone()
        fit = Fit(self.steps, self.lr, self.batch, weight_decay=self.weight_decay, pad=self.pad, flip=self.flip)
        return fit.run(
            repaired,
            trusted.images,
            trusted.labels,
            context,
            after_step=after_step(watch, repaired),
            stage="weight-decay fine-tuning",
        )
