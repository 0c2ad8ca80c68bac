"""What a fork server of actors has ready for its ranks, held against the Monarch that is installed."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

PROGRAM = """
import json, os, sys
from pathlib import Path
import forgectl.rank.ahead
threads = len(os.listdir("/proc/self/task"))
assert "monarch" not in sys.modules
from forgectl.rank import ahead
ready = {"monarch", *(f"{package}.{name}" for package, names in ahead.MONARCHS_OWN.items() for name in names)}
before = set(sys.modules)
import forgectl.actor.shell, monarch._src.actor.bootstrap_main
from monarch._src.actor.debugger import breakpoint
came = {n: m for n, m in sys.modules.items() if n not in before and getattr(m, "__file__", None)}
came = {n: m for n, m in came.items() if m.__file__.endswith(".py")}
own = {n: m for n, m in came.items() if n.partition(".")[0] == "monarch"}
print(json.dumps({
    "threads": threads,
    "not read": sorted(own.keys() - ready),
    "read in vain": sorted(ready - own.keys()),
    "found otherwise": sorted(n for n in own if type(own[n].__loader__).__name__ != "_Read"),
    "others": sorted(n for n in came if n not in own and not n.startswith("forgectl.")),
    "source": "class Actor" in __import__("inspect").getsource(sys.modules["monarch._src.actor.actor_mesh"]),
}))
"""


@pytest.fixture(scope="module")
def facts() -> dict[str, object]:
    pytest.importorskip("monarch")
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_all_that_a_rank_imports_of_monarch_is_read_before_the_fork_and_no_more(facts: dict[str, object]) -> None:
    assert (facts["not read"], facts["read in vain"], facts["found otherwise"]) == ([], [], [])
    assert facts["source"], "and tracebacks show its lines"


def test_all_else_that_monarch_needs_is_imported_before_the_fork(facts: dict[str, object]) -> None:
    assert facts["others"] == []


def test_no_thread_is_started_by_it(facts: dict[str, object]) -> None:
    assert facts["threads"] == 1
