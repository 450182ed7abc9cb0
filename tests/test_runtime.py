"""Costs and limits of a run."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable

import pytest
import torch
from toys import Ticker

from audit_cli import runtime
from audit_cli.errors import BudgetExceeded, UsageError
from audit_cli.runtime import Allowance, Stopwatch, choose_device, choose_dtype, environment, out_of_memory

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of the data segment are Linux's")


class Heard:
    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []

    def stage(self, name: str, total: int) -> None:
        self.calls.append((name, total))

    def advance(self, steps: int = 1, note: str = "") -> None:
        self.calls.append((steps, note))


class TestStopwatch:
    def test_seconds_by_stage(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("audit_cli.runtime.time.monotonic", Ticker())  # started at 0; every look is a second later
        watch = Stopwatch()
        watch.stage("a", 1)
        watch.stage("b", 1)
        watch.stage("a", 1)
        assert watch.seconds() == {"open": 1, "a": 2, "b": 1}
        assert watch.seconds() == {"open": 1, "a": 3, "b": 1}, "the current stage goes on"

    def test_passes_everything_on(self) -> None:
        heard = Heard()
        watch = Stopwatch(heard)
        watch.stage("a", 3)
        watch.advance(2, "note")
        watch.advance()
        assert heard.calls == [("a", 3), (2, "note"), (1, "")]


class TestAllowance:
    def test_no_limits(self) -> None:
        Allowance().check()
        with Allowance().enforced():
            pass

    def test_time(self) -> None:
        Allowance(timeout=60).check()
        with pytest.raises(BudgetExceeded, match=r"time limit of 0.25 s .* raise --timeout"):
            Allowance(timeout=0.25, started=time.monotonic() - 1).check()

    def test_memory(self) -> None:
        Allowance(max_memory=2**50).check()
        with pytest.raises(BudgetExceeded, match=r"over the memory limit of 1 MiB; raise --max-memory"):
            Allowance(max_memory=2**20).check()

    @pytest.mark.parametrize("limit", [0.0, -1.0, float("nan")])
    def test_a_limit_that_limits_nothing_is_refused(self, limit: float) -> None:
        with pytest.raises(UsageError, match="must be positive"):
            Allowance(timeout=limit)

    @pytest.mark.parametrize("limit", [0, -5])
    def test_memory_limit_must_be_positive(self, limit: int) -> None:
        with pytest.raises(UsageError, match="must be positive"):
            Allowance(max_memory=limit)

    @pytest.mark.parametrize(
        "error",
        [
            MemoryError(),
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
            RuntimeError("CUDA out of memory"),
            OSError(12, "Cannot allocate memory"),
            RuntimeError("can't start new thread"),
        ],
        ids=repr,
    )
    def test_a_refused_allocation_is_a_used_up_budget(self, error: Exception) -> None:
        def fail(limit: int | None) -> None:
            with Allowance(max_memory=limit).enforced():
                raise error

        with pytest.raises(BudgetExceeded, match="raise --max-memory"):
            fail(2**50)
        with pytest.raises(type(error)):  # without a limit it is a crash like any other
            fail(None)

    @pytest.mark.parametrize(
        "error", [ValueError("x"), RuntimeError("shape mismatch"), OSError(28, "full"), KeyboardInterrupt()]
    )
    def test_other_errors_stay_what_they_are(self, error: BaseException) -> None:
        with pytest.raises(type(error)), Allowance(max_memory=2**50).enforced():
            raise error

    def test_a_kernel_that_cannot_be_set_up_is_the_limits_doing_only_where_there_is_one(self) -> None:
        """oneDNN says no more than this when its own allocation fails; without a limit the cause is not known."""
        for words in ("could not create a primitive", "could not execute a primitive"):
            with pytest.raises(BudgetExceeded, match="raise --max-memory"), Allowance(max_memory=2**50).enforced():
                raise RuntimeError(words)
            with pytest.raises(RuntimeError, match=words), Allowance().enforced():
                raise RuntimeError(words)

    @linux
    def test_an_allocation_over_the_limit_fails_and_the_limit_is_lifted_again(self) -> None:
        before = resource.getrlimit(resource.RLIMIT_DATA)

        def allocate() -> torch.Tensor:
            return torch.ones(400 * 2**20 // 4)  # 400 MiB, touched

        with pytest.raises(BudgetExceeded), Allowance(max_memory=runtime.resident_bytes() + 100 * 2**20).enforced():
            allocate()
        assert resource.getrlimit(resource.RLIMIT_DATA) == before
        assert len(allocate())


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), True),
        (OSError(12, "Cannot allocate memory"), True),
        (OSError(28, "No space left on device"), False),
        (RuntimeError("size mismatch"), False),
        (ValueError("x"), False),
    ],
)
def test_out_of_memory(error: BaseException, expected: bool) -> None:
    assert out_of_memory(error) is expected


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == choose_device("cpu") == torch.device("cpu")
    with pytest.raises(UsageError, match="pass --device cpu"):
        choose_device("cuda")
    with pytest.raises(UsageError, match="expected auto, cpu or cuda"):
        choose_device("tpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto") == choose_device("cuda") == torch.device("cuda")
    assert choose_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize(("native", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_precision(native: bool, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "_cpu_has_bfloat16", lambda: native)
    cpu = torch.device("cpu")
    assert choose_dtype("auto", cpu) == expected
    assert choose_dtype("float32", cpu) == torch.float32
    assert choose_dtype("bfloat16", cpu) == torch.bfloat16
    with pytest.raises(UsageError, match="expected auto, float32 or bfloat16"):
        choose_dtype("float16", cpu)


def test_environment_says_what_a_run_cost() -> None:
    watch = Stopwatch()
    watch.stage("search", 1)
    said = environment(watch, torch.device("cpu"), torch.float32, 7)
    assert (said["device"], said["dtype"], said["seed"], said["torch"]) == ("cpu", "float32", 7, torch.__version__)
    assert isinstance(said["peak_memory_bytes"], int)
    assert 10 * 2**20 < said["peak_memory_bytes"] < 2**40
    assert set(said["stages"]) == {"open", "search"}  # type: ignore[call-overload]
    assert said["deterministic"] is torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("measure", [runtime.resident_bytes, runtime.peak_bytes])
def test_memory_is_measured_in_bytes(measure: Callable[[], int]) -> None:
    assert 10 * 2**20 < measure() < 2**40
