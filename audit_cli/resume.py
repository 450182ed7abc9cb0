"""Stopping a training run at any moment and going on later, to the very same weights.

Everything that changes while training is one object, and its state one safetensors file: a pickle is never written.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from audit_cli.checkpoint.save import save_weights
from audit_cli.classifier import Classifier
from audit_cli.errors import UsageError


@dataclass
class Run:
    """Everything that changes while training."""

    classifier: Classifier
    optimiser: torch.optim.Optimizer
    generator: torch.Generator
    order: Tensor  # indices of this epoch that are not yet used
    step: int = 0

    def momentum(self) -> dict[str, Tensor]:
        """SGD's buffers by parameter name; none before a parameter's first update."""
        buffers = {name: self.optimiser.state[p].get("momentum_buffer") for name, p in self._parameters()}
        return {f"momentum.{name}": buffer for name, buffer in buffers.items() if buffer is not None}

    def restore(self, momentum: dict[str, Tensor]) -> None:
        for name, p in self._parameters():
            if name in momentum:
                self.optimiser.state[p]["momentum_buffer"] = torch.empty_like(p).copy_(momentum[name]).detach()

    def _parameters(self) -> list[tuple[str, nn.Parameter]]:
        return list(self.classifier.named_parameters())


@dataclass(frozen=True)
class Resume:
    """Where a run keeps its state, so that a killed one goes on to the very weights an uninterrupted one reaches.

    path: a safetensors file, written every `every` steps and at the end, picked up when it exists; whoever started the
    run removes it once the result is safe. generators: those that the loss or the tampering draws from. label: what
    else must be the same for a state to be picked up.
    """

    path: Path
    every: int = 500
    generators: tuple[torch.Generator, ...] = ()
    label: str = ""

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"Resume(every={self.every}): must be positive")

    def save(self, run: Run, recipe: str) -> None:
        generators = {f"generator.{i}": g.get_state() for i, g in enumerate((run.generator, *self.generators))}
        weights = {f"model.{name}": tensor for name, tensor in run.classifier.module.state_dict().items()}
        counters = {"step": torch.tensor(run.step), "order": run.order}
        save_weights(
            self.path, {**counters, **generators, **weights, **run.momentum()}, {"recipe": self.label + recipe}
        )

    def load(self, run: Run, recipe: str) -> None:
        """Raises UsageError when the file belongs to another run."""
        if not self.path.exists():
            return
        with safe_open(self.path, "pt") as file:
            if (file.metadata() or {}).get("recipe") != self.label + recipe:
                raise UsageError(f"{self.path}: the state of another training run; remove it or name another file")
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
        run.step, run.order = int(state["step"]), state["order"]
        for i, generator in enumerate((run.generator, *self.generators)):
            generator.set_state(state[f"generator.{i}"])
        run.classifier.module.load_state_dict(_under("model.", state))
        run.restore(_under("momentum.", state))


def _under(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
