"""SIGKILL of any part of a run, at any moment: what is promised happens, and nothing is left behind."""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import forgectl
from forgectl.controller.run_dir import RunDir
from forgectl.system import cgroups
from tests.conftest import Forge, listening_ports, processes_of, until
from tests.process.deaths import (
    RANKS,
    agent_of,
    controller_of,
    end,
    lives,
    pids,
    run_named,
    until_empty,
    until_generation,
)

STAY = f"lease: 2s\nscripts: {{stay: {RANKS}}}"
RESTART = "lease: 2s\nscripts: {stay: {run: PROGRAMS/stay.py, procs: 2, preload: [], restart: {max: 9, backoff: 0}}}"
DAEMON = "lease: 2s\nscripts: {daemon: {run: PROGRAMS/daemon.py HOW, procs: 2, preload: []}}"
OVER = ("succeeded", "failed", "stopped", "lost")
BOOT = Path(forgectl.__file__).with_name("boot.py")


def daemons_of(forge: Forge, run: str, count: int) -> list[int]:
    """The pids that daemons have written to the logs of ranks, once there are `count`."""

    def look() -> list[int] | None:
        text = "".join(p.read_text() for p in forge.run_dir(run).glob("logs/daemon/*/rank-*.log"))
        found = [int(line.split()[1]) for line in text.splitlines() if line.startswith("daemon ")]
        return found if len(found) >= count else None

    found: list[int] = until(look, "the daemons")
    return found


# ---------------------------------------------------------------- everything at once


@pytest.mark.parametrize(
    "victims", [("controller",), ("controller", "forkserver"), ("agent",), ("forkserver",), ("rank",)]
)
def test_nothing_is_left_and_nobody_has_to_ask(forge: Forge, victims: tuple[str, ...]) -> None:
    run = forge.launch(STAY)
    until(lambda: all(forge.roles(run)[v] for v in victims), f"{victims}: a rank bears its server's name at first")
    roles = forge.roles(run)
    for victim in victims:
        end(roles[victim][0])
    until_empty(run)


def test_controller_and_agent_die_together(forge: Forge) -> None:
    run = forge.launch(RESTART)
    roles = forge.roles(run)
    for role in ("controller", "agent"):
        os.kill(roles[role][0], signal.SIGKILL)
    until_empty(run)
    final = forge.until_ended(run)
    assert (final["state"], final["meshes"][0]["restarts"]) == ("lost", 0)


@pytest.mark.parametrize("how", ["fork", "exec"])
def test_daemons_that_outlive_controller_and_agent_are_found_by_the_next_command(forge: Forge, how: str) -> None:
    run = forge.launch(DAEMON.replace("HOW", how))
    daemons = daemons_of(forge, run, 2)
    roles = forge.roles(run)
    for role in ("controller", "agent"):
        end(roles[role][0])
    assert forge.until_ended(run)["state"] == "lost"
    assert not any(map(lives, daemons))


def test_an_agent_that_dies_between_two_rmdirs_leaves_no_cgroup(forge: Forge) -> None:
    run = forge.launch(STAY)
    [root] = cgroups.find(f"forgectl-{run}") or pytest.skip("NO CGROUP v2 CAN BE MADE HERE")
    roles = forge.roles(run)
    for role in ("controller", "agent"):
        end(roles[role][0])
    until_empty(run)
    until(lambda: not root.populated(), "the kernel to have let go of the last process")
    for folder in root.tree()[:-1]:
        folder.rmdir()
    assert forge.until_ended(run)["state"] == "lost"
    assert not root.path.exists()


@pytest.mark.parametrize("seed", [3, 21, 25, 27])
def test_a_storm(forge: Forge, seed: int) -> None:
    """Whoever is killed, in any order: commands are answered, and one shutdown ends it all."""
    run = forge.launch(RESTART.replace("max: 9", "max: 1000"))
    chance = random.Random(seed)
    for _ in range(15):
        victims = sorted(processes_of(run))
        for pid in chance.sample(victims, k=min(len(victims), chance.choice([1, 1, 1, 2, 3]))):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if forge.document(run)["ended_at"]:
            break
    state = forge.document(run)["state"]
    assert state in ("running", "stopping", *OVER)
    forge.run("shutdown", "--run", run, "--force")
    until_empty(run)
    assert forge.document(run)["state"] in OVER


