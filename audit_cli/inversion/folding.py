"""Batch normalisation as part of the convolution before it: a search never changes the weights, so it can be.

In eval mode batch normalisation is one multiplication and one addition a channel, which the convolution can do by other
weights: w' = w · γ/√(σ² + ε), b' = (b − μ) · γ/√(σ² + ε) + β. Logits and gradients are the same but for rounding.
"""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor, nn

from audit_cli.classifier import Classifier

TOLERANCE = 1e-3  # of the largest logit; float32 rounding stays far under it, a wrong fold does not


def folded(classifier: Classifier, probe: Tensor) -> Classifier:
    """A frozen copy of the frozen `classifier` with every batch normalisation in the convolution it follows; itself
    where there is none, or where the logits of the images `probe` (N, C, H, W) would not be the same: a convolution
    whose output is also used elsewhere cannot be changed."""
    pairs = _adjacent(classifier, probe)
    if not pairs:
        return classifier
    copy = classifier.clone()
    for before, after in pairs:
        convolution, norm = copy.get_submodule(before), copy.get_submodule(after)
        assert isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)  # noqa: S101, PT018
        _fold(convolution, norm)
        copy.set_submodule(after, nn.Identity())
    with torch.no_grad():
        expected, given = classifier(probe), copy(probe)
    same = torch.allclose(expected, given, rtol=0, atol=TOLERANCE * float(expected.abs().max()))
    return copy if same else classifier


def _adjacent(classifier: Classifier, probe: Tensor) -> list[tuple[str, str]]:
    """Names of convolutions and of the batch normalisations that are given their very output, each used once."""
    made: dict[int, tuple[str, Tensor]] = {}  # the tensors are kept, so that no other gets the id of one
    pairs: list[tuple[str, str]] = []
    calls: Counter[str] = Counter()
    hooks = []
    for name, module in classifier.named_modules():
        if type(module) is nn.Conv2d:

            def came_out(_: nn.Module, __: object, output: Tensor, name: str = name) -> None:
                calls[name] += 1
                made[id(output)] = (name, output)

            hooks.append(module.register_forward_hook(came_out))
        elif type(module) is nn.BatchNorm2d and module.running_mean is not None:

            def goes_in(_: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
                calls[name] += 1
                if id(inputs[0]) in made:
                    pairs.append((made[id(inputs[0])][0], name))

            hooks.append(module.register_forward_pre_hook(goes_in))
    try:
        with torch.no_grad():
            classifier(probe)
    finally:
        for hook in hooks:
            hook.remove()
    return [pair for pair in pairs if calls[pair[0]] == calls[pair[1]] == 1]


def _fold(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    """Changes `convolution` so that it does what `norm` did after it."""
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None and variance is not None  # noqa: S101, PT018
    scale = (variance + norm.eps).rsqrt() * (1.0 if norm.weight is None else norm.weight)
    bias = torch.zeros_like(mean) if convolution.bias is None else convolution.bias
    shifted = (bias - mean) * scale + (0.0 if norm.bias is None else norm.bias)
    weight = convolution.weight * scale[:, None, None, None]
    convolution.weight = nn.Parameter(weight.contiguous(memory_format=torch.channels_last), requires_grad=False)
    convolution.bias = nn.Parameter(shifted, requires_grad=False)
