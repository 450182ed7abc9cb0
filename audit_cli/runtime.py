"""What a run costs and how much it may cost: stage times, peak memory, time and memory limits, device and precision."""

from __future__ import annotations

import errno
import platform
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from audit_cli.errors import BudgetExceeded, UsageError
from audit_cli.types import Progress, Silent

# Ours: bytes above the memory limit at which allocations fail. Native libraries do not look whether a small one did
# and crash; with this much room it is a large one that fails, and the next check sees the rest.
HEADROOM = 64 * 2**20


class Stopwatch:
    """A Progress that passes everything on and remembers how many seconds each stage took."""

    def __init__(self, inner: Progress | None = None) -> None:
        self.inner = inner or Silent()
        self.started = self._since = time.monotonic()
        self._stage = "open"
        self._seconds: dict[str, float] = {}

    def stage(self, name: str, total: int) -> None:
        self._close()
        self._stage = name
        self.inner.stage(name, total)

    def advance(self, steps: int = 1, note: str = "") -> None:
        self.inner.advance(steps, note)

    def _close(self) -> None:
        now = time.monotonic()
        self._seconds[self._stage] = self._seconds.get(self._stage, 0.0) + now - self._since
        self._since = now

    def seconds(self) -> dict[str, float]:
        """Seconds per stage, the current one included."""
        self._close()
        return {name: round(value, 2) for name, value in self._seconds.items()}


@dataclass(frozen=True)
class Allowance:
    """A Budget in seconds of wall time and bytes of resident memory; None is no limit. The clock starts here."""

    timeout: float | None = None
    max_memory: int | None = None
    started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        if self.timeout is not None and not self.timeout > 0:  # NaN is not either
            raise UsageError(f"--timeout {self.timeout}: must be positive")
        if self.max_memory is not None and self.max_memory <= 0:
            raise UsageError(f"--max-memory {self.max_memory}: must be positive")

    def check(self) -> None:
        if self.timeout is not None and time.monotonic() - self.started > self.timeout:
            raise BudgetExceeded(f"the time limit of {self.timeout:g} s was used up; raise --timeout")
        if self.max_memory is not None and (used := resident_bytes()) > self.max_memory:
            raise BudgetExceeded(
                f"{used / 2**20:.0f} MiB in use, over the memory limit of {self.max_memory / 2**20:.0f} MiB; "
                "raise --max-memory"
            )

    @contextmanager
    def enforced(self) -> Iterator[None]:
        """An allocation that would pass the memory limit between two checks fails, and ends as BudgetExceeded too."""
        try:
            with _data_segment(self.max_memory):
                yield
        except Exception as error:
            if self.max_memory is not None and any(map(_out_of_bounds, _causes(error))):
                limit = f"{self.max_memory / 2**20:.0f} MiB"
                raise BudgetExceeded(f"an allocation passes the memory limit of {limit}; raise --max-memory") from error
            raise


def out_of_memory(error: BaseException) -> bool:
    """Is this Python's, the system's, PyTorch's CPU allocator's or CUDA's way to say that memory ran out?"""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    text = str(error).lower()
    said = ("out of memory", "can't allocate memory", "cannot allocate memory", "bad_alloc", "can't start new thread")
    return isinstance(error, MemoryError) or any(words in text for words in said)


def _out_of_bounds(error: BaseException) -> bool:
    """The same under a limit, where oneDNN's refusal of a kernel, which names no cause, means memory too."""
    refused = str(error).startswith(("could not create a", "could not execute a"))
    return out_of_memory(error) or (isinstance(error, RuntimeError) and refused)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what it was raised from: a reader may have put its own words on a failed allocation."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


@contextmanager
def _data_segment(limit: int | None) -> Iterator[None]:
    """Lets the process's private memory grow to `limit` bytes and HEADROOM at most, while inside (Linux; elsewhere no
    effect)."""
    if limit is None or not sys.platform.startswith("linux"):
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_DATA)
    private = _status("VmData") or 0
    room = max(0, limit - resident_bytes()) + HEADROOM
    resource.setrlimit(
        resource.RLIMIT_DATA, (min(private + room, before[1]) if before[1] > 0 else private + room, before[1])
    )
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def _status(key: str) -> int | None:
    """A line of /proc/self/status, in bytes."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(key + ":")), None)


def resident_bytes() -> int:
    """Resident memory now; where the system does not tell, the peak so far."""
    return _status("VmRSS") or peak_bytes()


def peak_bytes() -> int:
    """Largest resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def choose_device(name: str) -> torch.device:
    """`auto` (CUDA where there is one), `cpu` or `cuda`."""
    if name not in ("auto", "cpu", "cuda"):
        raise UsageError(f"--device {name}: expected auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: PyTorch finds no CUDA device here; pass --device cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto` (bfloat16 where the device computes in it, else float32), `float32` or `bfloat16`."""
    if name not in ("auto", "float32", "bfloat16"):
        raise UsageError(f"--dtype {name}: expected auto, float32 or bfloat16")
    if name != "auto":
        return torch.float32 if name == "float32" else torch.bfloat16
    native = torch.cuda.is_bf16_supported() if device.type == "cuda" else _cpu_has_bfloat16()
    return torch.bfloat16 if native else torch.float32


def _cpu_has_bfloat16() -> bool:
    """Does the processor multiply bfloat16 itself? Emulation would be slower than float32."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def environment(watch: Stopwatch, device: torch.device, dtype: torch.dtype, seed: int) -> dict[str, object]:
    """The verdict's `environment`."""
    cuda = f"cuda ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else ""
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": cuda or device.type,
        "dtype": str(dtype).removeprefix("torch."),
        "seed": seed,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "threads": torch.get_num_threads(),
        "seconds": round(time.monotonic() - watch.started, 2),
        "peak_memory_bytes": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_bytes(),
        "stages": watch.seconds(),
    }
