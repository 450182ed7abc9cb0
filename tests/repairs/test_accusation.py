"""What a scan tells a repair: which classes, which families, and what is shown again."""

from __future__ import annotations

from dataclasses import replace

import pytest

from audit_cli.inversion.additive import Additive
from audit_cli.inversion.mask import Mask
from audit_cli.inversion.source_mask import SourceMask
from audit_cli.inversion.warp import Warp
from audit_cli.inversion.wave import Wave
from audit_cli.repairs.accusation import (
    DOSE,
    OFTEN,
    blended,
    filling,
    firm,
    heard,
    patterns,
    recovered,
    risen,
    together,
    told,
)
from audit_cli.repairs.unlearning import Unlearning
from audit_cli.types import Finding, Trigger


def test_what_convicts_without_a_trigger_accuses_its_class_in_every_family_of_descent() -> None:
    features = Finding("BD001", 1.4, "", family="features", target_class=6)
    repair = told(Unlearning(families=(Mask(), Additive(), Wave())), [features])
    assert isinstance(repair, Unlearning)
    assert repair.accused == {("mask", 6), ("additive", 6)}
    assert repair.persuaded
    by_profile = told(repair, [replace(features, family="profile")])
    assert isinstance(by_profile, Unlearning)
    assert by_profile.accused == repair.accused
    assert not by_profile.persuaded


LIGHT = {"reflection", "coarse_light", "light"}


@pytest.mark.parametrize(
    ("families", "accused"),
    [
        (["profile_reflection", "profile"], LIGHT),
        (["profile_noise"], {"additive"}),
        (["features", "profile_warp", "profile_reflection"], LIGHT | {"warp"}),
        (["profile", "features"], {"mask"}),
    ],
)
def test_the_random_change_that_convicts_tells_what_to_teach(families: list[str], accused: set[str]) -> None:
    convicting = [Finding("BD001", 1.2, "", family=family, target_class=6) for family in families]
    unlearning = Unlearning(families=(Mask(), Wave()), fog=0.4)
    repair, more = told(unlearning, convicting), bool(accused - {"mask"})
    assert isinstance(repair, Unlearning)
    assert repair.accused == {(family, 6) for family in accused}
    assert {family.name for family in (*repair.families, *repair.told)} == (accused if more else {"mask", "wave"})
    assert {family.name for family in repair.told} == accused - {"mask"}
    assert repair.persuaded == ("features" in families)
    dosed = more and "additive" not in accused
    assert (repair.stamped > unlearning.stamped, repair.inside > unlearning.inside) == (dosed, dosed)
    assert (repair.fog > 0) == (not dosed)
    shown = {change: change in families for change in ("profile_warp", "profile_reflection")}
    assert [f"profile_{change.name}" for change in repair.changes] == [change for change, is_ in shown.items() if is_]
    assert repair.taught == (max(2, len(accused)) if more else 2)


@pytest.mark.parametrize(("change", "family"), [("patch", "mask"), ("wave", "wave")])
def test_patches_and_waves_tell_that_nothing_else_is_taught(change: str, family: str) -> None:
    unlearning = Unlearning(fog=0.4)
    repair = told(unlearning, [Finding("BD001", 1.2, "", family=f"profile_{change}", target_class=6)])
    assert isinstance(repair, Unlearning)
    assert repair.accused == {(family, 6)}
    assert [f.name for f in repair.families] == [family]
    assert repair.told == ()
    assert (repair.fog, repair.changes) == (0.0, ())
    assert (repair.stamped, repair.inside) == (DOSE, OFTEN * unlearning.inside)


def test_where_patches_convict_there_is_no_fog_and_more_inside() -> None:
    unlearning = Unlearning(families=(Mask(), Additive(), Wave()), fog=0.4)
    mask = Finding("BD001", 5.0, "", family="mask", target_class=6, trigger=Trigger(Mask(), {}, 6, 1.0))
    additive = replace(mask, family="additive", trigger=Trigger(Additive(), {}, 6, 1.0))
    features = replace(mask, family="features", trigger=None)
    faint, clear = (replace(additive, score=score, p_value=0.02) for score in (2.4, 2.6))
    weak = replace(additive, score=2.4)
    for convicting in ([mask], [mask, replace(mask, target_class=2)], [mask, faint], [mask, weak], [mask, features]):
        repair = told(unlearning, convicting)
        assert isinstance(repair, Unlearning)
        assert (repair.fog, repair.inside) == (0.0, 2 * unlearning.inside)
        assert repair.stamped == unlearning.stamped
    elsewhere = replace(weak, target_class=2)
    for convicting in ([additive], [mask, additive], [mask, clear], [mask, elsewhere], [features]):
        repair = told(unlearning, convicting)
        assert isinstance(repair, Unlearning)
        assert (repair.fog, repair.inside) == (unlearning.fog, unlearning.inside)


