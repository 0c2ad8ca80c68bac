"""How long a mesh waits before it restarts. Pure.

As in kubelet the first restart is at once: most failures do not repeat, and the GPUs would idle. A program that fails
again and again waits longer and longer, so it neither floods a host with processes nor the disk with logs.
"""

from __future__ import annotations

LONGEST = 60.0
"""The longest wait in seconds, unless the first one is longer."""
_DOUBLINGS = 40
"""Enough to reach LONGEST from any wait; more would overflow a float."""


def wait_before(backoff: float, in_a_row: int) -> float:
    """Seconds before the next restart of a mesh that has restarted `in_a_row` times and was never up for long."""
    if in_a_row == 0:
        return 0.0
    return min(backoff * 2.0 ** min(in_a_row - 1, _DOUBLINGS), max(backoff, LONGEST))


def healthy_after(backoff: float) -> float:
    """Seconds that a mesh must be up to count as healthy, so that its next restart is at once again.

    Twice the longest wait, as in kubelet: even a mesh that always fails then is up for most of the time.
    """
    return 2 * max(backoff, LONGEST)
