"""The gate before any search: does the model work on the trusted data, as it is being fed?

Trigger sizes and success rates mean something only for a model that classifies clean images, under the right labels
and the right normalisation. Each rule yields its finding even when nothing is wrong: a verdict shows it was measured.

BD102 asks for the relabelling of the model's classes that agrees best with the trusted labels: an assignment problem
(H. W. Kuhn, "The Hungarian Method for the Assignment Problem", 1955), solved exactly by shortest augmenting paths.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from audit_cli.classifier import Classifier, Encoder
from audit_cli.data.normalisation import Choice, compare, spread
from audit_cli.errors import DataError
from audit_cli.inversion.collapse import deviation, directions
from audit_cli.metrics import cda, classes_of, predict, wilson
from audit_cli.report.sanitise import clean
from audit_cli.types import Context, Finding, TrustedData

DETECTOR = "sanity"
SAME = 1e-5  # ours: 1 − cosine; embeddings closer than this to their centre are one embedding in float32
Details = dict[str, float | int | str | bool | None]


def sanity(
    classifier: Classifier,
    trusted: TrustedData,
    context: Context,
    *,
    stated: str = "as configured",
    choice: Choice | None = None,
    min_images: int = 100,
    min_per_class: int = 5,
    images: int = 256,
    batch: int = 256,
) -> list[Finding]:
    """BD101 to BD106, one finding each, in this order; of an encoder without classes BD104 to BD106.

    stated: the normalisation in use, in words. choice: what `choose` measured, to spare measuring it again. min_images,
    min_per_class: the policy's minima. images: how many the normalisations are compared on. Raises DataError when the
    data has a class for which the model has no output.
    """
    if isinstance(classifier, Encoder):
        return of_encoder(classifier, trusted, context, min_images)
    if int(trusted.labels.max()) >= classifier.num_classes:
        raise DataError(
            f"{trusted.source}: {len(trusted.class_names)} classes, but the model has only "
            f"{classifier.num_classes} outputs; pass data of the model's classes"
        )
    logits = predict(classifier, trusted.images, context, batch)
    used = spread(len(trusted), choice.images if choice else images)
    accuracies = choice.accuracies if choice else compare(classifier, trusted, context, images=images, batch=batch)
    return [
        accuracy(logits, trusted.labels),
        label_order(logits, trusted),
        normalisation(cda(logits[used], trusted.labels[used]), accuracies, len(used), stated),
        not_finite(classifier, logits),
        constant(logits, trusted.labels),
        too_few(trusted, classifier.num_classes, min_images, min_per_class),
    ]


def of_encoder(encoder: Encoder, trusted: TrustedData, context: Context, min_images: int) -> list[Finding]:
    """What can be told without labels."""
    z = directions(encoder.latents, trusted.images, context)
    return [not_finite(encoder, z), constant_embedding(z), too_few(trusted, 0, min_images, 0)]


def accuracy(logits: Tensor, labels: Tensor) -> Finding:
    """BD101: (1 − accuracy) / (1 − 1/K): 0 is perfect, 1 is guessing."""
    n, K = logits.shape
    acc = cda(logits, labels)
    low, high = wilson(acc * n, n)
    interval = f"95 % interval {low:.1%} to {high:.1%}"
    message = f"accuracy on {n} trusted images is {acc:.1%} ({interval}); guessing gives {1 / K:.1%}"
    details: Details = {"accuracy": acc, "low": low, "high": high, "n": n}
    return Finding("BD101", (1 - acc) / (1 - 1 / max(K, 2)), message, DETECTOR, details=details)


def label_order(logits: Tensor, trusted: TrustedData) -> Finding:
    """BD102: accuracy under the best one-to-one relabelling of the model's classes − accuracy."""
    predicted, labels = classes_of(logits), trusted.labels
    valid = predicted >= 0
    occurring, flat = torch.unique(torch.cat([labels, predicted[valid]]), return_inverse=True)
    m = len(occurring)  # a small matrix even when the model has many thousand classes
    row, column = flat[: len(labels)][valid], flat[len(labels) :]
    confusion = torch.bincount(row * m + column, minlength=m * m).view(m, m).numpy()  # [true, predicted]
    assigned = assignment(-confusion.astype(np.float64))
    gain = (confusion[np.arange(m), assigned].sum() - np.trace(confusion)) / len(labels)
    moved = [(confusion[i, j], i, j) for i, j in enumerate(assigned) if i != j and confusion[i, j] > confusion[i, i]]
    message = "the order of the model's classes fits the trusted labels"
    details: Details = {}
    if moved and gain > 0:
        count, i, j = max(moved)
        true, other = (clean(_name(trusted, int(occurring[k])), 60) for k in (i, j))
        message = f"{int(count)} of {int((row == i).sum())} images of class {true} are classified as {other}"
        details = {"true_class": true, "predicted_class": other, "displaced_classes": len(moved)}
    message += f"; the best relabelling changes accuracy by {100 * gain:+.1f} points"
    return Finding("BD102", max(0.0, float(gain)), message, DETECTOR, details=details)


