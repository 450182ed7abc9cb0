"""How far must the features move until the last layer says another class?

For every target class, and from one class after the other, the smallest shift of the latents is sought that sends that
class's images to the target: one vector v, the same for all of these images, in standard deviations of the latents over
clean images. Only images the model is right on count: of those it takes for the target anyway, nothing is learnt.

    size(s → t) = min ‖v‖  so that  head(relu(z + σ · v)) says t  on images of s it knows

(relu only where latents are never negative). A trigger ends as a movement of the latents towards its target, whatever
it looks like at the image and whichever images obey it, and the head of a backdoored network is easily persuaded of
that class. So this sees what a search for one trigger for all images does not: source-specific and all-to-all
backdoors. It costs next to nothing: every image runs through the network once. Nothing in it is random but which images
are used.

    gradient descent on −log p(t) at ‖v‖ = r;  r shrinks while enough images follow and grows while they do not, by a
    factor that comes nearer to 1 whenever it turns

Ours. Related: Fu et al.: FreeEagle: Detecting Complex Neural Trojans in Data-Free Cases, 2023,
https://arxiv.org/abs/2302.14500, which looks for intermediate features, without data, that belong to two classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audit_cli.classifier import Classifier
from audit_cli.types import Context, TrustedData

FLOATS_PER_PASS = 2**24  # of shifted latents: bounds the memory


@dataclass(frozen=True)
class Shift:
    """How carefully the smallest shifts are sought."""

    images: int = 25  # ours: of every source class
    sources: int = 9  # ours: classes a target is reached from
    success: float = 0.8  # ours: share of a source's images that must follow
    steps: int = 64  # ours
    lr: float = 0.4  # ours: length of a step, in radii
    momentum: float = 0.8  # ours
    start: float = 0.3  # ours: first radius, times the square root of the number of latents
    first: int = 8  # ours: steps before the radius changes
    factor: float = 1.08  # ours: first factor of the radius
    name: str = "features"

    def __post_init__(self) -> None:
        if min(self.images, self.sources, self.steps, self.lr, self.start) <= 0 or not 0 < self.success <= 1:
            raise ValueError(f"{self}: counts, lr and start must be positive, 0 < success <= 1")
        if self.factor <= 1 or not 0 <= self.momentum < 1 or not 0 <= self.first < self.steps:
            raise ValueError(f"{self}: factor > 1, 0 <= momentum < 1, 0 <= first < steps")

    def sizes(self, suspect: Classifier, trusted: TrustedData, targets: Tensor, context: Context) -> Tensor:
        """(T, K) size for each of `targets` (T,) from each of all K classes, on the CPU; NaN where none was sought,
        inf where none led there. The suspect must be frozen and on the context's device."""
        generator = context.generator(stream=12)
        by_class = {c: torch.nonzero(trusted.labels == c).flatten() for c in range(suspect.num_classes)}
        drawn = {
            c: own[torch.randperm(len(own), generator=generator).repeat(self.images)[: self.images]]
            for c, own in by_class.items()
            if len(own)
        }
        classes = torch.tensor(list(drawn))
        latents = _latents(suspect, trusted.images[torch.cat(list(drawn.values()))], context)
        latents = latents.view(len(classes), self.images, -1)
        known = (suspect.head(latents).argmax(2) == classes[:, None].to(context.device)).float()  # (S, n)
        usable, pairs = known.any(1).cpu(), []
        for row, target in enumerate(targets.tolist()):
            others = torch.nonzero((classes != target) & usable).flatten()
            chosen = others[torch.randperm(len(others), generator=generator)[: self.sources].sort().values]
            pairs += [(row, int(source)) for source in chosen]
        found = torch.full((len(targets), suspect.num_classes), torch.nan)
        if not pairs:
            return found
        rows, sources = torch.tensor(pairs).T
        parts = max(1, FLOATS_PER_PASS // latents[0].numel())
        context.progress.stage("shifts of the features", self.steps * len(rows.split(parts)))
        smallest = [
            self._smallest(
                suspect.head, latents, known, source.to(context.device), targets[row].to(context.device), context
            )
            for row, source in zip(rows.split(parts), sources.split(parts), strict=True)
        ]
        found[rows, classes[sources]] = torch.cat(smallest).cpu()
        return found

    def _smallest(
        self, head: nn.Linear, latents: Tensor, known: Tensor, sources: Tensor, targets: Tensor, context: Context
    ) -> Tensor:
        """(R,) the smallest radius for each pair of a source, an index into `latents` (S, n, D), and a target class;
        inf where none was large enough. known: (S, n) 1 for latents that count, 0 for others."""
        own, (n, D) = latents[sources], latents.shape[1:]
        counts = known[sources]
        enough = self.success * counts.sum(1)
        spread = latents.flatten(0, 1).std(0).clamp_min(1e-3)
        rectified = bool((latents >= 0).all())
        wanted = targets[:, None].expand(-1, n)
        shift = torch.zeros(len(own), D, device=own.device)
        velocity, radius = torch.zeros_like(shift), shift.new_full((len(own),), self.start * D**0.5)
        factor, followed = torch.full_like(radius, self.factor), torch.zeros_like(radius, dtype=torch.bool)
        ever, late = torch.zeros_like(followed), []
        for step in range(self.steps):
            leaf = shift.requires_grad_()
            moved = own + (leaf * spread)[:, None]
            logits = head(moved.clamp_min(0) if rectified else moved)  # (R, n, K)
            loss = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="none").view(-1, n)
            gradient = F.normalize(torch.autograd.grad((counts * loss).sum(), leaf)[0], dim=1)
            follows = (counts * (logits.argmax(2) == wanted)).sum(1) >= enough
            if step >= self.first:
                factor = torch.where(follows != followed, 1 + (factor - 1) * 0.75, 1 + (factor - 1) * 1.02)
                factor = factor.clamp(1.004, 1.12)
                radius = torch.where(follows, radius / factor, radius * factor)
            followed, ever = follows, ever | follows
            velocity = self.momentum * velocity + (1 - self.momentum) * gradient
            length = self.lr * radius if step else radius
            shift = F.normalize(shift.detach() - length[:, None] * velocity, dim=1) * radius[:, None]
            late.append(radius)
            context.advance()
        sizes = torch.stack(late[-max(1, self.steps // 4) :]).log().mean(0).exp()
        return torch.where(ever, sizes, torch.inf)


@torch.no_grad()
def _latents(suspect: Classifier, images: Tensor, context: Context) -> Tensor:
    """(N, D) float32."""
    found = []
    for part in images.split(128):
        with context.autocast():
            found.append(suspect.latents(part.to(context.device)).float().flatten(1))
        context.budget.check()
    return torch.cat(found)
