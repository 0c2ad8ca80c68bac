"""Begins a run: a free name, a directory, a controller that listens."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from forgectl.controller import client, run_dir
from forgectl.controller.configs import agent_config
from forgectl.controller.message_keys import MessageKeys
from forgectl.controller.run_dir import RunDir
from forgectl.errors import BusyError, ForgeError, InternalError, TimedOutError
from forgectl.model.plan import MeshPlan, Plan, Unit
from forgectl.names import free_name
from forgectl.transport.early_agent import EarlyAgent
from forgectl.wire.unix_sockets import private_folder

ENOUGH_CORES = 4
"""For a fork server, an agent, a controller and us. With fewer we go one after the other, beside the fork server: the
import of torch is what all wait for in the end, and it has a core to itself."""


def _nothing() -> None:
    pass


def begin_run(
    plan: Plan,
    spec_text: bytes,
    *,
    name_is_given: bool,
    own: bool,
    handed: Mapping[str, Sequence[int]] = MappingProxyType({}),
    coming: Unit | None = None,
    meanwhile: Callable[[], None] = _nothing,
) -> RunDir:
    """Make the run's directory and start its controller; returns once the controller listens.

    With `own` the run ends when this process does. `handed`: of ssh hosts, as `client.start_controller` has it.
    `coming`: the mesh that will be added first, for which a fork server gets warm. `meanwhile` is called once all
    processes are started.

    A name that a living run has is refused with BusyError, or followed by a number if nobody chose it.
    """
    secrets = {name: os.environ[name] for name in plan.secrets}
    with run_dir.launch_lock():
        plan = dataclasses.replace(plan, name=_free_name(plan.name, name_is_given))
        run, lock = run_dir.create(plan, spec_text, own=own)
    agent, later = None, _nothing
    try:
        host, agent = _begin_agent(run, plan, secrets, coming)
        early = {host: (agent.pipe,)} if agent else {}
        if agent and agent.preloads and len(os.sched_getaffinity(0)) < ENOUGH_CORES:
            agent.wait()
            meanwhile, later = later, meanwhile
        client.start_controller(run, secrets, lock=lock, own=own, handed={**handed, **early}, meanwhile=meanwhile)
    except BaseException:
        if agent:
            agent.end()
        run_dir.discard(run)
        raise
    finally:
        os.close(lock)
        if agent:
            agent.let_go()
    later()
    return run


def _begin_agent(
    run: RunDir, plan: Plan, secrets: Mapping[str, str], coming: Unit | None
) -> tuple[str, EarlyAgent | None]:
    """Start the agent of the first host that is this machine, if any is: most runs have no other."""
    for index, host in enumerate(plan.hosts):
        if host.local:
            seat, meshes = run.seat(index, host), _meshes(plan, coming)
            member = MessageKeys(run, plan).of(host)
            config = agent_config(run, plan, host, seat, secrets, first=True, membership=member, coming=meshes)
            with contextlib.suppress(OSError):  # its controller will say why it cannot be started
                private_folder(run.sockets)
                return host.name, EarlyAgent(config, host.python)
            break
    return "", None


def _meshes(plan: Plan, coming: Unit | None) -> tuple[MeshPlan, ...]:
    """What is coming, as far as fork servers must know; which GPUs it gets does not matter to them."""
    if coming is None:
        return ()
    from forgectl.plan.addition import place_more

    with contextlib.suppress(ForgeError):  # it will be refused
        return (place_more(plan, dataclasses.replace(coming, with_gpus=False), {}, os.environ),)
    return ()


def _free_name(name: str, is_given: bool) -> str:
    living = _living_names()
    if is_given and name in living:
        run = living[name]
        raise BusyError(
            f"the name {name} is in use by run {run}",
            hint=f"`forgectl shutdown --run {run}` ends it; `--name OTHER` launches beside it",
        )
    return free_name(name, living)


def _living_names() -> dict[str, str]:
    """Name → run of those that have not ended."""
    found = {}
    for run in run_dir.all_runs():
        try:
            if not run.has_ended and not client.document(run).ended:
                found[run.name] = run.run
        except InternalError:
            pass  # it cannot be brought up: nothing of it outlives its lease
        except TimedOutError:
            found[run.name] = run.run  # its controller is stuck, but lives: no reason not to launch another run
    return found
