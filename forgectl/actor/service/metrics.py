"""What a service, or one replica of it, has answered lately: counts, rate and latency, in bounded memory."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TypedDict, TypeVar

T = TypeVar("T")
WINDOW = 60  # seconds that the rate looks back
SAMPLES = 1000  # requests that the latency looks back


class Answered(TypedDict):
    """What ServiceStatus and ReplicaStatus both have."""

    total: int
    successes: int
    failures: int
    cancelled: int
    requests_per_second: float
    latency_mean: float | None
    latency_p50: float | None
    latency_p99: float | None


class AnswerCounts:
    """Counts of answered requests. `clock` gives seconds, as `time.monotonic`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.successes = 0
        self.failures = 0
        self.cancelled = 0
        self._latencies: deque[float] = deque(maxlen=SAMPLES)
        self._counts = [0] * WINDOW  # answers within each of the last seconds; a slot is reused a window later
        self._seconds = [-1] * WINDOW
        self._since = clock()

    def succeeded(self, began: float) -> None:
        """A request that came at `began`, on the same clock, has its result."""
        self.successes += 1
        self._answered(began)

    def failed(self, began: float) -> None:
        """A request that came at `began` ended with an exception."""
        self.failures += 1
        self._answered(began)

    async def counted(self, request: Awaitable[T], began: float) -> T:
        """Await the request, and count how it ends."""
        try:
            result = await request
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        except BaseException:
            self.failed(began)
            raise
        self.succeeded(began)
        return result

    def _answered(self, began: float) -> None:
        now = self.clock()
        self._latencies.append(now - began)
        second = int(now)
        slot = second % WINDOW
        if self._seconds[slot] != second:
            self._seconds[slot] = second
            self._counts[slot] = 0
        self._counts[slot] += 1

    def rate(self) -> float:
        """Answered requests per second over the last minute, or since the start if that is later."""
        now = self.clock()
        recent = sum(n for n, s in zip(self._counts, self._seconds, strict=True) if s > now - WINDOW)
        return recent / min(WINDOW, max(1.0, now - self._since))

    def numbers(self) -> Answered:
        """Counts, and latency in seconds from a request's arrival to its answer; None where nothing was answered.

        `total` is successes and failures; requests whose callers were cancelled count only as `cancelled`.
        """
        latencies = sorted(self._latencies)
        return {
            "total": self.successes + self.failures,
            "successes": self.successes,
            "failures": self.failures,
            "cancelled": self.cancelled,
            "requests_per_second": self.rate(),
            "latency_mean": sum(latencies) / len(latencies) if latencies else None,
            "latency_p50": _percentile(latencies, 0.50),
            "latency_p99": _percentile(latencies, 0.99),
        }


def _percentile(ordered: list[float], share: float) -> float | None:
    """The nearest rank: the least value that `share` of all do not exceed."""
    return ordered[math.ceil(share * len(ordered)) - 1] if ordered else None
