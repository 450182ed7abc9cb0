"""Holding a model's clean behaviour: distillation of the pivot's logits.

Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network, 2015, https://arxiv.org/abs/1503.02531.
The teacher only ever sees clean images: what it says of a triggered one is the backdoor.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def distillation(logits: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """T² · KL(softmax(teacher / T) ‖ softmax(logits / T)), mean over a batch of logits (B, K) -> ()."""
    ours, theirs = (logits / temperature).log_softmax(1), (teacher / temperature).log_softmax(1)
    return temperature**2 * F.kl_div(ours, theirs, reduction="batchmean", log_target=True)