# ---------------------------------------------------------------- the agent


def test_an_agent_that_is_killed_takes_its_ranks_along(forge: Forge) -> None:
    run = forge.launch(STAY)
    ranks = pids(forge.mesh(run, "stay"))
    end(agent_of(forge, run))
    until(lambda: not any(map(lives, ranks)), "the end of the ranks", seconds=10)  # 2 s are promised
    final = forge.until_ended(run)
    assert (final["state"], final["exit_code"]) == ("lost", 69)
    [mesh] = final["meshes"]
    assert (mesh["state"], [r["state"] for r in mesh["ranks"]]) == ("lost", ["lost", "lost"])
    assert "the agent on host local was killed" in mesh["reason"]


def test_the_agent_is_replaced_where_restart_allows(forge: Forge) -> None:
    run = forge.launch(RESTART)
    seen = [agent_of(forge, run)]
    ranks = pids(forge.mesh(run, "stay"))
    for generation in (1, 2, 3):
        end(seen[-1])
        mesh = until_generation(forge, run, "stay", generation)
        assert not set(pids(mesh)) & set(ranks)
        assert [r["log"].split("/")[-2:] for r in mesh["ranks"]] == [[str(generation), f"rank-{n}.log"] for n in (0, 1)]
        ranks = pids(mesh)
        seen.append(agent_of(forge, run))
    assert len(set(seen)) == 4
    assert forge.roles(run)["agent"] == [seen[-1]]
    until(lambda: sorted(forge.roles(run)["rank"]) == sorted(ranks), "the ranks' own names, and no others")


@pytest.mark.parametrize("how", ["fork", "exec"])
def test_what_ranks_of_a_killed_agent_left_is_swept(forge: Forge, how: str) -> None:
    run = forge.launch(DAEMON.replace("HOW", how))
    daemons = daemons_of(forge, run, 2)
    end(agent_of(forge, run))
    until(lambda: not any(map(lives, daemons)), "the end of the daemons")
    assert forge.until_ended(run)["state"] == "lost"


def test_daemons_are_gone_before_the_next_generation_begins(forge: Forge) -> None:
    run = forge.launch(DAEMON.replace("HOW", "fork").replace("preload", "restart: {max: 1}, preload"))
    daemons = daemons_of(forge, run, 2)
    end(agent_of(forge, run))
    forge.until_mesh(run, "daemon", lambda m: m["generation"] == 1)
    assert not any(map(lives, daemons))


def first_agent(forge: Forge, run: str) -> int:
    """The pid of the run's agent, as soon as there is one."""
    [pid, *_] = until(lambda: forge.roles(run)["agent"], "its agent")
    return int(pid)


def test_agents_are_killed_while_they_begin(forge: Forge) -> None:
    """At any moment of the launch: it comes up with another agent, or is rolled back and says so."""
    chance = random.Random(5)
    for number in range(8):
        launch = forge.start("launch", "-d", forge.spec(RESTART), "--name", f"n{number}")
        run = run_named(forge, f"n{number}")
        first = first_agent(forge, run)
        time.sleep(chance.uniform(0, 0.4))
        end(first)
        _, err = launch.communicate(timeout=60)
        assert "Traceback" not in err
        if launch.returncode == 0:
            forge.until_mesh(run, "stay", lambda m: m["ready"] == 2 and m["state"] == "running")
        else:
            assert "agent" in err
            until_empty(run)
    forge.ok("shutdown", "--all", "--force")


