"""How odd is a model among clean ones? Conformal p-values of its scores, and what they are made of.

Classes differ in how small a trigger they need, and alike on every clean model of a kind: of CIFAR-10, warps into birds
are always the smallest. So a score is compared with the same class's scores on clean models, in each trigger family:

    z = (log s − mean of log s) / (standard deviation + SLACK)        mean, deviation: over clean models

(variances are pulled towards the family's as if that had been measured on PRIOR_MODELS more: where no clean model has
a class within reach, their scores hardly differ, and the first that has would otherwise be the oddest of all; in the
families EITHER_WAY a score may be too small as well, and |z| counts)

A backdoor that images of one class obey shows at one pair of classes, and in every family with a score for each source
class at the same pair. So to such a score of the families that MEET another, the other's deviation at the same pair is
added; the largest of a class counts.

Families differ in how far clean models deviate, and one with a score for every source class, or every part of a random
change, of which the largest counts, deviates further. So a family's deviations are brought to one scale:

    u = (z − mean of z) / (standard deviation + SLACK)                mean, deviation: over clean models and classes

Poison singles out a class or two, a network trained otherwise than the clean models deviates in many at once. So what
a model's third most unusual class of a family deviates by is taken off all its classes, where that is positive, but no
more than MOST: several backdoors must not hide one another.

A backdoor shows in more than one family, and always at the same class. What is odd by chance seldom is. So a score's
statistic is its own deviation and the next smaller one of the same class in another family, where that is positive:

    s(f, c) = u(f, c) + max(0, largest u(g, c) <= u(f, c), g not f)

and a model's is its largest, the sum of the two largest deviations of one class. What a search finds scatters more
than what one pass over the images tells, and hides it. So the families are put together in two ways, all of them and
without those that are searched, and the odder counts, each way in units of what clean models show:

    t(f, c) = largest over both ways of s(f, c) / root of the mean square of the clean models' largest s

Vovk, Gammerman, Shafer: Algorithmic Learning in a Random World, 2005 (full conformal prediction): with n clean models
and the suspect in one bag, each member's statistic is taken against the others. A clean suspect is as likely as any of
them to have the largest, so

    p = (1 + number of clean models with a statistic >= t) / (n + 1)

is at most α with probability at most α: no distribution is assumed, and no poisoned model is needed. It holds for the
whole scan, since the statistics are maxima.

Differs from the book: none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from audit_cli.inversion import FAMILIES

SLACK = 0.01  # ours: of log scores; where no clean scores differ there is nothing to divide by
PRIOR_MODELS = 10  # ours
COMMON = 3  # ours: how many classes must deviate for it to be the whole model's way
MOST = 3.0  # ours: standard deviations
FLOATS_AT_ONCE = 2**22  # bounds the memory
FROM = " from "  # between a family and a source class, or a part of a random change
MEET = {"source_mask": "features"}  # a family, and the one whose deviation at the same pair is added to its own
EITHER_WAY = frozenset({"profile"})  # families of which a small score is as odd as a large one


def family_of(row: str) -> str:
    """The family of a calibration's row, where scores for a source class are rows of their own."""
    return row.partition(FROM)[0]


def families_of(rows: Sequence[str]) -> tuple[str, ...]:
    """The families of a calibration's rows."""
    return tuple(dict.fromkeys(map(family_of, rows)))


class Compared(NamedTuple):
    """Of a suspect, (families, classes) each. p, t: NaN where there is nothing to compare. second: the family whose
    deviation is added, -1 for none. row: the row of the family that deviates most."""

    p: Tensor
    t: Tensor
    second: Tensor
    row: Tensor


def conformal(suspect: Tensor, clean_ones: Tensor, rows: Sequence[str]) -> Compared:
    """A suspect's log scores (rows, classes) among those of clean models (n, rows, classes)."""
    z = each_standard(torch.cat([clean_ones, suspect[None]]))
    t, second = _together(z, z, rows)
    highest = t[:-1].nan_to_num(-torch.inf).amax((1, 2))
    rank = 1 + (highest[:, None, None] >= t[-1]).sum(0)
    row = _by_family(z[-1:], rows)[1][0]
    return Compared(torch.where(t[-1].isnan(), math.nan, rank.double() / len(z)), t[-1], second[-1], row)


def statistic(z: Tensor, members: Tensor, rows: Sequence[str]) -> Tensor:
    """t (N, families, classes) of deviations z (N, rows, classes), on the scale of the `members` (M, rows, classes);
    NaN where there is nothing to compare."""
    return _together(z, members, rows)[0]


