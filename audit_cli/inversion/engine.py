"""The inversion engine: for every class at once, the smallest trigger of one family that still sends images there.

After Wang et al., Neural Cleanse, 2019, https://doi.org/10.1109/SP.2019.00031: gradient descent on the trigger, with a
weight on its size that grows while the trigger works and shrinks while it does not.

    for every class c:  minimise over T   CE(f(x ⊕ T), c) + w_c · size(T)        x: trusted images not of class c

The model's weights never get a gradient. One tensor holds the triggers of all classes, so a step is a few large
batches; `Search.run` continues a `State`, so that a race can stop some classes early and go on with the others.

Differs from the paper: all classes in one batch, fresh images at every step, and the trigger kept is the smallest one
whose success over the last few batches reached `success`, so that sizes are compared at matched success.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from audit_cli.classifier import Classifier
from audit_cli.types import Context, Trigger, TriggerFamily, TrustedData

PIXELS_PER_PASS = (
    512 * 32 * 32
)  # of one forward pass on a CPU or GPU: bounds the memory whatever the model's input size

ExtraLoss = Callable[[Tensor, Tensor], Tensor]  # stamped images (B, C, H, W), true labels (B,) -> loss per image (B,)


@dataclass(frozen=True)
class State:
    """Where the search stands for K classes; every tensor has K in front."""

    classes: Tensor  # (K,) int64
    parameters: dict[str, Tensor]
    moments: dict[str, tuple[Tensor, Tensor]]  # Adam's
    weight: Tensor  # (K,) on the size
    streak: Tensor  # (K,) successful (+) or failing (−) steps in a row
    recent: Tensor  # (K, patience) success of the last batches
    best: dict[str, Tensor]  # the smallest trigger so far that worked
    best_size: Tensor  # (K,) inf until one worked
    step: int = 0

    def take(self, rows: Tensor) -> State:
        """The state of some of the classes."""
        return replace(
            self,
            classes=self.classes[rows],
            parameters={k: v[rows] for k, v in self.parameters.items()},
            moments={k: (m[rows], v[rows]) for k, (m, v) in self.moments.items()},
            weight=self.weight[rows],
            streak=self.streak[rows],
            recent=self.recent[rows],
            best={k: v[rows] for k, v in self.best.items()},
            best_size=self.best_size[rows],
        )

    @property
    def reached(self) -> Tensor:
        """(K,) bool: a trigger of the wanted success was found."""
        return self.best_size.isfinite()

    def trigger(self, row: int, family: TriggerFamily) -> Trigger:
        """The smallest trigger found for the class in `row`, or where none worked, the last one tried."""
        return self._pick(self.best, row, family) if bool(self.reached[row]) else self.last(row, family)

    def last(self, row: int, family: TriggerFamily) -> Trigger:
        """The last trigger tried for the class in `row`."""
        return self._pick(self.parameters, row, family)

    def _pick(self, source: dict[str, Tensor], row: int, family: TriggerFamily) -> Trigger:
        parameters = {k: v[row : row + 1].detach().clone() for k, v in source.items()}
        return Trigger(family, parameters, int(self.classes[row]), float(family.size(parameters)))


@dataclass(frozen=True)
class Search:
    """How hard to search; the step size and the growth of the size's weight belong to the family."""

    images: int = 20  # a class and step
    success: float = 0.95  # the matched success
    relax: float = 0.90  # under this the weight shrinks
    patience: int = 3  # steps in a row before the weight changes; also the batches that success is taken over
    betas: tuple[float, float] = field(default=(0.5, 0.9))  # Adam, Neural Cleanse

    def __post_init__(self) -> None:
        if self.images < 1 or self.patience < 1 or not 0 < self.relax <= self.success <= 1:
            raise ValueError(f"{self}: images and patience must be positive, 0 < relax <= success <= 1")

    def start(self, family: TriggerFamily, classes: Tensor, shape: tuple[int, int, int], context: Context) -> State:
        """Fresh random triggers for `classes` (K,)."""
        K = len(classes)
        parameters = family.initial(K, shape, context.generator(stream=2))
        parameters = {name: value.to(context.device) for name, value in parameters.items()}
        zeros = torch.zeros(K, device=context.device)
        return State(
            classes=classes.to(context.device),
            parameters=parameters,
            moments={name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in parameters.items()},
            weight=zeros + family.weight,
            streak=zeros,
            recent=torch.zeros(K, self.patience, device=context.device),
            best={name: value.clone() for name, value in parameters.items()},
            best_size=zeros + torch.inf,
        )

    def run(
        self,
        suspect: Classifier,
        family: TriggerFamily,
        state: State,
        trusted: TrustedData,
        steps: int,
        context: Context,
        extra: ExtraLoss | None = None,
    ) -> State:
        """`steps` more steps for the classes of `state`. The suspect must be frozen and on the context's device."""
        images, labels = trusted.images.to(context.device), trusted.labels.to(context.device)
        eligible = (labels[None] != state.classes[:, None]).float().cpu()  # (K, N)
        generator = context.generator(stream=3 + state.step)
        for _ in range(steps):
            index = torch.multinomial(eligible, self.images, replacement=True, generator=generator).to(context.device)
            gradients, sizes, success = self._gradients(
                suspect, family, state, images[index], labels[index], context, extra
            )
            state = self._keep_best(state, sizes, success)
            state = self._descend(family, state, gradients)
            context.advance(note=_leader(state))
        return state

    def _gradients(
        self,
        suspect: Classifier,
        family: TriggerFamily,
        state: State,
        x: Tensor,  # (K, B, C, H, W)
        y: Tensor,  # (K, B)
        context: Context,
        extra: ExtraLoss | None,
    ) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Gradient of the objective for every parameter, sizes (K,) and success on this batch (K,)."""
        K, B = y.shape
        leaves = {name: value.detach().requires_grad_() for name, value in state.parameters.items()}
        per_pass = max(1, PIXELS_PER_PASS // (x.shape[-1] * x.shape[-2]))
        hits = torch.empty(K, B, device=x.device)
        for rows in torch.arange(K, device=x.device).split(max(1, per_pass // B)):
            part = {name: value[rows] for name, value in leaves.items()}
            stamped = family.stamp(part, x[rows])  # (k, B, C, H, W)
            target = state.classes[rows].repeat_interleave(B)
            gradient, logits = self._image_gradient(
                suspect, stamped.detach().flatten(0, 1), target, y[rows].flatten(), per_pass, context, extra
            )
            stamped.backward(gradient.view_as(stamped) / B)
            hits[rows] = (logits.argmax(1) == target).float().view(-1, B)
        sizes = family.size(leaves)
        (state.weight * sizes).sum().backward()
        return (
            {name: value.grad for name, value in leaves.items() if value.grad is not None},
            sizes.detach(),
            hits.mean(1),
        )

    def _image_gradient(
        self,
        suspect: Classifier,
        stamped: Tensor,
        target: Tensor,
        y: Tensor,
        per_pass: int,
        context: Context,
        extra: ExtraLoss | None,
    ) -> tuple[Tensor, Tensor]:
        """d loss / d image, (M, C, H, W), and logits (M, classes), a slice of images at a time."""
        gradients, outputs = [], []
        for images, wanted, true in zip(
            stamped.split(per_pass), target.split(per_pass), y.split(per_pass), strict=True
        ):
            leaf = images.contiguous(memory_format=torch.channels_last).requires_grad_()
            with context.autocast():
                logits = suspect(leaf).float()
                loss = F.cross_entropy(logits, wanted, reduction="sum")
                if extra is not None:
                    loss = loss + extra(leaf, true).sum()
            gradients.append(torch.autograd.grad(loss, leaf)[0])
            outputs.append(logits.detach())
        return torch.cat(gradients), torch.cat(outputs)

    def _keep_best(self, state: State, sizes: Tensor, success: Tensor) -> State:
        recent = state.recent.clone()
        recent[:, state.step % self.patience] = success
        better = (recent.mean(1) >= self.success) & (sizes < state.best_size) & (state.step >= self.patience)
        best = {
            name: torch.where(better.view(-1, *[1] * (value.dim() - 1)), value, state.best[name])
            for name, value in state.parameters.items()
        }
        streak = torch.where(
            success >= self.success,
            state.streak.clamp(min=0) + 1,
            torch.where(success < self.relax, state.streak.clamp(max=0) - 1, torch.zeros_like(state.streak)),
        )
        return replace(
            state, recent=recent, best=best, best_size=torch.where(better, sizes, state.best_size), streak=streak
        )

    def _descend(self, family: TriggerFamily, state: State, gradients: dict[str, Tensor]) -> State:
        """One Adam step, and the weight's patience rule."""
        t, (b1, b2) = state.step + 1, self.betas
        parameters, moments = {}, {}
        for name, gradient in gradients.items():
            m, v = state.moments[name]
            m, v = b1 * m + (1 - b1) * gradient, b2 * v + (1 - b2) * gradient**2
            update = (m / (1 - b1**t)) / ((v / (1 - b2**t)).sqrt() + 1e-8)
            parameters[name], moments[name] = state.parameters[name] - family.lr * update, (m, v)
        up, down = state.streak >= self.patience, state.streak <= -self.patience
        weight = torch.where(
            up, state.weight * family.growth, torch.where(down, state.weight / family.growth**1.5, state.weight)
        )
        streak = torch.where(up | down, torch.zeros_like(state.streak), state.streak)
        return replace(state, parameters=parameters, moments=moments, weight=weight, streak=streak, step=t)


def _leader(state: State) -> str:
    """The class in front: the one with the smallest trigger."""
    row = int(state.best_size.argmin())
    size = float(state.best_size[row])
    return f"class {int(state.classes[row])} leads, size {size:.3g}" if size < float("inf") else ""
