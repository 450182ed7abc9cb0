"""The ladder: repairs in the order they are tried. Climbing stops at the first that passes its audit.

Every rung starts from the unrepaired model, so that what was lost on one is not lost for the next.

A repair can pass the rescan with much of the true trigger's success left, because what is left of the backdoor is no
smaller than what ordinary classes have; the loss of accuracy is seen at once. So the first rung is as strong as most
models bear. Where a rung costs too much accuracy it is first taken back a little (partway.py), which takes no time; of
transformers the backdoor comes back with that (development: vit-badnets, 15 % at 85 % of the way), so they are not. Of
small networks it comes back, too, before the recovered trigger shows it, so every attempt is looked at inside
(inside.py). Then a gentle one follows, with less of it inside the network. The others are for triggers that survive.
Fog is for blended patterns, and costs accuracy where it is not needed (fixtures/results/repair.md): a pivot that thin
fog alone leads to the class of one is taught in fog at once, any other when nothing else has helped. A rung that would
teach what one before has taught, since fog is of no use against what convicts, is passed over. When none has passed,
those that cost too much are taken back further, first come first. A rung that passes against a pattern that fills the
image is taken back while little shows.
"""

from __future__ import annotations

from dataclasses import dataclass

from audit_cli.repairs.unlearning import Unlearning
from audit_cli.repairs.watch import WatchedRepair


@dataclass(frozen=True)
class Rung:
    """A repair and what the verdict calls it."""

    name: str
    repair: WatchedRepair


FOG = 0.4  # ours: largest share of a colour
LADDER: tuple[Rung, ...] = (
    Rung("unlearning", Unlearning()),
    Rung("gentle unlearning", Unlearning(inside=0.1)),
    Rung("unlearning in fog", Unlearning(fog=FOG)),
    Rung("thorough unlearning", Unlearning(fog=FOG, stamped=0.5, left=0.5, rounds=8, starts=5, steps=300)),
)

SLIGHTLY: tuple[float, ...] = (0.85,)  # ours: share of the way to a rung that costs too much accuracy
FURTHER: tuple[float, ...] = (0.7, 0.55)  # ours: when no rung has passed
EASED: tuple[float, ...] = (0.85, 0.7, 0.55)  # ours: when one has passed against a pattern that fills the image
