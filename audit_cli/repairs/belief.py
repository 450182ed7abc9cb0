"""Which of two models is right more often, told by how sure they are, too.

Only images on which the models answer differently count, and right or wrong on a few dozen of those is mostly chance.
How sure both are tells more. What they say together is a chance for every class,

    p(y | x) ∝ exp(w₁ · z₁(x)_y + w₂ · z₂(x)_y)        z₁, z₂: logits of the first and the second model

(a logarithmic opinion pool; Genest, Zidek: Combining Probability Distributions, 1986,
https://doi.org/10.1214/ss/1177013825), with the two weights that the labels make most likely. Where the models answer a
and b, the first is right so much more often: p(a | x) − p(b | x). So the labels need not tell who is right where the
models differ, only how much the truth listens to each of the two, and that all images tell.

A few hundred images do not tell the weights well, so they are pulled towards `USUAL`. That they are fitted adds to how
the mean scatters: by the influence of every image on them, which is added to what the image says.

What it is worth, and how far off it is: fixtures/results/views-study.json. Differs from the paper: all of this but the
pool.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

USUAL = (0.85, 0.15)  # ours: weights of a pivot and what a repair makes of it, about their mean (development)
SPREAD = (3.0, 0.3)  # ours: standard deviations around these; the first is told well enough by itself (development)
STEPS = 30  # ours: of Newton's method, which needs fewer than ten


def lost(first: Tensor, second: Tensor, labels: Tensor) -> Tensor:
    """(N,) how much less often the second model is right than the first, image by image; what counts is the mean, and
    how the values scatter tells how sure that is. first, second: logits (V, N, K) on V views of N images; labels
    (N,)."""
    V, N, K = first.shape
    logits = torch.stack([first, second]).double().reshape(2, V * N, K)
    truth = F.one_hot(labels.repeat(V), K).double()
    answers = [F.one_hot(z.argmax(-1), K).double() for z in logits]
    usual = torch.tensor(USUAL, dtype=torch.double, device=logits.device)
    pull = torch.tensor(SPREAD, dtype=torch.double, device=logits.device).square().mul(N).reciprocal().diag()
    weights = usual
    for _ in range(STEPS):
        p, spread = _pool(weights, logits)
        pulls = ((truth - p) * logits).sum(-1).mean(1) - pull @ (weights - usual)
        step = torch.linalg.solve(_information(p, spread) + pull, pulls)
        weights = weights + step / step.abs().amax().clamp(min=1)
        if float(step.abs().amax()) < 1e-9:
            break
    p, spread = _pool(weights, logits)
    says = ((answers[0] - answers[1]) * p).sum(-1)  # (V · N,)
    slope = ((answers[0] - answers[1]) * p * spread).sum(-1).mean(1)  # of its mean in the weights
    turn = torch.linalg.solve(_information(p, spread) + pull, slope)
    listens = torch.einsum("w,wn->n", turn, ((truth - p) * logits).sum(-1))
    values: Tensor = (says + listens - listens.mean()).view(V, N).mean(0)
    return values


def _pool(weights: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """p (M, K), and the logits (2, M, K) less their means under it."""
    p = torch.softmax(torch.einsum("w,wmk->mk", weights, logits), -1)
    return p, logits - (p * logits).sum(-1, keepdim=True)


def _information(p: Tensor, spread: Tensor) -> Tensor:
    """(2, 2) that an image has of the weights: minus the mean second derivative of the log-likelihood."""
    return torch.einsum("mk,wmk,vmk->wv", p, spread, spread) / len(p)