def normalisation(acc: float, accuracies: Mapping[str, float], n: int, stated: str) -> Finding:
    """BD103: best accuracy among the usual normalisations − accuracy under the one in use, on the same `n` images."""
    best = max(accuracies, key=lambda name: accuracies[name])
    gap = max(0.0, accuracies[best] - acc)
    message = f"none of the usual normalisations beats the one in use ({stated}, {acc:.1%} of {n} images)"
    if gap > 0:
        message = (
            f"normalisation `{best}` gives {accuracies[best]:.1%} of {n} images; the one in use ({stated}) {acc:.1%}"
        )
    details: Details = {"stated": stated, "stated_accuracy": acc, "best": best, "n": n}
    details |= {f"accuracy {name}": value for name, value in accuracies.items()}
    return Finding("BD103", gap, message, DETECTOR, details=details)


def not_finite(classifier: Classifier, logits: Tensor) -> Finding:
    """BD104: weight tensors and buffers with a NaN or an infinity, and trusted images whose logits have one."""
    state = [*classifier.named_parameters(), *classifier.named_buffers()]
    bad = [name for name, tensor in state if not bool(torch.isfinite(tensor).all())]
    outputs = int((~torch.isfinite(logits).all(1)).sum())
    message = (
        f"{len(bad)} of {len(state)} weight tensors and the outputs of {outputs} of {len(logits)} images are not finite"
    )
    if bad:
        message += f" (first: {clean(bad[0].removeprefix('module.'), 80)})"
    return Finding("BD104", len(bad) + outputs, message, DETECTOR, details={"tensors": len(bad), "outputs": outputs})


def constant(logits: Tensor, labels: Tensor) -> Finding:
    """BD105: share of the most frequent prediction − share of the largest class; 1 when all logits are identical."""
    predicted = classes_of(logits)
    frequent = torch.bincount(predicted[predicted >= 0], minlength=1)
    share = int(frequent.max()) / len(labels)
    largest = int(torch.bincount(labels).max()) / len(labels)
    identical = len(logits) > 1 and bool((logits == logits[0]).all())
    message = f"the most frequent prediction takes {share:.1%} of the images; the largest class has {largest:.1%}"
    if identical:
        message = "the outputs are the same for every trusted image"
    details: Details = {"share": share, "largest_class": largest, "identical": identical}
    return Finding("BD105", 1.0 if identical else max(0.0, share - largest), message, DETECTOR, details=details)


def constant_embedding(z: Tensor) -> Finding:
    """BD105 of an encoder: 1 when all embeddings (N, D) of length 1 are one, else 0."""
    apart = deviation(z)
    score = float(apart < SAME or bool((z == z[0]).all()))
    message = "the embeddings are the same for every trusted image" if score else "the embeddings differ between images"
    message += f"; mean cosine to their centre {1 - apart:.3f}"
    return Finding("BD105", score, message, DETECTOR, details={"deviation": apart})


def too_few(trusted: TrustedData, classes: int, min_images: int, min_per_class: int) -> Finding:
    """BD106: images missing to the policy's minima, in total or summed over the classes, whichever is larger."""
    counts = torch.bincount(trusted.labels, minlength=classes)
    lacking = (min_per_class - counts).clamp(min=0)
    in_total, by_class = max(0, min_images - len(trusted)), int(lacking.sum())
    short = lacking.nonzero().flatten().tolist()
    message = f"{len(trusted)} trusted images; the policy asks for {min_images}"
    if classes:
        message += f", and {min_per_class} of every class"
    if in_total:
        message += f"; {in_total} more are needed"
    if short:
        some = ", ".join(f"{clean(_name(trusted, c), 40)} (+{int(lacking[c])})" for c in short[:5])
        message += f"; {len(short)} classes lack images: {some}{' …' if len(short) > 5 else ''}"
    details: Details = {
        "n": len(trusted),
        "missing_in_total": in_total,
        "missing_by_class": by_class,
        "classes_short": len(short),
    }
    return Finding("BD106", float(max(in_total, by_class)), message, DETECTOR, details=details)


def assignment(cost: NDArray[np.float64]) -> NDArray[np.intp]:
    """For each row of a square cost matrix the column of a one-to-one assignment of least total cost.

    Rows enter one by one, each along the cheapest alternating path under prices that keep every reduced cost >= 0;
    of equals the lowest column wins.
    """
    n = len(cost)
    row_price, column_price = np.zeros(n), np.zeros(n + 1)
    owner = np.full(n + 1, -1)  # row that holds each column; the last column is where a path starts
    for row in range(n):
        owner[n], j = row, n
        least, before = np.full(n, np.inf), np.full(n, n)  # cheapest way to reach each column, and the column before it
        done = np.zeros(n + 1, dtype=bool)
        while owner[j] >= 0:
            done[j] = True
            i = owner[j]
            reduced = cost[i] - row_price[i] - column_price[:n]
            closer = ~done[:n] & (reduced < least)
            least[closer], before[closer] = reduced[closer], j
            nearest = int(np.where(done[:n], np.inf, least).argmin())
            step = least[nearest]
            row_price[owner[done]] += step
            column_price[done] -= step
            least[~done[:n]] -= step
            j = nearest
        while j != n:
            owner[j], j = owner[before[j]], before[j]
    columns = np.empty(n, dtype=np.intp)
    columns[owner[:n]] = np.arange(n)
    return columns


def _name(trusted: TrustedData, label: int) -> str:
    return trusted.class_names[label] if label < len(trusted.class_names) else str(label)