def _together(z: Tensor, members: Tensor, rows: Sequence[str]) -> tuple[Tensor, Tensor]:
    """`statistic`, and the family whose deviation is added, -1 for none."""
    u = on_one_scale(z, members, rows)
    known = u if z is members else on_one_scale(members, members, rows)
    t, second = torch.full_like(u, math.nan), torch.full(u.shape, -1, device=u.device)
    for way in ways(families_of(rows)):
        more, beside = following(u[:, way])
        of_members = known[:, way] + following(known[:, way])[0]
        largest = of_members.nan_to_num(-torch.inf).amax((1, 2))
        own = (u[:, way] + more) / (largest[largest.isfinite()].square().mean().sqrt() + SLACK)
        better = ~(own <= t[:, way]) & ~own.isnan()
        t[:, way] = torch.where(better, own, t[:, way])
        named = torch.where(beside < 0, -1, torch.tensor(way, device=u.device)[beside])
        second[:, way] = torch.where(better, named, second[:, way])
    return t, second


def ways(families: Sequence[str]) -> list[list[int]]:
    """The families that are put together, by place: all, and where there are both, those that are not searched."""
    measured = [k for k, family in enumerate(families) if family not in FAMILIES]
    return [list(range(len(families))), *([measured] if 0 < len(measured) < len(families) else [])]


def following(u: Tensor) -> tuple[Tensor, Tensor]:
    """What is added to deviations u (N, families, classes), and which family it is of, -1 where none is positive."""
    largest = u.nan_to_num(-torch.inf).sort(1, descending=True)
    more, second = torch.zeros_like(u), torch.full_like(largest.indices, -1)
    more[:, :-1], second[:, :-1] = largest.values[:, 1:].clamp_min(0), largest.indices[:, 1:]
    second[more == 0] = -1
    return more.scatter(1, largest.indices, more), second.scatter(1, largest.indices, second)


def on_one_scale(z: Tensor, members: Tensor, rows: Sequence[str]) -> Tensor:
    """u (N, families, classes); otherwise as `statistic`."""
    u, known = _by_family(z, rows)[0], _by_family(members, rows)[0]
    for f in range(u.shape[1]):
        values = known[:, f][~known[:, f].isnan()]
        if len(values) > 1:
            u[:, f] = (u[:, f] - values.mean()) / (values.std() + SLACK)
    return u - _common(u)


def _common(u: Tensor) -> Tensor:
    """By how much a model deviates in all classes alike, (N, families, 1) in [0, MOST]."""
    if u.shape[-1] < COMMON:
        return torch.zeros_like(u[..., :1])
    largest = u.nan_to_num(-torch.inf).sort(-1, descending=True).values
    return largest[..., COMMON - 1, None].clamp(0, MOST)


def _by_family(z: Tensor, rows: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Both (N, families, classes): the largest deviation over a family's rows, NaN where all are; and which row it is
    of."""
    z, values, places = _met(z, rows), [], []
    for family in families_of(rows):
        index = torch.tensor([k for k, row in enumerate(rows) if family_of(row) == family])
        own = z[:, index].abs() if family in EITHER_WAY else z[:, index]
        largest = own.nan_to_num(-torch.inf).max(1)
        values.append(torch.where(largest.values.isfinite(), largest.values, math.nan))
        places.append(index[largest.indices])
    return torch.stack(values, 1), torch.stack(places, 1)


def _met(z: Tensor, rows: Sequence[str]) -> Tensor:
    """z (N, rows, classes), to those of one source added what the family that is met has for the same pair."""
    place, met = {row: k for k, row in enumerate(rows)}, z.clone()
    for row, k in place.items():
        family, _, source = row.partition(FROM)
        other = place.get(f"{MEET.get(family)}{FROM}{source}")
        if source and other is not None:
            met[:, k] += z[:, other].nan_to_num(0.0)
    return met


def each_standard(models: Tensor) -> Tensor:
    """`standard` of each of the models (N, rows, classes) among the others."""
    found = []
    for part in torch.arange(len(models)).split(max(1, FLOATS_AT_ONCE // models.numel())):
        others = models.repeat(len(part), 1, 1, 1)
        others[torch.arange(len(part)), part] = math.nan
        found.append(standard(models[part], others))
    return torch.cat(found)


def standard(scores: Tensor, others: Tensor) -> Tensor:
    """Log scores (…, rows, classes) in deviations of the `others` (…, N, rows, classes) from their mean, class by
    class; from the row's where fewer than two of them have the class. NaN where there is nothing to compare."""
    known = ~others.isnan()
    count, whole = known.sum(-3), known.sum((-3, -1))[..., None]
    filled = others.nan_to_num(0.0)
    of_row = filled.sum((-3, -1))[..., None] / whole.clamp(min=1)
    mean = torch.where(count > 1, filled.sum(-3) / count.clamp(min=1), of_row)
    squares = torch.where(known, others - mean.unsqueeze(-3), 0.0).square()
    family = squares.sum((-3, -1))[..., None] / whole
    own = torch.where(count > 1, count, 0)
    variance = (torch.where(count > 1, squares.sum(-3), 0.0) + PRIOR_MODELS * family) / (own + PRIOR_MODELS)
    return torch.where(whole > 1, (scores - mean) / (variance.sqrt() + SLACK), math.nan)
