"""Layer 3: the batched engine against one written from the docstring, a class and an image at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from toys import noise_data, small

from audit_cli.classifier import Classifier
from audit_cli.inversion import FAMILIES, engine
from audit_cli.inversion.additive import Additive
from audit_cli.inversion.engine import Search
from audit_cli.inversion.mask import Mask
from audit_cli.inversion.state import State
from audit_cli.types import Context, TriggerFamily, TrustedData

STEPS = 14
SEARCH = Search(images=7, success=0.6, relax=0.4)  # within reach of a few steps, so that every branch is taken
Draws = list[Tensor]


@pytest.fixture
def draws(monkeypatch: pytest.MonkeyPatch) -> Draws:
    """The images drawn at every step, (K, B) each, as the engine drew them."""
    drawn: Draws = []
    real = torch.multinomial

    def record(*arguments: object, **options: object) -> Tensor:
        drawn.append(real(*arguments, **options))  # type: ignore[call-overload]
        return drawn[-1]

    monkeypatch.setattr(torch, "multinomial", record)
    return drawn


def start(family: TriggerFamily, classes: Sequence[int], data: TrustedData, context: Context | None = None) -> State:
    return SEARCH.start(family, torch.tensor(classes), data.shape, context or Context())


def penalty(stamped: Tensor, labels: Tensor) -> Tensor:
    """An extra loss with a gradient of its own for every image."""
    return 0.5 * stamped.square().mean((1, 2, 3)) * (1 + labels)


def naive(
    suspect: Classifier,
    family: TriggerFamily,
    first: State,
    data: TrustedData,
    draws: Draws,
    extra: Callable[[Tensor, Tensor], Tensor] | None,
) -> list[dict[str, object]]:
    """The search as the docstring has it: a loop over classes, plain autograd, torch's own Adam."""
    results = []
    for row, c in enumerate(first.classes.tolist()):
        leaves = {k: v[row : row + 1].clone().requires_grad_() for k, v in first.parameters.items()}
        optimiser = torch.optim.Adam(list(leaves.values()), lr=family.lr, betas=SEARCH.betas)
        weight, streak, seen, best, best_size = family.weight, 0, [], None, float("inf")
        for step, index in enumerate(draws):
            x, y = data.images[index[row]], data.labels[index[row]]
            assert c not in y.tolist()
            stamped = family.stamp(leaves, x[None])[0]
            logits = suspect(stamped)
            loss = F.cross_entropy(logits, torch.full_like(y, c))
            if extra is not None:
                loss = loss + extra(stamped, y).mean()
            size = family.size(leaves)[0]
            length = float(size.detach())
            success = sum(int(row.argmax()) == c for row in logits) / len(y)
            seen.append(success)
            matched = sum(seen[-SEARCH.patience :]) / SEARCH.patience >= SEARCH.success - 1e-6
            if step >= SEARCH.patience and matched and length < best_size:
                best_size, best = length, {k: v.detach().clone() for k, v in leaves.items()}
            optimiser.zero_grad()
            (loss + weight * size).backward()
            optimiser.step()
            if success >= SEARCH.success - 1e-6:
                streak = max(streak, 0) + 1
            elif success < SEARCH.relax - 1e-6:
                streak = min(streak, 0) - 1
            else:
                streak = 0
            if streak == SEARCH.patience:
                weight, streak = weight * family.growth, 0
            elif streak == -SEARCH.patience:
                weight, streak = weight / family.growth**1.5, 0
        results.append({"parameters": leaves, "weight": weight, "best": best, "best_size": best_size, "streak": streak})
    return results


@pytest.mark.parametrize("extra", [None, penalty], ids=["plain", "extra"])
@pytest.mark.parametrize("family", [Mask(), Additive(lr=0.05)], ids=lambda family: family.name)
def test_equals_the_naive_search(
    family: TriggerFamily, extra: Callable[[Tensor, Tensor], Tensor] | None, draws: Draws
) -> None:
    suspect, data = small().frozen(), noise_data()
    first = start(family, [0, 3, 4, 1], data)
    last = SEARCH.run(suspect, family, first, data, STEPS, Context(), extra)
    assert last.step == len(draws) == STEPS
    expected = naive(suspect, family, first, data, draws, extra)
    assert {result["streak"] for result in expected} != {0}
    assert len({result["weight"] for result in expected}) > 1, "the patience rule was never needed"
    for row, result in enumerate(expected):
        for name, value in result["parameters"].items():  # type: ignore[attr-defined]
            torch.testing.assert_close(last.parameters[name][row], value[0].detach(), rtol=1e-3, atol=1e-3)
        assert float(last.weight[row]) == pytest.approx(result["weight"], rel=1e-4)
        assert float(last.streak[row]) == result["streak"]
        assert float(last.best_size[row]) == pytest.approx(result["best_size"], rel=1e-3)
        if result["best"] is not None:
            for name, value in result["best"].items():  # type: ignore[attr-defined]
                torch.testing.assert_close(last.best[name][row], value[0], rtol=1e-3, atol=1e-3)
    assert bool(last.reached.any()), "nothing was ever kept: the comparison is empty"


