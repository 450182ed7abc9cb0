"""Invert, then unlearn: recover the small triggers of the model and train it to see through them.

After Wang et al.: Neural Cleanse, 2019, https://doi.org/10.1109/SP.2019.00031 (section VI-B, patching by unlearning).
An inverted trigger is an approximation of the true one, so one round teaches the model to ignore the approximation
only. Inverting the half-repaired model again gives the part of the backdoor that is left; all triggers found so far
stay in the lesson.

    triggers ← smallest triggers of the suspicious classes
    repeat: triggers += smallest triggers that are left in those classes, from several starts
            minimise  q · KL(f(x; pivot) ‖ f(x ⊕ T; θ)) + (1 − q) · KL(f(x; pivot) ‖ f(x; θ))    T drawn from triggers
    until none of them is small any more

A class is suspicious when its smallest trigger is `suspicious` times smaller than the pivot's median class needs, and
by `allowed` more in a family whose sizes differ much on clean models. The pivot sees clean images only, and what it
says of them is the lesson for both: with few images its answers hold the accuracy better than labels do, and better
still on mixtures of two images, of which there are many.

Networks with layer normalisation (Vision Transformers, the image tower of CLIP, ConvNeXt) are tuned with Adam, and no
further from the pivot than `drift`. Of CLIP the image tower alone is tuned: text tower and temperature are no
parameters of a zero-shot classifier.

What is left is measured by inversion too, so a true trigger far from every inverted one can survive: see
fixtures/results/repair, where a blended pattern does.

Differs from the paper: several rounds, trigger families and starts instead of one; distillation instead of labels;
batch normalisation is frozen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from audit_cli.classifier import Classifier
from audit_cli.inversion.additive import Additive
from audit_cli.inversion.engine import Search
from audit_cli.inversion.mask import Mask
from audit_cli.inversion.racing import Race
from audit_cli.inversion.warp import Warp
from audit_cli.repairs.distillation import distillation
from audit_cli.repairs.drift import bound, layer_normalised
from audit_cli.repairs.watch import Watch, unwatched
from audit_cli.training import Fit
from audit_cli.types import Context, Trigger, TriggerFamily, TrustedData


@dataclass(frozen=True)
class Unlearning:
    """families: the kinds of trigger looked for. Without a suspicious class, the most suspicious one is unlearnt."""

    families: tuple[TriggerFamily, ...] = (Mask(), Additive(), Warp())
    allowed: tuple[tuple[str, float], ...] = (("warp", 2.5),)  # ours
    search: Search = field(default_factory=Search)
    race: Race = field(default_factory=Race)
    rounds: int = 5  # ours
    starts: int = 3  # ours: triggers a suspicious class, family and round
    suspicious: float = 1.5  # ours: ratio to the median class from which a class is taught
    left: float = 0.7  # ours: goes on while a suspicious class has a trigger so much smaller than the median class
    steps: int = 150  # ours: a round
    lr: float = 0.01  # ours: with frozen batch normalisation it needs the clipping
    # The next three are for networks with layer normalisation only. Ours: Adam's lr, times the latents' width; a step
    # shrinks as networks widen (Yang et al., Tensor Programs V, 2022).
    adam_lr: float = 0.1
    longer: int = 2  # ours: factor on `steps`; 1 costs accuracy and leaves more success (development, vit-badnets)
    drift: float = 0.3  # ours: largest ‖θ − θ~‖ / ‖θ~‖
    batch: int = 128
    stamped: float = 0.5  # ours: share q of every batch that carries a trigger
    clip: float = 1.0  # ours
    exaggerated: float = 2.0  # ours: the smallest trigger that works is weaker than the true one
    mixed: float = 0.5  # ours: largest share of a second image in the first; Zhang et al., mixup, 2018
    pad: int = 4
    flip: bool = True

    def __post_init__(self) -> None:
        for name in ("rounds", "starts", "steps", "lr", "adam_lr", "longer", "drift", "batch"):
            if getattr(self, name) <= 0:
                raise ValueError(f"Unlearning({name}={getattr(self, name)}): must be positive")
        if not 0 < self.stamped < 1 or not 0 <= self.mixed <= 1 or self.exaggerated < 1:
            raise ValueError(f"{self}: 0 < stamped < 1, 0 <= mixed <= 1, exaggerated >= 1")

    def __call__(
        self, pivot: Classifier, trusted: TrustedData, context: Context, watch: Watch = unwatched
    ) -> Classifier:
        """A repaired clone of `pivot` on the context's device, in eval mode; `pivot` is untouched.

        Nothing is changed when no class has a trigger that works.
        """
        anchor = pivot.clone().on(context.device).frozen()
        lesson, usual = self._survey(anchor, trusted, context)
        suspects = {(trigger.family, trigger.target) for trigger in lesson}
        repaired = anchor.clone()
        for turn in range(self.rounds if lesson else 0):
            fresh = replace(context, seed=context.seed + turn)
            found = self._invert(repaired.frozen(), trusted, suspects, fresh)
            small = [t for t in found if usual[t.family.name] / t.size >= self.left]
            if turn and not small:
                break
            lesson += small
            repaired = self._unlearn(repaired, anchor, lesson, trusted, fresh, watch, turn)
        return repaired

    def _survey(
        self, pivot: Classifier, trusted: TrustedData, context: Context
    ) -> tuple[list[Trigger], dict[str, float]]:
        """The suspicious triggers of the pivot over all classes, and what its median class needs in each family."""
        triggers: list[tuple[float, Trigger]] = []
        usual: dict[str, float] = {}
        for family in self.families:
            state, _ = self.race.run(pivot, family, trusted, self.search, context)
            if not bool(state.reached.any()):
                continue
            sizes = torch.where(state.reached, state.best_size, state.best_size[state.reached].max())
            usual[family.name] = float(sizes.median()) / dict(self.allowed).get(family.name, 1.0)
            rows = state.reached.nonzero().flatten().tolist()
            triggers += [(usual[family.name] / float(sizes[row]), state.trigger(row, family)) for row in rows]
        triggers.sort(key=lambda pair: pair[0], reverse=True)
        return [t for ratio, t in triggers if ratio >= self.suspicious] or [t for _, t in triggers[:1]], usual

    def _invert(
        self, model: Classifier, trusted: TrustedData, suspects: set[tuple[TriggerFamily, int]], context: Context
    ) -> list[Trigger]:
        """Small triggers that still work, from several starts for each suspicious (family, class)."""
        found = []
        for family in self.families:
            classes = sorted({target for other, target in suspects if other == family}) * self.starts
            if not classes:
                continue
            state = self.search.start(family, torch.tensor(classes), trusted.shape, context)
            context.progress.stage(f"{family.name} triggers left", self.race.steps)
            state = self.search.run(model, family, state, trusted, self.race.steps, context)
            found += [state.trigger(row, family) for row in state.reached.nonzero().flatten().tolist()]
        return found

    def _unlearn(
        self,
        model: Classifier,
        anchor: Classifier,
        lesson: Sequence[Trigger],
        trusted: TrustedData,
        context: Context,
        watch: Watch,
        turn: int,
    ) -> Classifier:
        """A clone of `model`, taught to answer as the anchor does on clean images, with and without the triggers."""
        generator = context.generator(stream=6)

        def loss(classifier: Classifier, x: Tensor, y: Tensor) -> Tensor:
            with torch.no_grad():
                x = mix(x, self.mixed, generator)
                teacher = anchor(x).float()
                q = max(1, round(self.stamped * len(x)))
                seen = torch.cat([stamp(lesson, x[:q], y[:q], generator, self.exaggerated), x[q:]])
            return distillation(classifier(seen).float(), teacher)

        pupil = model.clone()
        fit, bounded = self._fit(pupil, trusted.shape), layer_normalised(pupil)

        def after_step(step: int) -> None:
            if bounded:
                bound(pupil, anchor, self.drift)
            watch(turn * fit.steps + step, pupil)

        return fit.run(pupil, trusted.images, trusted.labels, context, loss, after_step, stage="unlearning")

    def _fit(self, pupil: Classifier, shape: tuple[int, int, int]) -> Fit:
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


def stamp(
    triggers: Sequence[Trigger], images: Tensor, labels: Tensor, generator: torch.Generator, exaggerated: float = 1.0
) -> Tensor:
    """Each image (B, C, H, W) with one of the triggers, unless it is of that trigger's target: a family is drawn, each
    as likely as another however many triggers it has, then one of its triggers.

    What the trigger changes is multiplied by a factor drawn from [1, exaggerated].
    """
    families = [trigger.family.name for trigger in triggers]
    chances = torch.tensor([1 / families.count(name) for name in families])
    drawn = torch.multinomial(chances, len(images), replacement=True, generator=generator).to(images.device)
    factor = 1 + (exaggerated - 1) * torch.rand(len(images), 1, 1, 1, generator=generator).to(images.device)
    stamped = images.clone()
    for k, trigger in enumerate(triggers):
        rows = (drawn == k) & (labels != trigger.target)
        if bool(rows.any()):
            clean = images[rows]
            stamped[rows] = (clean + factor[rows] * (trigger(clean) - clean)).clamp(0, 1)
    return stamped


def mix(images: Tensor, largest: float, generator: torch.Generator) -> Tensor:
    """Each image (B, C, H, W) with a share in [0, largest] of another one of the batch."""
    share = largest * torch.rand(len(images), 1, 1, 1, generator=generator)
    other = torch.randperm(len(images), generator=generator)
    share, other = share.to(images.device), other.to(images.device)
    return (1 - share) * images + share * images[other]
