"""Each regulariser against its definition written out in loops."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from audit_cli.augmented import Cutout, LabelSmoothing
from audit_cli.classifier import Classifier
from audit_cli.errors import UsageError
from audit_cli.losses import (
    LOSSES,
    Contrastive,
    LogitSqueezing,
    ManifoldMixup,
    SoftNearestNeighbour,
    contrastive,
    soft_nearest_neighbour,
)
from audit_cli.models.create import create


def batch(count: int = 7) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(count, 5, generator=generator), torch.randint(3, (count,), generator=generator)


@pytest.fixture
def classifier() -> Classifier:
    torch.manual_seed(0)
    return create("resnet8-w4-cifar", 3)


def distance(a: Tensor, b: Tensor) -> float:
    return math.dist((a / a.norm()).tolist(), (b / b.norm()).tolist())


def test_contrastive() -> None:
    z, y = batch()
    terms = []
    for i in range(len(y)):
        for j in range(i + 1, len(y)):
            d = distance(z[i], z[j])
            terms.append(d * d if y[i] == y[j] else max(0.0, 1.2 - d) ** 2)
    assert float(contrastive(z, y, 1.2)) == pytest.approx(sum(terms) / len(terms), abs=1e-5)
    assert float(contrastive(z[:1], y[:1], 1.0)) == 0


def test_contrastive_has_a_gradient_where_latents_coincide() -> None:
    z = torch.ones(3, 4, requires_grad=True)
    contrastive(z, torch.tensor([0, 0, 1]), 1.0).backward()
    assert bool(z.grad.isfinite().all())  # type: ignore[union-attr]


def test_soft_nearest_neighbour() -> None:
    z, y = batch()
    terms = []
    for i in range(len(y)):
        others = [j for j in range(len(y)) if j != i]
        near = sum(math.exp(-(distance(z[i], z[j]) ** 2) / 0.7) for j in others if y[i] == y[j])
        if near:
            terms.append(-math.log(near / sum(math.exp(-(distance(z[i], z[j]) ** 2) / 0.7) for j in others)))
    assert float(soft_nearest_neighbour(z, y, 0.7)) == pytest.approx(sum(terms) / len(terms), abs=1e-5)
    z = z.requires_grad_()
    lonely = soft_nearest_neighbour(z, torch.arange(len(y)), 0.7)
    lonely.backward()
    assert float(lonely.detach()) == 0
    assert bool(z.grad.isfinite().all())  # type: ignore[union-attr]


def test_weights_add_to_cross_entropy(classifier: Classifier) -> None:
    images, labels = torch.rand(6, 3, 8, 8), torch.tensor([0, 1, 2, 0, 1, 1])
    logits, latents = classifier.outputs(images)
    ce = F.cross_entropy(logits, labels)
    expected = {
        Contrastive(0.3): 0.3 * contrastive(latents, labels, 1.0),
        LogitSqueezing(0.3): 0.3 * (logits**2).sum() / 6,
        SoftNearestNeighbour(0.3): 0.3 * soft_nearest_neighbour(latents, labels, 0.5),
    }
    for loss, term in expected.items():
        torch.testing.assert_close(loss(classifier, images, labels), ce + term)


@pytest.mark.parametrize("layer", ["", "layer1", "layer2"])
def test_manifold_mixup(classifier: Classifier, layer: str) -> None:
    images, labels = torch.rand(6, 3, 8, 8), torch.tensor([0, 1, 2, 0, 1, 1])
    generator = torch.Generator().manual_seed(1)
    loss = ManifoldMixup(torch.Generator().manual_seed(1), layers=(layer,))
    got = loss(classifier, images, labels)

    partner = torch.randperm(6, generator=generator)
    torch.randint(1, (), generator=generator)
    share = loss.__class__(generator)._beta()
    net = classifier.module
    x = images
    if layer == "":
        x = share * x + (1 - share) * x[partner]
    x = F.relu(net.bn1(net.conv1(x)))
    for name in ("layer1", "layer2", "layer3"):
        x = getattr(net, name)(x)
        if layer == name:
            x = share * x + (1 - share) * x[partner]
    logits = net.fc(x.mean((2, 3)))
    soft = share * F.one_hot(labels, 3) + (1 - share) * F.one_hot(labels[partner], 3)
    torch.testing.assert_close(got, -(soft * logits.log_softmax(1)).sum(1).mean())
    torch.testing.assert_close(classifier(images), classifier(images))  # no hook is left behind
    assert not net.layer1._forward_hooks


def test_manifold_mixup_draws_from_beta(classifier: Classifier) -> None:
    loss = ManifoldMixup(torch.Generator().manual_seed(1), alpha=2.0)
    shares = torch.tensor([loss._beta() for _ in range(4000)])
    assert float(shares.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(shares.var()) == pytest.approx(1 / 20, abs=0.005)  # α² / ((2α)² (2α + 1))
    with pytest.raises(UsageError, match="no module `stage9`"):
        ManifoldMixup(torch.Generator(), layers=("stage9",))(classifier, torch.rand(2, 3, 8, 8), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="ManifoldMixup"):
        ManifoldMixup(torch.Generator(), alpha=0)


def test_label_smoothing(classifier: Classifier) -> None:
    images, labels = torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 2, 0])
    log_p = classifier(images).log_softmax(1)
    soft = 0.7 * F.one_hot(labels, 3) + 0.3 / 3
    expected = -(soft * log_p).sum(1).mean()
    torch.testing.assert_close(LabelSmoothing(0.3)(classifier, images, labels), expected)


def test_cutout_blanks_a_square_anywhere() -> None:
    images = torch.rand(200, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    blanked = Cutout(torch.Generator().manual_seed(0), share=0.5).blanked(images)
    colour = images.mean((0, 2, 3))
    changed = (blanked != images).all(1)  # (B, H, W)
    assert bool((blanked.movedim(1, -1)[changed] == colour).all())
    for mask in changed:
        rows, columns = mask.any(1), mask.any(0)
        assert bool((mask == (rows[:, None] & columns[None])).all())
        assert 0 < int(rows.sum()) <= 4
        assert 0 < int(columns.sum()) <= 4
    assert bool(changed.any(0).all()), "every pixel is blanked in some image"


def test_what_strangers_train_with_can_be_had_by_name(classifier: Classifier) -> None:
    images, labels = torch.rand(6, 3, 8, 8), torch.tensor([0, 1, 2, 0, 1, 1])
    for name in ("cutout", "label_smoothing", "mixup"):
        loss = LOSSES[name](torch.Generator().manual_seed(0))(classifier, images, labels).detach()
        assert bool(loss.isfinite()), name
        assert not torch.isclose(loss, F.cross_entropy(classifier(images), labels).detach()), name
