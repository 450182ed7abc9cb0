"""Trigger inversion: one file per trigger family, one engine for all of them."""

from audit_cli.inversion.additive import Additive
from audit_cli.inversion.mask import Mask
from audit_cli.types import TriggerFamily

FAMILIES: dict[str, type[TriggerFamily]] = {
    "additive": Additive,
    "mask": Mask,
}
