"""logits = head(latents(x)), whatever the module looks like inside."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from toys import Small, dark_corner, noise_data, planted_encoder, small

from audit_cli.classifier import Classifier, Encoder
from audit_cli.errors import UnsupportedError


class Own(Small):
    """Has `latents` itself; its forward applies something after the pooled features that hooks would not show."""

    def latents(self, x: Tensor) -> Tensor:
        z = torch.relu(self.norm(self.conv(x)))
        return nn.functional.adaptive_avg_pool2d(z, 2).flatten(1)


class Twice(Small):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + super().forward(x.flip(3))


class Never(Small):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((1, 2, 3))[:, None].expand(-1, 5)


@pytest.mark.parametrize("module", [Small(), Own()], ids=["watched", "own"])
def test_head_of_latents_is_the_output(module: nn.Module) -> None:
    classifier = Classifier(module, "fc", arch="test", mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25)).frozen()
    x = noise_data().images
    logits, latents = classifier.outputs(x)
    assert latents.shape == (len(x), 24)
    torch.testing.assert_close(logits, classifier(x))
    torch.testing.assert_close(classifier.head(latents), logits)
    torch.testing.assert_close(classifier.latents(x), latents)
    assert classifier.num_classes == 5
    assert not any(m._forward_pre_hooks for m in classifier.modules())


def test_pixels_are_normalised_inside() -> None:
    classifier = small().frozen()
    x = noise_data().images
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.25])
    torch.testing.assert_close(classifier(x), classifier.module((x - mean.view(3, 1, 1)) / std.view(3, 1, 1)))


@pytest.mark.parametrize(("module", "ran"), [(Twice(), 2), (Never(), 0)])
def test_a_head_that_does_not_run_once_is_unsupported(module: nn.Module, ran: int) -> None:
    classifier = Classifier(module, "fc", arch="odd")
    with pytest.raises(UnsupportedError, match=f"odd: head `fc` ran {ran} times"):
        classifier.outputs(noise_data().images)
    assert not classifier.head._forward_pre_hooks


def test_a_failing_forward_leaves_no_hook() -> None:
    classifier = small()
    with pytest.raises(RuntimeError):
        classifier.outputs(torch.zeros(1, 4, 6, 6))
    assert not classifier.head._forward_pre_hooks


def test_a_head_that_is_not_linear_is_unsupported() -> None:
    with pytest.raises(UnsupportedError, match="`conv` is not a linear layer; pass --arch"):
        Classifier(Small(), "conv", arch="odd")


def test_with_normalisation_shares_the_weights_and_leaves_the_first_alone() -> None:
    classifier, x = small().frozen(), noise_data().images
    before = classifier(x)
    twin = classifier.with_normalisation((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    torch.testing.assert_close(twin(x), classifier.module(x))
    torch.testing.assert_close(classifier(x), before)
    assert [p.data_ptr() for p in twin.parameters()] == [p.data_ptr() for p in classifier.parameters()]
    assert (twin.arch, twin.head_name) == (classifier.arch, classifier.head_name)


def test_clone_is_independent() -> None:
    classifier = small()
    clone = classifier.clone()
    with torch.no_grad():
        for parameter in clone.parameters():
            parameter.zero_()
    clone.module.norm.running_mean.zero_()  # type: ignore[operator, union-attr]
    assert all(bool(p.any()) for name, p in classifier.named_parameters() if "bias" not in name)
    assert bool(classifier.module.norm.running_mean.any())  # type: ignore[operator, union-attr]


def test_frozen_and_on_return_itself() -> None:
    classifier = small()
    assert classifier.frozen() is classifier
    assert classifier.on(torch.device("cpu")) is classifier
    assert not classifier.training
    assert not any(p.requires_grad for p in classifier.parameters())


def test_normalisation_is_not_part_of_the_weights() -> None:
    assert not {"mean", "std"} & small().state_dict().keys()


def test_an_encoder_has_latents_and_no_classes() -> None:
    encoder, x = planted_encoder(True), dark_corner(3)
    torch.testing.assert_close(encoder.latents(x), encoder.module.latents(x))  # type: ignore[operator]
    normalised = encoder.with_normalisation((0.5,) * 3, (0.5,) * 3)
    torch.testing.assert_close(normalised.latents(x), encoder.latents((x - 0.5) / 0.5))
    assert isinstance(normalised.clone().frozen(), Encoder)
    assert (encoder.num_classes, encoder.labels) == (0, ())
    for needs_classes in (lambda: encoder.head, lambda: encoder(x), lambda: encoder.outputs(x)):
        with pytest.raises(UnsupportedError, match="tower: an encoder without classes; name them with --labels"):
            needs_classes()
