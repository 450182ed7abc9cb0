"""The detectors that support others: their statistics re-derived, and the planted class in front on linear models."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from toys import BASE, GAIN, Planted, Small, noise_data, plain, small

from audit_cli.classifier import Classifier
from audit_cli.detectors.ban import BAN, batch_norms
from audit_cli.detectors.margin import Margin, exponential, margin
from audit_cli.detectors.neural_cleanse import NeuralCleanse
from audit_cli.detectors.weights import Weights, robust_z, rows
from audit_cli.metrics import predict
from audit_cli.types import Context, Finding


def scores(findings: list[Finding]) -> dict[int | None, float]:
    return {f.target_class: f.score for f in findings if f.target_class is not None}


class TestMargin:
    def test_reaches_the_widest_margin_there_is(self) -> None:
        """Own region and block white, the other regions black; the block is bright for nobody else."""
        planted = Planted()
        margins = Margin(steps=120).margins(planted.classifier(), planted.data().shape, Context())
        region, block = 3 * planted.pixels, 3 * 4 * planted.weight
        assert float(margins[planted.target]) == pytest.approx(GAIN * (region + block * (1 - BASE)), rel=0.01)
        for c in {0, 1, 3}:
            assert float(margins[c]) == pytest.approx(GAIN * region, rel=0.01)

    def test_names_the_planted_class_and_nobody_in_the_clean_twin(self) -> None:
        found = {w: scores(list(Margin()(Planted(weight=w).classifier(), Planted().data(), Context()))) for w in (0, 6)}
        assert {c for c, score in found[6].items() if score >= 2} == {Planted().target}
        assert max(found[0].values()) < 2

    def test_margin_of_logits(self) -> None:
        logits = torch.tensor([[1.0, 5.0, 2.0], [1.0, 5.0, 2.0]])
        assert margin(logits, torch.tensor([1, 2])).tolist() == [3, -3]

    def test_p_values_re_derived(self) -> None:
        values = [3.0, 4.0, 10.0, 5.0, 6.0]
        found = exponential(torch.tensor(values)).tolist()
        for c, value in enumerate(values):
            others = values[:c] + values[c + 1 :]
            scale = sum(others) / 4 - min(others)
            below = 1 - math.exp(-max(value - min(others), 0) / scale)
            assert found[c] == pytest.approx(1 - below**5, abs=1e-6)
        assert found[2] == min(found)

    def test_no_verdict_from_two_classes_or_equal_ones(self) -> None:
        assert exponential(torch.tensor([1.0, 90.0])).tolist() == [1, 1]
        assert float(exponential(torch.tensor([7.0, 7.0, 7.0, 7.0001])).min()) > 0.5

    def test_small_passes_equal_one_large_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        suspect, data = small().frozen(), noise_data()
        whole = Margin(steps=5).margins(suspect, data.shape, Context())
        monkeypatch.setattr("audit_cli.detectors.margin.PIXELS_PER_PASS", 3 * 36)
        torch.testing.assert_close(Margin(steps=5).margins(suspect, data.shape, Context()), whole, rtol=1e-4, atol=1e-4)


class TestWeights:
    def test_robust_z_re_derived(self) -> None:
        z = robust_z(torch.tensor([1.0, 2.0, 3.0, 4.0, 100.0], dtype=torch.float64))
        assert z.tolist() == pytest.approx([v / 1.4826 for v in (-2, -1, 0, 1, 97)])
        assert robust_z(torch.ones(4)).tolist() == [0] * 4

    def test_the_larger_row_stands_out(self) -> None:
        classifier = small()
        classifier.head.weight.data[3] += 5
        found = scores(list(Weights()(classifier, noise_data(), Context())))
        assert max(found, key=lambda c: found[c]) == 3
        assert found[3] > 8

    def test_statistics_of_the_rows(self) -> None:
        classifier = small()
        weight = torch.zeros(5, 24)
        weight[torch.arange(5), torch.arange(5)] = torch.tensor([1.0, 2, 3, 4, 5])
        weight[4] = 5 * F.one_hot(torch.tensor(0), 24).float()  # as class 0
        classifier.head.weight.data, classifier.head.bias.data = weight, torch.arange(5.0)
        found = rows(classifier)
        assert found["mean"].tolist() == pytest.approx([v / 24 for v in (1, 2, 3, 4, 5)])
        assert found["norm"].tolist() == pytest.approx([1, 2, 3, 4, 5])
        assert found["bias"].tolist() == [0, 1, 2, 3, 4]
        assert found["cosine"].tolist() == pytest.approx([0.25, 0, 0, 0, 0.25])


class TestBAN:
    def test_noise_stays_in_its_bound_and_hurts(self) -> None:
        suspect, data, detector = small().frozen(), noise_data(), BAN(radius=0.3, batch=40)
        neurons = batch_norms(suspect)
        assert set(neurons) == {"module.norm.weight", "module.norm.bias"}
        neurons = {name: torch.full_like(value, 0.5) for name, value in neurons.items()}  # a shift of 0 has no noise
        suspect.load_state_dict({**suspect.state_dict(), **neurons})
        noisy = detector.disturbed(suspect, neurons, data, Context())
        worst = suspect.clone()
        worst.load_state_dict({**worst.state_dict(), **noisy})
        for name, value in noisy.items():
            share = (value / neurons[name] - 1).abs()
            assert float(share.max()) <= 0.3 + 1e-6
            assert float(share.max()) > 0.2
        losses = [float(F.cross_entropy(predict(c, data.images, Context()), data.labels)) for c in (suspect, worst)]
        assert losses[1] > losses[0] + 0.1

    def test_the_score_is_the_share_of_the_other_classes_images(self, monkeypatch: pytest.MonkeyPatch) -> None:
        suspect, data = small(), noise_data()
        suspect.head.bias.data[2] += 1e3  # everything goes to class 2
        found = scores(list(BAN(steps=1)(suspect, data, Context())))
        assert found == {0: 0, 1: 0, 2: 1, 3: 0, 4: 0}
        right = data.labels.clone()
        right[:2] = 4  # one image of class 0 and one of class 1 go astray, of 32 that are not of class 4
        monkeypatch.setattr(BAN, "_classes", lambda *_: right)
        assert scores(list(BAN(steps=1)(suspect, data, Context()))) == {0: 0, 1: 0, 2: 0, 3: 0, 4: 2 / 32}

    def test_layers_that_only_training_uses_have_no_slope(self) -> None:
        """As torchvision's GoogLeNet has them, in the branches beside."""
        module = Small()
        module.beside = torch.nn.BatchNorm2d(6)
        suspect, data = Classifier(module, "fc", arch="small").frozen(), noise_data()
        neurons = batch_norms(suspect)
        assert {"module.norm.weight", "module.beside.weight"} < set(neurons)
        noisy = BAN(steps=2, radius=0.3).disturbed(suspect, neurons, data, Context())
        assert all(bool(value.isfinite().all()) for value in noisy.values())
        assert len(scores(list(BAN(steps=2)(suspect, data, Context())))) == 5

    def test_does_not_apply_without_batch_norm(self) -> None:
        findings = list(BAN()(Planted().classifier(), Planted().data(), Context()))
        assert [(f.rule_id, f.score, f.target_class, f.details["applies"]) for f in findings] == [
            ("BD006", 0.0, None, False)
        ]
        module = Small()
        module.norm = torch.nn.BatchNorm2d(6, affine=False)
        assert batch_norms(Classifier(module, "fc", arch="plain")) == {}


