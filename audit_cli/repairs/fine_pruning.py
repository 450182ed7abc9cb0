"""Fine-Pruning: silence the convolution channels that clean images leave quiet, then fine-tune.

Liu, Dolan-Gavitt, Garg: Fine-Pruning: Defending Against Backdooring Attacks on Deep Neural Networks, 2018,
https://arxiv.org/abs/1805.12185.
A backdoor may live in channels that clean inputs do not use; removing them costs little accuracy, and fine-tuning
removes what was hidden in the used ones.

    a_k = mean |output of channel k| over trusted images;   the `pruned` share with the lowest a_k is set to zero and
    stays zero while   CE(f(x; θ), y)   is minimised

Differs from the paper: the share is a setting, not found by watching the accuracy fall; the channels are those of the
last convolution, as there, and zeroing its filters and the normalisation behind it is what removes a channel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from audit_cli.classifier import Classifier
from audit_cli.errors import UnsupportedError
from audit_cli.metrics import evaluating
from audit_cli.repairs.watch import Watch, unwatched
from audit_cli.training import Fit
from audit_cli.types import Context, TrustedData

Norm = (nn.BatchNorm2d, nn.GroupNorm, nn.InstanceNorm2d)


@dataclass(frozen=True)
class FinePruning:
    """Prune the last convolution, then fine-tune."""

    pruned: float = 0.96  # share of channels; Pick your Poison, Table V, CIFAR-10
    batches: int = 10  # Table V: batches the activations are averaged over
    steps: int = 1_000  # Table V
    lr: float = 1e-3  # Table V
    batch: int = 128  # Table V
    pad: int = 4  # pixels of random shift, as Pivotal Tuning
    flip: bool = True

    def __post_init__(self) -> None:
        if min(self.batches, self.steps, self.lr, self.batch) <= 0 or not 0 <= self.pruned < 1:
            raise ValueError(f"{self}: batches, steps, lr and batch must be positive, 0 <= pruned < 1")

    def __call__(
        self, pivot: Classifier, trusted: TrustedData, context: Context, watch: Watch = unwatched
    ) -> Classifier:
        """A pruned and tuned clone of `pivot`, on the context's device, in eval mode; `pivot` is untouched.

        Raises UnsupportedError when the model has no convolution but that which embeds patches.
        """
        repaired = pivot.clone().on(context.device)
        chain = last_convolution(repaired, trusted.images[:2].to(context.device))
        index = torch.randperm(len(trusted), generator=context.generator(stream=1))[: self.batches * self.batch]
        activity = channel_activity(repaired, chain[-1], trusted.images[index].to(context.device), self.batch)
        quiet = activity.argsort()[: int(self.pruned * len(activity))]

        def silence() -> None:
            with torch.no_grad():
                for module in chain:
                    for parameter in module.parameters(recurse=False):
                        parameter[quiet] = 0

        def after_step(step: int) -> None:
            silence()
            watch(step, repaired)

        silence()
        fit = Fit(self.steps, self.lr, self.batch, pad=self.pad, flip=self.flip)
        return fit.run(
            repaired, trusted.images, trusted.labels, context, after_step=after_step, stage="fine-tuning after pruning"
        )


def last_convolution(classifier: Classifier, images: Tensor) -> Sequence[nn.Module]:
    """The convolution that runs last on `images`, and the normalisation that runs on its output, where there is one."""
    ran: list[tuple[nn.Module, Tensor, Tensor]] = []
    hooks = [
        module.register_forward_hook(lambda m, inputs, output: ran.append((m, inputs[0], output)))
        for module in classifier.modules()
        if isinstance(module, (nn.Conv2d, *Norm))
    ]
    try:
        with evaluating(classifier), torch.no_grad():
            classifier(images)
    finally:
        for hook in hooks:
            hook.remove()
    convolutions = [k for k, (m, _, _) in enumerate(ran) if isinstance(m, nn.Conv2d) and not embeds_patches(m)]
    if not convolutions:
        raise UnsupportedError(
            f"{classifier.arch}: has no convolution but perhaps the embedding of patches, so Fine-Pruning has nothing"
            " to prune; try another repair"
        )
    convolution, _, output = ran[convolutions[-1]]
    return [convolution, *[module for module, given, _ in ran if given is output]]


def embeds_patches(module: nn.Module) -> bool:
    """Is this the first layer of a transformer: a convolution whose windows lie side by side?"""
    return isinstance(module, nn.Conv2d) and module.stride == module.kernel_size and max(module.stride) > 1


@torch.no_grad()
def channel_activity(classifier: Classifier, layer: nn.Module, images: Tensor, batch: int) -> Tensor:
    """(K,) mean absolute output of each channel of `layer` over images (N, C, H, W)."""
    sums: list[Tensor] = []
    hook = layer.register_forward_hook(lambda m, inputs, output: sums.append(output.float().abs().mean((2, 3)).sum(0)))
    try:
        with evaluating(classifier):
            for part in images.split(batch):
                classifier(part)
    finally:
        hook.remove()
    return torch.stack(sums).sum(0) / len(images)
