"""Teaching a network to see through triggers: one round of unlearning (unlearning.py).

The pivot sees clean images only, and what it says of them is the lesson: with few images its answers hold the accuracy
better than labels do, and better still on mixtures of two images, of which there are many.

    minimise  q · KL(f(x; pivot) ‖ f(x ⊕ T; θ)) + (1 − q) · KL(f(x; pivot) ‖ f(x; θ))    T drawn from the lesson
    at the image in one step, inside the network in the next: half-way, and where it is `persuaded` just before the
    head, too (inside.py)

The pupil alone sees some images under random changes of the kinds that convict, where a scan has told of any: the true
trigger is one of that kind, and the recovered ones are few. Where nothing else helps it sees them through a fog of one
colour, since a blended pattern works as a fog does, and no recovered trigger takes anything from the image.

Networks with layer normalisation (Vision Transformers, the image tower of CLIP, ConvNeXt) are tuned with Adam, and no
further from the pivot than `drift`; fog and lessons inside left more of the backdoor there (development: vit-badnets)
and are left out, and more of every batch carries a trigger. Batch normalisation is frozen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from audit_cli.classifier import Classifier
from audit_cli.detectors.changes import Bank, Change
from audit_cli.repairs.distillation import distillation
from audit_cli.repairs.drift import bound, layer_normalised
from audit_cli.repairs.inside import features, fed, moved, within
from audit_cli.repairs.stamping import changed, gathered, in_fog, mix, stamp
from audit_cli.repairs.watch import Watch, unwatched
from audit_cli.training import Fit
from audit_cli.types import Context, Trigger, TrustedData


@dataclass(frozen=True)
class Teaching:
    """How a lesson of triggers is taught."""

    changes: tuple[Change | Bank, ...] = ()  # kinds of random change that the pupil sees images under
    persuaded: bool = False  # is the head? Then it is taught on half of the steps inside
    steps: int = 150  # ours: a round
    lr: float = 0.01  # ours: with frozen batch normalisation it needs the clipping
    # The next four are for networks with layer normalisation only. Ours: Adam's lr, times the latents' width; a step
    # shrinks as networks widen (Yang et al., Tensor Programs V, 2022).
    adam_lr: float = 0.1
    often: float = 0.25  # ours: at least so large a share `stamped`; half of it leaves more success (development)
    longer: int = 2  # ours: factor on `steps`; 1 costs accuracy and leaves more success (development, vit-badnets)
    drift: float = 0.3  # ours: largest ‖θ − θ~‖ / ‖θ~‖
    batch: int = 128
    stamped: float = 0.125  # ours: share q of every batch that carries a trigger
    clip: float = 1.0  # ours
    exaggerated: float = 2.0  # ours: the smallest trigger that works is weaker than the true one
    mixed: float = 0.5  # ours: largest share of a second image in the first; Zhang et al., mixup, 2018
    changed: float = 0.25  # ours: share of every batch under `changes`; half leaves as much for it (development, WaNet)
    fog: float = 0.0  # largest share of a colour in half of the pupil's images
    # The next three: what is taught inside the network, on every other step or so.
    inside: float = 0.25  # ours: share of such steps; half costs accuracy and leaves hardly less (development)
    deeper: float = 5.0  # ours: the features move by up to so many times what the recovered trigger moves them
    last: float = 2.0  # ours: the same just before the head, where 5 costs accuracy (development)
    taught: int = 2  # ours: triggers, the most suspicious of the pivot
    moved: float = 0.5  # ours: share of every such batch whose features move
    pad: int = 4
    flip: bool = True

    def __post_init__(self) -> None:
        for name in ("steps", "lr", "adam_lr", "longer", "drift", "batch"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{type(self).__name__}({name}={getattr(self, name)}): must be positive")
        if not (0 < self.stamped < 1 and 0 < self.often < 1 and 0 < self.moved < 1):
            raise ValueError(f"{self}: stamped, often and moved lie between 0 and 1")
        if self.exaggerated < 1 or min(self.deeper, self.last) < 0 or self.taught < 1:
            raise ValueError(f"{self}: exaggerated >= 1, deeper >= 0, last >= 0, taught >= 1")
        if not all(0 <= share <= 1 for share in (self.mixed, self.changed, self.fog, self.inside)):
            raise ValueError(f"{self}: mixed, changed, fog and inside are shares")

    def suited(self, pivot: Classifier) -> Self:
        """These settings, or what a network with layer normalisation needs instead."""
        if not layer_normalised(pivot):
            return self
        return replace(self, inside=0.0, fog=0.0, stamped=max(self.stamped, self.often))

    def cuts(self, pivot: Classifier, images: Tensor) -> dict[str, float]:
        """Where it is taught inside, tried with two of `images` (N, 3, H, W), and how far the features move there."""
        found = within(pivot, images) if self.inside else ()
        last = found[1:] if self.persuaded else ()
        return dict.fromkeys(found[:1], self.deeper) | dict.fromkeys(last, self.last)

    def teach(
        self,
        model: Classifier,
        pivot: Classifier,
        lesson: Sequence[Trigger],
        cuts: Mapping[str, float],
        trusted: TrustedData,
        context: Context,
        watch: Watch = unwatched,
        turn: int = 0,
    ) -> Classifier:
        """A clone of `model`, taught to answer as the pivot does on clean images, with and without the triggers, at the
        image and at the `cuts`, each with how far the features move there. Rounds before: `turn`."""
        generator = context.generator(stream=6)

        def at_the_image(classifier: Classifier, x: Tensor, y: Tensor) -> Tensor:
            n = max(1, round(self.stamped * len(x)))
            x, y = gathered(lesson, x, y, n, generator)
            with torch.no_grad():
                teacher = pivot(x).float()
                others = self._changed(x[n:], round(self.changed * len(x)), generator)
                seen = torch.cat([stamp(lesson, x[:n], y[:n], generator, self.exaggerated), others])
                seen = in_fog(seen, self.fog, generator)
            return distillation(classifier(seen).float(), teacher)

        def at_a_cut(classifier: Classifier, x: Tensor, y: Tensor) -> Tensor:
            cut = list(cuts)[int(torch.randint(len(cuts), (), generator=generator))]
            n = max(1, round(self.moved * len(x)))
            x, y = gathered(lesson[: self.taught], x, y, n, generator)
            with torch.no_grad():
                z, teacher = features(pivot, cut, x)
                triggered, _ = features(pivot, cut, stamp(lesson[: self.taught], x[:n], y[:n], generator))
                z = torch.cat([moved(z[:n], triggered, cuts[cut], generator), z[n:]])
            with fed(classifier, cut, z):
                return distillation(classifier(x).float(), teacher.float())

        def loss(classifier: Classifier, x: Tensor, y: Tensor) -> Tensor:
            x = mix(x, self.mixed, generator)
            if cuts and float(torch.rand((), generator=generator)) < self.inside:
                return at_a_cut(classifier, x, y)
            return at_the_image(classifier, x, y)

        pupil = model.clone()
        fit, bounded = self.fit(pupil, trusted.shape), layer_normalised(pupil)

        def after_step(step: int) -> None:
            if bounded:
                bound(pupil, pivot, self.drift)
            watch(turn * fit.steps + step, pupil)

        return fit.run(pupil, trusted.images, trusted.labels, context, loss, after_step, stage="unlearning")

    def _changed(self, images: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """The images (B, C, H, W), the first `count` of them changed at random."""
        if not self.changes:
            return images
        return torch.cat([changed(self.changes, images[:count], generator), images[count:]])

    def fit(self, pupil: Classifier, shape: tuple[int, int, int]) -> Fit:
        """How the pupil is tuned on images of `shape` (C, H, W)."""
        fit = Fit(
            self.steps, self.lr, self.batch, schedule="cosine", pad=self.pad, flip=self.flip, batch_norm="frozen",
            clip=self.clip,
        )  # fmt: skip
        if not layer_normalised(pupil):
            return fit
        # A shift by a good part of the image shows a transformer nothing it knows, and the answers there cost accuracy.
        pad = min(self.pad, min(shape[1:]) // 8)
        lr = self.adam_lr / pupil.head.in_features
        return replace(fit, steps=self.longer * self.steps, lr=lr, optimiser="adam", pad=pad)
