"""Hyper-parameters of a repair, found by poisoning one's own model.

Lukas, Kerschbaum: Pick your Poison: Undetectability versus Robustness in Data Poisoning Attacks, 2023,
https://arxiv.org/abs/2305.09671 (section V-C). Nobody knows the trigger of a suspect, but everybody can plant one: the
suspect is fine-tuned on trusted images with a BadNets patch, and the repair is wanted whose settings remove that patch.

    minimise over settings   asr(repair(poisoned), patch) + penalty · max(0, drop − Δ)      on held-out trusted images

The settings found are then frozen and used on the suspect itself.

Differs from the paper: the search is a tree-structured Parzen estimator (Bergstra et al., 2011; Optuna's) where the
paper takes a grid for some methods; the drop enters as a penalty, so that a near miss guides the search.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from audit_cli.attacks.badnets import BadNets
from audit_cli.attacks.victim import success
from audit_cli.classifier import Classifier
from audit_cli.errors import UnsupportedError
from audit_cli.metrics import cda_drop, predict
from audit_cli.repairs import REPAIRS
from audit_cli.training import Fit
from audit_cli.types import Context, TrustedData

if TYPE_CHECKING:
    import optuna


@dataclass(frozen=True)
class Range:
    """Values between `low` and `high`, tried evenly on a logarithmic scale."""

    low: float
    high: float


# Ranges: section V-C and Table V where they state one (lambda_s; lambda_p's table value lies outside its range, so
# the range here holds both), else a decade around the default.
SPACES: Mapping[str, Mapping[str, Range]] = {
    "clean_retraining": {"lr": Range(1e-4, 1e-2)},
    "feature_shift": {"lr": Range(1e-3, 3e-2), "repulsion": Range(0.02, 1.0)},
    "fine_pruning": {"lr": Range(1e-4, 1e-2), "pruned": Range(0.2, 0.97)},
    "nad": {"lr": Range(1e-3, 2e-2), "attention": Range(100.0, 10_000.0)},
    "neural_cleanse": {"lr": Range(1e-4, 1e-2), "stamped": Range(0.1, 0.6)},
    "pivotal_tuning": {"lr": Range(1e-3, 2e-2), "lambda_s": Range(1e-3, 1.0), "lambda_p": Range(1e3, 1e6)},
    "sharpness_aware": {"lr": Range(1e-3, 3e-2), "radius": Range(0.2, 4.0)},
    "unlearning": {"lr": Range(1e-3, 2e-2), "stamped": Range(0.05, 0.7), "deeper": Range(1.0, 10.0)},
    "weight_decay": {"lr": Range(1e-4, 2e-2), "weight_decay": Range(1e-4, 0.1)},
}
PENALTY = 10.0  # ours: a point of accuracy too much counts as ten points of asr


@dataclass(frozen=True)
class SelfPoisoning:
    """How the suspect is poisoned. planted: asr under which the search would learn nothing."""

    share: float = 0.4  # ours: of the images that carry the patch; 0.2 of a hundred plants nothing (digits)
    patch: float = 3 / 32  # of the image's width, Table IV's BadNets
    steps: int = 200  # ours
    lr: float = 0.01  # ours
    planted: float = 0.8  # ours

    def __call__(
        self, pivot: Classifier, fit: TrustedData, target: int, context: Context
    ) -> tuple[Classifier, BadNets]:
        """A poisoned clone of `pivot` and the attack, whose trigger it obeys on the images it was tuned on.

        Raises UnsupportedError when the patch does not take.
        """
        attack = BadNets(target=target, count=max(1, round(self.share * len(fit))), share=self.patch)
        poisoned = attack.poison(fit.images, fit.labels, context.generator(stream=2))
        training = Fit(self.steps, self.lr, schedule="one-cycle", pad=0, flip=False)
        victim = training.run(pivot.clone(), poisoned.images, poisoned.labels, context, stage="self-poisoning")
        took = success(attack, victim.frozen(), fit, context).value
        if took < self.planted:
            raise UnsupportedError(
                f"the model could not be poisoned for the search (success {took:.2f} where {self.planted:.2f} is "
                "needed); add trusted images"
            )
        return victim, attack


@dataclass(frozen=True)
class Tuning:
    """One search: the settings of `method` that repair `victim` best. max_drop: Δ as a fraction."""

    method: str
    victim: Classifier
    attack: BadNets
    fit: TrustedData
    holdout: TrustedData
    max_drop: float
    context: Context

    def __call__(self, trial: optuna.Trial) -> float:
        """The objective of one trial; asr and drop are kept with it."""
        space = SPACES[self.method]
        settings = {name: trial.suggest_float(name, r.low, r.high, log=True) for name, r in space.items()}
        context = replace(self.context, seed=self.context.seed + trial.number)
        repaired = REPAIRS[self.method](**settings)(self.victim, self.fit, context)
        asr, drop = self.measure(repaired)
        trial.set_user_attr("asr", asr)
        trial.set_user_attr("drop", drop)
        return asr + PENALTY * max(0.0, drop - self.max_drop)

    def measure(self, repaired: Classifier) -> tuple[float, float]:
        """Success of the planted patch, and the drop of accuracy, on the holdout."""
        before = predict(self.victim, self.holdout.images, self.context)
        after = predict(repaired, self.holdout.images, self.context)
        drop, _, _ = cda_drop(before, after, self.holdout.labels)
        return success(self.attack, repaired, self.holdout, self.context).value, drop
