"""Random kills: each scene kills parts of runs at random moments, and says what is wrong afterwards.

`make chaos` plays scenes until a thousand processes were killed; begun again, it goes on where it was. A scene is
repeated by its seed: `PYTHONPATH=benchmarks python -m tests.faults.chaos --seed 7.12 --scene launching`.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import random
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import report
from measure import Row

from tests.conftest import Forge, processes_of, until
from tests.faults.history import Event, Hit, faults, wrong_causes
from tests.faults.oracle import Traces
from tests.process.actor_scripts import background
from tests.process.deaths import pids

OVER = ("succeeded", "failed", "stopped", "lost")
HOST = "hosts: [{name: local, gpus: 2}]\n"
STAY = "scripts: {stay: {run: PROGRAMS/stay.py, procs: 2, with_gpus: true, preload: []RESTART}}"
FOR_EVER = ", restart: {max: 100000, backoff: 0}"
PARTS = ("controller", "agent", "forkserver", "rank")
NOT_STARTED = {
    "agent": "the agent on host local was killed",
    "forkserver": "could not start on host local: the fork server ended by signal 9",
}
"""Role → what a launch says if such a part was killed before all ranks had begun: it fails, whatever `restart:` is."""
KILLS = 8
"""Kills of a run that stays up."""


class Victims:
    """Kills parts of one run and remembers them."""

    def __init__(self, forge: Forge, chance: random.Random) -> None:
        self.forge, self.chance = forge, chance
        self.hits: list[Hit] = []

    def kill(self, role: str, pid: int) -> bool:
        """SIGKILL, and wait for the end; False if it has ended by itself before."""
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            return False
        try:
            self.hits.append(Hit(role, pid))
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            assert select.select([pidfd], [], [], 30)[0], f"{pid} outlived SIGKILL"
        except ProcessLookupError:
            self.hits.pop()
            return False
        finally:
            os.close(pidfd)
        return True

    def any_of(self, run: str, *roles: str) -> tuple[str, int] | None:
        """A random process of a random one of the roles that the run has."""
        found = self.forge.roles(run)
        there = [role for role in roles if found[role]]
        if not there:
            return None
        role = self.chance.choice(there)
        return role, self.chance.choice(found[role])


def settled(forge: Forge, run: str, mesh: str = "stay") -> dict[str, Any]:
    """The run's document once it is up as a whole: its processes are those of its plan, and no others."""
    seen: list[Any] = []

    def look() -> dict[str, Any] | None:
        document = forge.glance(run)
        it = next(m for m in document["meshes"] if m["mesh"] == mesh)
        roles = forge.roles(run)
        seen[:] = [it["state"], it["ready"], roles]
        pids = sorted(r["pid"] or 0 for r in it["ranks"])
        whole = it["state"] in ("running", "ready") and it["ready"] == it["desired"] and document["state"] == "running"
        alone = {role: len(roles[role]) for role in ("controller", "agent", "forkserver")}
        return document if whole and sorted(roles["rank"]) == pids and set(alone.values()) == {1} else None

    try:
        found: dict[str, Any] = until(look, f"{run}/{mesh} to be whole")
    except BaseException as e:
        raise AssertionError(f"{run}/{mesh} is not whole: {seen}") from e
    return found


def events_of(forge: Forge, run: str) -> list[Event]:
    return [json.loads(line) for line in forge.ok("events", run, "--json").splitlines()]


