"""Process groups on ssh hosts: launched, seen, read and ended as if they were here."""

from __future__ import annotations

import json
import signal
from pathlib import Path

from tests.conftest import PROGRAMS, until
from tests.ssh.conftest import Far

STAY = "scripts: {stay: {run: stay.py, procs: 4, hosts: 2, preload: []}}"
TICK = "scripts: {tick: {run: tick.py, procs: 2, hosts: 2, preload: []}}"


def test_ranks_of_two_hosts_meet(far: Far) -> None:
    out = far.forge.ok("launch", far.forge.spec(far.spec("scripts: {meet: {run: reduce.py once, procs: 4, hosts: 2}}")))
    sums = sorted(line.partition("│ ")[2] for line in out.splitlines() if "sum" in line)
    assert [s.split(";")[0] for s in sums] == ["sum 10"] * 4
    assert {w for s in sums for w in s.split() if w.startswith("GROUP_RANK")} == {"GROUP_RANK=0", "GROUP_RANK=1"}
    assert len({w for s in sums for w in s.split() if w.startswith("MASTER_PORT")}) == 1
    assert "meet/3@host2 │" in out
    assert all(not far.lab.listening(name) for name in far.lab.names)


def test_the_sample_of_two_hosts_on_two_hosts(far: Far) -> None:
    spec = Path(__file__).parents[2] / "sample_configs" / "two_hosts.yaml"
    out = far.forge.ok("launch", spec, "--set", f"hosts={far.hosts('host1', 'host2')}")
    assert "hello/3@host2 │ rank 3 of 4: the sum is 10" in out


def test_a_run_is_seen_and_ended_from_here(far: Far) -> None:
    run = far.launch(STAY, "host1", "host2")
    document = far.forge.document(run)
    assert [(h["name"], h["state"], h["address"]) for h in document["hosts"]] == [
        (name, "up", far.lab.address(name)) for name in ("host1", "host2")
    ]
    ranks = document["meshes"][0]["ranks"]
    assert [r["host"] for r in ranks] == ["host1", "host1", "host2", "host2"]
    assert all(r["pid"] in far.processes(run)[r["host"]] and r["rss_bytes"] > 0 for r in ranks)
    assert "4 × SIGTERM" in far.forge.ok("shutdown", "stay")
    assert not far.processes(run)
    assert not far.lab.files("host1", f"/var/tmp/forgectl-*/runs/{run}")
    assert far.forge.document(run)["state"] == "stopped"


def test_logs_come_home_live_and_at_the_end(far: Far) -> None:
    run = far.launch(TICK, "host1", "host2")
    follower = far.forge.start("logs", "tick", "-f")
    assert follower.stdout
    seen = {follower.stdout.readline().split(" ")[0] for _ in range(200)}
    assert {s.partition("@")[2] for s in seen} == {"host1", "host2"}
    before = far.forge.ok("logs", "tick", "--ranks", "1", "--no-prefix").split("\n")
    assert before[:3] == ["tick 0", "tick 1", "tick 2"]
    until(lambda: len(far.forge.ok("logs", "tick", "--ranks", "1").split("\n")) > len(before), "later lines")
    far.forge.ok("shutdown", "tick")
    follower.communicate(timeout=60)
    assert follower.returncode == 0
    whole = [int(line.split()[1]) for line in far.forge.ok("logs", "tick", "--ranks", "0", "--no-prefix").splitlines()]
    assert whole == list(range(len(whole)))
    assert len(whole) > len(before) / 2
    [log] = far.forge.run_dir(run).glob("logs/tick/0/rank-1.log")
    assert log.read_text().startswith("tick 0\n")
    stamped = [line.split(" ") for line in far.forge.ok("logs", run, "-t").splitlines()]
    times = [words[2] for words in stamped]
    assert times == sorted(times)
    quarters = times[:: max(1, len(times) // 4)]
    assert len(set(quarters)) == len(quarters), "each host noted when its ranks wrote"
    assert {words[0].partition("@")[2] for words in stamped[: len(stamped) // 2]} == {"host1", "host2"}


def test_a_failure_there_is_reported_here(far: Far) -> None:
    spec = far.forge.spec(far.spec("scripts: {fail: {run: ways_to_end.py exception, procs: 2, hosts: 2, preload: []}}"))
    done = far.forge.run("launch", spec)
    assert done.returncode == 1, done.stderr
    assert "fail failed: rank " in done.stderr
    assert "ValueError: no value" in done.stderr
    assert "Traceback" in done.stderr


def test_ctrl_c_ends_all_hosts(far: Far) -> None:
    launch = far.forge.start("launch", far.forge.spec(far.spec(STAY)))
    assert launch.stdout
    assert "here: rank" in launch.stdout.readline()
    launch.send_signal(signal.SIGINT)
    launch.communicate(timeout=60)
    assert launch.returncode == 130
    [run] = far.forge.runs()
    assert not far.processes(run)


def test_run_takes_ssh_hosts(far: Far) -> None:
    far.forge.write("tell.py", (PROGRAMS / "tell.py").read_text())
    done = far.forge.run("run", "--host", "host1", "tell.py")
    assert done.returncode == 69
    assert "host1: /usr/bin/python3 lacks psutil" in done.stderr
    assert "pip install psutil" in done.stderr


def test_one_connection_a_host(far: Far) -> None:
    run = far.launch(STAY, "host1", "host2")
    for name in ("host1", "host2"):
        sessions = [title for title in far.lab.sshd_sessions(name).values() if "notty" in title]
        assert len(sessions) == 1, sessions
    assert not far.lab.sshd_sessions("host3")
    assert json.loads(far.forge.ok("status", "stay", "--json"))["runs"][0]["run"] == run


def test_restart_keeps_the_host_s_warm_fork_server(far: Far) -> None:
    run = far.launch(STAY.replace("preload", "restart: {max: 1}, preload"), "host1", "host2")
    mesh = far.forge.mesh(run, "stay")
    far.lab.kill("host2", mesh["ranks"][2]["pid"])
    again = far.forge.until_mesh(run, "stay", lambda m: m["state"] == "running" and m["generation"] == 1)
    assert "rank 2 on host2 was killed by SIGKILL" in again["reason"]
    assert "generation 1" in far.forge.ok("logs", "stay", "--ranks", "3")
    first = far.forge.run_dir(run) / "logs" / "stay" / "0" / "rank-3.log"
    until(first.exists, "the first generation's log at home")


def test_hosts_have_the_ready_made_actors_and_a_folder_to_share(far: Far) -> None:
    show = f"{{run: show_ready_made.py, procs: 4, hosts: 2, preload: [], python: {far.bare_python()}}}"
    out = far.forge.ok("launch", far.forge.spec(far.spec(f"scripts: {{show: {show}}}", "host1", "host2")))
    shown = [line.partition("│ ")[2].split() for line in out.splitlines() if "actors" in line]
    assert len(shown) == 4
    assert all("/code/" in where for where, _ in shown)
    folders = {folder for _, folder in shown}
    assert len(folders) == 2, "one a host"
    assert not any(far.lab.files(host, folder) for host in ("host1", "host2") for folder in folders)