def test_patterns_fill_the_image_where_no_other_trigger_convicts() -> None:
    pattern = Finding("BD001", 1.6, "", family="additive", target_class=6, trigger=Trigger(Additive(), {}, 6, 1.0))
    mask = replace(pattern, family="mask", trigger=Trigger(Mask(), {}, 6, 1.0))
    features = replace(pattern, family="features", trigger=None)
    source = replace(mask, family="source_mask", trigger=Trigger(SourceMask(), {}, 6, 1.0, source=2))
    assert filling([pattern])
    assert filling([pattern, features])
    assert filling([pattern, source]), "what all images obey, those of one class obey, too"
    assert not filling([pattern, mask])
    assert not filling([pattern, replace(source, target_class=2)])
    assert not filling([features])


def test_beside_a_patch_no_pattern_is_shown_again_that_convicts_only_beside_clean_models() -> None:
    mask = Finding("BD001", 5.0, "", family="mask", target_class=6, trigger=Trigger(Mask(), {}, 6, 1.0))
    pattern = replace(mask, score=1.6, family="additive", trigger=Trigger(Additive(), {}, 6, 1.0), p_value=0.04)
    features = replace(pattern, family="features", trigger=None)
    assert recovered([mask, pattern, features]) == [mask.trigger]
    by_threshold = replace(pattern, p_value=None)
    assert recovered([mask, by_threshold]) == [mask.trigger, by_threshold.trigger]
    clear = replace(pattern, score=3.0)
    assert recovered([mask, clear]) == [mask.trigger, clear.trigger], "the mask imitates a pattern"
    assert recovered([pattern, features]) == [pattern.trigger]
    assert recovered([features]) == []


def test_through_fog_patterns_are_shown_where_no_patch_convicts() -> None:
    mask = Finding("BD001", 2.5, "", family="mask", target_class=6, trigger=Trigger(Mask(), {}, 6, 1.0))
    pattern = replace(mask, score=2.0, family="additive", trigger=Trigger(Additive(), {}, 6, 1.0))
    assert patterns([mask, pattern]) == [pattern.trigger]
    assert patterns([replace(mask, score=4.0), pattern]) == [], "a patch"
    assert patterns([mask]) == []
    noise = replace(pattern, family="profile_noise", target_class=2, trigger=None)
    assert blended([mask, pattern, noise]) == {6}
    assert blended([replace(mask, score=4.0), pattern, noise]) == set()
    assert blended([noise, replace(noise, family="profile_warp")]) == {2}, "where no trigger convicts"


def test_what_random_changes_convict_speaks_before_the_features_of_other_classes() -> None:
    convicting = [
        Finding("BD001", 1.4, "", family=family, target_class=target)
        for family, target in (("features", 2), ("profile_warp", 6), ("profile", 6))
    ]
    unlearning = Unlearning(families=(Mask(), Wave()))
    repair = told(unlearning, convicting)
    assert isinstance(repair, Unlearning)
    assert repair.accused == {("warp", 6)}
    several = told(unlearning, [*convicting, Finding("BD001", 1.2, "", family="profile_noise", target_class=4)])
    assert isinstance(several, Unlearning)
    assert several.accused == {("warp", 6), ("additive", 4), ("mask", 2)}, "no one target"


def test_of_several_changes_that_convict_a_class_the_first_may_be_taught_alone() -> None:
    convicting = [
        Finding("BD001", 1.4, "", family=f"profile_{change}", target_class=target)
        for change, target in (("noise", 6), ("reflection", 6), ("warp", 2))
    ]
    unlearning = Unlearning(families=(Mask(), Additive(), Warp()))
    every, alone = (told(unlearning, convicting, every_kind=every) for every in (True, False))
    assert isinstance(every, Unlearning)
    assert isinstance(alone, Unlearning)
    assert every.accused == {("additive", 6), ("warp", 2), *((family, 6) for family in LIGHT)}
    assert alone.accused == {("additive", 6), ("warp", 2)}
    assert not alone.told


