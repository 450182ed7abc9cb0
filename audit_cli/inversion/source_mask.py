"""Mask and pattern from one source class to one target: for backdoors that only some images obey.

Tang, Wang, Tang, Zhang: Demon in the Variant: Statistical Analysis of DNNs for Robust Backdoor Contamination
Detection, 2021, https://arxiv.org/abs/1908.00686: source-specific triggers, which no search over all images finds.
The trigger and its size are those of `mask`; each pair of classes has one of its own. A target stands for its easiest
source: the smallest trigger over its pairs is compared between targets.

Differs from the paper: it is about the attack and detects it from the training data; the search is ours.
"""

from __future__ import annotations

from dataclasses import dataclass

from audit_cli.inversion.mask import Mask


@dataclass(frozen=True)
class SourceMask(Mask):
    """`Mask`, one for each pair of a source and a target class."""

    per_source: bool = True
    name: str = "source_mask"
