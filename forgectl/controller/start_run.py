"""Begins a run: finds a free name, makes its directory and starts its controller."""

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
"""Cores for a fork server, an agent, a controller and this process at once. With fewer, the others run one after the
other, beside the fork server: all wait for its import of torch in the end, so it needs a core to itself."""


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
    made: Callable[[RunDir], None] | None = None,
) -> RunDir:
    """Make the run's directory and start its controller; returns once the controller listens.

    With `own` the run ends when this process does. `handed`: the descriptors of ssh hosts, as in
    `client.start_controller`. `coming`: the mesh that will be added first; its fork server starts now. `meanwhile` is
    called once all processes are started, `made` with the run's directory before any is.

    If a living run has the name, that is a BusyError if the user chose it, else the name gets a number. Raises
    ForgeError.
    """
    secrets = {name: os.environ[name] for name in plan.secrets}
    with run_dir.launch_lock():
        plan = dataclasses.replace(plan, name=_free_name(plan.name, name_is_given))
        run, lock = run_dir.create(plan, spec_text, own=own)
    agent, later = None, _nothing
    try:
        if made is not None:
            made(run)
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
    """Start the agent of the first host that is this machine, if there is one: most runs have no other host."""
    for index, host in enumerate(plan.hosts):
        if host.local:
            place, meshes = run.agent_place(index, host), _meshes(plan, coming)
            member = MessageKeys(run, plan).of(host)
            config = agent_config(run, plan, host, place, secrets, first=True, membership=member, coming=meshes)
            with contextlib.suppress(OSError):  # the controller tries again and reports the error
                private_folder(run.sockets)
                return host.name, EarlyAgent(config, host.python)
            break
    return "", None


def _meshes(plan: Plan, coming: Unit | None) -> tuple[MeshPlan, ...]:
    """The coming mesh as fork servers need it; they do not need to know its GPUs."""
    if coming is None:
        return ()
    from forgectl.plan.addition import place_more

    with contextlib.suppress(ForgeError):  # the controller will refuse it, too
        return (place_more(plan, dataclasses.replace(coming, with_gpus=False, share_gpus_with=None), {}, os.environ),)
    return ()


def _free_name(name: str, is_given: bool) -> str:
    living = _living_names()
    if is_given and name in living:
        run = living[name]
        raise BusyError(
            f"the name {name} is in use by run {run}",
            hint=f"`forgectl shutdown {run}` ends it; `launch --replace` ends it and takes its place; "
            "`--name OTHER` launches beside it",
        )
    return free_name(name, living)


def _living_names() -> dict[str, str]:
    """Name → run id, for the runs that have not ended."""
    found = {}
    for run in run_dir.all_runs():
        try:
            if not run.has_ended and not client.document(run).ended:
                found[run.name] = run.run
        except InternalError:
            pass  # no controller can be started for it: its processes end with the lease
        except TimedOutError:
            found[run.name] = run.run  # its controller is stuck but alive: that must not prevent another run
    return found