def judge(forge: Forge, run: str, hits: list[Hit]) -> None:
    """A run that is over: nothing is left of it, its history holds together, its failures have the right causes."""
    document = forge.until_ended(run)
    assert document["state"] in OVER, document["state"]
    left = Traces(forge.home, Path(forge.env["FORGECTL_GPU_LOCK_DIR"]), (run,)).left()
    assert not left, f"{run} has left {left}"
    events = events_of(forge, run)
    text = "\n".join(f"{e['seq']} {e['event']} {e.get('mesh')} {e.get('generation')} {e['message']}" for e in events)
    assert not (wrong := faults(events, ended=True)), f"{wrong}\n{text}"
    assert not (wrong := wrong_causes(events, hits)), f"{wrong}\n{hits}\n{text}"
    told = json.loads(forge.ok("why", run, "--json"))
    assert told["state"] == document["state"]
    first = {e["mesh"]: e["failure"] for e in events if e["event"] == "mesh_failing"}
    told_last = [e for e in events if e["event"] in ("mesh_failing", "mesh_restarted") and e.get("failure")]
    last = {e["mesh"]: e["failure"] for e in told_last}  # by a restart all ranks have told when they ended
    for mesh in told["meshes"]:
        if mesh["failure"] and mesh["mesh"] in first:
            for event, same in (
                (first, ("kind", "generation", "host", "signal")),
                (last, ("kind", "generation", "rank", "host", "signal", "message")),
            ):
                assert {k: mesh["failure"][k] for k in same} == {k: event[mesh["mesh"]][k] for k in same}, text
    for log in (forge.run_dir(run) / "controller.log", *(forge.run_dir(run) / "agents").glob("*.log")):
        assert "Traceback" not in (said := log.read_text(errors="replace") if log.exists() else ""), said[-3000:]


# ---------------------------------------------------------------- scenes


def standing(forge: Forge, chance: random.Random) -> list[Hit]:
    """A run that restarts for ever, asked and restarted by commands, of which some are killed too."""
    victims = Victims(forge, chance)
    run = forge.launch(HOST + STAY.replace("RESTART", FOR_EVER))
    whole: list[int] | None = pids(settled(forge, run)["meshes"][0])  # None: not known to be whole
    for _ in range(KILLS):
        command = chance.choice(
            [None, ("restart", f"{run}/stay"), ("status", "-w", "--json"), ("logs", run, "-f"), ("events", run, "-f")]
        )
        process = forge.start(*command) if command else None
        time.sleep(chance.uniform(0, 0.5))  # the moment is what is tested
        victim = victims.any_of(run, *PARTS)
        if process is not None and chance.random() < 0.2:
            victim = ("command", process.pid)
        # Who dies together with its controller is not brought back: the run is lost then.
        if victim is not None and victim[0] == "controller" and whole is None:
            settled(forge, run)
        role = victim[0] if victim is not None and victims.kill(*victim) else None
        before, whole = whole, None
        if chance.random() < 0.6 or role == "controller":
            whole = pids(settled(forge, run)["meshes"][0])
        restarts = command is not None and command[0] == "restart"
        if before and whole and role in (None, "controller", "command") and not restarts:
            assert whole == before, f"the death of {role} cost ranks"
        if process is not None:
            _finish(process, wait=restarts)
        if restarts:
            whole = None
    settled(forge, run)
    forge.ok("shutdown", "--run", run)
    assert forge.document(run)["state"] == "stopped"
    judge(forge, run, victims.hits)
    return victims.hits


def _finish(process: Any, *, wait: bool) -> None:
    """End a command that only looks; wait for one that does something."""
    if not wait and process.poll() is None:
        process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=90)
    assert "Traceback" not in err or not wait, err