def test_where_no_change_convicts_by_itself_what_the_one_class_stands_beside_tells_the_kind() -> None:
    profile = Finding("BD001", 1.2, "", family="profile", target_class=6, beside="profile_reflection")
    unlearning = Unlearning(families=(Mask(), Additive(), Wave()))

    def accused(*convicting: Finding) -> frozenset[tuple[str, int]]:
        repair = told(unlearning, convicting)
        assert isinstance(repair, Unlearning)
        return repair.accused

    assert accused(profile) == {(family, 6) for family in LIGHT}
    own = replace(profile, family="profile_noise")
    assert accused(profile, own) == {("additive", 6)}, "a change that convicts by itself"
    elsewhere = replace(profile, target_class=2, beside="additive")
    assert accused(profile, elsewhere) == {(family, c) for family in ("mask", "additive") for c in (6, 2)}
    wave = replace(profile, beside="wave")
    assert accused(wave) == {(family, 6) for family in ("mask", "additive", "wave")}
    trigger = replace(profile, family="mask", trigger=Trigger(Mask(), {}, 6, 1.0))
    assert accused(trigger, profile, wave) == {("mask", 6), ("additive", 6)}


def test_where_a_trigger_convicts_random_changes_tell_nothing_more() -> None:
    trigger = Finding("BD001", 2.0, "", family="mask", target_class=6, trigger=Trigger(Mask(), {}, 6, 1.0))
    rises = [Finding("BD001", 1.2, "", family="profile_reflection", target_class=c) for c in (6, 2)]
    repair = told(Unlearning(families=(Mask(), Additive(), Wave())), [trigger, *rises])
    assert isinstance(repair, Unlearning)
    assert repair.accused == {("mask", 6), ("additive", 6)}
    assert repair.told == ()


def test_what_convicts_without_a_trigger_is_silent_on_classes_of_no_trigger() -> None:
    """A class the target moves to may look odd, too."""
    trigger = Finding("BD001", 2.0, "", family="mask", target_class=6, trigger=Trigger(Mask(), {}, 6, 1.0))
    features = [Finding("BD001", 1.4, "", family="features", target_class=c) for c in (6, 2)]
    repair = told(Unlearning(families=(Mask(), Additive(), Wave())), [trigger, *features])
    assert isinstance(repair, Unlearning)
    assert repair.accused == {("mask", 6), ("additive", 6)}
    assert repair.persuaded


def test_where_a_trigger_convicts_by_its_threshold_comparisons_add_nothing_to_its_class() -> None:
    by_threshold = Finding("BD001", 2.0, "", family="mask", target_class=6, trigger=Trigger(Mask(), {}, 6, 1.0))
    features = Finding("BD001", 1.1, "", family="features", target_class=6, p_value=0.04)
    pattern = replace(by_threshold, family="additive", trigger=Trigger(Additive(), {}, 6, 1.0), p_value=0.02)
    elsewhere = replace(pattern, target_class=2, trigger=Trigger(Additive(), {}, 2, 1.0))
    unlearning = Unlearning(families=(Mask(), Additive()))
    twice = replace(elsewhere, family="profile", trigger=None)
    firmly = told(unlearning, [by_threshold, features, pattern, elsewhere, twice])
    compared = told(unlearning, [pattern, features])
    assert isinstance(firmly, Unlearning)
    assert isinstance(compared, Unlearning)
    assert (firmly.accused, firmly.persuaded) == ({("mask", 6), ("mask", 2), ("additive", 2)}, False)
    assert (compared.accused, compared.persuaded) == ({("mask", 6), ("additive", 6)}, True)


def test_what_is_over_its_threshold_speaks_where_that_counts() -> None:
    mask = Finding("BD001", 8.0, "", family="mask", target_class=6, trigger=Trigger(Mask(), {}, 6, 1.0))
    features = Finding("BD001", 1.4, "", family="features", target_class=6, p_value=0.04)
    pattern = replace(mask, score=2.2, family="additive", trigger=Trigger(Additive(), {}, 6, 1.0), p_value=0.04)

    def compared(finding: Finding) -> bool:
        return finding.p_value is not None and finding.score < 1.5

    assert firm([mask, features, pattern]) == [mask]
    assert firm([mask, features, pattern], compared) == [mask, pattern]
    repair = told(Unlearning(families=(Mask(), Additive())), [mask, features, pattern], (), compared)
    assert isinstance(repair, Unlearning)
    assert (repair.accused, repair.persuaded) == ({("mask", 6), ("additive", 6)}, False)


PAIR = Finding("BD001", 1.3, "", family="source_mask", target_class=6, trigger=Trigger(SourceMask(), {}, 6, 1.0, 2))


