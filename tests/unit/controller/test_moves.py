"""A mesh that loses a host, and messengers that come and go: histories of the real state machine."""

from __future__ import annotations

import dataclasses

from forgectl.controller.causes import reason
from forgectl.controller.commands import commands
from forgectl.controller.records import AgentLost, AgentUp, Moved, Stranded, from_line, to_line
from forgectl.controller.run_state import Run
from forgectl.model.plan import HostPlan, MeshPlan, RestartPolicy
from forgectl.plan.links import dials
from forgectl.protocol.supervision import (
    Links,
    MeshGone,
    MeshNews,
    MessengerGone,
    MessengerOpened,
    OpenMessenger,
    OpenStore,
    Prepare,
    Prepared,
    Release,
    Tunnel,
)
from tests.unit.controller.test_state import History, mesh

LOST = AgentLost("b", "host b was unreachable", final=True)


def history(restart: int = 2) -> History:
    """Two of three hosts in use."""
    return History(mesh(procs=4, hosts=("a", "b"), restart=RestartPolicy(restart)), hosts=("a", "b", "c"))


def lose_host(h: History) -> None:
    h.start()
    h.record(LOST)
    h.happen(MeshGone("m", 0), "a")


def elsewhere(h: History) -> MeshPlan:
    return mesh(procs=4, hosts=("a", "c"), restart=h.mesh().plan.restart)


def test_a_mesh_that_lost_a_host_waits_for_a_place() -> None:
    h = history()
    lose_host(h)
    assert (h.mesh().state, h.mesh().generation, h.mesh().needs_hosts) == ("restarting", 1, True)
    assert not h.told("a")
    assert not h.told("c")


def test_it_begins_anew_where_it_was_moved() -> None:
    h = history()
    lose_host(h)
    h.record(Moved(elsewhere(h)))
    assert (h.told("a"), h.told("b"), h.told("c")) == ([Prepare], [Release], [Prepare])
    for host in ("a", "c"):
        h.happen(Prepared("m"), host)
    assert h.told("a") == [OpenStore]
    h.start()
    assert (h.mesh().state, h.mesh().generation, len(h.mesh().restarts)) == ("running", 1, 1)
    assert h.mesh().before == 1
    assert {r.plan.host for r in h.mesh().ranks.values()} == {"a", "c"}


def test_a_host_that_it_left_is_told_to_release_it() -> None:
    h = history()
    lose_host(h)
    h.record(Moved(mesh(procs=4, hosts=("c",), restart=RestartPolicy(2))))
    assert h.told("a") == [Release]
    h.start()
    assert h.told("a") == [Release]
    assert h.run.was_up


def named(plan: MeshPlan, name: str, owner: str | None = None) -> MeshPlan:
    return dataclasses.replace(plan, unit=dataclasses.replace(plan.unit, mesh=name, share_gpus_with=owner))


def start_both(h: History) -> None:
    """Start a guest and the owner of its GPUs, each on both hosts."""
    for name in ("guest", "m"):
        for host in ("a", "b"):
            h.happen(Prepared(name), host)
    for name in ("guest", "m"):
        h.start(name)


def test_a_mesh_that_shares_gpus_moves_after_their_owner() -> None:
    plan = mesh(procs=4, hosts=("a", "b"), restart=RestartPolicy(2))
    h = History(named(plan, "guest", "m"), plan, hosts=("a", "b", "c"))
    start_both(h)
    h.record(LOST)
    h.happen(MeshGone("guest", 0), "a")
    assert h.mesh("guest").needs_hosts
    assert h.run.to_move() == []  # the processes of its owner are not gone yet
    h.happen(MeshGone("m", 0), "a")
    assert h.run.to_move() == [h.mesh("m")]
    h.record(Moved(elsewhere(h)))
    assert h.run.to_move() == [h.mesh("guest")]


def test_a_mesh_that_shares_gpus_does_not_wait_for_an_owner_that_has_ended() -> None:
    plan = mesh(procs=4, hosts=("a", "b"))
    h = History(named(mesh(procs=4, hosts=("a", "b"), restart=RestartPolicy(2)), "guest", "m"), plan, hosts=("a", "b"))
    start_both(h)
    h.record(LOST)
    h.happen(MeshGone("guest", 0), "a")
    assert h.run.to_move() == []
    h.happen(MeshGone("m", 0), "a")
    assert h.mesh("m").ended
    assert h.run.to_move() == [h.mesh("guest")]


def test_without_a_place_it_is_lost() -> None:
    h = history()
    lose_host(h)
    h.record(Stranded("m", "no room on a"))
    assert (h.mesh().state, h.run.state, h.run.exit_code) == ("lost", "lost", 69)
    assert "no room on a" in (reason(h.mesh()) or "")


