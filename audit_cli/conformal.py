"""How odd is a model among clean ones? Conformal p-values of its scores, and what they are made of.

Classes differ in how small a trigger they need, and alike on every clean model of a kind: of CIFAR-10, warps into birds
are always the smallest. So a score is compared with the same class's scores on clean models, in each trigger family:

    z = (log s − mean of log s) / (standard deviation + SLACK)        mean, deviation: over clean models

(variances are pulled towards the family's as if that had been measured on PRIOR_MODELS more: where no clean model has
a class within reach, their scores hardly differ, and the first that has would otherwise be the oddest of all)

and a family's z are levelled, for a family with many classes, or with a score for every source class, has a larger
maximum on clean models too:

    t = (z − mean of max z) / (standard deviation + SLACK)            max: over a clean model's classes in this family

A model's statistic is its largest t over classes and families. Vovk, Gammerman, Shafer: Algorithmic Learning in a
Random World, 2005 (full conformal prediction): with n clean models and the suspect in one bag, each member's statistic
is taken against the others. A clean suspect is as likely as any of them to have the largest, so

    p = (1 + number of clean models with a statistic >= t) / (n + 1)

is at most α with probability at most α: no distribution is assumed, and no poisoned model is needed. It holds for the
whole scan, since the statistics are maxima.

Differs from the book: none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

SLACK = 0.01  # ours: of log scores; where no clean scores differ there is nothing to divide by
PRIOR_MODELS = 10  # ours
FROM = " from "  # between a family and a source class


def conformal(suspect: Tensor, clean_ones: Tensor, families: Sequence[str]) -> Tensor:
    """p (families, classes) of a suspect's log scores among those of clean models (n, families, classes); NaN where
    there is nothing to compare."""
    z = each_standard(torch.cat([clean_ones, suspect[None]]))
    t = levelled(z, z, families)
    highest = t[:-1].nan_to_num(-torch.inf).amax((1, 2))
    rank = 1 + (highest[:, None, None] >= t[-1]).sum(0)
    return torch.where(t[-1].isnan(), math.nan, rank.double() / len(z))


def levelled(z: Tensor, members: Tensor, families: Sequence[str]) -> Tensor:
    """Deviations z (N, families, classes) in deviations of the largest that each of `members` (M, families, classes)
    has in the same family; the scores from each source class are of one family."""
    result = z.clone()
    kinds = [family.partition(FROM)[0] for family in families]
    for family in dict.fromkeys(kinds):
        rows = torch.tensor([kind == family for kind in kinds])
        largest = members[:, rows].nan_to_num(-torch.inf).amax((1, 2))
        largest = largest[largest.isfinite()]
        if len(largest) > 1:
            result[:, rows] = (z[:, rows] - largest.mean()) / (largest.std() + SLACK)
    return result


def each_standard(models: Tensor) -> Tensor:
    """`standard` of each of the models (N, families, classes) among the others."""
    return torch.stack([standard(model, torch.cat([models[:k], models[k + 1 :]])) for k, model in enumerate(models)])


def standard(scores: Tensor, others: Tensor) -> Tensor:
    """Log scores (families, classes) in deviations of the `others` (N, families, classes) from their mean, class by
    class; from the family's where fewer than two of them have the class. NaN where there is nothing to compare."""
    known = ~others.isnan()
    count, whole = known.sum(0), known.sum((0, 2))[:, None]
    filled = others.nan_to_num(0.0)
    mean = torch.where(count > 1, filled.sum(0) / count.clamp(min=1), filled.sum((0, 2))[:, None] / whole.clamp(min=1))
    squares = torch.where(known, others - mean, 0.0).nan_to_num(0.0).square()
    family = squares.sum((0, 2))[:, None] / whole
    own = torch.where(count > 1, count, 0)
    variance = (torch.where(count > 1, squares.sum(0), 0.0) + PRIOR_MODELS * family) / (own + PRIOR_MODELS)
    return torch.where(whole > 1, (scores - mean) / (variance.sqrt() + SLACK), math.nan)