def test_an_agent_killed_while_it_takes_over_leaves_that_to_another(forge: Forge) -> None:
    run = forge.launch(DAEMON.replace("HOW", "fork"))
    daemons = daemons_of(forge, run, 2)
    first = agent_of(forge, run)
    os.kill(first, signal.SIGKILL)
    for _ in range(2):
        end(until(lambda: [p for p in forge.roles(run)["agent"] if p != first], "the next agent")[0])
    assert forge.until_ended(run)["state"] == "lost"
    assert not any(map(lives, daemons))


def launch_with_an_agent_that_does_not_listen(forge: Forge, *options: str) -> tuple[subprocess.Popen[str], str, int]:
    """A launch, its run, and its agent, which is stopped: it holds its lock by then."""
    for number in range(20):
        launch = forge.start("launch", forge.spec(RESTART), "--name", f"n{number}", *options)
        run = run_named(forge, f"n{number}")
        run_dir = RunDir(forge.run_dir(run))
        until(run_dir.has_agent, "the lock of an agent")
        until(lambda run=run: len(beginning_agents(forge, run)) == 1, "the agent alone")  # type: ignore[misc]
        [agent] = beginning_agents(forge, run)
        os.kill(agent, signal.SIGSTOP)
        if not run_dir.agent_socket(0).exists():
            return launch, run, agent
        os.kill(agent, signal.SIGCONT)
        forge.ok("shutdown", run)
        launch.communicate(timeout=60)
    raise AssertionError("20 agents listened before they could be stopped")


def beginning_agents(forge: Forge, run: str) -> list[int]:
    """The processes that are an agent, or about to become one."""
    first = [pid for pid, command in processes_of(run).items() if "/agent/bootstrap.py" in command]
    return [*forge.roles(run)["agent"], *first]


@pytest.mark.parametrize("options", [(), ("-d",)], ids=["foreground", "detached"])
def test_a_controller_that_dies_before_its_agent_listens_has_a_successor_that_waits_for_it(
    forge: Forge, options: tuple[str, ...]
) -> None:
    launch, run, agent = launch_with_an_agent_that_does_not_listen(forge, *options)
    forge.document(run)  # its controller answers
    first = controller_of(forge, run)
    end(first)
    until(lambda: [p for p in forge.roles(run)["controller"] if p != first], "another controller")
    os.kill(agent, signal.SIGCONT)
    mesh = forge.until_mesh(run, "stay", lambda m: m["ready"] == 2 and m["state"] == "running")
    assert (mesh["generation"], agent_of(forge, run)) == (0, agent)
    forge.ok("shutdown", run)
    _, err = launch.communicate(timeout=60)
    assert "Traceback" not in err


@pytest.mark.parametrize("spec", [STAY, RESTART], ids=["plain", "restart"])
def test_a_hung_agent_is_killed(forge: Forge, spec: str) -> None:
    run = forge.launch(spec)
    agent, ranks = agent_of(forge, run), pids(forge.mesh(run, "stay"))
    os.kill(agent, signal.SIGSTOP)
    until(lambda: not any(map(lives, [agent, *ranks])), "the end of the agent and its ranks")
    if spec is STAY:
        assert forge.until_ended(run)["state"] == "lost"
        return
    forge.until_mesh(run, "stay", lambda m: m["generation"] == 1 and m["state"] == "running")
    [other] = forge.roles(run)["agent"]
    assert other == agent_of(forge, run) != agent


def test_a_hung_agent_is_killed_by_a_controller_that_never_heard_it(forge: Forge) -> None:
    run = forge.launch(RESTART)
    agent, ranks = agent_of(forge, run), pids(forge.mesh(run, "stay"))
    os.kill(agent, signal.SIGSTOP)
    end(controller_of(forge, run))
    mesh = forge.until_mesh(run, "stay", lambda m: m["generation"] == 1 and m["state"] == "running")
    assert not any(map(lives, [agent, *ranks]))
    until(lambda: sorted(forge.roles(run)["rank"]) == sorted(pids(mesh)), "the ranks' own names, and no others")
    assert forge.roles(run)["agent"] == [agent_of(forge, run)]


# ---------------------------------------------------------------- the fork server and the store