def test_without_restarts_left_it_is_lost_at_once() -> None:
    h = history(restart=0)
    lose_host(h)
    assert (h.mesh().state, h.mesh().needs_hosts) == ("lost", False)


def test_a_place_for_a_mesh_that_needs_none_any_more_changes_nothing() -> None:
    h = history()
    h.start()
    h.record(Moved(elsewhere(h)))
    h.record(Stranded("m", "no room"))
    assert (h.mesh().state, h.mesh().plan.hosts) == ("running", ("a", "b"))


def test_moves_are_kept_by_the_journal() -> None:
    h = history()
    lose_host(h)
    h.record(Moved(elsewhere(h)))
    again = Run.new("t-0000", h.run.plan)
    for when, record in h.records:
        again.apply(*from_line(to_line(when, record)))
    assert again.meshes["m"] == h.mesh()


# ---------------------------------------------------------------- messengers


def actors(restart: int = 0) -> History:
    """An actor on an ssh host, and a machine that it is launched from."""
    far = mesh("m", procs=1, hosts=("b",), kind="actor", restart=RestartPolicy(restart))
    h = History(far, hosts=("a", "b"))
    host = HostPlan("b", False, "python3", "10.0.0.2", ssh="b")
    here = dataclasses.replace(h.run.hosts["a"].plan, reaches=("b",))
    h.run.hosts["a"].plan, h.run.hosts["b"].plan = here, host
    h.run.plan = dataclasses.replace(h.run.plan, hosts=(here, host))
    return h


def links(h: History, host: str) -> Links:
    [found] = [c for c in commands(h.run, host) if isinstance(c, Links)]
    return found


def test_a_host_with_actors_gets_a_messenger_and_so_does_the_launching_machine() -> None:
    h = actors()
    assert h.told("b") == [OpenMessenger, MeshNews, Prepare]
    assert h.told("a") == [OpenMessenger, MeshNews]
    h.happen(MessengerOpened(0, 7001, "/s"), "b")
    h.happen(MessengerOpened(0, 0, "/t"), "a")
    assert h.told("b") == [Links, MeshNews, Prepare]
    assert links(h, "b") == Links(0, {})
    assert links(h, "a") == Links(0, {"b": "tcp://10.0.0.2:7001"})


def test_a_host_that_cannot_be_dialled_is_linked_through_ssh() -> None:
    h = actors()
    h.run.hosts["a"].plan = dataclasses.replace(h.run.plan.hosts[0], reaches=())
    h.run.plan = dataclasses.replace(h.run.plan, hosts=(h.run.hosts["a"].plan, h.run.hosts["b"].plan))
    h.happen(MessengerOpened(0, 7001, "/s"), "b")
    h.happen(MessengerOpened(0, 0, "/t"), "a")
    assert links(h, "a") == Links(0, {}, {"b": Tunnel("b", "b", "python3", "/s")})


def test_a_messenger_that_ends_fails_the_meshes_of_its_host_and_is_replaced() -> None:
    h = actors(restart=1)
    h.happen(MessengerOpened(0, 7001, "/s"), "b")
    h.start()
    h.mesh().set_up = True
    h.happen(MessengerGone(0, "it ended by signal 9"), "b")
    assert h.mesh().state == "restarting"
    assert OpenMessenger in h.told("b")
    assert h.run.hosts["b"].messengers_lost == 1
    h.happen(MeshGone("m", 0), "b")
    assert "messenger on host b: it ended by signal 9" in (h.mesh().last_failure or "")


def test_a_messenger_that_cannot_start_fails_the_launch() -> None:
    h = actors(restart=5)
    h.happen(MessengerGone(0, "ModuleNotFoundError: No module named 'zmq'"), "b")
    assert h.run.error is not None
    assert "could not start: ModuleNotFoundError" in h.run.error.message
    assert h.mesh().state == "stopping"


def test_another_agent_has_no_messenger_yet() -> None:
    h = actors()
    h.happen(MessengerOpened(0, 7001, "/s"), "b")
    h.record(AgentUp("b", 999, "boot"))
    assert h.run.hosts["b"].messenger is None


def test_of_two_hosts_the_first_by_name_dials_if_it_can() -> None:
    def host(name: str, *reaches: str) -> HostPlan:
        return HostPlan(name, False, "python3", "10.0.0.2", ssh=name, reaches=reaches)

    here = HostPlan("here", True, "python3", "")
    assert dials(here, host("a")) and not dials(host("a", "here"), here)
    both = host("a", "b"), host("b", "a")
    assert dials(*both) and not dials(*reversed(both))
    one_way = host("a"), host("b", "a")
    assert not dials(*one_way) and dials(*reversed(one_way))
    neither = host("a"), host("b")
    assert not dials(*neither) and not dials(*reversed(neither))
