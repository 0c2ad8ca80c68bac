"""The replay buffer: what it keeps, what it hands out and whom it admits, in any order of events."""

from __future__ import annotations

import asyncio
import contextlib
import math
import pickle
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from actors import buffer as buffer_module
from actors.buffer import Buffer, ReplayBuffer, in_time
from actors.types import Episode
from tests.conftest import Forge, processes_with

NONE = torch.zeros(0)


def episode(name: str, version: int = 0, group: str = "", reward: float = 0.0) -> Episode:
    return Episode(name, group or name, NONE, NONE, NONE, NONE, reward, version)


def group(name: str, size: int, version: int = 0, *, equal: bool = False) -> list[Episode]:
    return [episode(f"{name}{i}", version, name, 1.0 if equal else float(i)) for i in range(size)]


def names(batch: Any) -> Any:
    return None if batch is None else [[e.episode_id for e in share] for share in batch]


def filled(buffer: Buffer, *ids: str, version: int = 0) -> Buffer:
    buffer.add([episode(name, version) for name in ids])
    return buffer


# ------------------------------------------------------------ in and out


def test_each_rank_gets_its_episodes_in_order_of_arrival() -> None:
    buffer = filled(Buffer(2, dp_size=2), *"abc")
    assert buffer.sample(0) is None
    assert buffer.add(episode("d")) == 1 and buffer.add(episode("e")) == 1
    assert names(buffer.sample(0)) == [["a", "b"], ["c", "d"]]
    assert buffer.sample(0) is None and len(buffer) == 1


def test_the_oldest_policy_comes_first() -> None:
    buffer = Buffer(1)
    buffer.add([episode("new", 3), episode("old", 1), episode("middle", 2)])
    assert [names(buffer.sample(3)) for _ in range(3)] == [[["old"]], [["middle"]], [["new"]]]


def test_an_id_counts_once_also_after_it_has_gone() -> None:
    buffer = filled(Buffer(1, max_policy_age=1, max_buffer_size=2), "a", "b")
    assert buffer.add([episode("b"), episode("c"), episode("c")]) == 1, "b is held, c came twice, and a is pushed out"
    assert names(buffer.sample(0)) == [["b"]]
    assert buffer.evict(9) == 1
    buffer.add(episode("d"))
    buffer.clear()
    assert buffer.add([episode(name) for name in "abcd"]) == 0
    assert buffer.stats() | {"added": 4, "duplicates": 6, "episodes": 0} == buffer.stats()


def test_ids_are_forgotten_at_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffer_module, "REMEMBERED", 3)
    buffer = filled(Buffer(1), *"abcd")
    assert len(buffer.state_dict()["known"]) == 3


def test_groups_are_sampled_whole() -> None:
    buffer = Buffer(3, dp_size=2, group_size=3)
    a, b = group("a", 3), group("b", 3)
    buffer.add([*a[:2], *b])
    assert buffer.sample(0) is None
    assert buffer.stats() | {"episodes": 5, "groups": 1, "incomplete_groups": 1} == buffer.stats()
    buffer.add(a[2])
    assert names(buffer.sample(0)) == [["a0", "a1", "a2"], ["b0", "b1", "b2"]]


def test_a_group_is_as_old_as_its_oldest_episode() -> None:
    buffer = Buffer(2, group_size=2, max_policy_age=1)
    buffer.add([episode("a0", 5, "a"), episode("a1", 2, "a"), episode("b0", 4, "b"), episode("b1", 3, "b")])
    assert buffer.evict(4) == 2
    assert names(buffer.sample(4)) == [["b0", "b1"]]
    assert buffer.stats()["lost_too_old"] == 2


@pytest.mark.parametrize(("age", "expected"), [(0, None), (1, [["a"]])])
def test_nothing_older_than_the_bound_is_sampled(age: int, expected: Any) -> None:
    buffer = filled(Buffer(1, max_policy_age=age), "a", version=2)
    assert names(buffer.sample(3)) == expected


def test_the_bound_of_size_holds_after_evictions_too() -> None:
    buffer = Buffer(1, max_policy_age=1, max_buffer_size=3)
    for version in range(9):
        filled(buffer, *(f"{version}.{i}" for i in range(5)), version=version)
        assert len(buffer) == 3
        buffer.evict(version + 1)
        assert names(buffer.sample(version)) == [[f"{version}.2"]], "0 and 1 were pushed out"
    assert buffer.stats()["lost_too_many"] == 2 * 9 + 2 * 8


