"""What a scan tells a repair: which classes are accused, and of which kind of trigger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from audit_cli.detectors import changes
from audit_cli.detectors.profile import Profile
from audit_cli.detectors.shift import Shift
from audit_cli.inversion.additive import Additive
from audit_cli.inversion.light import Light
from audit_cli.inversion.listing import Listed
from audit_cli.inversion.reflection import Reflection
from audit_cli.inversion.warp import Warp
from audit_cli.repairs.unlearning import Unlearning
from audit_cli.repairs.watch import WatchedRepair
from audit_cli.types import Finding, TriggerFamily

# A change (detectors/changes.py) that moves a class's profile, and the families whose triggers are like it.
KINDS: Mapping[str, tuple[TriggerFamily, ...]] = {
    changes.Noise.name: (Additive(),),
    changes.Reflection.name: (Reflection(), Light(side=8, name="coarse_light"), Light()),
    changes.Flow.name: (Warp(),),
}
DOSE = 0.25  # ours: share of a batch that is stamped where only a kind is known; half leaves more (development, Refool)


def told(repair: WatchedRepair, convicting: Sequence[Finding]) -> WatchedRepair:
    """`repair`, knowing which families and classes the scan convicted, where that is of use to it. It finds triggers
    anew, on the images it may use.

    What convicts without a trigger accuses its class: in the families of the random changes that convict it, and of
    these more is taught, else in every family that is searched by descent; and where it is the features, the head of
    being easily persuaded. Where triggers convict, their families and classes are accused, and what convicts without
    one accuses in every family and is silent on other classes: those may be classes that the target moves to."""
    if not isinstance(repair, Unlearning):
        return repair
    descended = [family for family in repair.families if not isinstance(family, Listed)]
    triggered = {finding.target_class for finding in convicting if finding.trigger}
    accused = {(f.family, f.target_class) for f in convicting if f.trigger and f.target_class is not None}
    families = {family.name: family for family in repair.families}
    taught: set[str] = set()
    for target in {f.target_class for f in convicting if f.target_class is not None and not f.trigger}:
        if target not in (triggered or {target}):
            continue
        kinds = [] if target in triggered else kinds_of([f for f in convicting if f.target_class == target])
        accused |= {(family.name, target) for family in kinds or descended}
        families |= {family.name: family for family in kinds if family.name not in families}
        taught |= {family.name for family in kinds}
    persuaded = any(finding.family == Shift.name for finding in convicting)
    repair = replace(repair, families=tuple(families.values()), accused=frozenset(accused), persuaded=persuaded)
    if not taught:
        return repair
    return replace(repair, stamped=max(repair.stamped, DOSE), taught=max(repair.taught, len(taught)))


def kinds_of(convicting: Sequence[Finding]) -> list[TriggerFamily]:
    """The families of trigger that leave what was found under random changes: those of one class are alike."""
    rises = {f"{Profile.name}_{change}": kinds for change, kinds in KINDS.items()}
    return [family for finding in convicting for family in rises.get(finding.family, ())]
