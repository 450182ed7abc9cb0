"""Layer 2: what every entry of a registry must do. An entry without a row here fails."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor
from toys import noise_data, small

from audit_cli.classifier import Classifier
from audit_cli.cli import run
from audit_cli.detectors import DETECTORS
from audit_cli.detectors import neural_cleanse as cleanse
from audit_cli.detectors.ban import BAN
from audit_cli.detectors.calibrated import Calibrated
from audit_cli.detectors.encoder import Collapse
from audit_cli.detectors.margin import Margin
from audit_cli.detectors.profile import Profile
from audit_cli.detectors.published import Published
from audit_cli.detectors.shift import Shift
from audit_cli.detectors.weights import Weights
from audit_cli.inversion import FAMILIES
from audit_cli.inversion.additive import Additive
from audit_cli.inversion.collapse import CollapseSearch
from audit_cli.inversion.engine import Search
from audit_cli.inversion.frequency import Frequency
from audit_cli.inversion.light import Light
from audit_cli.inversion.mask import Mask
from audit_cli.inversion.pixel import Pixel
from audit_cli.inversion.racing import Race
from audit_cli.inversion.random_patch import RandomPatch
from audit_cli.inversion.reflection import Reflection
from audit_cli.inversion.source_mask import SourceMask
from audit_cli.inversion.warp import Warp
from audit_cli.inversion.wave import Wave
from audit_cli.policy import Policy
from audit_cli.repairs import REPAIRS
from audit_cli.repairs.feature_shift import FeatureShift
from audit_cli.repairs.fine_pruning import FinePruning
from audit_cli.repairs.nad import NAD
from audit_cli.repairs.neural_cleanse import NeuralCleanse
from audit_cli.repairs.pivotal_tuning import PivotalTuning
from audit_cli.repairs.retraining import CleanRetraining
from audit_cli.repairs.sharpness_aware import SharpnessAware
from audit_cli.repairs.unlearning import Unlearning
from audit_cli.repairs.weight_decay import WeightDecay
from audit_cli.report import RENDERERS
from audit_cli.resources import rule_pages
from audit_cli.types import NO_CLASS, Context, Detector, Finding, Repair, TriggerFamily

SEARCH = Search(images=4)
EASY = Search(images=4, success=0.1, relax=0.1, patience=1)  # nearly every trigger counts as found
RACE = Race(steps=3)
TUNING = PivotalTuning(steps=1, batch=16, pad=1)

# Small settings: a row is a registered class that does its whole job in a moment.
FAMILY_ROWS: dict[str, TriggerFamily] = {
    "additive": Additive(),
    "frequency": Frequency(),
    "light": Light(side=5),
    "mask": Mask(),
    "pixel": Pixel(),
    "random_patch": RandomPatch(),
    "reflection": Reflection(),
    "source_mask": SourceMask(),
    "warp": Warp(),
    "wave": Wave(),
}
DETECTOR_ROWS: dict[str, Detector] = {
    "ban": BAN(steps=2, batch=8),
    "calibrated": Calibrated(tuple(FAMILY_ROWS.values()), search=SEARCH, race=RACE),
    "compared": Calibrated(tuple(FAMILY_ROWS.values()), search=SEARCH, race=RACE).compared,
    "encoder": Collapse(CollapseSearch(steps=5, images=4, starts=2, collapse=0.01), prototypes=3),
    "gaps": Calibrated((Mask(),), search=SEARCH, race=RACE, references=(TUNING, TUNING)),
    "margin": Margin(starts=2, steps=3),
    "neural_cleanse": cleanse.NeuralCleanse(steps=3, search=SEARCH),
    "published": Published(steps=3, search=SEARCH, reference=TUNING),
    "quick": Calibrated(tuple(FAMILY_ROWS.values()), search=SEARCH, race=RACE).measured,
    "sizes": Calibrated(tuple(FAMILY_ROWS.values()), search=SEARCH, race=RACE),
    "weights": Weights(),
}
ONLY_SUPPORT = {"ban", "encoder", "margin", "neural_cleanse", "weights"}  # under the default policy they convict nobody
NAMES_NO_CLASS = {"encoder"}  # looks at latents only
REPAIR_ROWS: dict[str, Repair] = {
    "clean_retraining": CleanRetraining(epochs=1, batch=16, pad=1),
    "feature_shift": FeatureShift(steps=2, batch=16, pad=1),
    "fine_pruning": FinePruning(batches=1, steps=2, batch=16, pad=1),
    "nad": NAD(teacher_steps=2, steps=2, batch=16, pad=1),
    "neural_cleanse": NeuralCleanse(steps=2, batch=16, pad=1, search=SEARCH, race=RACE),
    "pivotal_tuning": PivotalTuning(steps=2, batch=16, pad=1),
    "sharpness_aware": SharpnessAware(steps=2, batch=16, pad=1),
    "unlearning": Unlearning(rounds=1, starts=1, suspicious=0.1, steps=2, batch=16, pad=1, search=EASY, race=RACE),
    "weight_decay": WeightDecay(steps=2, batch=16, pad=1),
}


@pytest.mark.parametrize(
    ("registry", "rows"),
    [(FAMILIES, FAMILY_ROWS), (DETECTORS, DETECTOR_ROWS), (REPAIRS, REPAIR_ROWS)],
    ids=["FAMILIES", "DETECTORS", "REPAIRS"],
)
def test_every_entry_has_its_row(registry: Mapping[str, type], rows: Mapping[str, object]) -> None:
    assert rows.keys() == registry.keys()
    for name, row in rows.items():
        kind = registry[name] if isinstance(registry[name], type) else type(registry[name]())
        assert type(row) is kind


@pytest.fixture(params=sorted(FAMILY_ROWS))
def family(request: pytest.FixtureRequest) -> TriggerFamily:
    return FAMILY_ROWS[request.param]


def parameters(family: TriggerFamily, seed: int = 0, classes: int = 4) -> dict[str, Tensor]:
    return family.initial(classes, (3, 6, 7), torch.Generator().manual_seed(seed))


class TestFamily:
    def test_is_called_by_its_name(self, family: TriggerFamily) -> None:
        assert FAMILY_ROWS[family.name] is family
        assert family.lr > 0
        assert family.weight >= 0
        assert family.growth > 1
        assert 0.5 <= family.success <= 1
        assert family.ceiling((3, 6, 7)) > 0

    def test_starts_are_drawn_from_the_generator_alone(self, family: TriggerFamily) -> None:
        one, again, other = parameters(family), parameters(family), parameters(family, seed=1)
        assert one.keys() == again.keys() == other.keys() != set()
        for name, value in one.items():
            assert len(value) == 4
            assert torch.equal(value, again[name])
            assert not torch.equal(value, other[name])

    @pytest.mark.parametrize("scale", [0.0, 1.0, 30.0])
    def test_stamp_keeps_range_and_shape(self, family: TriggerFamily, scale: float) -> None:
        images = torch.rand(4, 5, 3, 6, 7, generator=torch.Generator().manual_seed(2))
        images[:, 0], images[:, 1] = 0, 1
        stamped = family.stamp({k: (v - v.mean()) * scale for k, v in parameters(family).items()}, images)
        assert stamped.shape == images.shape
        assert stamped.dtype == images.dtype
        assert float(stamped.min()) >= 0
        assert float(stamped.max()) <= 1

    def test_a_class_has_a_trigger_of_its_own(self, family: TriggerFamily) -> None:
        """Each class alone gives the same as all in one batch."""
        images = torch.rand(4, 5, 3, 6, 7, generator=torch.Generator().manual_seed(2))
        every = parameters(family)
        together, sizes = family.stamp(every, images), family.size(every)
        assert not torch.allclose(together, images, atol=1e-4)
        for k in range(4):
            alone = {name: value[k : k + 1] for name, value in every.items()}
            torch.testing.assert_close(family.stamp(alone, images[k : k + 1])[0], together[k])
            assert float(family.size(alone)[0]) == pytest.approx(float(sizes[k]))

    def test_stamp_does_not_change_its_arguments(self, family: TriggerFamily) -> None:
        images, every = torch.rand(4, 2, 3, 6, 7), parameters(family)
        before, copied = images.clone(), copy.deepcopy(every)
        family.stamp(every, images)
        assert torch.equal(images, before)
        assert all(torch.equal(every[name], copied[name]) for name in every)

    def test_size_is_not_negative_and_shrinks_downhill(self, family: TriggerFamily) -> None:
        leaves = {name: value.requires_grad_() for name, value in parameters(family).items()}
        sizes = family.size(leaves)
        assert sizes.shape == (4,)
        assert bool((sizes >= 0).all())
        gradients = torch.autograd.grad(sizes.sum(), list(leaves.values()), allow_unused=True)
        assert any(gradient is not None and bool(gradient.any()) for gradient in gradients)
        assert all(gradient is None or bool(gradient.isfinite().all()) for gradient in gradients)
        steepest = max(float(gradient.abs().max()) for gradient in gradients if gradient is not None)
        step = 1e-3 * max(float(leaf.detach().abs().mean()) for leaf in leaves.values()) / steepest
        downhill = {
            name: leaf.detach() - (0 if gradient is None else step * gradient)
            for (name, leaf), gradient in zip(leaves.items(), gradients, strict=True)
        }
        assert bool((family.size(downhill) < sizes).all())

    def test_every_parameter_reaches_the_image(self, family: TriggerFamily) -> None:
        leaves = {name: value.requires_grad_() for name, value in parameters(family).items()}
        family.stamp(leaves, torch.rand(4, 5, 3, 6, 7)).square().sum().backward()
        assert all(leaf.grad is not None and bool(leaf.grad.any()) for leaf in leaves.values())


class Snapshot:
    """Everything about a classifier that a detector or a repair must leave as it was."""

    def __init__(self, classifier: Classifier) -> None:
        self.state = {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
        self.modes = [module.training for module in classifier.modules()]
        self.wanted = [parameter.requires_grad for parameter in classifier.parameters()]
        self.hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in classifier.modules()]

    def assert_same(self, classifier: Classifier) -> None:
        now = Snapshot(classifier)
        assert self.state.keys() == now.state.keys()
        assert all(torch.equal(tensor, now.state[name]) for name, tensor in self.state.items())
        assert (self.modes, self.wanted, self.hooks) == (now.modes, now.wanted, now.hooks)
        assert all(parameter.grad is None for parameter in classifier.parameters())


def suspect(frozen: bool) -> Classifier:
    """Frozen, or in a state of its own: training mode with one part in eval, one weight asking for no gradient."""
    classifier = small()
    if frozen:
        return classifier.frozen()
    classifier.train()
    classifier.module.norm.eval()  # type: ignore[operator, union-attr]
    classifier.module.conv.bias.requires_grad_(False)  # type: ignore[operator, union-attr]
    return classifier


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "unfrozen"])
@pytest.mark.parametrize("name", sorted(DETECTOR_ROWS))
def test_detectors_measure_and_leave_no_trace(name: str, frozen: bool) -> None:
    classifier, data = suspect(frozen), noise_data()
    before, images = Snapshot(classifier), data.images.clone()
    findings = list(DETECTOR_ROWS[name](classifier, data, Context()))
    before.assert_same(classifier)
    assert torch.equal(data.images, images)
    rules = Policy.load("default").rules
    assert findings
    for finding in findings:
        assert isinstance(finding, Finding)
        assert finding.rule_id in rules
        assert math.isfinite(finding.score)
        assert finding.message
        if finding.target_class is not None:
            assert 0 <= finding.target_class < 5
            assert finding.target_name == f"k{finding.target_class}"
        assert (finding.family not in ("", Shift().name, *Profile().families)) == (finding.trigger is not None)
        if finding.trigger is not None:
            assert finding.family in FAMILIES
            assert finding.trigger.target == (NO_CLASS if finding.target_class is None else finding.target_class)
            assert finding.trigger(data.images).shape == data.images.shape
        for share in (finding.asr_before, finding.asr_after):
            assert share is None or 0 <= share <= 1
    named = {f.target_class for f in findings if f.target_class is not None}
    assert named == (set() if name in NAMES_NO_CLASS else set(range(5)))
    searched = {f.target_class for f in findings if f.trigger is not None and f.trigger.target != NO_CLASS}
    told = bool(searched) or name == "quick"
    assert sum(f.rule_id == "BD107" for f in findings) == told, "a search says which classes it did not cover"
    convicting = {rule for rule, entry in rules.items() if entry.severity == "fail"}
    assert bool(convicting & {f.rule_id for f in findings}) != (name in ONLY_SUPPORT)


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "unfrozen"])
@pytest.mark.parametrize("name", sorted(REPAIR_ROWS))
def test_repairs_return_a_new_classifier(name: str, frozen: bool) -> None:
    classifier, data, context = suspect(frozen), noise_data(), Context()
    before, images = Snapshot(classifier), data.images.clone()
    repaired = REPAIR_ROWS[name](classifier, data, context)
    before.assert_same(classifier)
    assert torch.equal(data.images, images)
    assert repaired is not classifier
    pointers = {parameter.data_ptr() for parameter in classifier.parameters()}
    assert not pointers & {parameter.data_ptr() for parameter in repaired.parameters()}
    assert not any(module.training for module in repaired.modules())
    assert {parameter.device for parameter in repaired.parameters()} == {context.device}
    assert {name: tensor.shape for name, tensor in repaired.state_dict().items()} == {
        name: tensor.shape for name, tensor in classifier.state_dict().items()
    }
    assert any(not torch.equal(tensor, before.state[key]) for key, tensor in repaired.state_dict().items())
    assert all(bool(tensor.isfinite().all()) for tensor in repaired.state_dict().values())
    assert Snapshot(repaired).hooks == before.hooks
    assert repaired(data.images[:2]).shape == (2, 5)
    assert (repaired.arch, repaired.names, repaired.labels) == (classifier.arch, classifier.names, classifier.labels)


def test_every_rule_has_a_page_and_every_page_a_rule() -> None:
    assert set(rule_pages()) == set(Policy.load("default").rules)


@pytest.mark.parametrize("name", RENDERERS)
def test_renderers_are_named_in_the_help_of_scan(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["scan", "--help"]) == 0
    assert name in capsys.readouterr().out.lower()