def test_incomplete_groups_count_for_the_bound_of_size() -> None:
    buffer = Buffer(2, group_size=2, max_buffer_size=2)
    for i in range(5):
        buffer.add(episode(f"e{i}", version=i, group=f"g{i}"))
    assert len(buffer) == 2 and [e.group_id for _, _, es in buffer.state_dict()["groups"] for e in es] == ["g3", "g4"]


def test_an_episode_may_be_sampled_again_when_there_is_no_other() -> None:
    buffer = filled(Buffer(2, max_resample_count=1), "a", "b")
    assert names(buffer.sample(0)) == [["a", "b"]]
    buffer.add(episode("c"))
    assert names(buffer.sample(0)) == [["c", "a"]], "c first, though it came last"
    assert names(buffer.sample(0)) == [["b", "c"]]
    assert buffer.sample(0) is None and len(buffer) == 0
    assert buffer.stats()["sampled"] == 6


def test_what_was_sampled_before_makes_room_first() -> None:
    buffer = filled(Buffer(1, max_resample_count=5, max_buffer_size=2), "a", "b", version=1)
    assert names(buffer.sample(1)) == [["a"]]
    buffer.add(episode("c", 2))
    assert names(buffer.sample(2)) == [["b"]]
    assert buffer.stats()["lost_too_many"] == 0, "it was used"


def test_random_samples_follow_the_seed_and_leave_the_global_generators_alone() -> None:
    import random

    random.seed(1)
    before = random.getstate()
    ids = [str(i) for i in range(50)]

    def drawn(seed: int | None) -> list[Any]:
        buffer = filled(Buffer(5, seed=seed, sample_policy="random"), *ids)
        return [names(buffer.sample(0)) for _ in range(10)]

    assert drawn(7) == drawn(7) != drawn(8)
    assert sorted(name for batch in drawn(7) for share in batch for name in share) == sorted(ids), "none twice"
    assert random.getstate() == before


def ids_of(episodes: list[Episode]) -> str:
    """What test_collate has each rank get."""
    return "".join(e.episode_id for e in episodes)


