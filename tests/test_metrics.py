"""Each metric against its definition written out."""

import pytest
import torch
from torch import nn

from audit_cli.classifier import Classifier
from audit_cli.errors import DataError
from audit_cli.metrics import asr, auroc, cda, cda_drop, classes_of, overconfidence, predict, wilson
from audit_cli.types import Context


def test_cda_of_logits_and_of_predictions() -> None:
    logits = torch.tensor([[2.0, 1.0], [0.0, 1.0], [3.0, 2.0], [0.0, 9.0]])
    labels = torch.tensor([0, 1, 1, 1])
    assert cda(logits, labels) == cda(logits.argmax(1), labels) == 0.75
    with pytest.raises(DataError):
        cda(logits[:0], labels[:0])


def test_overconfidence_is_confidence_less_accuracy() -> None:
    outputs = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0], [0.0, 0.0]])
    sure = sum(1 / (1 + torch.tensor(-x).exp().item()) for x in (2.0, 1.0, 3.0, 0.0)) / 4
    assert overconfidence(outputs, torch.tensor([0, 0, 0, 0])) == pytest.approx(sure - 0.75)
    with pytest.raises(DataError):
        overconfidence(outputs[:0], torch.tensor([]))


def test_asr_counts_only_images_of_other_classes() -> None:
    predicted = torch.tensor([0, 0, 0, 1, 2])
    labels = torch.tensor([0, 1, 2, 1, 2])  # the first is of the target class: neither success nor failure
    assert asr(predicted, labels, 0) == 2 / 4
    with pytest.raises(DataError, match="class 0"):
        asr(predicted, torch.zeros(5), 0)


def test_asr_with_a_target_for_each_image() -> None:
    labels = torch.tensor([0, 1, 2, 3])
    own_target = torch.tensor([1, 2, 2, 0])  # the third makes no claim
    assert asr(torch.tensor([1, 1, 2, 0]), labels, own_target) == 2 / 3
    assert asr(torch.tensor([3, 3, 3, 3]), labels, torch.full((4,), 3)) == asr(torch.tensor([3, 3, 3, 3]), labels, 3)
    with pytest.raises(DataError, match="its own target class"):
        asr(labels, labels, labels)


def test_nan_logits_are_never_right() -> None:
    logits = torch.tensor([[float("nan"), 0.0], [1.0, 0.0]])
    assert classes_of(logits).tolist() == [-1, 0]
    assert cda(logits, torch.tensor([0, 0])) == 0.5
    assert asr(logits, torch.tensor([1, 1]), 0) == 0.5


def test_wilson() -> None:
    low, high = wilson(8, 10)
    assert (low, high) == pytest.approx((0.4902, 0.9433), abs=1e-4)  # the textbook's example
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(10, 10)[1] == pytest.approx(1.0)
    assert wilson(0, 10)[0] == 0.0


def test_cda_drop_is_paired() -> None:
    labels = torch.zeros(100, dtype=torch.int64)
    before, after = torch.zeros(100), torch.zeros(100)
    before[:10], after[5:17] = 1, 1  # 10 wrong before, 12 after, 5 of them the same
    drop, low, high = cda_drop(before, after, labels)
    assert drop == pytest.approx(0.02)
    assert low < drop < high
    _, low_same, high_same = cda_drop(before, before, labels)
    assert high_same - low_same < high - low


def test_auroc() -> None:
    negatives, positives = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([1.0, 3.0])
    assert auroc(negatives, positives) == pytest.approx((0.5 * 1 + 1 + 3) / 6)
    assert auroc(negatives, negatives) == 0.5


def test_predict_batches_and_leaves_modes_alone() -> None:
    module = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(12), nn.Linear(12, 3))
    classifier = Classifier(module, "2", arch="test").train()
    module[1].eval()
    mean = module[1].running_mean.clone()
    images = torch.rand(7, 3, 2, 2)
    logits = predict(classifier, images, Context(), batch=3)
    assert torch.equal(module[1].running_mean, mean)
    assert classifier.training
    assert not module[1].training
    torch.testing.assert_close(logits, classifier.eval()(images).detach())
    assert not logits.requires_grad
    assert predict(classifier, images[:0], Context()).shape == (0, 3)
