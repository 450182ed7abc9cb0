"""The fit loop: against a naive one, hooks in their order, and stopped and resumed at any moment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from audit_cli.classifier import Classifier
from audit_cli.errors import UsageError
from audit_cli.losses import ManifoldMixup
from audit_cli.models.create import create
from audit_cli.resume import Resume
from audit_cli.training import Fit, Honest, crop_and_flip
from audit_cli.types import Context

FIT = Fit(12, 0.05, batch=16, weight_decay=5e-4, schedule="one-cycle", pad=1)
CONTEXT = Context(seed=3)


def network(seed: int = 0) -> Classifier:
    torch.manual_seed(seed)
    return create("resnet8-w4-cifar", 3)


def data(count: int = 40) -> tuple[Tensor, Tensor]:
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(count) % 3


def weights(classifier: Classifier) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in classifier.module.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def test_the_loop_is_plain_sgd() -> None:
    images, labels = data()
    fit = Fit(5, 0.1, batch=16, weight_decay=0.01, schedule="cosine", pad=0, flip=False, clip=1.0)
    fitted = fit.run(network(), images, labels, CONTEXT)

    classifier = network().on(torch.device("cpu")).train()
    velocity = [torch.zeros_like(p) for p in classifier.parameters()]
    generator = CONTEXT.generator(stream=1)
    order = torch.cat([torch.randperm(40, generator=generator) for _ in range(2)])
    for step in range(5):
        index = order[16 * step : 16 * (step + 1)]
        loss = F.cross_entropy(classifier(images[index]), labels[index])
        slopes = torch.autograd.grad(loss, list(classifier.parameters()))
        length = torch.stack([g.square().sum() for g in slopes]).sum().sqrt()
        scale = min(1.0, 1.0 / (float(length) + 1e-6))
        lr = 0.1 * 0.5 * (1 + torch.cos(torch.tensor((step + 0.5) / 5 * torch.pi)).item())
        with torch.no_grad():
            for p, v, slope in zip(classifier.parameters(), velocity, slopes, strict=True):
                g = scale * slope + 0.01 * p
                v.mul_(0.9).add_(g)
                p.sub_(lr * (g + 0.9 * v))
    for a, b in zip(fitted.parameters(), classifier.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    assert not fitted.training


def test_adam_is_adam_with_decoupled_decay() -> None:
    images, labels = data()
    fit = Fit(3, 0.01, batch=40, weight_decay=0.1, pad=0, flip=False, optimiser="adam")
    fitted = fit.run(network(), images, labels, CONTEXT)

    classifier = network().on(torch.device("cpu")).train()
    parameters = list(classifier.parameters())
    m, v = ([torch.zeros_like(p) for p in parameters] for _ in range(2))
    for t in range(1, 4):
        slopes = torch.autograd.grad(F.cross_entropy(classifier(images), labels), parameters)
        with torch.no_grad():
            for k, (p, slope) in enumerate(zip(parameters, slopes, strict=True)):
                m[k], v[k] = 0.9 * m[k] + 0.1 * slope, 0.999 * v[k] + 0.001 * slope**2
                step = (m[k] / (1 - 0.9**t)) / ((v[k] / (1 - 0.999**t)).sqrt() + 1e-8)
                p.mul_(1 - 0.01 * 0.1).sub_(0.01 * step)
    ours = torch.cat([p.detach().flatten() for p in fitted.parameters()])
    theirs = torch.cat([p.detach().flatten() for p in parameters])
    assert float((ours - theirs).norm() / theirs.norm()) < 1e-3


def test_only_sgd_can_be_resumed(tmp_path: Path) -> None:
    images, labels = data()
    with pytest.raises(ValueError, match="only sgd can be resumed"):
        Fit(2, 0.01, optimiser="adam").run(network(), images, labels, CONTEXT, resume=Resume(tmp_path / "state"))
    with pytest.raises(ValueError, match=r"rmsprop.*unknown"):
        Fit(2, 0.01, optimiser="rmsprop")
    assert "optimiser" not in repr(Fit(2, 0.01)), "the recipe by which states of older runs are told apart"


def test_every_image_is_used_once_per_epoch() -> None:
    images, labels = data(40)
    images = images * 0 + torch.arange(40).view(-1, 1, 1, 1) / 40
    seen: list[int] = []

    class Watch(Honest):
        def batch(self, step: int, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            seen.extend((images[:, 0, 0, 0] * 40).round().int().tolist())
            return images, labels

    Fit(5, 0.01, batch=16).run(network(), images, labels, CONTEXT, tamper=Watch())
    assert sorted(seen[:40]) == sorted(seen[40:]) == list(range(40))


def test_crop_and_flip() -> None:
    images = torch.arange(2 * 3 * 6 * 6.0).view(2, 3, 6, 6)
    padded = F.pad(images, (2, 2, 2, 2), mode="reflect")
    crops = [(n, padded[n, :, i : i + 6, j : j + 6]) for n in range(2) for i in range(5) for j in range(5)]
    allowed = {(n, tuple(t.flatten().tolist())) for n, crop in crops for t in (crop, crop.flip(2))}
    assert len(allowed) == 100
    seen = set()
    for seed in range(600):
        got = crop_and_flip(images, torch.Generator().manual_seed(seed), 2, True)
        seen |= {(n, tuple(got[n].flatten().tolist())) for n in range(2)}
    assert seen == allowed  # every shift, mirrored and not, and nothing else
    assert torch.equal(crop_and_flip(images, torch.Generator(), 0, False), images)


def test_tampering_order_and_effect() -> None:
    images, labels = data()
    calls: list[tuple[str, int]] = []

    class Frozen(Honest):
        def batch(self, step: int, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            calls.append(("batch", step))
            return images, labels

        def gradients(self, step: int, classifier: Classifier) -> None:
            assert all(p.grad is not None for p in classifier.parameters())
            for p in classifier.parameters():
                p.grad = None
            calls.append(("gradients", step))

        def updated(self, step: int, classifier: Classifier) -> None:
            calls.append(("updated", step))

    before = [p.detach().clone() for p in network().parameters()]
    after = FIT.run(
        network(), images, labels, CONTEXT, after_step=lambda step: calls.append(("after", step)), tamper=Frozen()
    )
    assert calls == [(what, step) for step in range(12) for what in ("batch", "gradients", "updated", "after")]
    assert all(torch.equal(a, b) for a, b in zip(before, after.parameters(), strict=True))


class Killed(Exception):
    pass


def killed_at(last: int) -> Callable[[int], None]:
    def after_step(step: int) -> None:
        if step == last:
            raise Killed

    return after_step


@pytest.mark.parametrize("last", [0, 3, 4, 7, 11])
def test_resumed_is_bit_identical(tmp_path: Path, last: int) -> None:
    images, labels = data()
    whole = weights(FIT.run(network(), images, labels, CONTEXT))
    resume = Resume(tmp_path / "state.safetensors", every=4)
    with pytest.raises(Killed):
        FIT.run(network(), images, labels, CONTEXT, after_step=killed_at(last), resume=resume)
    assert resume.path.exists() == (last > 3)
    steps: list[int] = []
    again = FIT.run(network(8), images, labels, CONTEXT, after_step=steps.append, resume=resume)
    assert steps == list(range(last // 4 * 4, 12))
    if last > 3:  # else nothing was saved and other initial weights were trained
        assert same(whole, weights(again))


def test_a_finished_run_is_picked_up_without_training(tmp_path: Path) -> None:
    images, labels = data()
    resume = Resume(tmp_path / "state.safetensors", every=5)
    whole = weights(FIT.run(network(), images, labels, CONTEXT, resume=resume))
    steps: list[int] = []
    assert same(whole, weights(FIT.run(network(8), images, labels, CONTEXT, after_step=steps.append, resume=resume)))
    assert steps == []


def test_generators_of_the_loss_resume_too(tmp_path: Path) -> None:
    images, labels = data()

    def run(resume_path: Path, last: int) -> Classifier:
        loss = ManifoldMixup(torch.Generator().manual_seed(4))
        resume = Resume(resume_path, every=4, generators=(loss.generator,))
        return FIT.run(network(), images, labels, CONTEXT, loss, killed_at(last), resume=resume)

    whole = weights(run(tmp_path / "a", 99))
    with pytest.raises(Killed):
        run(tmp_path / "b", 9)
    assert same(whole, weights(run(tmp_path / "b", 99)))


@pytest.mark.parametrize(
    ("fit", "context", "label"),
    [(replace(FIT, lr=0.06), CONTEXT, ""), (FIT, Context(seed=4), ""), (FIT, CONTEXT, "other data")],
)
def test_another_runs_state_is_refused(tmp_path: Path, fit: Fit, context: Context, label: str) -> None:
    images, labels = data()
    resume = Resume(tmp_path / "state.safetensors")
    FIT.run(network(), images, labels, CONTEXT, resume=resume)
    with pytest.raises(UsageError, match="state of another training run; remove it"):
        fit.run(network(), images, labels, context, resume=replace(resume, label=label))


def test_a_seed_of_nanoseconds_trains() -> None:
    images, labels = data()
    FIT.run(network(), images, labels, Context(seed=1_760_000_000_123_456_789))


def test_bfloat16_and_settings() -> None:
    images, labels = data()
    fitted = FIT.run(network(), images, labels, Context(dtype=torch.bfloat16))
    assert all(p.dtype == torch.float32 and bool(p.isfinite().all()) for p in fitted.parameters())
    for wrong in ({"steps": 0}, {"lr": 0.0}, {"batch": 0}, {"schedule": "zigzag"}, {"batch_norm": "off"}):
        with pytest.raises(ValueError, match="Fit"):
            replace(FIT, **wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Resume"):
        Resume(Path("x"), every=0)
