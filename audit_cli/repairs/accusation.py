"""What a scan tells a repair: which classes are accused, and of which kind of trigger."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from audit_cli.calibration import named
from audit_cli.detectors import changes
from audit_cli.detectors.changes import Change
from audit_cli.detectors.profile import Profile
from audit_cli.detectors.shift import Shift
from audit_cli.inversion.additive import Additive
from audit_cli.inversion.light import Light
from audit_cli.inversion.listing import Listed
from audit_cli.inversion.mask import Mask
from audit_cli.inversion.reflection import Reflection
from audit_cli.inversion.source_mask import SourceMask
from audit_cli.inversion.warp import Warp
from audit_cli.inversion.wave import Wave
from audit_cli.repairs.unlearning import Unlearning
from audit_cli.repairs.watch import WatchedRepair
from audit_cli.types import Finding, Trigger, TriggerFamily

# A change (detectors/changes.py) that moves a class's profile, and the families whose triggers are like it.
KINDS: Mapping[str, tuple[TriggerFamily, ...]] = {
    changes.Noise.name: (Additive(),),
    changes.Reflection.name: (Reflection(), Light(side=8, name="coarse_light"), Light()),
    changes.Flow.name: (Warp(),),
    changes.Patch.name: (Mask(),),
    changes.WAVES.name: (Wave(),),
}
RISES = {f"{Profile.name}_{change}": change for change in KINDS}  # family of findings -> the change
# Families of which few of all that a class may answer to are found: the pupil is shown random changes, too.
AT_RANDOM: Mapping[str, Change] = {Warp.name: changes.Flow(), Light.name: changes.Reflection()}
MASKS = frozenset({Mask.name, SourceMask.name})
# Ours: share of a batch that is stamped where only a kind is known, or one source class; half leaves more (development,
# Refool).
DOSE = 0.25
OFTEN = 2.0  # ours: so many times as often is taught inside there; half leaves three times as much (the same Refool)
FEW_ROUNDS = 2  # ours: of masks from one known class; one leaves more, five cost accuracy (sources-s 125 and 126)
# Ours: a mask's score over that of other triggers of its class. Patches of cifar-s have 1.4 and more (median 2.8), what
# fills the image 1.2 at most; a published network with a full-image pattern has 1.5.
PATCH = 2.0


def by_clean_models(finding: Finding) -> bool:
    """Have clean models decided? The score may be over its threshold as well."""
    return finding.p_value is not None


def told(
    repair: WatchedRepair,
    convicting: Sequence[Finding],
    names: Sequence[str] = (),
    compared: Callable[[Finding], bool] = by_clean_models,
    every_kind: bool = True,
) -> WatchedRepair:
    """`repair`, knowing which families and classes the scan convicted, where that is of use to it. It finds triggers
    anew, on the images it may use. names: of the classes, in which a finding tells the source that is unusual.
    compared: does a finding convict beside clean models only? every_kind: where random changes alone convict, is what
    each of them tells taught, or of each class the first of `convicting`, the oddest?"""
    if not isinstance(repair, Unlearning):
        return repair
    convicting = heard(convicting)
    triggered = [finding for finding in convicting if finding.trigger]
    kinds = {} if triggered else _kinds(convicting, every_kind)
    speaking = certain(firm(convicting, compared))
    repair = replace(
        repair,
        accused=frozenset(_accused(repair, speaking, kinds)),
        sources=frozenset(_sources(speaking, names)),
        persuaded=any(finding.family == Shift.name for finding in speaking),
    )
    repair = _of_one_source(repair)
    if kinds:
        return _of_kinds(repair, kinds)
    return _of_patches(repair) if patches(triggered) else repair


def heard(convicting: Sequence[Finding]) -> list[Finding]:
    """What of a scan's findings a repair listens to, in their order: a class by itself is silenced first (`together`),
    then single source classes (`plain`)."""
    return plain(together(convicting))


def together(convicting: Sequence[Finding]) -> list[Finding]:
    """Without what convicts its class alone, and only beside clean models, where one class alone is convicted by more
    than one family: a backdoor shows in several families, always at the same class, and a class that one family finds
    odd beside it is an ordinary one; to teach it costs accuracy. Where several classes are convicted by more, each may
    be a target."""
    families: dict[int | None, set[str | None]] = {}
    for finding in convicting:
        families.setdefault(finding.target_class, set()).add(finding.family)
    if sum(len(by) > 1 for by in families.values()) != 1:
        return list(convicting)
    return [f for f in convicting if f.p_value is None or len(families[f.target_class]) > 1]


def plain(convicting: Sequence[Finding]) -> list[Finding]:
    """Without the triggers for one source class of classes that a trigger for all images convicts: what all images
    obey, those of one class obey, too."""
    plainer = {f.target_class for f in convicting if f.trigger and not _of_pair(f)}
    return [finding for finding in convicting if not (_of_pair(finding) and finding.target_class in plainer)]


def firm(convicting: Sequence[Finding], compared: Callable[[Finding], bool] = by_clean_models) -> list[Finding]:
    """Where a trigger convicts by its threshold, without what convicts its class only beside clean models: that is
    ordinary by itself, and to teach it, or the head, costs accuracy; of three patches it left less of one, and more of
    another (development). A trigger that itself convicts only beside clean models, like Adaptive Blend's, is not so
    telling: there the other families leave less. compared: as in `told`."""
    firmly = {finding.target_class for finding in convicting if finding.trigger and finding.p_value is None}
    return [f for f in convicting if f.target_class not in firmly or not compared(f)]


def certain(convicting: Sequence[Finding]) -> list[Finding]:
    """Where a mask of one source class convicts, without what convicts its class by features or profile: the scan says
    from which class, and those masks alone cost less accuracy and leave less (development, sources-s 125 and 126).
    Random changes are of other triggers, and speak, but for patches."""
    of_pairs = {finding.target_class for finding in convicting if _of_pair(finding)}
    others = RISES.keys() - {f"{Profile.name}_{changes.Patch.name}"}
    return [f for f in convicting if f.target_class not in of_pairs or f.trigger or f.family in others]


def _of_pair(finding: Finding) -> bool:
    return finding.trigger is not None and finding.trigger.source is not None


def _accused(
    repair: Unlearning, speaking: Sequence[Finding], kinds: Mapping[int, Sequence[TriggerFamily]]
) -> set[tuple[str, int]]:
    """A trigger accuses its family and class. What convicts without one accuses its class: where no trigger does, in
    the families of the random changes that convict it (`kinds`), else in every family that is searched by descent and
    the one it is beside. It is silent on other classes than those that triggers name, or where none does, on others
    than the one class that random changes convict: they may be classes that the target moves to."""
    triggered = {(f.family, f.target_class) for f in speaking if f.trigger and f.target_class is not None}
    accused = set(triggered)
    targets = {target for _, target in triggered} or (set(kinds) if len(kinds) == 1 else set())
    descended = [family for family in repair.families if not isinstance(family, Listed)]
    for finding in speaking:
        target = finding.target_class
        if target is not None and not finding.trigger and target in (targets or {target}):
            others = (*repair.families, SourceMask())
            beside = [f for f in others if f.name == finding.beside and not (kinds or triggered)]
            accused |= {(family.name, target) for family in (*kinds.get(target, descended), *beside)}
    return accused


def _sources(speaking: Sequence[Finding], names: Sequence[str]) -> set[tuple[int, int]]:
    """Of the classes that masks of one source class convict, the source that is the most unusual beside clean models,
    and that of the trigger, which is the smallest and is shown again."""
    found = set()
    for finding in speaking:
        if finding.trigger and finding.trigger.source is not None and finding.target_class is not None:
            unusual = finding.details.get("unusual_source")
            sources = [c for c, name in enumerate(names) if named(name) == unusual]
            found |= {(finding.target_class, source) for source in (*sources, finding.trigger.source)}
    return found


def _of_one_source(repair: Unlearning) -> Unlearning:
    """Where masks of one source class are accused they are looked for, and more is stamped, since few images are
    meant. Where it is known which class, in few rounds: a mask from it to the target may be small in any model, and
    round after round costs accuracy."""
    of_pairs = sum(name == SourceMask.name for name, _ in repair.accused)
    if not of_pairs:
        return repair
    alone = repair.sources and of_pairs == len(repair.accused)
    return replace(
        repair,
        families=(*repair.families, SourceMask()),
        stamped=max(repair.stamped, DOSE),
        taught=max(repair.taught, repair.pairs * of_pairs),
        rounds=min(repair.rounds, FEW_ROUNDS) if alone else repair.rounds,
    )


def _of_patches(repair: Unlearning) -> Unlearning:
    """Where the triggers that convict are patches there is no fog on any rung, which is for patterns that fill the
    image and costs accuracy; instead more is taught inside the network (fixtures/results/mask-repair-study.json)."""
    return replace(repair, fog=0.0, inside=min(1.0, OFTEN * repair.inside))


def _of_kinds(repair: Unlearning, kinds: Mapping[int, Sequence[TriggerFamily]]) -> Unlearning:
    """Nothing else is taught than what random changes tell: where the scan convicts by no trigger, those that are small
    are ordinary, and round after round of them costs accuracy. It is taught more than triggers that convict, but for
    patterns, of which the usual leaves hardly anything for less. Warps and reflections are also shown at random
    (`AT_RANDOM`). Fog is for patterns (fixtures/results/repair.md)."""
    taught = {family.name: family for families in kinds.values() for family in families}
    known = {family.name for family in repair.families}
    accused = {name for name, _ in repair.accused}
    patterned = Additive.name in accused and Light.name not in taught
    return replace(
        repair,
        families=tuple(family for family in repair.families if family.name in accused),
        told=tuple(family for name, family in taught.items() if name not in known),
        stamped=repair.stamped if patterned else max(repair.stamped, DOSE),
        inside=repair.inside if patterned else min(1.0, OFTEN * repair.inside),
        fog=repair.fog if patterned else 0.0,
        changes=tuple(change for name, change in AT_RANDOM.items() if name in taught),
        taught=max(repair.taught, len(taught)),
    )


def patches(triggered: Sequence[Finding]) -> bool:
    """Do triggers convict, and every class of a patch? A mask that imitates a pattern which fills the image is not much
    more unusual than the pattern that convicts beside it."""
    largest: dict[tuple[int | None, bool], float] = {}
    for finding in triggered:
        key = finding.target_class, finding.family in MASKS
        largest[key] = max(finding.score, largest.get(key, 0.0))
    classes = {target for target, _ in largest}
    return bool(classes) and all(
        largest.get((target, True), 0.0) >= PATCH * largest.get((target, False), 0.0) for target in classes
    )


def filling(convicting: Sequence[Finding]) -> bool:
    """Do patterns that fill the image convict, and no other trigger?"""
    triggered = [finding for finding in heard(convicting) if finding.trigger]
    return bool(triggered) and all(finding.family == Additive.name for finding in triggered)


def recovered(convicting: Sequence[Finding]) -> list[Trigger]:
    """The triggers that convict and that a repaired model is shown again, in the order of the findings.

    Where patches convict, another trigger that does so only beside clean models is none of them: by itself it is an
    ordinary one, and twice as far inside the network it can lead to its class when the patch no longer does. Of one
    repaired BadNets that obeyed on 3 % of images a full-image pattern led 27 % there, the mask 2 %
    (fixtures/results/mask-repair-study.json). The rescan searches such patterns still, by thresholds."""
    triggered = [finding for finding in heard(convicting) if finding.trigger]
    if patches(triggered):
        triggered = [finding for finding in triggered if finding.family in MASKS or finding.p_value is None]
    return [finding.trigger for finding in triggered if finding.trigger]


def patterns(convicting: Sequence[Finding]) -> list[Trigger]:
    """Those of them that fill the image; none where patches convict, for which no fog is taught."""
    triggered = [finding for finding in heard(convicting) if finding.trigger]
    found = [] if patches(triggered) else recovered(convicting)
    return [trigger for trigger in found if trigger.family.name == Additive.name]


def blended(convicting: Sequence[Finding]) -> set[int]:
    """The classes that patterns over the whole image convict; where no trigger does, those that random noise does."""
    if any(finding.trigger for finding in heard(convicting)):
        return {trigger.target for trigger in patterns(convicting)}
    noisy = [finding for finding, change in risen(convicting) if change == changes.Noise.name]
    return {finding.target_class for finding in noisy if finding.target_class is not None}


def risen(convicting: Sequence[Finding]) -> list[tuple[Finding, str]]:
    """What random changes convict, each with the change. Where no trigger convicts and none of them does by itself, but
    one class alone is convicted, what they stand beside: of a Refool it can be the profile that is the most unusual,
    and the rise under reflections next."""
    convicting = heard(convicting)
    own = [(finding, RISES[finding.family]) for finding in convicting if finding.family in RISES]
    if own or any(f.trigger for f in convicting) or len({f.target_class for f in convicting}) > 1:
        return own
    return [(finding, RISES[finding.beside]) for finding in convicting if finding.beside in RISES]


def _kinds(convicting: Sequence[Finding], every: bool) -> dict[int, list[TriggerFamily]]:
    """The classes that random changes convict, each with the families of trigger that leave such a trace, of all of
    them or of the first."""
    found: dict[int, list[TriggerFamily]] = {}
    for finding, change in risen(convicting):
        if finding.target_class is not None and (every or finding.target_class not in found):
            found.setdefault(finding.target_class, []).extend(KINDS[change])
    return found
