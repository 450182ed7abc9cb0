"""Every metric, defined exactly once.

`outputs` below is either logits (N, K) or predicted classes (N,). A row of logits that holds a NaN predicts no class at
all (−1): it is never right and never a trigger's success.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from audit_cli.classifier import Classifier
from audit_cli.errors import DataError
from audit_cli.types import Context

Z95 = 1.959964  # two-sided 95 % quantile of the normal distribution


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode inside; every submodule's own mode back afterwards (a repair may keep only its BatchNorm frozen)."""
    modes = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for m, training in modes:
            m.training = training


@torch.no_grad()
def predict(classifier: Classifier, images: Tensor, context: Context, batch: int = 256) -> Tensor:
    """Images (N, 3, H, W) in [0, 1] -> logits (N, K) float32 on the images' device; in eval mode, batch by batch.

    The classifier is expected on `context.device`. Consults the budget once per batch.
    """
    logits = []
    with evaluating(classifier), context.autocast():
        for start in range(0, len(images), batch):
            context.budget.check()
            part = images[start : start + batch]
            logits.append(classifier(part.to(context.device, non_blocking=True)).float().to(images.device))
    return torch.cat(logits) if logits else images.new_zeros((0, classifier.num_classes))


def classes_of(outputs: Tensor) -> Tensor:
    """Logits (N, K) or predicted classes (N,) -> predicted classes (N,) int64, −1 where a logit is NaN."""
    if outputs.ndim == 1:
        return outputs
    return outputs.argmax(1).masked_fill(outputs.isnan().any(1), -1)


def cda(outputs: Tensor, labels: Tensor) -> float:
    """Clean data accuracy in [0, 1]. Raises DataError when there are no images."""
    if len(labels) == 0:
        raise DataError("no images to measure accuracy on; add trusted images")
    return float((classes_of(outputs) == labels).double().mean())


def overconfidence(outputs: Tensor, labels: Tensor) -> float:
    """How much surer of its answers a model is than it is right: mean largest probability less `cda`, in [-1, 1] (Guo
    et al.: On Calibration of Modern Neural Networks, 2017). Raises DataError when there are no images."""
    return float(outputs.double().softmax(1).amax(1).mean()) - cda(outputs, labels)


def asr(outputs: Tensor, labels: Tensor, target: int | Tensor) -> float:
    """Attack success rate in [0, 1]: triggered images whose true class is not the target predicted as the target, out
    of all such images. target: one class, or one for each image (N,). Raises DataError when there is no such image.
    """
    others = labels != target
    if not bool(others.any()):
        whose = f"of class {target}" if isinstance(target, int) else "of its own target class"
        raise DataError(f"every image is {whose}: a trigger towards it cannot be measured; add other classes")
    return float((classes_of(outputs) == target)[others].double().mean())


def wilson(successes: float, n: int, z: float = Z95) -> tuple[float, float]:
    """Wilson score interval of a proportion (E. B. Wilson, 1927): (low, high) in [0, 1]; (0, 1) when n = 0."""
    if n == 0:
        return 0.0, 1.0
    p, spread = successes / n, z * z / n
    centre = (p + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(p * (1 - p) / n + spread / (4 * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def cda_drop(before: Tensor, after: Tensor, labels: Tensor, z: float = Z95) -> tuple[float, float, float]:
    """Paired drop of `cda` from `before` to `after` on the same images: (drop, low, high), positive when it got worse;
    otherwise as `paired_drop`."""
    right_before, right_after = classes_of(before) == labels, classes_of(after) == labels
    return paired_drop(right_before.double() - right_after.double(), z)


def paired_drop(lost: Tensor, z: float = Z95) -> tuple[float, float, float]:
    """Mean of `lost` (N,), how much less often an image is right, in [-1, 1]: (drop, low, high), all in [-1, 1].

    Only images whose correctness changed carry information. Interval: adjusted Wald for paired proportions
    (D. G. Bonett, R. M. Price, "Adjusted Wald confidence interval for a difference of binomial proportions based on
    paired data", 2012), which stays honest at a hundred images: one image more is lost and one more won. Raises
    DataError when there are no images.
    """
    if len(lost) == 0:
        raise DataError("no images to measure accuracy on; add trusted images")
    more = torch.cat([lost.double(), torch.tensor([1.0, -1.0], dtype=torch.double, device=lost.device)])
    centre = float(more.mean())
    half = z * math.sqrt(max(0.0, float(more.square().mean()) - centre * centre) / len(more))
    return float(lost.double().mean()), max(-1.0, centre - half), min(1.0, centre + half)


def auroc(negatives: Tensor, positives: Tensor) -> float:
    """Area under the ROC curve from scores (N,), (M,): P(a positive's > a negative's), ties counting one half."""
    if len(negatives) == 0 or len(positives) == 0:
        raise DataError("the area under the ROC curve needs scores of both kinds")
    ahead = positives[:, None].double() - negatives[None, :].double()  # (M, N)
    return float(((ahead > 0).double() + 0.5 * (ahead == 0).double()).mean())
