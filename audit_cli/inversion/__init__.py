"""Trigger inversion: one file per trigger family, one engine for all of them."""

from audit_cli.inversion.additive import Additive
from audit_cli.inversion.frequency import Frequency
from audit_cli.inversion.light import Light
from audit_cli.inversion.mask import Mask
from audit_cli.inversion.pixel import Pixel
from audit_cli.inversion.random_patch import RandomPatch
from audit_cli.inversion.reflection import Reflection
from audit_cli.inversion.source_mask import SourceMask
from audit_cli.inversion.warp import Warp
from audit_cli.inversion.wave import Wave
from audit_cli.types import TriggerFamily

FAMILIES: dict[str, type[TriggerFamily]] = {
    "additive": Additive,
    "frequency": Frequency,
    "light": Light,
    "mask": Mask,
    "pixel": Pixel,
    "random_patch": RandomPatch,
    "reflection": Reflection,
    "source_mask": SourceMask,
    "warp": Warp,
    "wave": Wave,
}
