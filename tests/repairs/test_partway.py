"""Weights between the pivot's and the repaired model's."""

from __future__ import annotations

import pytest
import torch
from toys import small

from audit_cli.repairs.partway import partway


def test_the_ends_are_the_two_models_and_the_middle_their_mean() -> None:
    pivot, repaired = small(seed=0), small(seed=1)
    repaired.module.norm.num_batches_tracked += 7  # type: ignore[union-attr, operator]
    before = {name: value.clone() for name, value in [*pivot.state_dict().items(), *repaired.state_dict().items()]}
    start, middle, end = (partway(pivot, repaired, share).state_dict() for share in (0.0, 0.5, 1.0))
    for name, value in pivot.state_dict().items():
        goal = repaired.state_dict()[name]
        torch.testing.assert_close(end[name], goal)
        torch.testing.assert_close(start[name], value if value.is_floating_point() else goal)
        torch.testing.assert_close(middle[name], (value + goal) / 2 if value.is_floating_point() else goal)
    assert all(torch.equal(value, before[name]) for name, value in repaired.state_dict().items())


def test_a_share_is_one() -> None:
    with pytest.raises(ValueError, match=r"share=1\.5"):
        partway(small(), small(), 1.5)