@pytest.mark.parametrize("collate", [ids_of, f"{__name__}:ids_of"])
def test_collate_makes_what_each_rank_gets(collate: Any) -> None:
    assert filled(Buffer(2, 2, collate=collate), *"abcd").sample(0) == ["ab", "cd"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"batch_size": 0}, "batch_size 0 must be at least 1"),
        ({"dp_size": 0, "max_policy_age": -1}, "dp_size 0 must be at least 1; max_policy_age -1 must be at least 0"),
        ({"batch_size": 3, "dp_size": 2, "group_size": 4}, "2 ranks of 3 episodes are not whole groups of 4"),
        ({"max_buffer_size": 3}, "max_buffer_size 3 must hold a batch, which is 4 episodes"),
        ({"sample_policy": "lifo"}, "sample_policy 'lifo' must be 'fifo' or 'random'"),
        ({"drop_zero_variance": True}, "needs a group_size of at least 2"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Buffer(**{"batch_size": 4, **arguments})


@pytest.mark.parametrize("reward", [math.nan, math.inf])
def test_a_reward_that_is_not_finite_is_refused_with_its_episode(reward: float) -> None:
    buffer = Buffer(1)
    with pytest.raises(ValueError, match=f"episode b of group g has the reward {reward}"):
        buffer.add([episode("a"), episode("b", group="g", reward=reward)])
    assert len(buffer) == 0


# ------------------------------------------------------------ groups of equal rewards


def test_groups_of_equal_rewards_are_counted_and_dropped_only_on_demand() -> None:
    for drop in (False, True):
        buffer = Buffer(2, group_size=2, drop_zero_variance=drop)
        buffer.add([*group("a", 2, equal=True), *group("b", 2)])
        assert names(buffer.sample(0)) == [["b0", "b1"]] if drop else [["a0", "a1"]]
        assert buffer.stats()["zero_variance_groups"] == 1


def test_too_many_groups_of_equal_rewards_are_a_loud_error() -> None:
    buffer = Buffer(4, group_size=2, drop_zero_variance=True, max_empty_batches=2)
    for i in range(3):
        buffer.add(group(f"a{i}", 2, equal=True))
    buffer.add(group("b", 2))
    for i in range(3):
        buffer.add(group(f"c{i}", 2, equal=True))
    assert buffer.sample(0) is None
    with pytest.raises(RuntimeError, match=r"the last 4 groups each had 2 equal rewards.*2 batches.*Look at"):
        buffer.add(group("d", 2, equal=True))
    with pytest.raises(RuntimeError, match="the last 4 groups"):
        buffer.sample(0)
    buffer.add(group("e", 2))
    assert len(buffer.sample(0) or []) == 1


# ------------------------------------------------------------ admission


def admitted(buffer: Buffer, version: int) -> list[str]:
    """All the tickets that there are for a version."""
    return list(iter(lambda: buffer.admit(version), None))


@pytest.mark.parametrize(("age", "groups"), [(0, 3), (1, 6), (4, 15)])
def test_as_many_groups_are_admitted_as_can_be_used_in_time(age: int, groups: int) -> None:
    assert len(admitted(Buffer(6, group_size=2, max_policy_age=age), 5)) == groups


def test_the_size_of_the_buffer_bounds_admission_too() -> None:
    buffer = Buffer(2, group_size=2, max_buffer_size=6)
    buffer.add(group("a", 2))
    assert len(admitted(buffer, 0)) == 2


def test_on_policy_training_admits_only_the_version_that_will_be_trained() -> None:
    buffer = Buffer(1, max_policy_age=0)
    ticket = buffer.admit(0)
    assert ticket and buffer.admit(0) is None
    buffer.add(episode("a", 0), ticket)
    assert names(buffer.sample(0)) == [["a"]]
    assert buffer.admit(0) is None, "version 0 is being trained: what it sampled now could not be used"
    assert buffer.admit(1)


def test_several_batches_may_train_one_version() -> None:
    buffer = Buffer(1, max_policy_age=0)
    for name in "abc":
        assert buffer.sample(0) is None, "so version 0 needs another batch"
        buffer.add(episode(name), buffer.admit(0))
        assert names(buffer.sample(0)) == [[name]]


def test_a_ticket_is_given_back_once_whether_by_add_or_release() -> None:
    buffer = Buffer(4, max_policy_age=0)
    tickets = admitted(buffer, 0)
    buffer.add(episode("a"), tickets[0])
    for _ in range(2):
        buffer.release(tickets[0])
        buffer.release(tickets[1])
    assert buffer.stats()["in_flight"] == 2
    assert len(admitted(buffer, 0)) == 1


def test_the_ticket_of_a_group_that_comes_apart_is_given_back_by_its_last_episode() -> None:
    buffer = Buffer(2, group_size=2)
    ticket, (first, second) = buffer.admit(0), group("a", 2)
    for episode, in_flight in ((first, 1), (first, 1), (second, 0)):
        buffer.add(episode, ticket)
        assert buffer.stats()["in_flight"] == in_flight


def test_a_dropped_group_makes_room_for_another() -> None:
    buffer = Buffer(2, group_size=2, max_policy_age=0, drop_zero_variance=True)
    ticket = buffer.admit(0)
    assert buffer.admit(0) is None
    buffer.add(group("a", 2, equal=True), ticket)
    assert buffer.admit(0)


def test_a_sample_waits_for_a_group_that_it_would_make_too_old() -> None:
    buffer = Buffer(1, max_policy_age=1)
    late, quick = admitted(buffer, 0)
    buffer.add(episode("quick"), quick)
    assert names(buffer.sample(0)) == [["quick"]], "the late one can be used at version 1"
    buffer.add(episode("next", 1), buffer.admit(1))
    assert buffer.sample(1) is None, "at version 2 it could not"
    buffer.add(episode("late"), late)
    assert names(buffer.sample(1)) == [["late"]]
    assert names(buffer.sample(2)) == [["next"]]


def test_a_released_group_is_not_waited_for() -> None:
    buffer = Buffer(1, max_policy_age=1)
    late, quick = admitted(buffer, 0)
    buffer.add(episode("quick"), quick)
    buffer.sample(0)
    buffer.add(episode("next", 1), buffer.admit(1))
    assert buffer.sample(1) is None
    buffer.release(late)
    assert names(buffer.sample(1)) == [["next"]]


def test_what_cannot_be_used_in_time_anyway_is_neither_waited_for_nor_in_the_way() -> None:
    buffer = Buffer(1, max_policy_age=1)
    late, quick = admitted(buffer, 0)
    buffer.add(episode("quick"), quick)
    buffer.add(episode("new", 7))
    assert names(buffer.sample(7)) == [["new"]], "a trainer that was resumed publishes a much higher version"
    assert buffer.stats() | {"in_flight": 0, "lost_too_old": 1} == buffer.stats()
    buffer.add(episode("late"), late)
    assert len(admitted(buffer, 8)) == 2, "the late one will leave"


def test_groups_are_used_oldest_first_one_batch_a_version() -> None:
    assert in_time([], 0, 1, 0)
    assert in_time([0, 1, 2], 0, 1, 0) and not in_time([0, 0], 0, 1, 0)
    assert in_time([0, 0, 0, 0], 0, 2, 1) and not in_time([0, 0, 0, 0], 1, 2, 1)


# ------------------------------------------------------------ any order of events


class Life(RuleBasedStateMachine):
    """Rollouts that take as long as they like, and a trainer; with several generators that may be a version behind."""

    @initialize(
        per_batch=st.integers(1, 3), age=st.integers(0, 3), size=st.integers(1, 3), dp_size=st.integers(1, 2),
        again=st.integers(0, 2), room=st.none() | st.integers(0, 3),
    )  # fmt: skip
    def begin(self, per_batch: int, age: int, size: int, dp_size: int, again: int, room: int | None) -> None:
        batch = per_batch * size
        self.arguments: dict[str, Any] = {
            "batch_size": batch, "dp_size": dp_size, "max_policy_age": age, "max_resample_count": again,
            "group_size": size, "max_buffer_size": None if room is None else dp_size * batch + room * size,
            "drop_zero_variance": size > 1, "max_empty_batches": 10**6,
        }  # fmt: skip
        self.buffer = Buffer(**self.arguments)
        self.version = self.generated_by = 0
        self.running: dict[str, int] = {}
        self.uses: Counter[str] = Counter()
        self.groups = 0

    @rule()
    def a_group_is_begun(self) -> None:
        ticket = self.buffer.admit(self.generated_by)
        if ticket is not None:
            self.running[ticket] = self.generated_by

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def a_group_ends(self, data: st.DataObject) -> None:
        ticket = data.draw(st.sampled_from(sorted(self.running, key=self.running.__getitem__)))
        version, kind = (
            self.running.pop(ticket),
            data.draw(st.sampled_from(["good", "good", "equal", "failed", "twice"])),
        )
        if kind == "failed":
            self.buffer.release(ticket)
            return
        self.groups += 1
        episodes = group(f"g{self.groups}-", self.buffer.group_size, version, equal=kind == "equal")
        assert self.buffer.add(episodes, ticket) == len(episodes)
        if kind == "twice":
            assert self.buffer.add(episodes, ticket) == 0

    @rule()
    def a_batch_is_trained(self) -> None:
        batch = self.buffer.sample(self.version)
        if batch is None:
            return
        assert [len(share) for share in batch] == [self.buffer.batch_size] * self.buffer.dp_size
        episodes = [e for share in batch for e in share]
        assert all(0 <= self.version - e.policy_version <= self.arguments["max_policy_age"] for e in episodes)
        ids = [e.episode_id for e in episodes]
        assert len(set(ids)) == len(ids)
        self.uses.update(ids)
        assert max(self.uses[i] for i in ids) <= 1 + self.arguments["max_resample_count"]
        assert set(Counter(e.group_id for e in episodes).values()) == {self.buffer.group_size}, "groups are whole"
        self.version += 1

    @rule()
    def the_generators_get_the_weights(self) -> None:
        self.generated_by = self.version

    @rule()
    def the_buffer_is_restarted_with_all_that_runs_lost(self) -> None:
        state = pickle.loads(pickle.dumps(self.buffer.state_dict()))  # noqa: S301
        before = self.buffer.stats() | {"in_flight": 0}
        self.buffer, self.running = Buffer(**self.arguments), {}
        self.buffer.load_state_dict(state)
        assert self.buffer.stats() == before

    @invariant()
    def nothing_is_generated_in_vain(self) -> None:
        stats = self.buffer.stats()
        assert stats["lost_too_old"] == stats["lost_too_many"] == 0

    @invariant()
    def it_stays_within_its_size(self) -> None:
        assert self.buffer.max_buffer_size is None or len(self.buffer) <= self.buffer.max_buffer_size

    @invariant()
    def somebody_can_go_on(self) -> None:
        """When no group is in flight, and the generators have the weights, a batch or another group is possible."""
        if not self.running:
            twin = Buffer(**self.arguments)
            twin.load_state_dict(self.buffer.state_dict())
            assert twin.sample(self.version) or twin.admit(self.version)


TestLife = Life.TestCase
TestLife.settings = settings(deadline=None, max_examples=60, stateful_step_count=40)


class AnyUse(RuleBasedStateMachine):
    """Without admission, in any order and of any version: the bounds hold, and no episode is sampled too often."""

    @initialize(
        age=st.none() | st.integers(0, 2),
        room=st.none() | st.integers(4, 9),
        policy=st.sampled_from(["fifo", "random"]),
    )
    def begin(self, age: int | None, room: int | None, policy: Any) -> None:
        self.age = age
        self.buffer = Buffer(2, 2, age, room, seed=0, sample_policy=policy, group_size=2)
        self.seen: set[str] = set()
        self.sampled: set[str] = set()

    @rule(name=st.integers(0, 30), part=st.integers(0, 1), version=st.integers(0, 5))
    def add(self, name: int, part: int, version: int) -> None:
        new = f"{name}.{part}" not in self.seen
        self.seen.add(f"{name}.{part}")
        assert self.buffer.add(episode(f"{name}.{part}", version, str(name))) == new

    @rule(version=st.integers(0, 6))
    def sample(self, version: int) -> None:
        could = {
            es[0].group_id
            for _, _, es in self.buffer.state_dict()["groups"]
            if len(es) == 2 and (self.age is None or version - min(e.policy_version for e in es) <= self.age)
        }
        batch = self.buffer.sample(version)
        assert (batch is not None) == (len(could) >= 2)
        if batch is not None:
            episodes = [e for share in batch for e in share]
            assert {e.group_id for e in episodes} <= could and len({e.episode_id for e in episodes}) == 4
            assert not self.sampled & {e.episode_id for e in episodes}
            self.sampled |= {e.episode_id for e in episodes}

    @rule(version=st.integers(0, 6))
    def evict(self, version: int) -> None:
        before = len(self.buffer)
        assert self.buffer.evict(version) == before - len(self.buffer)
        held = [e for _, _, es in self.buffer.state_dict()["groups"] for e in es]
        assert self.age is None or all(version - e.policy_version <= self.age for e in held)

    @invariant()
    def it_stays_within_its_size(self) -> None:
        assert self.buffer.max_buffer_size is None or len(self.buffer) <= self.buffer.max_buffer_size


TestAnyUse = AnyUse.TestCase
TestAnyUse.settings = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])


