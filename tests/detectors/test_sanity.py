"""The gate on hand-built classifiers whose one defect is known."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from audit_cli.classifier import Classifier, Encoder
from audit_cli.data import CANDIDATES, choose
from audit_cli.detectors.sanity import assignment, sanity
from audit_cli.errors import DataError
from audit_cli.types import Context, Finding, TrustedData

K = 6
LEVELS = torch.linspace(0.05, 0.95, K)  # class c is a gray image of this brightness


class Brightness(nn.Module):
    """Logits −(normalised brightness − level)²; right only when the input is normalised as `mean`, `std`."""

    def __init__(self, order: Tensor | None = None, mean: float = 0.0, std: float = 1.0) -> None:
        super().__init__()
        levels = ((LEVELS - mean) / std)[torch.arange(K) if order is None else order]
        self.fc = nn.Linear(1, K)
        self.fc.weight.data = 2 * levels[:, None]
        self.fc.bias.data = -(levels**2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.mean((1, 2, 3), keepdim=False)[:, None])


def classifier(module: nn.Module, mean: float = 0.0, std: float = 1.0) -> Classifier:
    return Classifier(module, "fc", arch="test", mean=[mean] * 3, std=[std] * 3).frozen()


@pytest.fixture
def trusted() -> TrustedData:
    labels = torch.arange(20 * K) % K
    noise = 0.02 * torch.randn(len(labels), 1, 1, 1, generator=torch.Generator().manual_seed(0))
    images = (LEVELS[labels].view(-1, 1, 1, 1) + noise).clamp(0, 1).expand(-1, 3, 4, 4).contiguous()
    return TrustedData(images, labels, tuple(f"k{c}" for c in range(K)), "0" * 64, "data")


def scores(findings: list[Finding]) -> dict[str, float]:
    return {finding.rule_id: finding.score for finding in findings}


def test_a_sound_model_measures_everything_and_fires_nothing(trusted: TrustedData) -> None:
    findings = sanity(classifier(Brightness()), trusted, Context())
    assert [f.rule_id for f in findings] == [f"BD10{i}" for i in range(1, 7)]
    assert max(f.score for f in findings) < 0.01
    assert all(f.message and f.detector == "sanity" and math.isfinite(f.score) for f in findings)
    assert findings[0].details["accuracy"] == 1.0


def test_permuted_labels(trusted: TrustedData) -> None:
    findings = sanity(classifier(Brightness(torch.tensor([1, 2, 0, 3, 4, 5]))), trusted, Context())
    assert scores(findings)["BD102"] == pytest.approx(0.5)
    assert scores(findings)["BD101"] == pytest.approx(0.5 / (1 - 1 / K))
    assert "20 of 20 images of class k2 are classified as k1" in findings[1].message
    assert findings[1].details["displaced_classes"] == 3


def test_wrong_normalisation_names_the_better_one(trusted: TrustedData) -> None:
    model = classifier(Brightness(mean=0.5, std=0.5))  # stated: [0, 1]
    findings = sanity(model, trusted, Context(), stated="--mean 0")
    assert scores(findings)["BD103"] > 0.2
    assert "`[-1, 1]` gives 100.0%" in findings[2].message
    assert "--mean 0" in findings[2].message
    assert scores(sanity(classifier(Brightness(mean=0.5, std=0.5), 0.5, 0.5), trusted, Context()))["BD103"] == 0


def test_a_network_of_bytes(trusted: TrustedData) -> None:
    model = classifier(Brightness(std=1 / 255))
    choice = choose(model, trusted, Context())
    assert choice.name == "0-255"
    assert choice.accuracies["0-255"] == 1.0
    findings = sanity(
        model.with_normalisation(*(choice.normalisation.mean, choice.normalisation.std)), trusted, Context()
    )
    assert max(scores(findings).values()) < 0.01
    assert scores(sanity(model, trusted, Context(), choice=choice))["BD103"] > 0.5


def test_choose_takes_the_first_of_equals_and_records_the_others(trusted: TrustedData) -> None:
    constant = Brightness()
    constant.fc.weight.data.zero_()
    choice = choose(classifier(constant), trusted, Context(), images=50)
    assert choice.name == next(iter(CANDIDATES))
    assert choice.near == tuple(CANDIDATES)[1:]
    assert choice.images == 50


def test_constant_and_zero_models(trusted: TrustedData) -> None:
    module = Brightness()
    module.fc.weight.data.zero_()
    assert scores(sanity(classifier(module), trusted, Context()))["BD105"] == 1
    module = Brightness()
    module.fc.bias.data[2] += 100  # logits vary, the prediction does not
    findings = sanity(classifier(module), trusted, Context())
    assert scores(findings)["BD105"] == pytest.approx(1 - 1 / K)
    assert findings[4].details["identical"] is False


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(trusted: TrustedData, value: float) -> None:
    module = Brightness()
    module.fc.weight.data[1] = value
    findings = sanity(classifier(module), trusted, Context())
    assert findings[3].details == {"tensors": 1, "outputs": len(trusted)}
    assert "fc.weight" in findings[3].message
    assert all(math.isfinite(f.score) for f in findings)


def test_nan_in_a_buffer_counts(trusted: TrustedData) -> None:
    module = Brightness()
    module.register_buffer("unused", torch.tensor([float("nan")]))
    assert scores(sanity(classifier(module), trusted, Context()))["BD104"] == 1


def test_too_few_says_how_many_are_missing(trusted: TrustedData) -> None:
    few = trusted.take((trusted.labels > 1).nonzero().flatten()[:10])
    findings = sanity(classifier(Brightness()), few, Context(), min_images=25, min_per_class=5)
    # 10 images over classes 2..5 (3, 3, 2, 2): 5 + 5 + 2 + 2 + 3 + 3 = 20 by class, 15 in total
    assert findings[5].score == 20
    assert findings[5].details["missing_in_total"] == 15
    assert "k0 (+5), k1 (+5), k2 (+2)" in findings[5].message
    assert sanity(classifier(Brightness()), few, Context(), min_images=40, min_per_class=1)[5].score == 30


def test_more_classes_than_outputs(trusted: TrustedData) -> None:
    many = TrustedData(trusted.images, trusted.labels + 1, tuple("abcdefg"), trusted.digest)
    with pytest.raises(DataError, match="7 classes, but the model has only 6 outputs"):
        sanity(classifier(Brightness()), many, Context())


def test_assignment_is_optimal() -> None:
    rng = np.random.default_rng(0)
    for n in (1, 2, 3, 5, 6):
        for _ in range(20):
            cost = rng.integers(-4, 4, (n, n)).astype(np.float64)
            found = assignment(cost)
            assert sorted(found.tolist()) == list(range(n))
            least = min(sum(cost[i, p] for i, p in enumerate(order)) for order in itertools.permutations(range(n)))
            assert cost[np.arange(n), found].sum() == least


class Embeds(nn.Module):
    """The pixels as they are, to the power `power`, plus `shift`."""

    def __init__(self, power: float = 1.0, shift: float = 0.0) -> None:
        super().__init__()
        self.power, self.shift = nn.Parameter(torch.tensor(power)), shift

    def latents(self, x: Tensor) -> Tensor:
        return x.flatten(1) ** self.power + self.shift


def test_an_encoder_is_judged_without_labels() -> None:
    images = torch.rand(20, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    data = TrustedData(images, torch.zeros(20, dtype=torch.long), ("0",), "d")

    def scores(module: nn.Module, least: int = 20) -> dict[str, float]:
        findings = sanity(Encoder(module, arch="e"), data, Context(), min_images=least, min_per_class=30)
        return {finding.rule_id: finding.score for finding in findings}

    assert scores(Embeds()) == {"BD104": 0, "BD105": 0, "BD106": 0}
    assert scores(Embeds(shift=5.0))["BD105"] == 0, "close together is not the same"
    assert scores(Embeds(power=0.0))["BD105"] == 1
    assert scores(Embeds(power=0.0, shift=-1.0))["BD105"] == 1, "all zero"
    assert scores(Embeds(power=math.nan))["BD104"] == 21, "the parameter, and every image"
    assert scores(Embeds(), least=25)["BD106"] == 5
