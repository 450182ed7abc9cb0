"""Folding leaves out every batch normalisation that it can, and changes no answer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from toys import noise_data

from audit_cli.classifier import Classifier
from audit_cli.inversion.folding import folded
from audit_cli.models.create import create

IMAGES = noise_data().images[:6]


def settled(classifier: Classifier) -> Classifier:
    """With statistics and weights of batch normalisation that are nothing special."""
    generator = torch.Generator().manual_seed(3)
    for module in classifier.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.running_var, module.weight, module.bias):
                if tensor is not None:
                    tensor.data.uniform_(0.3, 1.7, generator=generator)
    return classifier.frozen()


def norms(classifier: Classifier) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in classifier.modules())


def answers(classifier: Classifier, images: Tensor) -> tuple[Tensor, Tensor]:
    """Logits, and their gradient by the images."""
    leaf = images.clone().requires_grad_()
    logits = classifier(leaf)
    return logits.detach(), torch.autograd.grad(logits.square().sum(), leaf)[0]


@pytest.mark.parametrize("arch", ["resnet8-w8-cifar", "resnet18-cifar"])
def test_same_answers_without_batch_normalisation(arch: str) -> None:
    plain = settled(create(arch, 4))
    before = {name: value.clone() for name, value in plain.state_dict().items()}
    quick = folded(plain, IMAGES[:1])
    assert norms(plain) > norms(quick) == 0
    for expected, given in zip(answers(plain, IMAGES), answers(quick, IMAGES), strict=True):
        torch.testing.assert_close(given, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    assert all(torch.equal(value, before[name]) for name, value in plain.state_dict().items()), (
        "the suspect is as it was"
    )


class Net(nn.Module):
    """A convolution, batch normalisation, and what a test puts between and beside them."""

    def __init__(self, norm: nn.Module, bias: bool = True) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 5, 3, bias=bias), norm, nn.Linear(5, 4)

    def features(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.conv(x))
        return y

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(self.features(x).relu().mean((2, 3)))
        return y


class Beside(Net):
    """The convolution's own output is used, too."""

    def features(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return y + self.norm(y)


class Twice(Net):
    """One batch normalisation after two runs of one convolution."""

    def features(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) + self.norm(self.conv(x.flip(3)))


class Between(Net):
    def features(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.conv(x).relu())
        return y


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(5), nn.BatchNorm2d(5, affine=False)])
@pytest.mark.parametrize("bias", [True, False])
def test_whatever_weights_the_two_have(norm: nn.BatchNorm2d, bias: bool) -> None:
    plain = settled(Classifier(Net(norm, bias), "fc", arch="net"))
    quick = folded(plain, IMAGES[:1])
    assert norms(quick) == 0
    torch.testing.assert_close(quick(IMAGES), plain(IMAGES), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "module",
    [Beside(nn.BatchNorm2d(5)), Twice(nn.BatchNorm2d(5)), Between(nn.BatchNorm2d(5)),
     Net(nn.BatchNorm2d(5, track_running_stats=False)), Net(nn.Identity())],
)  # fmt: skip
def test_left_alone_where_it_would_change_something_or_nothing_is_there(module: nn.Module) -> None:
    plain = settled(Classifier(module, "fc", arch="net"))
    assert folded(plain, IMAGES[:1]) is plain
