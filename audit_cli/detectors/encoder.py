"""Does a small trigger make an encoder see every image alike? For encoders without a classifier, and without labels.

Feng, Tao, Cheng, Shen, Xu, Liu, Zhang, Ma, Zhang: Detecting Backdoors in Pre-trained Encoders (DECREE), 2023,
https://arxiv.org/abs/2303.15180.
The smallest mask is looked for that draws the embeddings of different images to one point, wherever that is (see
`inversion.collapse`). DECREE compares its share of the image, ‖m‖₁ / (H · W), with 0.1.

How small it is on a clean encoder depends on the images and the encoder: on digits a hundredth of the image is enough.
So, as for classes, the size is compared with the encoder's own ordinary ones: masks that draw all images to one of K
prototypes, the centres of K clusters of the trusted embeddings, at the same collapse. The score is that of
`smallness`; a prototype near the point where the free search ended is its goal, not an ordinary one, and is left out.

Differs from the paper: the comparison; and see `inversion.collapse`. DECREE's share stands in the finding's details.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from audit_cli.classifier import Classifier
from audit_cli.detectors.smallness import smallness
from audit_cli.inversion.collapse import Collapsed, CollapseSearch, deviation, directions
from audit_cli.types import NO_CLASS, Context, Finding, Trigger, TrustedData

LEAST_ORDINARY = 3  # prototypes; a spread told from two is none


@dataclass(frozen=True)
class Collapse:
    """Looks at latents only, so any classifier can be measured too."""

    search: CollapseSearch = field(default_factory=CollapseSearch)
    prototypes: int = 10  # ours
    alike: float = 0.7  # ours: cosine to the trigger's own goal from which on a prototype is not an ordinary one
    fit_share: float = 0.5  # as in `calibrated`: of the trusted images, for the search; the rest measures

    def __post_init__(self) -> None:
        if self.prototypes < LEAST_ORDINARY or not 0 < self.fit_share < 1 or not -1 < self.alike <= 1:
            raise ValueError(f"{self}: prototypes at least {LEAST_ORDINARY}, 0 < fit_share < 1, -1 < alike <= 1")

    def __call__(self, suspect: Classifier, trusted: TrustedData, context: Context) -> Iterator[Finding]:
        """BD008, one finding."""
        suspect = suspect.clone().on(context.device).frozen()
        order = torch.randperm(len(trusted), generator=context.generator(stream=5))
        share = min(max(2, round(self.fit_share * len(trusted))), len(trusted) - 1)
        fit, unseen = (trusted.images[part].to(context.device) for part in (order[:share], order[share:]))
        centres = prototypes(directions(suspect.latents, fit, context), self.prototypes, context.generator(stream=10))
        context.progress.stage("collapse of embeddings", self.search.steps)
        found = self.search.run(suspect.latents, fit, centres, context)
        row = int(found.sizes[: self.search.starts].argmin())
        trigger = self._trigger(found, row)
        before, after = (deviation(directions(suspect.latents, x, context)) for x in (unseen, trigger(unseen)))
        yield self._finding(trigger, self._compare(found, centres, row), 1 - after / max(before, 1e-12), trusted.shape)

    def _trigger(self, found: Collapsed, row: int) -> Trigger:
        family = self.search.family
        parameters = {name: value[row : row + 1] for name, value in found.parameters.items()}
        return Trigger(family, parameters, NO_CLASS, float(family.size(parameters)))

    def _compare(self, found: Collapsed, centres: Tensor, row: int) -> tuple[float, float, int]:
        """Score, ratio to the median ordinary size, and the number of ordinary ones; zeros where nothing worked."""
        ordinary = found.sizes[self.search.starts :][centres @ found.centres[row] < self.alike]
        if not bool(found.sizes[row].isfinite()) or len(ordinary) < LEAST_ORDINARY:
            return 0.0, 0.0, len(ordinary)
        sizes = torch.cat([found.sizes[row, None], ordinary])
        small = smallness(sizes, torch.arange(len(sizes), device=sizes.device) > 0, len(sizes))
        return float(small.score[0]), float(small.ratio[0]), len(ordinary)

    def _finding(
        self, trigger: Trigger, compared: tuple[float, float, int], unseen: float, shape: tuple[int, int, int]
    ) -> Finding:
        score, ratio, ordinary = compared
        share = trigger.size / (shape[1] * shape[2])
        message = (
            f"a mask over {share:.2%} of the image takes away {unseen:.0%} of the differences between embeddings of "
            f"unseen images; it is {score:.2f} times smaller than ordinary ones explain, {ratio:.2f} times smaller "
            "than their median"
        )
        if score == 0:
            message = (
                f"no mask took away {self.search.collapse:.0%} of the differences, or none was left to compare with"
            )
        return Finding(
            rule_id="BD008",
            score=score,
            message=message,
            detector="encoder",
            family=self.search.family.name,
            trigger_norm=trigger.size,
            details={
                "image_share": share,
                "ratio": ratio,
                "ordinary": ordinary,
                "matched_collapse": self.search.collapse,
                "collapse_of_unseen": unseen,
            },
            trigger=trigger,
        )


def prototypes(z: Tensor, count: int, generator: torch.Generator, rounds: int = 20) -> Tensor:
    """Embeddings (N, D) of length 1 -> the centres (≤ count, D), of length 1, of clusters by cosine.

    Lloyd's rounds from a random embedding and, again and again, the one furthest from all centres so far.
    """
    centres = z[torch.randint(len(z), (1,), generator=generator).to(z.device)]
    while len(centres) < min(count, len(z)):
        furthest = (z @ centres.T).amax(1).argmin()
        centres = torch.cat([centres, z[furthest, None]])
    for _ in range(rounds):
        nearest = F.one_hot((z @ centres.T).argmax(1), len(centres)).to(z)  # (N, K)
        sums = nearest.T @ z
        centres = F.normalize(torch.where(sums.norm(dim=1, keepdim=True) > 0, sums, centres), dim=1)
    return centres