def launching(forge: Forge, chance: random.Random) -> list[Hit]:
    """A launch, of which the command or a part is killed at a random moment."""
    victims = Victims(forge, chance)
    detached, again = chance.random() < 0.5, chance.random() < 0.5
    spec = forge.spec(HOST + STAY.replace("RESTART", FOR_EVER if again else ""))
    launch = forge.start("launch", spec, *(["-d"] if detached else []))
    time.sleep(chance.uniform(0, 1.2))  # the moment is what is tested
    runs = [r for r in forge.runs() if (forge.run_dir(r) / "plan.json").exists()]
    wanted = chance.choice(["command", *PARTS])
    victim = victims.any_of(runs[0], wanted) if runs and wanted != "command" else None
    role, pid = victim or ("command", launch.pid)
    victims.kill(role, pid)
    if role == "command":
        _, err = launch.communicate(timeout=60)
        if not detached:
            until(lambda: all(not processes_of(r) for r in forge.runs()), "the end of what lost its launcher")
    elif detached:
        _, err = launch.communicate(timeout=90)
        assert "Traceback" not in err, err
        if again:
            assert launch.returncode == 0 or err, err
    for run in [r for r in forge.runs() if (forge.run_dir(r) / "plan.json").exists()]:

        def known(run: str = run) -> bool:
            found = [document for document in forge.status("-a") if document["run"] == run]
            return all(d["ended_at"] or (d["state"] == "running" and d["meshes"][0]["ready"] == 2) for d in found)

        until(known, f"{run} to be up or gone, after the death of {role}")
        if run not in forge.runs():
            _, err = launch.communicate(timeout=60)
            assert role == "controller", f"{run} never began, after the death of {role}: {err}"
            assert "Traceback" not in err, err
            continue
        if again and role != "command" and forge.document(run)["ended_at"]:
            _, err = launch.communicate(timeout=60)
            assert "mesh_up" not in {e["event"] for e in events_of(forge, run)}, f"ended after the death of {role}"
            assert launch.returncode and NOT_STARTED.get(role, "-") in err, f"ended after the death of {role}: {err}"
        forge.run("shutdown", "--run", run, "--force")
        if role != "command" and not detached:
            _, err = launch.communicate(timeout=60)
            assert "Traceback" not in err, err
        judge(forge, run, victims.hits)
    left = Traces(forge.home, Path(forge.env["FORGECTL_GPU_LOCK_DIR"])).left()
    assert not left, left
    return victims.hits


def ending(forge: Forge, chance: random.Random) -> list[Hit]:
    """A shutdown, of which the command or a part of the run is killed at a random moment."""
    victims = Victims(forge, chance)
    deaf = chance.random() < 0.5
    text = HOST + STAY.replace("RESTART", FOR_EVER)
    run = forge.launch(text.replace("stay.py", "stay.py deaf") if deaf else text)
    settled(forge, run)
    shutdown = forge.start("shutdown", "--run", run, "--timeout", "1")
    time.sleep(chance.uniform(0, 1.4 if deaf else 0.5))  # the moment is what is tested
    role, pid = victims.any_of(run, *PARTS) or ("command", shutdown.pid)
    if chance.random() < 0.2:
        role, pid = "command", shutdown.pid
    victims.kill(role, pid)
    _, err = shutdown.communicate(timeout=60)
    if role != "command":
        assert shutdown.returncode == 0, f"{role} was killed: {shutdown.returncode} {err}"
    forge.run("shutdown", "--run", run)
    state = forge.until_ended(run)["state"]
    assert state == "stopped" or (state, role) == ("lost", "agent"), f"{state} after the death of {role}"
    judge(forge, run, victims.hits)
    return victims.hits