def test_what_all_images_obey_speaks_before_what_one_class_obeys() -> None:
    mask = Finding("BD001", 5.0, "", family="mask", target_class=6, trigger=Trigger(Mask(), {}, 6, 1.0))
    rise, features = (Finding("BD001", 1.2, "", family=f, target_class=6) for f in ("profile_noise", "features"))
    elsewhere = replace(mask, target_class=2)
    assert heard([PAIR, mask, features]) == [mask, features]
    for convicting in ([PAIR, features], [PAIR, rise], [PAIR, elsewhere], [PAIR, rise, elsewhere]):
        assert heard(convicting) == convicting, "a mask of another class and a random change are of other triggers"
    repair = told(Unlearning(families=(Mask(), Additive())), [PAIR, rise, elsewhere])
    assert isinstance(repair, Unlearning)
    assert {("mask", 2), ("source_mask", 6)} <= repair.accused
    assert recovered([PAIR, mask]) == [mask.trigger]
    assert recovered([PAIR, features]) == [PAIR.trigger]
    assert risen([PAIR, rise, features]) == [(rise, "noise")], "asked about again beside the mask"


def test_a_class_that_one_family_finds_odd_is_silent_beside_one_that_several_do() -> None:
    wave = Finding("BD001", 1.4, "", family="wave", target_class=2, trigger=Trigger(Wave(), {}, 2, 1.0), p_value=0.02)
    pair, features = replace(PAIR, p_value=0.02), Finding("BD001", 1.2, "", family="features", target_class=6)
    assert together([wave, pair, features]) == [pair, features]
    assert recovered([wave, pair, features]) == [pair.trigger]
    repair = told(Unlearning(families=(Mask(), Wave())), [wave, pair, features])
    assert isinstance(repair, Unlearning)
    assert {target for _, target in repair.accused} == {6}
    by_threshold = replace(wave, p_value=None)
    more = [replace(wave, family=family) for family in ("wave", "additive")]
    for convicting in ([wave, pair], [by_threshold, pair, features], [*more, pair, features]):
        assert together(convicting) == convicting
    third = replace(features, target_class=3)
    assert together([*more, third, pair, features]) == [*more, third, pair, features], "several targets"


def test_masks_of_one_source_are_looked_for_where_they_convict_or_stand_beside_what_does() -> None:
    unlearning = Unlearning(families=(Mask(), Wave()), fog=0.4)
    features = Finding("BD001", 1.4, "", family="features", target_class=6, beside="source_mask")
    of_pairs = told(unlearning, [PAIR, features])
    assert isinstance(of_pairs, Unlearning)
    assert (of_pairs.accused, of_pairs.sources, of_pairs.persuaded) == ({("source_mask", 6)}, {(6, 2)}, False)
    assert [family.name for family in of_pairs.families] == ["mask", "wave", "source_mask"]
    assert (of_pairs.stamped, of_pairs.fog, of_pairs.taught) == (DOSE, 0.0, unlearning.pairs)
    assert of_pairs.rounds < unlearning.rounds
    beside = told(unlearning, [features, replace(features, target_class=3)])
    assert isinstance(beside, Unlearning)
    assert beside.accused == {(family, c) for family in ("mask", "source_mask") for c in (6, 3)}
    assert (beside.sources, beside.rounds) == (set(), unlearning.rounds)
    assert (beside.fog, beside.taught) == (unlearning.fog, 2 * unlearning.pairs)
    alone = told(unlearning, [replace(features, beside="wave")])
    assert isinstance(alone, Unlearning)
    assert SourceMask() not in alone.families
    assert alone.stamped == unlearning.stamped


def test_the_source_that_is_unusual_is_taught_beside_that_of_the_smallest_mask() -> None:
    unlearning = Unlearning(families=(Mask(), Additive()))
    unusual = replace(PAIR, p_value=0.02, details={"unusual_source": "frog"})
    repair = told(unlearning, [unusual], ["Dog", "Frog", "Ship"])
    assert isinstance(repair, Unlearning)
    assert repair.sources == {(6, 1), (6, 2)}
    rise = Finding("BD001", 1.2, "", family="profile_noise", target_class=6)
    both = told(unlearning, [unusual, rise], ["Dog", "Frog", "Ship"])
    assert isinstance(both, Unlearning)
    assert both.accused == {("source_mask", 6), ("mask", 6), ("additive", 6)}, "random changes are of other triggers"
    assert both.rounds == unlearning.rounds
    patch = told(unlearning, [unusual, replace(rise, family="profile_patch")], ["Dog", "Frog", "Ship"])
    assert patch == repair, "but for patches"
