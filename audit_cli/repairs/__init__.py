"""Repairs: each returns a new classifier and never touches its input."""

from audit_cli.repairs.pivotal_tuning import PivotalTuning
from audit_cli.types import Repair

REPAIRS: dict[str, type[Repair]] = {
    "pivotal_tuning": PivotalTuning,
}
