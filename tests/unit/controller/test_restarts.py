"""Which failures are followed by a restart: by their cause, and by whether they repeat the last one."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from forgectl.controller.causes import reason
from forgectl.controller.records import AgentLost, RestartAsked
from forgectl.controller.repetition import SOON, fall_of_exception, fall_of_exit, repeated
from forgectl.controller.restarts import cause_of, policy_of, refusal
from forgectl.model.plan import RestartCause, RestartPolicy
from forgectl.model.status import FailureKind
from forgectl.protocol.control import Report
from forgectl.protocol.supervision import MeshGone
from tests.unit.controller.test_state import History, mesh

PLACE = '  File "/work/train.py", line 12, in main\n'
RAISES = f'Traceback (most recent call last):\n  File "/work/train.py", line 40, in <module>\n{PLACE}ValueError: no\n'
IN_LIBRARY = RAISES.replace(
    "ValueError", '  File "/x/lib/python3.11/site-packages/torch/a.py", line 7, in f\nValueError'
)
AT_12: dict[str, Any] = {"error": "ValueError: no", "traceback": RAISES}


def raises(line: int, error: str = "ValueError: no") -> dict[str, Any]:
    return {"error": error, "traceback": RAISES.replace("line 12", f"line {line}").replace("ValueError: no", error)}


def failed_by(*ends: dict[str, Any], most: int = 9, seconds: float = 0.0) -> History:
    """A mesh whose generations ended in these ways, one after the other, each after so many seconds and a few more."""
    h = History(mesh(restart=RestartPolicy(most, backoff=0)))
    for end in ends:
        h.start()
        h.now += seconds
        h.exit(0, **{"code": None if "signal" in end else 1, **end})
        h.gone()
    return h


def test_the_same_line_twice_soon_after_the_start_is_not_tried_again() -> None:
    h = failed_by(AT_12, raises(12, "ValueError: another text"))
    assert (h.mesh().state, len(h.mesh().restarts), h.run.state) == ("failed", 1, "failed")
    why = "failed twice at train.py:12 within 2 s of its start: not tried again"
    assert policy_of(h.mesh(), h.now) == why
    assert reason(h.mesh()) == f"rank 0 on a exited with code 1: ValueError: another text; {why}"


@pytest.mark.parametrize(
    "ends",
    [
        [raises(12), raises(13)],
        [raises(12), raises(12, "KeyError: 1")],
        [raises(12), {"code": 1}],
        [raises(12), raises(13), raises(12)],
        [{"code": 3}, {"code": 4}],
        [{"signal": 9}] * 3,
        [{"signal": 15}] * 3,
        [raises(12, "ConnectionRefusedError: no server yet")] * 3,
        [raises(12, "OSError: [Errno 98] Address already in use")] * 3,
        [raises(12, "torch.distributed.DistNetworkError: no")] * 3,
        [{"code": 1, "error": "MemoryError", "traceback": RAISES}] * 3,
        [{"signal": 9, "oom": "by the kernel"}] * 3,
    ],
    ids=str,
)
def test_what_differs_or_is_not_the_programs_own_is_tried_again(ends: list[dict[str, Any]]) -> None:
    h = failed_by(*ends)
    assert (h.mesh().state, len(h.mesh().restarts)) == ("starting", len(ends))


@pytest.mark.parametrize(
    ("end", "how"),
    [({"code": 3}, "with exit code 3"), ({"signal": 11}, "by SIGSEGV"), ({"signal": 6}, "by SIGABRT")],
)
def test_an_exit_code_or_a_crash_of_its_own_repeats_too(end: dict[str, Any], how: str) -> None:
    h = failed_by(end, end)
    assert h.mesh().state == "failed"
    assert f"failed twice {how} within 2 s" in (reason(h.mesh()) or "")


def test_a_failure_that_took_a_while_is_tried_again() -> None:
    assert failed_by(AT_12, AT_12, AT_12, seconds=SOON).mesh().state == "starting"


def test_what_somebody_asked_to_restart_begins_to_count_anew() -> None:
    h = failed_by(AT_12)
    h.start()
    h.record(RestartAsked({"m": 1}, 10.0, "forgectl restart"))
    h.exit(0, None, 15, asked=True)
    h.exit(1, None, 15, asked=True)
    h.gone()
    h.start()
    h.exit(0, 1, **AT_12)
    assert h.mesh().state == "restarting"


def test_an_actor_whose_setup_returned_made_progress() -> None:
    for set_up, state in ((True, "restarting"), (False, "stopping")):
        h = History(mesh(kind="actor", restart=RestartPolicy(9)))
        for _ in range(2):
            h.start()
            if set_up:
                h.record(Report("m", h.mesh().generation))
            h.exit(0, 1, **AT_12)
            if h.mesh().generation == 0:
                h.gone()
        assert h.mesh().state == state


def test_the_setup_of_an_actor_that_raises_twice() -> None:
    h = History(mesh(kind="actor", restart=RestartPolicy(9, backoff=0)))
    h.start()
    h.record(Report("m", 0))
    h.exit(0, None, 9)
    h.gone()
    for generation in (1, 2):
        h.start()
        h.record(Report("m", generation, "rank 0: ValueError: no", RAISES))
        h.gone()
    assert (h.mesh().state, len(h.mesh().restarts)) == ("failed", 2)
    assert "failed twice at train.py:12" in (reason(h.mesh()) or "")


def test_the_place_is_the_users_innermost_line() -> None:
    fall = fall_of_exception("ValueError: no", IN_LIBRARY, 0.2)
    assert fall is not None
    assert fall.how == "at train.py:12"
    other = fall_of_exception("ValueError: no", IN_LIBRARY.replace("line 7", "line 8"), 0.2)
    assert (repeated(fall, fall) is None, repeated(fall, other)) == (False, None)


def test_of_a_chain_the_last_exception_counts() -> None:
    chain = f"{RAISES.replace('line 12', 'line 9')}\nDuring handling of the above:\n\n{RAISES}"
    first, second = (fall_of_exception("ValueError: no", text, 0.0) for text in (chain, RAISES))
    assert first == second


def test_no_end_says_nothing() -> None:
    assert (
        fall_of_exit(0, None, 0.0) is fall_of_exit(None, None, 0.0) is fall_of_exit(None, signal.SIGKILL, 0.0) is None
    )
    assert repeated(None, None) is None
    assert fall_of_exception("ValueError: no", "no frames", 0.0) is None


# ------------------------------------------------------------ causes


KINDS: dict[FailureKind, RestartCause] = {
    "exception": "crash",
    "exit": "crash",
    "signal": "crash",
    "not_started": "crash",
    "hang": "hang",
    "host_lost": "host_lost",
    "lease": "host_lost",
    "out_of_memory": "oom",
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_failure_has_a_cause(kind: FailureKind) -> None:
    assert cause_of(kind) == KINDS[kind]


def ended_by(cause: str, on: tuple[RestartCause, ...]) -> History:
    h = History(mesh(procs=2, hosts=("a", "b"), restart=RestartPolicy(9, on=on)), hosts=("a", "b"))
    h.start()
    if cause == "crash":
        h.exit(1, 3)
    elif cause == "oom":
        h.exit(1, None, 9, oom="by the kernel")
    else:
        h.record(AgentLost("b", "the agent on b was killed"))
    h.happen(MeshGone("m", 0), "a")
    if cause != "host_lost":
        h.happen(MeshGone("m", 0), "b")
    return h


@pytest.mark.parametrize("cause", ["crash", "oom", "host_lost"])
def test_a_mesh_restarts_for_the_causes_that_its_policy_has(cause: RestartCause) -> None:
    assert ended_by(cause, (cause,)).mesh().generation == 1
    others: tuple[RestartCause, ...] = tuple(c for c in KINDS.values() if c != cause)
    h = ended_by(cause, others)
    assert h.mesh().state == ("lost" if cause == "host_lost" else "failed")
    assert f"and this is {cause}" in (refusal(h.mesh(), h.now) or "")