def fork_server_of(forge: Forge, run: str) -> int:
    """Ranks just forked still bear its name."""
    found: list[int] = []

    def alone() -> bool:
        found[:] = forge.roles(run)["forkserver"]
        return len(found) == 1

    until(alone, "one fork server")
    return found[0]


def test_an_idle_fork_server_takes_its_ranks_along_and_is_named(forge: Forge) -> None:
    run = forge.launch(STAY)
    end(fork_server_of(forge, run))
    final = forge.until_ended(run)
    assert final["state"] == "failed"
    assert "the fork server ended by signal 9" in final["meshes"][0]["reason"]


def test_a_fork_server_is_replaced_where_restart_allows(forge: Forge) -> None:
    run = forge.launch(RESTART)
    agent = agent_of(forge, run)
    for generation in (1, 2):
        end(fork_server_of(forge, run))
        mesh = until_generation(forge, run, "stay", generation)
        assert "the fork server ended by signal 9" in mesh["reason"]
    assert agent_of(forge, run) == agent


@pytest.mark.parametrize("policy", ["", "restart: {max: 1}, "])
def test_a_fork_server_dies_while_it_warms(forge: Forge, policy: str) -> None:
    forge.write("slow.py", "import os, signal; open('warming', 'w').close(); signal.pause()")
    spec = f"scripts: {{stay: {{run: PROGRAMS/stay.py, {policy}preload: [slow]}}}}"
    launch = forge.start("launch", "-d", forge.spec(spec))
    until((forge.folder / "warming").exists, "the fork server to warm")
    [run] = forge.runs()
    end(fork_server_of(forge, run))
    _, err = launch.communicate(timeout=60)
    assert launch.returncode == 1
    assert "could not start on host local: the fork server ended by signal 9" in err
    until_empty(run)


def test_a_fork_server_dies_while_it_forks(forge: Forge) -> None:
    forge.env["OMP_NUM_THREADS"] = "1"
    for number, some in enumerate((1, 5, 20)):
        spec = forge.spec("scripts: {stay: {run: PROGRAMS/stay.py, procs: 40, preload: []}}")
        launch = forge.start("launch", "-d", spec, "--name", f"n{number}")
        run = run_named(forge, f"n{number}")

        def forking(run: str = run, some: int = some) -> bool:
            roles = forge.roles(run)
            return bool(roles["agent"]) and len(roles["rank"]) + len(roles["forkserver"]) > some

        until(forking, "some ranks")
        agent = forge.roles(run)["agent"][0]
        servers = [p for p in processes_of(run) if parent_of(p) == agent]
        for server in servers:
            end(server)
        _, err = launch.communicate(timeout=60)
        final = forge.until_ended(run)
        assert final["state"] == "failed"
        assert "the fork server ended by signal 9" in final["meshes"][0]["reason"], err
        assert "Traceback" not in err


def parent_of(pid: int) -> int:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


def test_a_hung_fork_server_can_be_shut_down(forge: Forge) -> None:
    run = forge.launch(STAY)
    os.kill(fork_server_of(forge, run), signal.SIGSTOP)
    assert "2 × " in forge.ok("shutdown", "stay")
    until_empty(run)


def test_ranks_that_met_do_not_need_their_store_to_end_well(forge: Forge) -> None:
    forge.write(
        "meet.py",
        "import os, signal, torch.distributed as dist\n"
        "dist.init_process_group('gloo'); dist.barrier(); print('met')\n"
        "signal.pause()\n",
    )
    run = forge.launch("scripts: {meet: {run: meet.py, procs: 2}}")
    until(lambda: forge.ok("logs", "meet").count("met") == 2, "the ranks to meet")
    mesh = forge.mesh(run, "meet")
    [store] = [p for p in forge.roles(run)["forkserver"] if listening_ports({p})]
    [(address, _)] = listening_ports({store})
    assert address == "127.0.0.1"
    end(store)
    assert forge.mesh(run, "meet")["state"] == "running"
    assert all(map(lives, pids(mesh)))
    assert "2 × " in forge.ok("shutdown", "meet")
    until_empty(run)


