"""A host that lies, floods or is broken: it is given up by name, harms no other host, run or file, and all ends.

Two hosts, reached through a program in the place of ssh that starts the real relay on this machine and stands between
it and forgectl: see programs/hostile_ssh.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import psutil
import pytest

from forgectl.controller import journal
from forgectl.controller.records import AgentUp, Happened, Record
from forgectl.protocol.supervision import Happening
from forgectl.transport.survey import workdir_key
from forgectl.wire.codec import from_tagged
from tests.conftest import PROGRAMS, Forge, processes_with, until
from tests.process.deaths import controller_of, end_controller, pids, records, until_empty

STAY = "scripts: {stay: {run: stay.py, procs: 4, hosts: 2, preload: []}}"
HERE = "scripts: {stay: {run: PROGRAMS/stay.py, procs: 1, preload: []}}"
ROOT = Path(f"/var/tmp/forgectl-{os.getuid()}")
GROWTH = 150 << 20
"""Bytes by which a controller may grow under attack."""
What = dict[str, Any]


def started(**more: Any) -> What:
    what = {"mesh": "stay", "generation": 0, "rank": 2, "pid": 4711, "start_time": 1, "log": "/tmp/x"}
    return {"type": "RankStarted", **what, **more}


def exited(**more: Any) -> What:
    return {"type": "RankExited", "mesh": "stay", "generation": 0, "rank": 2, "exit_code": 0, "signal": None, **more}


def gone(**more: Any) -> What:
    return {"type": "MeshGone", "mesh": "stay", "generation": 0, **more}


class Hosts:
    """A forgectl whose ssh hosts behave as they are told to."""

    def __init__(self, forge: Forge, folder: Path) -> None:
        self.forge = forge
        self._todo: dict[str, Any] = {}
        self._file = folder / "hostile.json"
        self._file.write_text("{}")
        forge.env |= {"HOSTILE": str(self._file), "FORGECTL_SSH": f"{sys.executable} {PROGRAMS}/hostile_ssh.py"}

    def be(self, host: str, **todo: Any) -> None:
        """How a host behaves on connections from now on."""
        self._todo[host] = todo
        self._file.write_text(json.dumps(self._todo))

    def spec(self, body: str = STAY, *names: str, top: str = f"workdir: {PROGRAMS}\nsync: none\n") -> str:
        hosts = ", ".join(f"{{name: {n}, python: {sys.executable}}}" for n in names or ("good", "bad"))
        return f"hosts: [{hosts}]\n{top}lease: 3s\n{body}\n"

    def launch(self, *arguments: str) -> str:
        return self.forge.launch(self.spec(*arguments))

    def refused(self, *options: str, code: int = 69, text: str | None = None) -> str:
        """What a launch says that has to fail because of `bad`."""
        result = self.forge.run("launch", self.forge.spec(text or self.spec()), "-d", *options)
        assert result.returncode == code, (result.returncode, result.stdout, result.stderr)
        assert "host bad" in result.stderr
        assert "Traceback" not in result.stderr
        return result.stderr

    def until_lost(self, run: str) -> dict[str, Any]:
        """The final state of a run that has lost its host `bad`."""
        final = self.forge.until_ended(run)
        assert {h["name"]: h["state"] for h in final["hosts"]} == {"good": "gone", "bad": "lost"}, final["hosts"]
        return final


@pytest.fixture
def hosts(forge: Forge, tmp_path: Path) -> Iterator[Hosts]:
    yield Hosts(forge, tmp_path)
    forge.run("shutdown", "--all", "--force")
    for run in forge.runs():  # agents of hosts that were given up end by their lease
        until_empty(run)
    for run in forge.runs():
        shutil.rmtree(ROOT / "runs" / run, ignore_errors=True)
        assert "Traceback" not in (log := (forge.run_dir(run) / "controller.log").read_text()), log[-3000:]
    for path in (ROOT / "work").glob(f"*{workdir_key(forge.folder)}*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def test_honest_hosts_are_none_the_worse_for_what_stands_between(hosts: Hosts) -> None:
    run = hosts.launch()
    assert [h["state"] for h in hosts.forge.document(run)["hosts"]] == ["up", "up"]
    assert len(hosts.forge.ok("logs", "stay").splitlines()) == 4
    assert "4 × SIGTERM" in hosts.forge.ok("shutdown", "stay")


# ---------------------------------------------------------------- events about what is not theirs

LIES: dict[str, tuple[What, str]] = {
    "a mesh that is a path": (started(mesh="/HOME/evil"), "which is not a valid name"),
    "a mesh in another run": (started(mesh="../../../VICTIM/logs/stay"), "which is not a valid name"),
    "a rank of another host": (started(rank=0), "rank 0 of mesh stay, which is on host good"),
    "the end of a rank of another host": (exited(rank=1), "rank 1 of mesh stay, which is on host good"),
    "a rank that there is not": (started(rank=99), "rank 99 of mesh stay, which has 4"),
    "a rank below zero": (exited(rank=-1), "rank -1 of mesh stay, which has 4"),
    "a later generation": (started(generation=300_000_000), "generation 300000000 of mesh stay, which is in gen"),
    "a mesh's end in a later generation": (gone(generation=1), "generation 1 of mesh stay, which is in generation 0"),
    "a store that is another's": (
        {"type": "StoreOpened", "mesh": "stay", "generation": 0, "port": 1},
        "opened a store for mesh stay, which has its store on good",
    ),
    "a pid that is none": (started(rank=3, pid=-1), "it sent pid -1, which is impossible"),
    "an end before the beginning of time": (exited(failed_ago=float("inf")), "failed inf s ago"),
    "a messenger in a run without": (
        {"type": "MessengerOpened", "generation": 0, "port": 1, "socket": "/tmp/x"},
        "reported a messenger, but has none",
    ),
    "no event of ours": ({"type": "Explode"}, "unknown message 'Explode'"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_host_that_reports_what_is_not_its_own_is_given_up(hosts: Hosts, lie: str, tmp_path: Path) -> None:
    forge = hosts.forge
    victim = forge.launch(HERE, "--name", "victim")
    log = forge.run_dir(victim) / "logs" / "stay" / "0" / "rank-0.log"
    until(lambda: log.exists() and log.read_bytes(), "the victim's log")
    before = log.read_bytes()
    what, words = LIES[lie]
    if "mesh" in what:
        what = {**what, "mesh": what["mesh"].replace("HOME", str(tmp_path)).replace("VICTIM", victim)}
    hosts.be("bad", after="RankStarted", events=[what])
    said = hosts.refused()
    assert "host bad was given up: " in said and words in said
    [run] = [r for r in forge.runs() if r != victim]
    final = hosts.until_lost(run)
    assert final["state"] in ("failed", "lost") and final["exit_code"] == 69
    assert '"type":"Explode"' not in (forge.run_dir(run) / "events.jsonl").read_text()
    written = {p.parts[-4:] for p in forge.home.rglob("rank-*.log")}
    assert written <= {("logs", "stay", "0", f"rank-{n}.log") for n in range(4)}
    assert not (tmp_path / "evil").exists()
    assert log.read_bytes() == before
    assert forge.mesh(victim, "stay")["state"] == "running"
    assert f"{victim}/stay stopped" in forge.ok("shutdown", "--all")


def test_a_host_that_begins_to_lie_ends_its_mesh_and_nothing_else(hosts: Hosts) -> None:
    forge = hosts.forge
    victim = forge.launch(HERE, "--name", "victim")
    hosts.be("bad", after="Stats", events=[started(rank=99)])
    run = hosts.launch()
    assert forge.document(run)["state"] in ("running", "stopping", "lost")  # asks the hosts for statistics
    final = hosts.until_lost(run)
    assert (final["state"], final["exit_code"]) == ("lost", 69)
    assert "host bad was given up: it reported rank 99" in final["meshes"][0]["reason"]
    assert [r["run"] for r in forge.status()][:1] == [victim]
    assert f"{victim}/stay stopped" in forge.ok("shutdown", "--all")


def test_a_mesh_that_lost_a_hostile_host_restarts_on_another(hosts: Hosts) -> None:
    hosts.be("bad", after="Stats", events=[exited(rank=0)])
    run = hosts.launch(STAY.replace("preload", "restart: {max: 2}, preload"), "good", "bad", "spare")
    mesh = hosts.forge.until_mesh(run, "stay", lambda m: m["generation"] == 1 and m["state"] == "running")
    assert {r["host"] for r in mesh["ranks"]} == {"good", "spare"}
    assert "host bad was given up" in mesh["reason"]
    assert "4 × SIGTERM" in hosts.forge.ok("shutdown", "stay")


# ---------------------------------------------------------------- messages that no agent sends

NONSENSE: dict[str, tuple[str | What, str]] = {
    "garbage": ("\x00\x01GET / HTTP/1.1\n", "not JSON"),
    "a line without end": ("x" * (9 << 20), "a message of more than"),
    "deep lists": ("[" * 200_000 + "\n", "not JSON"),
    "a second welcome": (
        {"type": "Welcome", "version": "1", "host": "bad", "pid": 1, "boot_id": "x"},
        "Welcome, which nobody asked for",
    ),
    "a second Synced": ({"type": "Synced"}, "a second Synced"),
    "an answer to no question": ({"type": "HostGpus", "gpus": []}, "HostGpus, which nobody asked for"),
    "a Pong to no Ping": ({"type": "Pong"}, "Pong that nobody asked for"),
    "an event without a number": (
        {"type": "Event", "seq": -1, "what": {"type": "Prepared", "mesh": "stay"}},
        "seq -1, which is impossible",
    ),
    "an event of nothing": ({"type": "Event", "seq": 1, "what": {}}, "Event.what: the message does not name its type"),
    "keys that are no numbers": (
        {"type": "Stats", "meshes": {"stay": {"x": {"cpu_percent": 0, "rss_bytes": 0}}}},
        "'x' is not a number",
    ),
}


@pytest.mark.parametrize("kind", NONSENSE)
def test_a_host_that_sends_nonsense_is_given_up(hosts: Hosts, kind: str) -> None:
    line, words = NONSENSE[kind]
    hosts.be("bad", after="Prepared", lines=[line, line])
    said = hosts.refused()
    assert "host bad was given up: " in said and words in said
    hosts.until_lost(*hosts.forge.runs())


def test_half_a_message_is_a_lost_connection_and_nothing_more(hosts: Hosts) -> None:
    hosts.be("bad", after="Stats", lines=['{"type":"Event","seq":1,"wh'], hang_up=True)
    run = hosts.launch()
    [first] = ssh_to(hosts, "bad")
    hosts.be("bad")
    before = pids(hosts.forge.mesh(run, "stay"))  # asks the hosts for statistics
    until(lambda: (now := ssh_to(hosts, "bad")) and first not in now, "another connection")
    until(lambda: hosts.forge.document(run)["hosts"][1]["state"] == "up", "its agent")
    assert pids(hosts.forge.mesh(run, "stay")) == before
    assert "4 × SIGTERM" in hosts.forge.ok("shutdown", "stay")


def test_connections_that_end_again_and_again_fill_no_journal_and_have_an_end(hosts: Hosts) -> None:
    run = hosts.launch()
    hosts.be("bad", after="Welcome", hang_up=True)
    for process in ssh_to(hosts, "bad"):
        process.kill()
    final = hosts.forge.until_ended(run)  # what its agent says in between may end the mesh before the host is given up
    assert [h["state"] in ("lost", "reconnecting") for h in final["hosts"] if h["name"] == "bad"] == [True]
    assert "bad" in final["meshes"][0]["reason"]
    assert sum(isinstance(r, AgentUp) and r.host == "bad" for r in records(hosts.forge, run)) <= 2


def test_a_host_that_never_answers_a_ping_is_lost(hosts: Hosts) -> None:
    hosts.be("bad", drop=["Pong"], after="RankStarted", events=[exited(mesh="other")] * 3)
    run = hosts.launch()
    final = hosts.forge.until_ended(run)  # by its agent, which fences itself, or by its link
    assert "bad" in final["meshes"][0]["reason"]


# ---------------------------------------------------------------- streams without end

FLOODS: dict[str, list[What]] = {
    "notices": [{"type": "Notice", "mesh": "stay", "message": "x" * 1000}],
    "what was said before": [started(), started(rank=3)],
    "meshes that there are not": [gone(mesh="other")],
    "starts that failed": [{"type": "StartFailed", "mesh": "stay", "generation": 0, "message": "x"}],
    "ends": [gone()],
}


@pytest.mark.parametrize("kind", FLOODS)
def test_events_without_end_fill_neither_disk_nor_memory(hosts: Hosts, kind: str) -> None:
    hosts.be("bad", after="Stats", events=FLOODS[kind] * 200, forever=True)
    run = hosts.launch()
    controller = psutil.Process(controller_of(hosts.forge, run))
    before = controller.memory_info().rss
    most = 0

    def look() -> bool:
        nonlocal most
        with contextlib.suppress(psutil.Error):
            most = max(most, controller.memory_info().rss)
        return any(h["state"] == "lost" for h in hosts.forge.document(run)["hosts"])

    until(look, "the loss of bad")
    final = hosts.until_lost(run)
    said = final["meshes"][0]["reason"] + (hosts.forge.run_dir(run) / "controller.log").read_text()
    assert "host bad was" in said
    assert (hosts.forge.run_dir(run) / "events.jsonl").stat().st_size < 4 << 20
    assert most - before < GROWTH


def test_errors_of_ssh_without_end_are_kept_nowhere(hosts: Hosts) -> None:
    hosts.be("bad", stderr=True)
    hosts.launch()
    found = ssh_to(hosts, "bad")
    assert found
    for process in found:
        assert os.readlink(f"/proc/{process.pid}/fd/2").startswith("pipe:")
    assert len(hosts.forge.ok("logs", "stay").splitlines()) == 4
    assert "4 × SIGTERM" in hosts.forge.ok("shutdown", "stay")


def ssh_to(hosts: Hosts, host: str) -> list[psutil.Process]:
    """The processes in the place of ssh that are connected to a host."""
    found = []
    for pid, command in processes_with(f"HOSTILE={hosts.forge.env['HOSTILE']}").items():
        words = command.split()
        if any(w.endswith("hostile_ssh.py") for w in words) and host in words:
            found.append(psutil.Process(pid))
    return found


@pytest.mark.parametrize("text", ["\n", "x\n", "forgectl-relay {}\n", "x" * 1000])
def test_noise_without_end_before_the_relay_runs(hosts: Hosts, text: str) -> None:
    hosts.be("bad", after="", lines=[text] * 100, forever=True)
    hosts.refused()
    assert not hosts.forge.runs()


@pytest.mark.parametrize(
    ("kind", "fields", "words"),
    [
        ("HostReport", {"type": "NoAgent"}, "it answered GetFacts with NoAgent"),
        ("HostReport", {"facts": {"cores": "many"}}, "HostReport.facts.cores"),
        ("HostReport", {"facts": {"root": "../../x"}}, "which is not a path"),
        ("HostReport", {"facts": {"addresses": ["x" * 300]}}, "it has the address"),
        ("AgentReached", {"type": "RelayReady", "version": "1"}, "RelayReady"),
    ],
)
def test_a_relay_that_answers_what_was_not_asked(hosts: Hosts, kind: str, fields: What, words: str) -> None:
    hosts.be("bad", change={kind: fields})
    assert words in hosts.refused()


# ---------------------------------------------------------------- logs


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"offset": -5}, "offset of a log -5"),
        ({"offset": 1 << 63, "size": 1 << 63}, "which is impossible"),
        ({"offset": 1 << 70, "size": 1 << 70}, "which is impossible"),
        ({"size": -1}, "size of a log -1"),
        ({"data": "%%%"}, "not base64"),
        ({"size": 1}, "bytes beyond the end of a log"),
        ({"at": {"rank": 0}}, "a log that nobody asked it for"),
        ({"at": {"mesh": "../../../x"}}, "a log that nobody asked it for"),
    ],
)
def test_parts_of_logs_that_cannot_be(hosts: Hosts, fields: What, words: str) -> None:
    forge = hosts.forge
    hosts.be("bad", change={"LogParts": {"parts": fields}})
    run = hosts.launch()
    until(lambda: len(forge.ok("logs", "stay", "--ranks", "0-1").splitlines()) == 2, "the logs of good")
    final = hosts.until_lost(run)
    assert words in final["meshes"][0]["reason"]
    home = forge.run_dir(run) / "logs" / "stay" / "0"
    for rank in (0, 1):
        assert f"here: rank {rank} of 4" in (home / f"rank-{rank}.log").read_text()
    assert not [p for p in home.iterdir() if p.stat().st_size > 10_000]


@pytest.mark.parametrize("size", [4 << 40, 1 << 39])
def test_a_log_that_never_ends_does_not_keep_a_run_from_ending(hosts: Hosts, size: int) -> None:
    hosts.be("bad", change={"LogParts": {"parts": {"size": size}}})
    run = hosts.launch()
    assert "4 × SIGTERM" in hosts.forge.ok("shutdown", "stay")
    assert hosts.forge.until_ended(run)["state"] == "stopped"
    home = hosts.forge.run_dir(run) / "logs" / "stay" / "0"
    assert not [p for p in home.iterdir() if p.stat().st_size > 10_000]


# ---------------------------------------------------------------- stacks


def collective(group: str, **more: Any) -> What:
    return {
        "group": group,
        "description": "default_pg",
        "backend": "gloo",
        "sequence": 1,
        "operation": "all_reduce",
        "shapes": [[1]],
        "dtypes": ["float"],
        "pending": True,
        "age": 1e9,
        **more,
    }


STACKS: dict[str, What] = {
    "ranks of groups that there are not": {
        "recorded": True,
        "groups": [{"name": "g", "description": "", "ranks": [-1, 99, 1 << 70, 2, 2]}],
        "collectives": [collective("g")],
    },
    "numbers that are none": {
        "recorded": True,
        "collectives": [collective("g", sequence=-(1 << 70), age=float("nan")), collective("h", age=float("inf"))],
    },
    "more groups than there can be": {"recorded": True, "collectives": [collective(f"g{n}") for n in range(2_000)]},
    "another's rank": {"rank": 0, "detail": "it is mine"},
    "another's host": {"host": "good", "detail": "it is mine"},
    "no threads": {"threads": [], "view": "seen"},
    "threads without calls": {"threads": [{"name": "x", "frames": []}] * 1000, "view": "seen"},
}


@pytest.mark.parametrize("kind", STACKS)
def test_answers_about_stacks_that_cannot_be_or_are_too_many(hosts: Hosts, kind: str) -> None:
    hosts.be("bad", change={"Stacks": {"meshes": {"stay": STACKS[kind]}}})
    hosts.launch()
    for options in ([], ["-v"]):
        assert "  [0-" in (shown := hosts.forge.ok("stack", "stay", *options))
        assert len(shown) < 100_000 and "it is mine" not in shown
    ranks = json.loads(hosts.forge.ok("stack", "stay", "--json"))["meshes"][0]["ranks"]
    assert [r["host"] for r in ranks] == ["good", "good", "bad", "bad"]
    assert all("stay.py" in json.dumps(r["threads"]) for r in ranks[:2])
    assert "4 × SIGTERM" in hosts.forge.ok("shutdown", "stay")


def test_stacks_of_the_wrong_kind_end_the_host(hosts: Hosts) -> None:
    hosts.be("bad", change={"Stacks": {"meshes": {"stay": {"view": "owned"}}}})
    run = hosts.launch()
    hosts.forge.run("stack", "stay")
    assert "'owned' is not one of" in hosts.until_lost(run)["meshes"][0]["reason"]


def test_stacks_that_nobody_asked_for_end_the_host(hosts: Hosts) -> None:
    hosts.be("bad", after="Stats", lines=[{"type": "Stacks", "meshes": {}}])
    run = hosts.launch()
    hosts.forge.status()
    assert "Stacks, which nobody asked for" in hosts.until_lost(run)["meshes"][0]["reason"]


# ---------------------------------------------------------------- what a host says of itself


def test_a_long_refusal_of_an_agent_is_cut(hosts: Hosts) -> None:
    text = {"type": "Refusal", "code": 70, "message": "x" * 5_000_000, "hint": "y" * 1_000_000}
    hosts.be("bad", change={"Welcome": text})
    assert len(hosts.refused()) < 10_000
    [run] = hosts.forge.runs()
    assert (hosts.forge.run_dir(run) / "events.jsonl").stat().st_size < 1 << 20


GPUS: dict[str, list[What]] = {
    "too many": [{"visible": str(n), "uuid": f"GPU-{n}"} for n in range(2000)],
    "a long name": [{"visible": "0", "uuid": "GPU-0", "name": "x" * 2000}],
    "no number": [{"visible": "0,1", "uuid": "GPU-0"}],
    "a name that is none": [{"visible": "0", "uuid": "GPU\n0"}],
}


@pytest.mark.parametrize("kind", GPUS)
def test_gpus_that_no_host_has(hosts: Hosts, kind: str) -> None:
    hosts.be("bad", change={"HostReport": {"facts": {"gpus": GPUS[kind]}}})
    assert "host bad broke the protocol: it has" in hosts.refused()


# ---------------------------------------------------------------- the sync of the workdir


def synced(hosts: Hosts) -> str:
    """A spec of `bad` alone, whose workdir, with one file, is copied: both hosts would have one copy."""
    hosts.forge.write("stay.py", (PROGRAMS / "stay.py").read_text())
    return hosts.spec(STAY.replace("hosts: 2, ", ""), "bad", top=f"workdir: {hosts.forge.folder}\n")


WANTED: dict[str, What] = {
    "the same file": {"type": "Wanted", "files": [0], "last": False},
    "nothing": {"type": "Wanted", "files": [], "last": False},
    "files that there are not": {"type": "Wanted", "files": [7777], "last": False},
}


@pytest.mark.parametrize("kind", WANTED)
def test_a_host_that_wants_files_without_end(hosts: Hosts, kind: str) -> None:
    hosts.be("bad", drop=["Wanted"], after="SendListing", lines=[WANTED[kind]] * 100, forever=True)
    said = hosts.refused(text=synced(hosts))
    assert "host bad: the sync of the workdir went out of step: the host wants" in said
    assert not hosts.forge.runs()


def test_a_host_that_says_nothing_of_the_workdir_ends_with_the_timeout(hosts: Hosts) -> None:
    hosts.be("bad", drop=["Wanted", "SendListing"])
    said = hosts.refused("--timeout", "2", code=124, text=synced(hosts))
    assert "host bad: the workdir was not synced within --timeout" in said
    assert not hosts.forge.runs()


# ---------------------------------------------------------------- journals that have such events in them


def spoilt(*records: Record) -> Callable[[Forge, str], None]:
    def spoil(forge: Forge, run: str) -> None:
        writer = journal.Journal(forge.run_dir(run) / "events.jsonl")
        for record in records:
            writer.append(time.time(), record)
        writer.close()

    return spoil


def happened(host: str, seq: int, what: What) -> Happened:
    return Happened(host, seq, from_tagged(get_args(Happening), what))


JOURNALS: dict[str, list[Record]] = {
    "a rank that there is not": [happened("local", 1000, started(rank=99))],
    "a later generation": [happened("local", 1000, started(generation=300_000_000))],
    "a mesh that is a path": [happened("local", 1000, started(mesh="/tmp/evil"))],
    "a host that there is not": [happened("stranger", 1000, started())],
    "an agent of a host that there is not": [AgentUp("stranger", 1, "x")],
    "a number that is none": [happened("local", 1 << 80, started())],
}


@pytest.mark.parametrize("kind", JOURNALS)
def test_a_run_whose_journal_has_lies_in_it_is_brought_up_and_hides_no_other(forge: Forge, kind: str) -> None:
    run, other = forge.launch(HERE), forge.launch(HERE, "--name", "other")
    before = pids(forge.mesh(run, "stay"))
    end_controller(forge, run)
    spoilt(*JOURNALS[kind])(forge, run)
    states = {r["run"]: r["state"] for r in forge.status()}
    assert states.keys() == {run, other} and states[other] == "running"
    mesh = forge.until_mesh(run, "stay", lambda m: m["ready"] == 1)
    assert (mesh["generation"], pids(mesh)) == (0, before)
    ended = forge.ok("shutdown", "--all")
    assert all(f"{r}/stay stopped" in ended for r in (run, other))


def test_a_run_that_cannot_be_brought_up_hides_no_other(forge: Forge) -> None:
    run, other = forge.launch("lease: 1s\n" + HERE), forge.launch(HERE, "--name", "other")
    end_controller(forge, run)
    (forge.run_dir(run) / "plan.json").write_text("{}")
    status = forge.run("status")
    assert (status.returncode, run in status.stderr, other in status.stdout) == (70, True, True)
    assert "running" in status.stdout
    forge.launch(HERE, "--name", "third")
    ended = forge.run("shutdown", "--all")
    assert f"{other}/stay stopped" in ended.stdout
    assert run in ended.stderr
    until(lambda: not processes_with(f"FORGE_RUN_ID={run}"), "the end of its agent by its lease")
    shutil.rmtree(forge.home / "sockets" / run)