# ------------------------------------------------------------ state


@pytest.mark.parametrize("policy", ["fifo", "random"])
def test_a_restored_buffer_goes_on_as_the_first_would_have(policy: Any) -> None:
    def made() -> Buffer:
        return Buffer(2, group_size=2, seed=3, sample_policy=policy, max_resample_count=1, max_policy_age=2)

    first = made()
    for i in range(9):
        first.add(group(f"g{i}", 2, version=i % 2))
    first.add(group("h", 2)[0])
    first.sample(1)
    second = made()
    second.load_state_dict(pickle.loads(pickle.dumps(first.state_dict())))  # noqa: S301
    assert second.stats() == first.stats()
    for buffer in (first, second):
        assert buffer.add([*group("h", 2), *group("g0", 2)]) == 1
    batches = [[names(buffer.sample(2)) for _ in range(12)] for buffer in (first, second)]
    assert batches[0] == batches[1] and batches[0][0]


def test_a_state_does_not_change_with_its_buffer() -> None:
    buffer = Buffer(2, group_size=2)
    buffer.add(group("a", 2)[0])
    state = buffer.state_dict()
    buffer.add(group("a", 2))
    assert [len(es) for _, _, es in state["groups"]] == [1] and len(state["known"]) == 1


def test_a_state_of_other_groups_is_refused() -> None:
    with pytest.raises(ValueError, match="has groups of 1 episodes, but those of this buffer have 2"):
        Buffer(2, group_size=2).load_state_dict(Buffer(2).state_dict())


