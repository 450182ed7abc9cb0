"""The one model type: an image classifier split where the algorithms need it, logits = head(latents(x)).

Pixels in [0, 1] go in; normalisation is a layer of the model. Latents are the input of the final classification head,
taken from the module's own `latents(x)` where it has one, else by watching what its head is given.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from audit_cli.errors import UnsupportedError


class Classifier(nn.Module):
    """An image classifier over pixels.

    module: maps normalised images (N, 3, H, W) to logits (N, num_classes). head: dotted name of its last linear
    layer. mean, std: per-channel normalisation in units of [0, 1] pixels. size: the (H, W) the model was built for,
    or None when it takes any. arch: a printable architecture name. labels: class names in logit order, empty when
    the checkpoint has none. names: module tensor name -> checkpoint tensor name, for writing weights back under the
    names they came in.
    """

    def __init__(
        self,
        module: nn.Module,
        head: str,
        *,
        arch: str,
        mean: Sequence[float] = (0.0, 0.0, 0.0),
        std: Sequence[float] = (1.0, 1.0, 1.0),
        size: tuple[int, int] | None = None,
        labels: Sequence[str] = (),
        names: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.module = module
        self.head_name = head
        self.arch = arch
        self.size = size
        self.labels = tuple(labels)
        self.names = dict(names or {})
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1), persistent=False)
        self._require_head()

    def _require_head(self) -> None:
        if not isinstance(self.head, nn.Linear):
            raise UnsupportedError(
                f"{self.arch}: head `{self.head_name}` is not a linear layer; pass --arch with your own factory"
            )

    @property
    def head(self) -> nn.Linear:
        return cast(nn.Linear, self.module.get_submodule(self.head_name))

    @property
    def num_classes(self) -> int:
        return self.head.out_features

    def normalise(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] -> logits (N, num_classes)."""
        return cast(Tensor, self.module(self.normalise(images)))

    def latents(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] -> the head's input (N, D)."""
        return self.outputs(images)[1]

    def outputs(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (N, num_classes) and latents (N, D) from one forward pass."""
        own = getattr(self.module, "latents", None)
        if callable(own):
            z = cast(Callable[[Tensor], Tensor], own)(self.normalise(images))
            return self.head(z), z
        seen: list[Tensor] = []
        hook = self.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        try:
            logits = self.forward(images)
        finally:
            hook.remove()
        if len(seen) != 1:
            raise UnsupportedError(f"{self.arch}: head `{self.head_name}` ran {len(seen)} times in one forward pass")
        return logits, seen[0]

    def with_normalisation(self, mean: Sequence[float], std: Sequence[float]) -> Classifier:
        """The same weights (shared, not copied) under another normalisation."""
        twin = copy.copy(self)
        twin._buffers = dict(self._buffers)
        like = next(self.module.parameters())
        twin.mean = torch.tensor(mean, dtype=torch.float32, device=like.device).view(1, -1, 1, 1)
        twin.std = torch.tensor(std, dtype=torch.float32, device=like.device).view(1, -1, 1, 1)
        return twin

    def on(self, device: torch.device) -> Classifier:
        """Moves itself to `device`, in the memory layout convolutions are fastest in, and returns itself."""
        self.to(device)
        return self.to(memory_format=torch.channels_last)

    def clone(self) -> Classifier:
        """An independent copy of everything."""
        return copy.deepcopy(self)

    def frozen(self) -> Classifier:
        """This classifier in eval mode with no weight asking for a gradient; changes and returns self."""
        return self.eval().requires_grad_(False)


class Encoder(Classifier):
    """An image encoder nobody has given classes: latents only, `num_classes` is 0.

    module: has `latents(x)`, normalised images (N, 3, H, W) -> embeddings (N, D). Whatever needs logits raises
    UnsupportedError.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        arch: str,
        mean: Sequence[float] = (0.0, 0.0, 0.0),
        std: Sequence[float] = (1.0, 1.0, 1.0),
        size: tuple[int, int] | None = None,
        names: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(module, "", arch=arch, mean=mean, std=std, size=size, names=names)

    def _require_head(self) -> None:
        """There is none."""

    @property
    def head(self) -> nn.Linear:
        raise UnsupportedError(f"{self.arch}: an encoder without classes; name them with --labels, or scan it")

    @property
    def num_classes(self) -> int:
        return 0

    def forward(self, images: Tensor) -> Tensor:
        return cast(Tensor, self.head(images))  # raises

    def latents(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] -> embeddings (N, D)."""
        return cast(Callable[[Tensor], Tensor], self.module.latents)(self.normalise(images))

    def outputs(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.head(images), images  # raises
