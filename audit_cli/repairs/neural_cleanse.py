"""Neural Cleanse repair: find the class with the smallest trigger and fine-tune the model to ignore that trigger.

Wang, Yao, Shan, Li, Viswanath, Zheng, Zhao: Neural Cleanse: Identifying and Mitigating Backdoor Attacks in Neural
Networks, 2019, https://doi.org/10.1109/SP.2019.00031 (section VI-B).

    T ← the mask-and-pattern trigger of lowest L1 norm over all classes
    L = CE(f(x̃; θ), y)        x̃ = x ⊕ T for the `stamped` share of a batch, x for the rest

Differs from the paper: half the batch is stamped, not a fifth, as in Lukas, Kerschbaum: Pick your Poison, 2023,
Table V; the trigger comes from this package's inversion engine, which searches for longer.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from audit_cli.classifier import Classifier
from audit_cli.inversion.engine import Search
from audit_cli.inversion.mask import Mask
from audit_cli.inversion.racing import Race
from audit_cli.repairs.stamping import stamp
from audit_cli.repairs.watch import Watch, after_step, unwatched
from audit_cli.training import Fit, cross_entropy
from audit_cli.types import Context, TriggerFamily, TrustedData


@dataclass(frozen=True)
class NeuralCleanse:
    """Unlearn one trigger by plain fine-tuning."""

    steps: int = 1_000  # Pick your Poison, Table V
    lr: float = 1e-3  # Table V
    stamped: float = 0.5  # Table V
    batch: int = 128  # Table V
    family: TriggerFamily = field(default_factory=Mask)
    search: Search = field(default_factory=Search)
    race: Race = field(default_factory=Race)
    pad: int = 4  # pixels of random shift, as Pivotal Tuning
    flip: bool = True

    def __post_init__(self) -> None:
        if min(self.steps, self.lr, self.batch) <= 0 or not 0 < self.stamped < 1:
            raise ValueError(f"{self}: steps, lr and batch must be positive, 0 < stamped < 1")

    def __call__(
        self, pivot: Classifier, trusted: TrustedData, context: Context, watch: Watch = unwatched
    ) -> Classifier:
        """A tuned clone of `pivot`, on the context's device, in eval mode; `pivot` is untouched."""
        suspect = pivot.clone().on(context.device).frozen()
        state, _ = self.race.run(suspect, self.family, trusted, self.search, context)
        trigger = state.trigger(int(state.best_size.argmin()), self.family)
        generator = context.generator(stream=6)

        def loss(classifier: Classifier, x: Tensor, y: Tensor) -> Tensor:
            q = max(1, round(self.stamped * len(x)))
            return cross_entropy(classifier, torch.cat([stamp([trigger], x[:q], y[:q], generator), x[q:]]), y)

        repaired = pivot.clone()
        fit = Fit(self.steps, self.lr, self.batch, pad=self.pad, flip=self.flip)
        return fit.run(
            repaired, trusted.images, trusted.labels, context, loss, after_step(watch, repaired), "unlearning"
        )