# ------------------------------------------------------------ the actor, without a mesh


@contextlib.contextmanager
def no_task_left() -> Iterator[None]:
    yield
    assert asyncio.all_tasks() == {asyncio.current_task()}


def test_the_actor_waits_for_what_others_add() -> None:
    async def scene() -> None:
        with no_task_left():
            actor = ReplayBuffer(2, max_policy_age=0)
            assert await actor.sample(0) is None
            assert await actor.sample(0, timeout=0.01) is None
            waiting = [asyncio.ensure_future(actor.sample(0, timeout=None)) for _ in range(2)]
            await asyncio.sleep(0)
            for name in "abcd":
                assert not all(w.done() for w in waiting)
                await actor.add(episode(name))
            assert sorted(names(found) for found in await asyncio.gather(*waiting)) == [[["a", "b"]], [["c", "d"]]]

    asyncio.run(scene())


def test_whoever_wants_a_ticket_waits_until_there_is_room() -> None:
    async def scene() -> None:
        with no_task_left():
            actor = ReplayBuffer(1, max_policy_age=0)
            first = await actor.admit(0)
            assert first and await actor.admit(0, timeout=0) is None
            second = asyncio.ensure_future(actor.admit(0))
            await asyncio.sleep(0)
            assert not second.done()
            await actor.release(first)
            ticket = await second
            assert ticket
            await actor.add(episode("a"), ticket)
            assert await actor.sample(0)
            later = asyncio.ensure_future(actor.admit(0))
            await asyncio.sleep(0)
            assert not later.done()
            assert await actor.sample(0) is None, "version 0 wants another batch, which lets one in"
            assert await later

    asyncio.run(scene())


