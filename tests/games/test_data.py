"""The images of a bench: whose they are, and that no part has another's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from audit_cli.errors import UsageError
from audit_cli.games.config import Bench
from audit_cli.games.data import Data, read_data
from audit_cli.types import TrustedData


def pixels(data: TrustedData) -> set[bytes]:
    return {image.numpy().tobytes() for image in data.images}


def test_all_victims_have_the_same_trusted_images_unless_they_are_redrawn(images: Data) -> None:
    assert images.pool is None
    assert images.trusted_of(1) is images.trusted


def test_redrawn_images_are_a_victims_own_and_never_measured_on(data: Path, bench: Bench, images: Data) -> None:
    redrawn = read_data(data, replace(bench, redrawn=True, measured=8))
    first, second = redrawn.trusted_of(1), redrawn.trusted_of(2)
    assert first.per_class == second.per_class == images.trusted.per_class
    assert pixels(first) != pixels(second)
    assert pixels(first) == pixels(redrawn.trusted_of(1))
    assert len(pixels(first)) == len(first), "none twice"
    assert not (pixels(first) | pixels(second)) & pixels(redrawn.measured)
    assert torch.equal(redrawn.trusted.images, images.trusted.images)


def test_redrawing_needs_images_that_are_not_measured_on(data: Path, bench: Bench) -> None:
    whole = len(read_data(data, bench).measured) + 1_000
    with pytest.raises(UsageError, match="nothing to redraw"):
        read_data(data, replace(bench, redrawn=True, measured=whole))
