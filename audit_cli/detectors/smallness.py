"""How unusually small is a class's smallest trigger? The statistic behind BD001.

Classes differ in how large a trigger they need, on clean models too, and on some data more than on other. So a class
is compared with the smallest of as many ordinary classes as the model has, not with their middle:

    score_c = exp(μ − q_n · σ) / size_c

μ, σ: mean and standard deviation of the log sizes of the other classes. q_n: how many standard deviations under the
mean the smallest of n normal variables is expected, Φ⁻¹((n − 3/8) / (n + 1/4)) (Blom: Statistical Estimates and
Transformed Beta-Variables, 1958). σ comes from few classes, so it is pulled towards a prior as if that had been
measured on `PRIOR_CLASSES` more. A clean model's largest score is about 1, whatever the spread of its classes. Of two
classes one is always the smaller, and there is no spread to measure: there one has to lie lower than it does by chance
in one model of twenty, q = √2 · Φ⁻¹(0.95).

The plain ratio to the median class (Wang et al.: Neural Cleanse, 2019, in the form of a ratio) is kept beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist

import torch
from torch import Tensor

PRIOR_SIGMA = 0.2  # ours: of log sizes, between the 0.1 of CIFAR-10 and the 0.3 of digit classifiers, all clean
PRIOR_CLASSES = 4  # ours


@dataclass(frozen=True)
class Smallness:
    """Both (K,); 0 for a class that no trigger was found for."""

    score: Tensor  # expected smallest ordinary size over this class's size
    ratio: Tensor  # median size of the other classes over this class's size


def smallness(sizes: Tensor, ordinary: Tensor, classes: int) -> Smallness:
    """sizes (K,): smallest trigger of each class compared, inf where none worked, which counts as the largest that did.
    ordinary (K,) bool: classes that stand for all others. classes: how many the model has.
    """
    reached = sizes.isfinite()
    if not bool(reached.any()) or int(ordinary.sum()) < 2:
        return Smallness(torch.zeros_like(sizes), torch.zeros_like(sizes))
    logs = torch.where(reached, sizes, sizes[reached].max()).double().log()
    n = max(classes - 1, 1)
    q = NormalDist().inv_cdf((n - 0.375) / (n + 0.25)) if n > 1 else sqrt(2) * NormalDist().inv_cdf(0.95)
    scores, ratios = torch.zeros_like(logs), torch.zeros_like(logs)
    for k in torch.nonzero(reached).flatten().tolist():
        others = logs[ordinary & (torch.arange(len(logs), device=logs.device) != k)]
        squares = (others - others.mean()).square().sum()
        sigma = ((squares + PRIOR_CLASSES * PRIOR_SIGMA**2) / (len(others) - 1 + PRIOR_CLASSES)).sqrt()
        scores[k] = (others.mean() - q * sigma - logs[k]).exp()
        ratios[k] = (others.median() - logs[k]).exp()
    return Smallness(scores.to(sizes), ratios.to(sizes))
