"""BD008 on encoders whose backdoor is known on paper, and on what leaves nothing to compare with."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from toys import dark_corner, noise_data, planted_encoder, small

from audit_cli.detectors.encoder import Collapse, prototypes
from audit_cli.inversion.collapse import CollapseSearch
from audit_cli.types import NO_CLASS, Context, TrustedData

SEARCH = CollapseSearch(steps=150, images=8, starts=2, collapse=0.9)
DETECTOR = Collapse(SEARCH, prototypes=5)


@pytest.fixture
def trusted() -> TrustedData:
    return replace(noise_data(classes=1, per_class=48, side=8), images=dark_corner(48))


def test_the_backdoored_encoder_stands_out_and_its_clean_twin_does_not(trusted: TrustedData) -> None:
    (guilty,), (clean,) = (list(DETECTOR(planted_encoder(b), trusted, Context())) for b in (True, False))
    assert guilty.score > 5
    assert 0.8 < clean.score < 1.6
    for finding in (guilty, clean):
        assert (finding.rule_id, finding.family, finding.target_class) == ("BD008", "mask", None)
        assert finding.trigger is not None
        assert finding.trigger.target == NO_CLASS
        assert finding.trigger_norm == pytest.approx(finding.trigger.size)
        assert finding.details["image_share"] == pytest.approx(finding.trigger.size / 64)
        assert bool(finding.trigger.meant_for(trusted.labels).all())
    assert float(guilty.details["collapse_of_unseen"] or 0) > 0.5
    assert "times smaller" in guilty.message


def test_any_classifier_has_latents_to_measure() -> None:
    data = noise_data()
    (finding,) = Collapse(CollapseSearch(steps=4, images=4, starts=1, collapse=0.01), prototypes=3)(
        small(), data, Context()
    )
    assert finding.rule_id == "BD008"


def test_nothing_found_or_nothing_to_compare_with_scores_zero(trusted: TrustedData) -> None:
    too_short = Collapse(replace(SEARCH, steps=2), prototypes=5)
    nothing_ordinary = Collapse(replace(SEARCH, steps=30, collapse=0.1), prototypes=5, alike=-0.999)
    for detector in (too_short, nothing_ordinary):
        (finding,) = detector(planted_encoder(True), trusted, Context())
        assert finding.score == 0
        assert "no mask" in finding.message


def test_prototypes_are_the_middles_of_clusters() -> None:
    generator = torch.Generator().manual_seed(0)
    middles = F.normalize(torch.randn(4, 8, generator=generator), dim=1)
    z = F.normalize(middles.repeat(10, 1) + 0.05 * torch.randn(40, 8, generator=generator), dim=1)
    found = prototypes(z, 4, torch.Generator().manual_seed(1))
    assert found.shape == (4, 8)
    assert torch.equal((middles @ found.T).argmax(1).sort().values, torch.arange(4))
    assert float((middles @ found.T).amax(1).min()) > 0.99
    torch.testing.assert_close(found.norm(dim=1), torch.ones(4))
    assert len(prototypes(z[:3], 10, generator)) == 3, "no more than there are embeddings"


@pytest.mark.parametrize("bad", [{"prototypes": 2}, {"fit_share": 1.0}, {"alike": 2.0}])
def test_impossible_settings_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="Collapse"):
        Collapse(**bad)  # type: ignore[arg-type]