def test_whoever_waits_with_a_version_that_is_too_old_gets_in_with_the_newest() -> None:
    async def scene() -> None:
        with no_task_left():
            actor = ReplayBuffer(1, max_policy_age=0)
            await actor.add(episode("a"), await actor.admit(0))
            waiting = asyncio.ensure_future(actor.admit(0))
            assert await actor.sample(0)
            await asyncio.sleep(0)
            assert not waiting.done()
            sample = asyncio.ensure_future(actor.sample(1, timeout=None))
            await actor.add(episode("b", 1), await waiting)
            assert names(await sample) == [["b"]]

    asyncio.run(scene())


def test_too_many_equal_rewards_end_a_sample_that_waits() -> None:
    async def scene() -> None:
        with no_task_left():
            actor = ReplayBuffer(2, group_size=2, drop_zero_variance=True, max_empty_batches=1)
            waiting = asyncio.ensure_future(actor.sample(0, timeout=None))
            await asyncio.sleep(0)
            with pytest.raises(RuntimeError, match="equal rewards"):
                await actor.add(group("a", 2, equal=True))
            with pytest.raises(RuntimeError, match="equal rewards"):
                await waiting

    asyncio.run(scene())


def test_a_mesh_of_several_ranks_is_refused() -> None:
    actor = ReplayBuffer(1)
    actor.size = 2
    with pytest.raises(ValueError, match="one rank, not 2"):
        asyncio.run(actor.setup())


# ------------------------------------------------------------ the actor, launched

SCRIPT = """
import asyncio
import torch
from actors import Episode, ReplayBuffer

Few = ReplayBuffer.options(preload=[])

def episode(name, version=0):
    ids = torch.arange(3)
    return Episode(name, name, ids, ids, torch.ones(3, dtype=torch.bool), torch.zeros(3), 1.0, version)

async def main():
    arguments = {"batch_size": 1, "dp_size": 2, "max_policy_age": 1, "seed": 0}
    first, second = await asyncio.gather(*(Few.as_actor(**arguments) for _ in range(2)))
    assert await first.sample.call_one(0) is None
    waiting = first.sample.call_one(0, timeout=60)
    assert await first.add.call_one(episode("a")) == 1  # while the sample waits
    assert (await first.stats.call_one())["episodes"] == 1
    assert await first.add.call_one([episode("a"), episode("b")]) == 1
    batch = await waiting
    assert [[e.episode_id for e in share] for share in batch] == [["a"], ["b"]], batch
    assert batch[0][0].token_ids.tolist() == [0, 1, 2]

    ticket = await first.admit.call_one(1)
    await first.add.call_one(episode("c", 1), ticket)
    state = await first.state_dict.call_one()
    await first.shutdown()

    await second.load_state_dict.call_one(state)
    assert await second.add.call_one([episode("a", 1), episode("c", 1)]) == 0
    waiting = second.sample.call_one(1, timeout=60)
    await second.add.call_one(episode("d", 1))
    assert [[e.episode_id for e in share] for share in await waiting] == [["c"], ["d"]]
    try:
        await second.add.call_one(episode("e").replaced(reward=float("nan")))
    except Exception as e:
        assert "episode e of group e has the reward nan" in str(e), e
    else:
        raise AssertionError("a reward of nan was taken")
    print("done")

asyncio.run(main())
"""


def test_add_goes_on_while_a_sample_waits_and_the_state_survives(forge: Forge) -> None:
    process = forge.python(forge.write("script.py", SCRIPT))
    out, err = process.communicate(timeout=90)
    assert (process.returncode, out) == (0, "done\n"), err
    assert processes_with(f"FORGECTL_HOME={forge.home}") == {}
