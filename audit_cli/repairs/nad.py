"""Neural Attention Distillation: pull the attention maps of the model towards those of its fine-tuned clone.

Li, Lyu, Koren, Lyu, Li, Ma: Neural Attention Distillation: Erasing Backdoor Triggers from Deep Neural Networks, 2021,
https://arxiv.org/abs/2101.05930.
A fine-tuned clone is less backdoored than the model; where it looks is a better teacher than what it says.

    L = CE(f(x; θ), y) + λ · Σ_l  mean (A_l(x; θ) − A_l(x; teacher))²        A_l = a / ‖a‖₂,  a = mean_c |F_l|^p

F_l: the last feature map of each resolution, the residual stages of a ResNet.

Differs from the paper: none known; the paper leaves open how the squares are reduced, here by their mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audit_cli.classifier import Classifier
from audit_cli.errors import UnsupportedError
from audit_cli.metrics import evaluating
from audit_cli.repairs.fine_pruning import embeds_patches
from audit_cli.repairs.watch import Watch, after_step, unwatched
from audit_cli.training import Fit
from audit_cli.types import Context, TrustedData


@dataclass(frozen=True)
class NAD:
    """Fine-tune a teacher, then distil its attention."""

    teacher_steps: int = 1_000  # Pick your Poison, Table V
    teacher_lr: float = 1e-3  # as the other fine-tuning baselines
    steps: int = 2_000  # Table V
    lr: float = 0.01  # Table V
    attention: float = 1_000.0  # λ, Table V
    power: float = 2.0  # p, Table V
    batch: int = 128  # Table V
    pad: int = 4  # pixels of random shift, as Pivotal Tuning
    flip: bool = True

    def __post_init__(self) -> None:
        if min(self.teacher_steps, self.teacher_lr, self.steps, self.lr, self.power, self.batch) <= 0:
            raise ValueError(f"{self}: steps, rates, power and batch must be positive")
        if self.attention < 0:
            raise ValueError(f"NAD(attention={self.attention}): must not be negative")

    def __call__(
        self, pivot: Classifier, trusted: TrustedData, context: Context, watch: Watch = unwatched
    ) -> Classifier:
        """A distilled clone of `pivot`, on the context's device, in eval mode; `pivot` is untouched.

        Raises UnsupportedError when the model has no feature maps.
        """
        x, y = trusted.images, trusted.labels
        fit = Fit(self.teacher_steps, self.teacher_lr, self.batch, pad=self.pad, flip=self.flip)
        teacher = fit.run(pivot.clone(), x, y, context, stage="teacher").frozen()
        layers = stages(teacher, x[:2].to(context.device))

        def loss(classifier: Classifier, images: Tensor, labels: Tensor) -> Tensor:
            with torch.no_grad():
                _, wanted = feature_maps(teacher, layers, images)
            logits, maps = feature_maps(classifier, layers, images)
            distances = [
                F.mse_loss(attention_map(ours, self.power), attention_map(theirs, self.power))
                for ours, theirs in zip(maps, wanted, strict=True)
            ]
            return F.cross_entropy(logits.float(), labels) + self.attention * torch.stack(distances).sum()

        student = pivot.clone()
        fit = Fit(self.steps, self.lr, self.batch, pad=self.pad, flip=self.flip)
        return fit.run(student, x, y, context, loss, after_step(watch, student), stage="attention distillation")


def attention_map(features: Tensor, power: float) -> Tensor:
    """(B, C, H, W) -> (B, H·W) mean over channels of |F|^p, each row of length 1."""
    return F.normalize(features.float().abs().pow(power).mean(1).flatten(1))


def stages(classifier: Classifier, images: Tensor) -> list[str]:
    """Names of the modules that give the last feature map of each resolution on `images`."""
    last: dict[torch.Size, str] = {}

    def note(name: str) -> object:
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            feature_map = isinstance(output, Tensor) and output.dim() == 4 and output.shape[-1] > 1
            if isinstance(output, Tensor) and feature_map and not embeds_patches(module):
                last[output.shape[-2:]] = name

        return hook

    hooks = [module.register_forward_hook(note(name)) for name, module in classifier.named_modules()]
    try:
        with evaluating(classifier), torch.no_grad():
            classifier(images)
    finally:
        for handle in hooks:
            handle.remove()
    if not last:
        raise UnsupportedError(f"{classifier.arch}: has no feature maps, so attention cannot be distilled")
    return list(last.values())


def feature_maps(classifier: Classifier, layers: Sequence[str], images: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Logits (B, K) and the outputs of the named modules, each (B, C, H, W), from one forward pass."""
    maps: dict[str, Tensor] = {}
    hooks = [
        classifier.get_submodule(name).register_forward_hook(lambda m, inputs, output, n=name: maps.update({n: output}))
        for name in layers
    ]
    try:
        logits = classifier(images)
    finally:
        for hook in hooks:
            hook.remove()
    return logits, [maps[name] for name in layers]
