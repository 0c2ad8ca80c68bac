"""What is shown of a mesh that failed: equal errors once, and nothing twice that was just on the same screen."""

from __future__ import annotations

import pytest

from forgectl.cli.views.render import failure_report
from forgectl.model.status import CollateralStatus, FailureStatus, MeshStatus
from tests.unit.cli.printing import printed

TRACE = """Traceback (most recent call last):
  File "/work/imp.py", line 5, in <module>
    work()
  File "/work/imp.py", line 3, in work
    import nothing
ModuleNotFoundError: No module named 'nothing'
"""
ERROR = "ModuleNotFoundError: No module named 'nothing'"
HINT = "  try: install nothing for the interpreter of the ranks on this machine (`forgectl plan` shows it), or set"


def report(failure: FailureStatus, *, seen: bool = False) -> list[str]:
    settings = {"failure": failure, "state": "failed", "mesh": "imp"}
    fields = vars(MeshStatus.lost("imp", "")) | settings
    shown = failure_report(MeshStatus(**fields), seen=seen)
    assert shown is not None
    *lines, hint = printed(shown, 200).splitlines()
    assert hint.startswith(HINT)
    return lines


def failed(*collateral: tuple[int, str], **fields: object) -> FailureStatus:
    others = tuple(CollateralStatus(rank, f"rank {rank} on gpu{rank} {how}") for rank, how in collateral)
    message = f"rank 3 on local exited with code 1: {ERROR}"
    return FailureStatus(3, "local", message, collateral=others, **fields)  # type: ignore[arg-type]


def test_equal_errors_of_ranks_are_one_line() -> None:
    alike = [(rank, f"raised {ERROR}" if rank % 2 else f"exited with code 1: {ERROR}") for rank in (0, 1, 2, 5, 7, 6)]
    assert report(failed(*alike, (4, "was killed by SIGKILL"), traceback=TRACE)) == [
        f"imp failed: rank 3 on local exited with code 1: {ERROR}",
        *(f"  {line}" for line in TRACE.splitlines()),
        "  ranks 0-3,5-7: the same error",
        "  fell with it: rank 4 on gpu4 was killed by SIGKILL",
    ]


@pytest.mark.parametrize("how", ["was killed by SIGTERM", "exited with code 1", "raised KeyError: 1"])
def test_other_ends_are_not_taken_for_the_same_error(how: str) -> None:
    lines = report(failed((0, how)))
    assert lines[1:] == [f"  fell with it: rank 0 on gpu0 {how}"]


def test_what_was_just_seen_is_not_repeated_in_full() -> None:
    assert report(failed(traceback=TRACE), seen=True)[1:] == [
        '    File "/work/imp.py", line 3, in work',
        "      import nothing",
        f"  {ERROR}",
    ]
    tail = tuple(f"line {n}" for n in range(20))
    assert len(report(failed(log_tail=tail))) == 22
    assert report(failed(log_tail=tail), seen=True)[2:] == [f"  │ line {n}" for n in range(15, 20)]