@pytest.mark.parametrize("family", [Mask(), Additive()], ids=lambda family: family.name)
def test_first_moment_is_each_class_s_own_gradient(family: TriggerFamily, draws: Draws) -> None:
    """After one step Adam's first moment is (1 − β1) times the gradient of mean CE + weight · size."""
    suspect, data = small().frozen(), noise_data()
    first = start(family, [2, 0, 4], data)
    after = SEARCH.run(suspect, family, first, data, 1, Context())
    for row, c in enumerate([2, 0, 4]):
        leaves = {k: v[row : row + 1].clone().requires_grad_() for k, v in first.parameters.items()}
        x = data.images[draws[0][row]]
        losses = torch.stack(
            [F.cross_entropy(suspect(family.stamp(leaves, i[None, None])[0]), torch.tensor([c])) for i in x]
        )
        (losses.mean() + family.weight * family.size(leaves)[0]).backward()
        for name, leaf in leaves.items():
            assert leaf.grad is not None
            expected = (1 - SEARCH.betas[0]) * leaf.grad[0]
            assert float(expected.abs().max()) > 1e-5
            torch.testing.assert_close(after.moments[name][0][row], expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("images_per_pass", [1, 3, 7, 16])
@pytest.mark.parametrize("family", [Mask(), Additive()], ids=lambda family: family.name)
def test_small_passes_equal_one_large_one(
    family: TriggerFamily, images_per_pass: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    suspect, data = small().frozen(), noise_data()
    first = start(family, range(5), data)  # type: ignore[arg-type]
    whole = SEARCH.run(suspect, family, first, data, 1, Context(), penalty)
    monkeypatch.setattr(engine, "PIXELS_PER_PASS", images_per_pass * 36)
    seen: list[int] = []
    handle = suspect.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    parts = SEARCH.run(suspect, family, first, data, 1, Context(), penalty)
    handle.remove()
    assert max(seen) <= images_per_pass
    assert sum(seen) == 5 * SEARCH.images
    for name, (moment, _) in whole.moments.items():
        torch.testing.assert_close(parts.moments[name][0], moment, rtol=1e-4, atol=1e-7)
    assert torch.equal(parts.recent, whole.recent)


def test_features_of_the_target_class_are_held_back(draws: Draws) -> None:
    """The gradient is that of mean CE + suppress · mean cosine to the class's mean latents + weight · size."""
    suspect, data, family = small().frozen(), noise_data(), Additive()
    first = start(family, [2, 0, 4], data)
    after = replace(SEARCH, suppress=0.7).run(suspect, family, first, data, 1, Context())
    for row, c in enumerate([2, 0, 4]):
        leaf = first.parameters["pattern"][row : row + 1].clone().requires_grad_()
        x = data.images[draws[0][row]]
        logits, latents = suspect.outputs(family.stamp({"pattern": leaf}, x[None])[0])
        own = suspect.latents(data.images[data.labels == c]).mean(0)
        cosine = (latents @ own) / (latents.norm(dim=1) * own.norm())
        cross_entropy = F.cross_entropy(logits, torch.full((len(x),), c))
        (cross_entropy + 0.7 * cosine.mean() + family.weight * family.size({"pattern": leaf})[0]).backward()
        assert leaf.grad is not None
        expected = (1 - SEARCH.betas[0]) * leaf.grad[0]
        torch.testing.assert_close(after.moments["pattern"][0][row], expected, rtol=1e-3, atol=1e-6)


class Largest(TorchFunctionMode):
    """Notes how many numbers the largest tensor made under it has."""

    numbers = 0

    def __torch_function__(
        self, func: Callable[..., object], types: object, args: Sequence[object] = (), kwargs: object = None
    ) -> object:
        made = func(*args, **(kwargs or {}))  # type: ignore[arg-type]
        if isinstance(made, Tensor):
            self.numbers = max(self.numbers, made.numel())
        return made


def test_many_classes_need_no_more_images_at_once_than_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is larger than the images of one pass, or the state itself."""
    suspect, data, search = small().frozen(), noise_data(), Search(images=8)
    monkeypatch.setattr(engine, "PIXELS_PER_PASS", 16 * 36)
    seen: list[int] = []
    handle = suspect.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    for classes in (5, 80):
        first = search.start(Additive(), torch.arange(classes) % 5, data.shape, Context())
        with Largest() as largest:
            search.run(suspect, Additive(), first, data, 2, Context())
        weights = max(parameter.numel() for parameter in suspect.parameters())
        state, one_pass = max(classes, len(data)) * 3 * 36, 16 * 36 * 6  # six channels after the convolution
        assert weights < one_pass
        assert one_pass / 6 < largest.numbers <= max(state, one_pass)
    handle.remove()
    assert set(seen) == {8, 16}, "two classes in a pass, and the last of five alone"


def test_joined_classes_go_on_as_if_never_parted() -> None:
    suspect, data = small().frozen(), noise_data()
    whole = SEARCH.run(suspect, Mask(), start(Mask(), range(5), data), data, 5, Context())  # type: ignore[arg-type]
    parted = whole.take(torch.tensor([3, 0])).join(whole.take(torch.tensor([4])))
    expected = whole.take(torch.tensor([3, 0, 4]))
    on, expected_on = (SEARCH.run(suspect, Mask(), state, data, 3, Context()) for state in (parted, expected))
    for name in ("classes", "weight", "streak", "recent", "losses", "best_size"):
        assert torch.equal(getattr(on, name), getattr(expected_on, name)), name
    for name in on.parameters:
        assert torch.equal(on.parameters[name], expected_on.parameters[name])
        assert torch.equal(on.best[name], expected_on.best[name])


def test_what_worked_on_few_images_is_no_proof_on_more() -> None:
    """Success on the images of one rung counts for nothing on the next: it takes `patience` new batches."""
    states = scripted([1, 1, 1, 1, 1, 1], Search(images=20))
    assert bool(states[-1].reached[0])
    forgotten = states[-1].unproven(4.0)
    assert not bool(forgotten.reached[0])
    assert float(forgotten.weight[0]) == float(states[-1].weight[0]) / 4
    assert float(forgotten.recent.max()) == 0
    assert all(torch.equal(forgotten.parameters[name], value) for name, value in states[-1].parameters.items())


def test_speed_multiplies_the_step() -> None:
    suspect, data = small().frozen(), noise_data()
    first = start(Mask(), [1, 2], data)
    slow, fast = (
        replace(SEARCH, speed=speed).run(suspect, Mask(), first, data, 1, Context()).parameters["mask"]
        for speed in (1.0, 3.0)
    )
    torch.testing.assert_close(fast - first.parameters["mask"], 3 * (slow - first.parameters["mask"]))


class Scripted(nn.Module):
    """Succeeds on the given share of the images of each step in turn, whatever they show; class 0 is the target."""

    def __init__(self, script: Sequence[float]) -> None:
        super().__init__()
        self.fc = nn.Linear(1, 2)
        self.script, self.step = list(script), 0

    def forward(self, x: Tensor) -> Tensor:
        hits = round(self.script[self.step] * len(x))
        self.step += 1
        logits = torch.eye(2)[(torch.arange(len(x)) >= hits).long()]
        return logits + 0 * x.mean()


def scripted(script: Sequence[float], search: Search) -> list[State]:
    """The state after every step of the script, on one class."""
    data = noise_data(classes=2)
    suspect = Classifier(Scripted(script), "fc", arch="scripted").frozen()
    family = Mask(weight=1.0, growth=4.0)
    states = [search.start(family, torch.tensor([0]), data.shape, Context())]
    for _ in script:
        states.append(search.run(suspect, family, states[-1], data, 1, Context()))
    return states


@pytest.mark.parametrize(
    ("script", "weights"),
    [
        ([1, 1, 1], [1, 1, 4]),  # three successes: heavier
        ([1, 1, 1, 1, 1, 1], [1, 1, 4, 4, 4, 16]),  # and three more
        ([0.95, 0.95, 0.95], [1, 1, 4]),  # on the line counts
        ([0, 0, 0], [1, 1, 1 / 8]),  # three failures: lighter, by growth^1.5
        ([0.85, 0.85, 0.85, 0, 0, 0], [1, 1, 1 / 8, 1 / 8, 1 / 8, 1 / 64]),
        ([0.90, 0.90, 0.90, 0.90], [1, 1, 1, 1]),  # neither
        ([1, 1, 0.9, 1, 1, 1], [1, 1, 1, 1, 1, 4]),  # neither starts the count again
        ([1, 1, 0, 1, 1, 1], [1, 1, 1, 1, 1, 4]),  # so does a failure
        ([0, 0, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1 / 8]),
        ([1, 1, 1, 0, 0, 0], [1, 1, 4, 4, 4, 0.5]),
    ],
)
def test_patience_rule(script: list[float], weights: list[float]) -> None:
    states = scripted(script, Search(images=20))
    assert [float(state.weight[0]) for state in states[1:]] == pytest.approx(weights)


def test_nothing_is_kept_before_success_was_seen_for_as_long_as_patience() -> None:
    search = Search(images=20, patience=3)
    assert not any(bool(state.reached[0]) for state in scripted([1, 1], search))
    assert not any(bool(state.reached[0]) for state in scripted([1, 0.8, 1, 0.8, 1, 0.8], search))
    assert bool(scripted([0, 1, 1, 1, 1], search)[-1].reached[0])
    # success is the mean of the last three batches: 0.85, 1, 1 is exactly the matched success
    assert bool(scripted([0, 0, 0.85, 1, 1], search)[-1].reached[0])
    assert not bool(scripted([0, 0, 0.80, 1, 1], search)[-1].reached[0])


def test_the_smallest_that_worked_is_kept_and_never_given_back() -> None:
    states = scripted([1] * 8 + [0] * 8, Search(images=20))
    sizes = [float(state.best_size[0]) for state in states if bool(state.reached[0])]
    assert sizes == sorted(sizes, reverse=True)
    kept = states[-1].trigger(0, Mask())
    assert kept.size == pytest.approx(sizes[-1])
    assert float(Mask().size(kept.parameters)[0]) == pytest.approx(sizes[-1])


@pytest.mark.parametrize("name", FAMILIES)
def test_taking_classes_changes_nothing_for_those_taken(name: str) -> None:
    """All images are alike, so that what is drawn does not matter, and only the state can make a difference."""
    family, data = FAMILIES[name](), noise_data()
    same = TrustedData(data.images[:1].expand(len(data), -1, -1, -1), data.labels, data.class_names, data.digest)
    suspect = small().frozen()
    half = SEARCH.run(suspect, family, start(family, [0, 1, 2, 3, 4], same), same, 6, Context())
    rows = torch.tensor([4, 1])
    taken = half.take(rows)
    assert taken.classes.tolist() == [4, 1]
    alone = SEARCH.run(suspect, family, taken, same, 6, Context())
    together = SEARCH.run(suspect, family, half, same, 6, Context()).take(rows)
    assert alone.step == together.step == 12
    torch.testing.assert_close(alone.parameters, together.parameters, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(alone.best, together.best, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(alone.best_size, together.best_size)
    assert torch.equal(alone.weight, together.weight)
    assert torch.equal(alone.streak, together.streak)
    assert torch.equal(alone.recent, together.recent)
    fresh = SEARCH.run(suspect, family, start(family, [4, 1], same), same, 6, Context())
    assert not torch.allclose(fresh.weight, alone.weight) or not torch.allclose(
        next(iter(fresh.parameters.values())), next(iter(alone.parameters.values()))
    )


def test_images_of_the_class_itself_are_never_drawn(draws: Draws) -> None:
    data = noise_data(classes=3, per_class=4)
    family = Additive()
    state = Search(images=30).start(family, torch.arange(3), data.shape, Context())
    Search(images=30).run(small(3).frozen(), family, state, data, 5, Context())
    for index in draws:
        for c in range(3):
            assert set(data.labels[index[c]].tolist()) == {0, 1, 2} - {c}
    assert not torch.equal(draws[0], draws[1])


@pytest.mark.parametrize("family", [Mask(), Additive()], ids=lambda family: family.name)
def test_same_seed_same_search(family: TriggerFamily) -> None:
    suspect, data = small().frozen(), noise_data()

    def run(seed: int) -> State:
        context = Context(seed=seed)
        return SEARCH.run(suspect, family, start(family, [0, 1, 2], data, context), data, 6, context)

    one, again, other = run(0), run(0), run(1)
    for name in one.parameters:
        assert torch.equal(one.parameters[name], again.parameters[name])
        assert not torch.equal(one.parameters[name], other.parameters[name])
    assert torch.equal(one.best_size, again.best_size)


def test_progress_and_budget_hear_of_every_step() -> None:
    class Ear:
        steps = checks = 0

        def stage(self, name: str, total: int) -> None: ...

        def advance(self, steps: int = 1, note: str = "") -> None:
            self.steps += steps

        def check(self) -> None:
            self.checks += 1

    ear, data = Ear(), noise_data()
    SEARCH.run(small().frozen(), Mask(), start(Mask(), [0, 1], data), data, 5, Context(progress=ear, budget=ear))
    assert ear.steps == 5
    assert ear.checks >= 5


@pytest.mark.parametrize(
    "settings",
    [{"images": 0}, {"patience": 0}, {"success": 1.5}, {"relax": 0.0}, {"success": 0.5, "relax": 0.6}, {"speed": 0.0}],
)
def test_nonsense_settings_name_themselves(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"Search\("):
        Search(**settings)  # type: ignore[arg-type]
