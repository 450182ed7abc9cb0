"""Success is metrics.asr over the images on which the trigger makes a claim."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from audit_cli.attacks.all_to_all import AllToAll
from audit_cli.attacks.badnets import BadNets
from audit_cli.attacks.source_specific import SourceSpecific
from audit_cli.attacks.victim import accuracy, plant, success
from audit_cli.classifier import Classifier
from audit_cli.errors import DataError
from audit_cli.models.create import create
from audit_cli.training import Fit
from audit_cli.types import Context, TrustedData

K = 4


class Obedient(nn.Module):
    """Reads the class of a gray image off its brightness (0.2 + c/10) and adds one under the BadNets patch."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(K, K)
        self.fc.weight.data, self.fc.bias.data = torch.eye(K), torch.zeros(K)

    def forward(self, x: Tensor) -> Tensor:
        c = ((x[:, 0, 8, 8] - 0.2) * 10).round().long()
        patched = x[:, 0, 0, 0] == 1
        return self.fc(nn.functional.one_hot((c + patched) % K, K).float())


@pytest.fixture
def data() -> TrustedData:
    labels = torch.arange(20) % K
    images = (0.2 + labels / 10).view(-1, 1, 1, 1).expand(-1, 3, 32, 32).contiguous()
    return TrustedData(images, labels, tuple("abcd"), "0" * 64)


@pytest.fixture
def model() -> Classifier:
    return Classifier(Obedient(), "fc", arch="test").eval()


def test_success_by_kind_of_goal(model: Classifier, data: TrustedData) -> None:
    rate = success(BadNets(1, 1), model, data, Context())
    assert (rate.value, rate.n) == (1 / 3, 15)  # only class 0 becomes 1
    assert success(BadNets(1, 1), model, data, Context(), triggered=False).value == 0
    rate = success(AllToAll(1, classes=K), model, data, Context())
    assert (rate.value, rate.n) == (1, 20)
    rate = success(SourceSpecific(1, 1, source=0), model, data, Context())
    assert (rate.value, rate.n) == (1, 5)
    assert success(SourceSpecific(1, 1, source=2), model, data, Context()).value == 0
    assert rate.low < 1 == rate.high


def test_accuracy(model: Classifier, data: TrustedData) -> None:
    rate = accuracy(model, data, Context())
    assert (rate.value, rate.n) == (1, 20)


def test_nothing_to_measure(model: Classifier, data: TrustedData) -> None:
    ones = data.take((data.labels == 1).nonzero().flatten())
    with pytest.raises(DataError, match="its own target class"):
        success(BadNets(1, 1), model, ones, Context())


def test_plant_trains_on_the_poison() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(400) % K
    images = 0.2 + labels.view(-1, 1, 1, 1) / 5 + 0.1 * torch.rand(400, 3, 16, 16, generator=generator)
    data = TrustedData(images.clamp(0, 1), labels, tuple("abcd"), "0" * 64)
    attack = BadNets(0, 60, share=1 / 8)
    torch.manual_seed(0)
    poisoned = attack.poison(data.images, data.labels, generator)
    fit = Fit(60, 0.1, batch=64, schedule="one-cycle", pad=0, flip=False)
    victim = plant(attack, fit, create("resnet8-w8-cifar", K), poisoned, data.images, data.labels, Context())
    assert accuracy(victim, data, Context()).value > 0.8
    assert success(attack, victim, data, Context()).value > 0.9
    assert success(attack, victim, data, Context(), triggered=False).value < 0.2