class TestNeuralCleanse:
    def test_names_the_planted_class_and_no_other(self) -> None:
        planted = Planted()
        findings = list(NeuralCleanse()(planted.classifier(), planted.data(), Context()))
        found = scores(findings)
        assert {c for c, score in found.items() if score >= 2} == {planted.target}
        guilty = next(f for f in findings if f.target_class == planted.target)
        norms = {f.target_class: f.trigger_norm or 0.0 for f in findings if f.target_class is not None}
        z = robust_z(torch.tensor([norms[c] for c in range(4)], dtype=torch.float64))
        assert guilty.score == pytest.approx(-float(z[planted.target]), rel=1e-4)
        assert guilty.trigger is not None
        assert float(guilty.trigger.family.size(guilty.trigger.parameters)) == pytest.approx(guilty.trigger_norm)
        assert guilty.asr_before is not None
        assert guilty.asr_before > 0.9
        assert [f.details["searched"] for f in findings if f.rule_id == "BD107"] == [4]

    def test_the_price_of_the_mask_stays(self) -> None:
        assert NeuralCleanse().family.weight == 0.02
        assert NeuralCleanse().family.growth == 1


@pytest.mark.parametrize("detector", [Margin(steps=3), BAN(steps=2, radius=0.3), NeuralCleanse(steps=3)])
def test_same_seed_same_findings(detector: Margin | BAN | NeuralCleanse) -> None:
    one, again = (plain(list(detector(small(), noise_data(), Context(seed=3)))) for _ in range(2))
    assert one == again


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (Margin, {"starts": 0}),
        (Margin, {"momentum": 1.0}),
        (BAN, {"radius": 0.0}),
        (BAN, {"steps": 0}),
        (NeuralCleanse, {"steps": 0}),
        (NeuralCleanse, {"fit_share": 1.0}),
    ],
)
def test_nonsense_settings_name_themselves(kind: type, settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=kind.__name__):
        kind(**settings)
