"""The inversion engine: for every class at once, the smallest trigger of one family that still sends images there.

After Wang et al., Neural Cleanse, 2019, https://doi.org/10.1109/SP.2019.00031: gradient descent on the trigger, with a
weight on its size that grows while the trigger works and shrinks while it does not.

    for every class c:  minimise over T   CE(f(x ⊕ T), c) + w_c · size(T)        x: trusted images not of class c

An ordinary class is reached by showing what it looks like, a backdoor's target need not be. With `suppress`, the
class's own features are held back, after Yang, Miller, Kesidis: Improving the Sensitivity of Backdoor Detectors via
Class Subspace Orthogonalization, 2025, https://arxiv.org/abs/2512.08129:

    … + suppress · cos(latents(x ⊕ T), mean latents of the trusted images of class c)

The model's weights never get a gradient. One tensor holds the triggers of all classes, so a step is a few large
batches: as many classes at once as PIXELS_PER_PASS allows, and no more images are gathered than one batch needs.
`Search.run` continues a `State`, so that a race can stop some classes early and go on with the others. A class may
have several triggers, one for each source class that its images are drawn from.

Differs from the papers: all classes in one batch, fresh images at every step, and the trigger kept is the smallest one
whose success over the last few batches reached `success`, so that sizes are compared at matched success; the second
paper's constraint on a subspace is a penalty on one direction here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from audit_cli.classifier import Classifier
from audit_cli.inversion.state import State
from audit_cli.types import Context, TriggerFamily, TrustedData

# Of one forward pass on a CPU or GPU: bounds the memory whatever the model's input size and number of classes.
PIXELS_PER_PASS = 512 * 32 * 32
RELAX = 0.05  # ours: how far success may fall under the matched success before the size's weight shrinks

ExtraLoss = Callable[[Tensor, Tensor], Tensor]  # stamped images (B, C, H, W), true labels (B,) -> loss per image (B,)


@dataclass(frozen=True)
class Measured:
    """What one step saw of K triggers."""

    gradients: dict[str, Tensor]  # of the objective, for every parameter
    sizes: Tensor  # (K,)
    success: Tensor  # (K,) on this step's images
    losses: Tensor  # (K,) mean cross-entropy on them


@dataclass(frozen=True)
class Objective:
    """What is minimised, but for the size. own: (num_classes, D) latents that `suppress` holds back, as above."""

    suspect: Classifier
    beside: ExtraLoss | None
    suppress: float
    own: Tensor | None

    def __call__(self, images: Tensor, target: Tensor, true: Tensor) -> tuple[Tensor, Tensor]:
        """Stamped images (M, C, H, W), their targets and true labels (M,) -> summed loss (), logits (M, classes)."""
        if self.own is None:
            logits, shown = self.suspect(images).float(), None
        else:
            outputs, latents = self.suspect.outputs(images)
            logits, shown = outputs.float(), F.cosine_similarity(latents.float(), self.own[target])
        loss = F.cross_entropy(logits, target, reduction="sum")
        if shown is not None:
            loss = loss + self.suppress * shown.sum()
        if self.beside is not None:
            loss = loss + self.beside(images, true).sum()
        return loss, logits


@dataclass(frozen=True)
class Search:
    """How hard to search; the step size and the growth of the size's weight belong to the family."""

    images: int = 10  # a class and step; 20 tell no more: fixtures/results/bench/cifar-s-20-images
    success: float | None = None  # the matched success; the family's own when None
    relax: float | None = None  # under this the weight shrinks; RELAX less than the matched success when None
    patience: int = 3  # steps in a row before the weight changes; also the batches that success is taken over
    betas: tuple[float, float] = field(default=(0.5, 0.9))  # Adam, Neural Cleanse
    speed: float = 1.0  # factor on the family's step size
    suppress: float = 0.0  # weight of the cosine to the target class's own latents

    def __post_init__(self) -> None:
        success = 1.0 if self.success is None else self.success
        relax = success if self.relax is None else self.relax
        if min(self.images, self.patience) < 1 or self.speed <= 0 or not 0 < relax <= success <= 1:
            raise ValueError(f"{self}: images, patience and speed must be positive, 0 < relax <= success <= 1")
        if self.suppress < 0:
            raise ValueError(f"{self}: suppress must not be negative")

    def matched(self, family: TriggerFamily) -> float:
        """The success at which the sizes of `family` are compared."""
        return family.success if self.success is None else self.success

    def start(
        self,
        family: TriggerFamily,
        classes: Tensor,
        shape: tuple[int, int, int],
        context: Context,
        sources: Tensor | None = None,
    ) -> State:
        """Fresh random triggers to the targets `classes` (K,) from the classes `sources` (K,), or from all others."""
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
            losses=torch.zeros(K, self.patience, device=context.device),
            best={name: value.clone() for name, value in parameters.items()},
            best_size=zeros + torch.inf,
            sources=None if sources is None else sources.to(context.device),
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
        own = own_features(suspect, trusted, context) if self.suppress else None
        objective = Objective(suspect, extra, self.suppress, own)
        eligible = state.eligible(labels).float().cpu()  # (K, N)
        generator = context.generator(stream=3 + state.step)
        for _ in range(steps):
            index = torch.multinomial(eligible, self.images, replacement=True, generator=generator).to(context.device)
            measured = self._measure(objective, family, state, images, labels, index, context)
            state = self._keep_best(family, state, measured)
            state = self._descend(family, state, measured.gradients)
            context.advance(note=_leader(state))
        return state

    def _measure(
        self,
        objective: Objective,
        family: TriggerFamily,
        state: State,
        images: Tensor,  # (N, C, H, W)
        labels: Tensor,  # (N,)
        index: Tensor,  # (K, B) the images of every class in this step
        context: Context,
    ) -> Measured:
        """A slice of classes at a time, each with images and leaves of its own, so that memory does not grow with K."""
        K, B = index.shape
        per_pass = max(1, PIXELS_PER_PASS // (images.shape[-1] * images.shape[-2]))
        gradients = {name: torch.zeros_like(value) for name, value in state.parameters.items()}
        sizes, success, losses = (torch.empty(K, device=images.device) for _ in range(3))
        for start in range(0, K, max(1, per_pass // B)):
            rows = slice(start, start + max(1, per_pass // B))
            leaves = {name: value[rows].detach().requires_grad_() for name, value in state.parameters.items()}
            stamped = family.stamp(leaves, images[index[rows]])  # (k, B, C, H, W)
            target, true = state.classes[rows].repeat_interleave(B), labels[index[rows]].flatten()
            gradient, logits = image_gradient(
                objective, stamped.detach().flatten(0, 1), target, true, per_pass, context
            )
            stamped.backward(gradient.view_as(stamped) / B)
            size = family.size(leaves)
            (state.weight[rows] * size).sum().backward()
            for name, leaf in leaves.items():
                if leaf.grad is not None:
                    gradients[name][rows] = leaf.grad
            sizes[rows] = size.detach()
            success[rows] = (logits.argmax(1) == target).float().view(-1, B).mean(1)
            losses[rows] = F.cross_entropy(logits, target, reduction="none").view(-1, B).mean(1)
        return Measured(gradients, sizes, success, losses)

    def _keep_best(self, family: TriggerFamily, state: State, measured: Measured) -> State:
        sizes, success = measured.sizes, measured.success
        wanted = self.matched(family)
        relax = wanted - RELAX if self.relax is None else self.relax
        recent, losses = state.recent.clone(), state.losses.clone()
        recent[:, state.step % self.patience], losses[:, state.step % self.patience] = success, measured.losses
        better = (recent.mean(1) >= wanted) & (sizes < state.best_size) & (state.step >= self.patience)
        best = {
            name: torch.where(better.view(-1, *[1] * (value.dim() - 1)), value, state.best[name])
            for name, value in state.parameters.items()
        }
        streak = torch.where(
            success >= wanted,
            state.streak.clamp(min=0) + 1,
            torch.where(success < relax, state.streak.clamp(max=0) - 1, torch.zeros_like(state.streak)),
        )
        best_size = torch.where(better, sizes, state.best_size)
        return replace(state, recent=recent, losses=losses, best=best, best_size=best_size, streak=streak)

    def _descend(self, family: TriggerFamily, state: State, gradients: dict[str, Tensor]) -> State:
        """One Adam step, and the weight's patience rule."""
        t, (b1, b2) = state.step + 1, self.betas
        parameters, moments = {}, {}
        for name, gradient in gradients.items():
            m, v = state.moments[name]
            m, v = b1 * m + (1 - b1) * gradient, b2 * v + (1 - b2) * gradient**2
            update = (m / (1 - b1**t)) / ((v / (1 - b2**t)).sqrt() + 1e-8)
            parameters[name], moments[name] = state.parameters[name] - self.speed * family.lr * update, (m, v)
        up, down = state.streak >= self.patience, state.streak <= -self.patience
        weight = torch.where(
            up, state.weight * family.growth, torch.where(down, state.weight / family.growth**1.5, state.weight)
        )
        streak = torch.where(up | down, torch.zeros_like(state.streak), state.streak)
        return replace(state, parameters=parameters, moments=moments, weight=weight, streak=streak, step=t)


def image_gradient(
    objective: Objective, stamped: Tensor, target: Tensor, true: Tensor, per_pass: int, context: Context
) -> tuple[Tensor, Tensor]:
    """d loss / d image, (M, C, H, W), and logits (M, classes), `per_pass` images at a time."""
    gradients, outputs = [], []
    for images, wanted, y in zip(stamped.split(per_pass), target.split(per_pass), true.split(per_pass), strict=True):
        leaf = images.contiguous(memory_format=torch.channels_last).requires_grad_()
        with context.autocast():
            loss, logits = objective(leaf, wanted, y)
        gradients.append(torch.autograd.grad(loss, leaf)[0])
        outputs.append(logits.detach())
    return torch.cat(gradients), torch.cat(outputs)


@torch.no_grad()
def own_features(suspect: Classifier, trusted: TrustedData, context: Context) -> Tensor:
    """Mean latents (num_classes, D) of each class's trusted images; zeros where there are none."""
    with context.autocast():
        parts = [suspect.latents(part.to(context.device)).float() for part in trusted.images.split(256)]
    latents, labels = torch.cat(parts), trusted.labels.to(context.device)
    members = F.one_hot(labels, suspect.num_classes).T.float()  # (classes, N)
    return members @ latents / members.sum(1, keepdim=True).clamp(min=1)


def _leader(state: State) -> str:
    """The class in front: the one with the smallest trigger."""
    row = int(state.best_size.argmin())
    size = float(state.best_size[row])
    return f"class {int(state.classes[row])} leads, size {size:.3g}" if size < float("inf") else ""
