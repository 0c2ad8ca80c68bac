"""Counts, rate and latency of the requests that a service or one replica has answered, in bounded memory."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TypedDict, TypeVar

T = TypeVar("T")
WINDOW = 60  # seconds over which the rate is measured
SAMPLES = 1000  # latest requests over which the latency is measured


class Answered(TypedDict):
    """The fields that ServiceStatus and ReplicaStatus share."""

    total: int
    successes: int
    failures: int
    cancelled: int
    requests_per_second: float
    latency_mean: float | None
    latency_p50: float | None
    latency_p99: float | None


class AnswerCounts:
    """Counts answered requests. `clock` returns seconds, like `time.monotonic`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.successes = 0
        self.failures = 0
        self.cancelled = 0
        self._latencies: deque[float] = deque(maxlen=SAMPLES)
        self._counts = [0] * WINDOW  # answers per second; after WINDOW seconds a slot is reused
        self._seconds = [-1] * WINDOW
        self._since = clock()

    def succeeded(self, began: float) -> None:
        """Count the result of a request that arrived at `began`, a time of the same clock."""
        self.successes += 1
        self._answered(began)

    def failed(self, began: float) -> None:
        """Count the exception of a request that arrived at `began`."""
        self.failures += 1
        self._answered(began)

    async def counted(self, request: Awaitable[T], began: float) -> T:
        """Await the request, and count its result, exception or cancellation."""
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
        """Answered requests per second, over the last minute or since the start if that is shorter."""
        now = self.clock()
        recent = sum(n for n, s in zip(self._counts, self._seconds, strict=True) if s > now - WINDOW)
        return recent / min(WINDOW, max(1.0, now - self._since))

    def numbers(self) -> Answered:
        """Counts, and latency in seconds from a request's arrival to its answer; None if there were no answers.

        `total` is successes plus failures. Requests whose callers were cancelled count only as `cancelled`.
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
    """By the nearest-rank method: the smallest value that at least `share` of the values do not exceed."""
    return ordered[math.ceil(share * len(ordered)) - 1] if ordered else None
