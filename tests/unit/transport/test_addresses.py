"""Which hosts have to reach which, and at which address: decided without a network, then dialled on this machine's."""

from __future__ import annotations

import dataclasses
import socket

import pytest

from forgectl.errors import UnreachableError
from forgectl.hosts import reach
from forgectl.model.plan import HostFacts, HostPlan, MeshPlan, Plan, RestartPolicy
from forgectl.transport.addresses import needed_pairs, possible_pairs, verified
from forgectl.transport.survey import Hosts
from tests.unit.controller.test_state import mesh

NETWORK = {"here": "n0", "a": "n1", "b": "n2", "twin": "n1"}


def plan_of(*meshes: MeshPlan, hosts: tuple[str, ...] = ("here", "a", "b", "twin")) -> Plan:
    return Plan(
        name="t",
        spec="",
        workdir="/",
        lease=30.0,
        log_limit=1 << 20,
        hosts=tuple(HostPlan(h, h == "here", "python3", "") for h in hosts),
        meshes=meshes,
    )


def actor(name: str, *hosts: str) -> MeshPlan:
    return mesh(name, len(hosts), hosts, kind="actor")


DRIVER = mesh("driver", 1, ("here",), kind="driver")


def test_hosts_of_one_network_need_no_address() -> None:
    assert needed_pairs(plan_of(mesh("m", 2, ("a", "twin"))), NETWORK) == set()


def test_hosts_of_a_mesh_must_reach_each_other() -> None:
    plan = plan_of(mesh("m", 2, ("a", "b")), mesh("n", 2, ("a", "twin")))
    assert needed_pairs(plan, NETWORK) == {("a", "b"), ("b", "a")}


def test_machines_with_actors_should_reach_each_other_but_need_not() -> None:
    """Messages go by another way where they do not."""
    plan = plan_of(actor("x", "a"), actor("y", "b"))
    assert needed_pairs(plan, NETWORK) == set()
    assert possible_pairs(plan, NETWORK) == {
        (s, t) for s in NETWORK for t in ("a", "b", "twin") if NETWORK[s] != NETWORK[t]
    }


def test_a_mesh_that_may_move_may_need_every_host() -> None:
    plan = plan_of(mesh("m", 2, ("a", "b"), restart=RestartPolicy(1)))
    assert ("here", "a") in possible_pairs(plan, NETWORK)
    tied = dataclasses.replace(plan.meshes[0], unit=dataclasses.replace(plan.meshes[0].unit, hosts=("a", "b")))
    assert possible_pairs(plan_of(tied), NETWORK) == set()


def hosts_of(**addresses: tuple[str, ...]) -> Hosts:
    """All on this machine, so that the dials are real; told apart as if they were not."""
    facts = {n: HostFacts(n, n, 1, network=n, addresses=a) for n, a in addresses.items()}
    return Hosts(facts=facts)


def test_the_first_address_that_is_reached_is_taken() -> None:
    hosts = hosts_of(a=("203.0.113.9", "127.0.0.1", "127.0.0.2"), b=("127.0.0.3",))
    plan = verified(plan_of(mesh("m", 2, ("a", "b")), hosts=("a", "b")), hosts, {})
    assert [h.address for h in plan.hosts] == ["127.0.0.1", "127.0.0.3"]
    assert [h.reaches for h in plan.hosts] == [("b",), ("a",)]
    assert not hosts.listeners


def test_a_wrong_address_is_an_error_that_names_it() -> None:
    hosts = hosts_of(a=("127.0.0.1",), b=("127.0.0.3",))
    with pytest.raises(UnreachableError, match=r"take part with others: 203\.0\.113\.9 is not an address of a"):
        verified(plan_of(mesh("m", 2, ("a", "b")), hosts=("a", "b")), hosts, {"a": "203.0.113.9"})
    assert not hosts.listeners


def test_a_host_without_addresses_is_an_error() -> None:
    hosts = hosts_of(a=(), b=("127.0.0.3",))
    with pytest.raises(UnreachableError, match="no address but loopback"):
        verified(plan_of(mesh("m", 2, ("a", "b")), hosts=("a", "b")), hosts, {})


def test_dials_tell_apart_what_answers_and_what_does_not() -> None:
    from forgectl.protocol.host_survey import DialTarget

    listeners, ports = reach.listen_on(("127.0.0.1", "203.0.113.9"))
    free = socket.create_server(("127.0.0.1", 0))
    closed = free.getsockname()[1]
    free.close()
    targets = [DialTarget("open", "127.0.0.1", ports["127.0.0.1"]), DialTarget("closed", "127.0.0.1", closed)]
    found = reach.dial_all([*targets, DialTarget("nowhere", "no.such.name.invalid", 1)])
    assert list(ports) == ["127.0.0.1"]
    assert found["open"] is None
    assert found["closed"] == "Connection refused"
    assert found["nowhere"]
    for listener in listeners:
        listener.close()


def test_a_host_that_cannot_be_dialled_is_still_one_for_actors() -> None:
    hosts = hosts_of(here=("127.0.0.1",), a=("203.0.113.9",), b=("127.0.0.3",))
    plan = verified(plan_of(actor("x", "a"), actor("y", "b"), hosts=("here", "a", "b")), hosts, {})
    here, a, b = plan.hosts
    assert (a.address, b.address) == ("", "127.0.0.3")
    assert here.reaches == ("b",)
    assert a.reaches == ("b",)
    assert b.reaches == ()
