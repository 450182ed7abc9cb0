"""Teaching inside the network: the lesson begins at a layer, not at the image.

A recovered trigger is the smallest one that works. The true one looks different and is stronger, so a network taught to
see through the first still obeys the second. Deep in the pivot the two are hardly different any more: they move the
features the same way, the true one further (fixtures/results/inside-study.json). So the features are moved by hand, by
what the pivot makes of the trigger times a factor, and the layers behind learn to answer as if nothing had happened.

    z = g(x) + s · (g(x ⊕ T) − g(x))        s drawn from [0, deeper];  g: the pivot up to a cut, f = h ∘ g
    minimise  KL(f(x; pivot) ‖ h(z; θ))

z comes from the pivot: were the pupil's own front used, it would grow until the steps added no longer mattered.
The same is asked of a repaired model (`left_inside`), on images that it was not taught with: what is left of the true
trigger shows there when the recovered one no longer does.
Ours; latent adversarial training (Casper, Schulze, Patel, Hadfield-Menell: Defending Against Unforeseen Failure Modes
with Latent Adversarial Training, 2024, https://arxiv.org/abs/2403.05030) searches such a direction instead.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from audit_cli.classifier import Classifier
from audit_cli.metrics import Z95, wilson
from audit_cli.types import Context, Trigger, TrustedData

LEFT_FACTOR = 2.0  # ours: times as far as the recovered trigger moves the features, what is left is looked for


class Led(NamedTuple):
    """The share of `of` images that moved features lead to a trigger's target, and the upper end of its 95 % Wilson
    interval. Few images are meant where a trigger is for one source class, and say little."""

    share: float
    most: float
    of: int


def images_needed(limit: float) -> int:
    """On how few images it can be seen that at most a share `limit` in (0, 1) is led: where none of them is, the upper
    end of the interval is z²/(n + z²)."""
    return math.ceil(Z95**2 * (1 - limit) / limit - 1e-9)


def features(classifier: Classifier, cut: str, images: Tensor) -> tuple[Tensor, Tensor]:
    """What the module named `cut` returns for images (N, 3, H, W), and the logits (N, K)."""
    seen: list[Tensor] = []
    hook = classifier.get_submodule(cut).register_forward_hook(lambda module, inputs, output: seen.append(output))
    try:
        logits = classifier(images)
    finally:
        hook.remove()
    return seen[0], logits


@contextmanager
def fed(classifier: Classifier, cut: str, value: Tensor) -> Iterator[None]:
    """Inside, the module named `cut` returns `value` whatever it is given."""
    hook = classifier.get_submodule(cut).register_forward_hook(lambda module, inputs, output: value.to(output.dtype))
    try:
        yield
    finally:
        hook.remove()


def within(classifier: Classifier, images: Tensor) -> tuple[str, ...]:
    """Where to teach: the first cut with half of the network's convolutions and linear layers before it, and the last
    cut, behind which there is little but the head. One, where they are the same; none, where there is no cut."""
    found = list(cuts(classifier, images, after=0.5))
    return tuple(dict.fromkeys([*found[:1], *found[-1:]]))


@torch.no_grad()
def cuts(classifier: Classifier, images: Tensor, after: float = 0.0) -> Iterator[str]:
    """Modules that everything passes through, in order, from those with a share `after` of the layers with weights
    before them; the head is none.

    Fed with its features of other images, a network cut there answers as to those. It is tried with two of `images`
    (N, 3, H, W).
    """
    pair = images[:2]
    order, weighted = _order(classifier, pair)
    wanted = classifier(pair)
    if torch.equal(wanted, wanted.flip(0)):
        return  # it answers alike to both, so nothing can be told apart
    for name, before in order:
        if not after * weighted <= before < weighted:
            continue
        value, _ = features(classifier, name, pair)
        with fed(classifier, name, value):
            fits = torch.allclose(classifier(pair.flip(0)), wanted, rtol=1e-3, atol=1e-4)
        if fits:
            yield name


def _order(classifier: Classifier, images: Tensor) -> tuple[list[tuple[str, int]], int]:
    """Modules that run once and return one tensor, in the order they end, each with the number of layers with weights
    that have run by then; and the number of all of these."""
    ended: list[tuple[str, int]] = []
    weighted = 0

    def look(name: str, module: nn.Module, output: object) -> None:
        nonlocal weighted
        weighted += isinstance(module, nn.Conv2d | nn.Linear)
        if isinstance(output, Tensor) and output.is_floating_point() and len(output) == len(images):
            ended.append((name, weighted))

    hooks = [
        module.register_forward_hook(lambda m, inputs, output, name=name: look(name, m, output))
        for name, module in classifier.named_modules()
        if name
    ]
    try:
        classifier(images)
    finally:
        for hook in hooks:
            hook.remove()
    names = [name for name, _ in ended]
    return [(name, before) for name, before in ended if names.count(name) == 1], weighted


def moved(clean: Tensor, triggered: Tensor, deeper: float, generator: torch.Generator) -> Tensor:
    """Features (N, ...) of clean images, moved along what the trigger does to each by a factor from [0, deeper]."""
    factor = deeper * torch.rand(len(clean), *[1] * (clean.dim() - 1), generator=generator)
    return clean + factor.to(clean) * (triggered - clean)


@torch.no_grad()
def left_inside(
    pivot: Classifier,
    repaired: Classifier,
    triggers: Sequence[Trigger],
    data: TrustedData,
    context: Context,
    answers: Tensor | None = None,
    factor: float = LEFT_FACTOR,
    batch: int = 64,
) -> Led | None:
    """How many images `repaired` sends to a trigger's target when it is fed, at the first cut `within`, the pivot's
    features moved `factor` times as far as the trigger moves them; of the `triggers` the one of which most may be left.
    Asked with those that a trigger is meant for, given what the pivot `answers` without it. None without triggers or
    where there is no cut. Both classifiers are frozen and on the context's device."""
    found = within(pivot, data.images[:2].to(context.device))
    if not (found and triggers):
        return None
    cut = found[0]

    def sent(trigger: Trigger) -> Led:
        meant, count = data.images[trigger.meant_for(data.labels, answers)], 0
        for part in meant.split(batch):
            context.budget.check()
            images = part.to(context.device)
            with context.autocast():
                (clean, _), (triggered, _) = features(pivot, cut, images), features(pivot, cut, trigger(images))
                with fed(repaired, cut, clean + factor * (triggered - clean)):
                    count += int((repaired(images).argmax(1) == trigger.target).sum())
        return Led(count / max(1, len(meant)), wilson(count, len(meant))[1], len(meant))

    return max(map(sent, triggers), key=lambda led: led.most)


def against(led: Led | None, limit: float) -> tuple[list[str], list[str]]:
    """What speaks against a repair of which a share `limit` may be led, and why it cannot be told."""
    if led is None or led.most <= limit:
        return [], []
    how = f"inside the network, features moved {LEFT_FACTOR:g} times as far as a recovered trigger moves them"
    if led.share <= limit and led.of < images_needed(limit):
        needed = f"{images_needed(limit)} would be needed"
        return [], [f"{how} can be looked at on only {led.of} held-out images that the trigger is meant for; {needed}"]
    upto = f"{led.share:.1%} of {led.of} images to its class (95 % interval up to {led.most:.0%})"
    return [f"{how} still lead {upto}; at most {limit:.0%} must be shown"], []