# ---------------------------------------------------------------- the command line


def kill_launches(forge: Forge, count: int, options: tuple[str, ...], seed: int) -> list[str]:
    """SIGKILL launches at moments spread over their first 1.2 seconds; the runs that they had made."""
    chance = random.Random(seed)
    spec = forge.spec(STAY)
    for first in range(0, count, 4):
        numbers = range(first, min(first + 4, count))
        began = time.monotonic()
        launches = [forge.start("launch", spec, "--name", f"n{n}", *options) for n in numbers]
        moments = sorted(1.2 * (n + chance.random()) / count for n in chance.sample(range(count), len(launches)))
        for moment, launch in zip(moments, launches, strict=True):
            time.sleep(max(0.0, began + moment - time.monotonic()))
            launch.kill()
        for launch in launches:
            _, err = launch.communicate(timeout=60)
            assert launch.returncode in (-signal.SIGKILL, 0), err
    return [r for r in forge.runs() if (forge.run_dir(r) / "plan.json").exists()]


def test_a_launch_in_the_foreground_that_is_killed_takes_its_run_along(forge: Forge) -> None:
    for run in kill_launches(forge, 20, (), seed=11):
        until_empty(run)  # and nobody asked
    until(lambda: forge.status() == [], "the end of those that had no controller yet")


def test_a_foreground_launch_killed_while_it_runs(forge: Forge) -> None:
    launch = forge.start("launch", forge.spec(STAY))
    assert launch.stdout
    launch.stdout.readline()
    [run] = forge.runs()
    end(launch.pid)
    until_empty(run)
    assert forge.document(run)["state"] == "stopped"
    assert forge.document(run)["stopped_by"] == "the end of its launcher"


def test_a_foreground_launch_killed_together_with_its_controller(forge: Forge) -> None:
    """The next controller knows that the run belonged to a launch that is gone."""
    launch = forge.start("launch", forge.spec(STAY.replace("2s", "30s")))
    assert launch.stdout
    launch.stdout.readline()
    [run] = forge.runs()
    os.kill(launch.pid, signal.SIGSTOP)  # or it would bring up another
    end(controller_of(forge, run))
    end(launch.pid)
    launch.communicate()
    assert forge.until_ended(run)["stopped_by"] == "the end of its launcher"


def test_a_detached_launch_that_is_killed_comes_up_or_is_gone(forge: Forge) -> None:
    runs = kill_launches(forge, 20, ("-d",), seed=13)
    ended = up = 0
    for run in runs:

        def settled(run: str = run) -> dict[str, Any] | None:
            document = forge.document(run)
            [mesh] = document["meshes"]
            whole = document["state"] == "running" and mesh["ready"] == 2
            return document if whole or document["ended_at"] else None

        if until(settled, f"{run} to come up or be gone")["ended_at"]:
            ended += 1
            until_empty(run)
        else:
            up += 1
    assert ended + up == len(runs)
    forge.ok("shutdown", "--all", "--force")


@pytest.mark.parametrize("setup", [None, {"preload": []}, {"preload": ["no_such_module"]}])
def test_a_fork_server_ends_quietly_when_its_agent_dies(tmp_path: Path, setup: dict[str, Any] | None) -> None:
    """Before it has said what to do, or before it has read the answer."""
    agent, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with agent, theirs:
        words = [sys.executable, str(BOOT), "forkserver", str(theirs.fileno())]
        server = subprocess.Popen(words, pass_fds=[theirs.fileno()], stderr=subprocess.PIPE, text=True)
        theirs.close()
        if setup is not None:
            agent.send(json.dumps({"workdir": str(tmp_path), **setup}).encode())
            if not setup["preload"]:
                assert select.select([agent], [], [], 60)[0], "it got warm, and said so"
        agent.close()  # as by a SIGKILL: what was not read resets the server's connection
        _, err = server.communicate(timeout=60)
    assert (server.returncode, err) == (0, "")
