"""Is one row of the last layer unlike the others?

Fields, Samragh, Javaheripi, Koushanfar, Javidi: Trojan Signatures in DNN Weights, 2021,
https://arxiv.org/abs/2109.02836.
A backdoor pulls towards its target from everywhere, and the target's row of the last layer's weights is left with a
larger mean than the other rows:

    score_c = (w̄_c − median of all w̄) / (1.4826 · MAD)        w̄_c = mean of the row of class c

Costs nothing and needs no data.

Differs from the paper: a robust z-score instead of Dixon's Q test, so that every class has a score. The same z-score of
each row's norm, of its bias and of its mean cosine with the other rows stands beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from audit_cli.classifier import Classifier
from audit_cli.types import Context, Finding, TrustedData

MAD_TO_SIGMA = 1.4826  # of a normal distribution


@dataclass(frozen=True)
class Weights:
    """Nothing to set."""

    def __call__(self, suspect: Classifier, trusted: TrustedData, context: Context) -> Iterator[Finding]:
        """BD005 for every class."""
        measured = {name: robust_z(values).tolist() for name, values in rows(suspect).items()}
        for c, score in enumerate(measured["mean"]):
            yield Finding(
                rule_id="BD005",
                score=score,
                message=f"the mean weight of this class in the last layer lies {score:.1f} deviations over the median",
                detector="weights",
                target_class=c,
                target_name=trusted.class_names[c] if c < len(trusted.class_names) else None,
                details={f"z_{name}": values[c] for name, values in measured.items() if name != "mean"},
            )


def rows(suspect: Classifier) -> dict[str, Tensor]:
    """Statistics (K,) float64 of the head's rows, by name."""
    weight = suspect.head.weight.detach().double().cpu()  # (K, D)
    K = len(weight)
    directions = F.normalize(weight, dim=1)
    cosines = (directions @ directions.T).fill_diagonal_(0).sum(1) / max(K - 1, 1)
    bias = suspect.head.bias
    return {
        "mean": weight.mean(1),
        "norm": weight.norm(dim=1),
        "bias": torch.zeros(K, dtype=torch.float64) if bias is None else bias.detach().double().cpu(),
        "cosine": cosines,
    }


def robust_z(values: Tensor) -> Tensor:
    """(K,) -> deviations from the median in units of 1.4826 · MAD (K,); all 0 where the MAD is 0."""
    median = values.quantile(0.5)
    mad = (values - median).abs().quantile(0.5)
    if float(mad) == 0:
        return torch.zeros_like(values)
    return (values - median) / (MAD_TO_SIGMA * mad)