def calling(forge: Forge, chance: random.Random) -> list[Hit]:
    """A script that calls actors without a pause; at last it is killed too, or ends."""
    victims = Victims(forge, chance)
    script = background(forge, "play_chaos.py call_for_ever")
    assert script.stdout
    [run] = forge.runs()
    settled(forge, run, "pair")
    for _ in range(KILLS // 2):
        time.sleep(chance.uniform(0, 0.3))  # the moment is what is tested
        if victim := victims.any_of(run, *PARTS):
            victims.kill(*victim)
        settled(forge, run, "pair")
        alive = set(pids(forge.glance(run)["meshes"][0]))
        deadline = time.monotonic() + 30
        while set(json.loads(line := script.stdout.readline())) != alive:
            assert line and time.monotonic() < deadline, f"calls do not reach {alive}, but {line}"
    killed = chance.random() < 0.5
    if killed:
        victims.kill("driver", script.pid)
    else:
        (forge.folder / "end").touch()
    _, err = script.communicate(timeout=60)
    assert script.returncode in (0, -signal.SIGKILL), err
    until(lambda: not processes_of(run), "the end of all processes")
    document = forge.until_ended(run)
    ended = document["state"], document["stopped_by"]
    assert ended == ("stopped", f"the end of its {'launcher' if killed else 'script'}"), ended
    judge(forge, run, victims.hits)
    return victims.hits


Scene = Callable[[Forge, random.Random], list[Hit]]
SCENES: dict[str, Scene] = {scene.__name__: scene for scene in (standing, launching, ending, calling)}


# ---------------------------------------------------------------- many of them


@contextlib.contextmanager
def new_forge() -> Iterator[Forge]:
    """A forgectl of its own; nothing may be left of it."""
    folder = Path(tempfile.mkdtemp(prefix="forgectl-chaos-"))
    try:
        forge = Forge(folder)
        try:
            yield forge
        finally:
            forge.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@dataclasses.dataclass
class Tally:
    """What many scenes came to; its JSON is how they are gone on with."""

    seed: int
    scenes: int = 0
    killed: Counter[str] = dataclasses.field(default_factory=Counter)
    failures: list[dict[str, str]] = dataclasses.field(default_factory=list)

    @classmethod
    def read(cls, path: Path | None, seed: int) -> Tally:
        """As written before, or a new one."""
        if path is None or not path.exists():
            return cls(seed)
        found = json.loads(path.read_text())["tally"]
        return cls(found["seed"], found["scenes"], Counter(found["killed"]), found["failures"])

    def write(self, path: Path | None) -> None:
        if path is not None:
            rows = [Row("killed", role, "", (float(count),)) for role, count in self.killed.most_common()]
            rows.append(Row("killed", "in all", "", (float(self.killed.total()),)))
            rows.append(Row("scenes", "played", "", (float(self.scenes),)))
            rows.append(Row("scenes", "something left, lost, doubled or wrong", "", (float(len(self.failures)),), 0.0))
            document = report.document(rows, {}, {"how": "at random moments"})
            path.write_text(json.dumps({**document, "tally": vars(self)}, indent=1) + "\n")

    def take(self, scene: str, seed: str, result: list[Hit] | str) -> None:
        """The outcome of one scene: whom it killed, or what was wrong."""
        if isinstance(result, str):
            self.failures.append({"scene": scene, "seed": seed, "why": result[-6000:]})
            sys.stderr.write(f"{scene} {seed} failed:\n{result}\n")
        else:
            self.killed.update(hit.role for hit in result)
        sys.stderr.write(f"{scene} {seed}: {self.killed.total()} killed, {len(self.failures)} failures\n")


def played(scene: str, seed: str) -> list[Hit] | str:
    """Whom a scene killed, or what was wrong with it."""
    try:
        with new_forge() as forge:
            return SCENES[scene](forge, random.Random(seed))
    except BaseException:  # a test that waits too long fails with no Exception
        return traceback.format_exc()


def main() -> int:
    """Play scenes by turns; the exit code says whether nothing was wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so long, to go on later")
    parser.add_argument("--scene", choices=SCENES, action="append", help="only these")
    parser.add_argument("--seed", default=None, help="of one scene, as printed where it failed")
    parser.add_argument("--at-once", type=int, default=3, help="scenes at once")
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell has its background ignore
    scenes = options.scene or list(SCENES)
    deadline = time.monotonic() + options.seconds
    if options.seed is not None:
        result = played(scenes[0], options.seed)
        sys.stderr.write(f"{result}\n")
        return int(isinstance(result, str))
    tally = Tally.read(options.json, random.SystemRandom().randrange(10**6))
    with ThreadPoolExecutor(options.at_once) as pool:
        while tally.killed.total() < options.kills and time.monotonic() < deadline:
            numbers = range(tally.scenes, tally.scenes + options.at_once * len(scenes))
            some = [(scenes[n % len(scenes)], f"{tally.seed}.{n}") for n in numbers]
            for (scene, seed), result in zip(some, pool.map(lambda one: played(*one), some), strict=True):
                tally.take(scene, seed, result)
            tally.scenes = numbers.stop
            tally.write(options.json)
    return int(bool(tally.failures))


if __name__ == "__main__":
    sys.exit(main())
