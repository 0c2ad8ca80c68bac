"""The replay buffer: episodes wait in it between generation and training, and none grows too old.

`Buffer` decides, without a clock or an event loop; the actor `ReplayBuffer` adds the waiting.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import pkgutil
import random
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from actors.types import Episode
from actors.waiting import TooSlow, within
from forgectl import ForgeActor, endpoint

Collate = Callable[[list[Episode]], Any]
REMEMBERED = 100_000
"""Ids of episodes that are known after they have left the buffer."""


@dataclass(eq=False)
class _Group:
    """Episodes that are sampled together."""

    number: int
    """Of its first episode, in order of arrival."""
    version: int
    """The lowest policy version of its episodes."""
    episodes: list[Episode] = field(default_factory=list)
    uses: int = 0

    def add(self, episode: Episode) -> None:
        self.episodes.append(episode)
        self.version = min(self.version, episode.policy_version)


def in_time(versions: Iterable[int], next_version: int, per_batch: int, max_age: int) -> bool:
    """Whether groups of these versions can all be used before they are older than `max_age`.

    They are used oldest first, `per_batch` in each batch, and each batch raises the policy's version by 1.
    """
    return all(next_version + i // per_batch - version <= max_age for i, version in enumerate(sorted(versions)))


class Buffer:
    """Episodes of the last few policies.

    The age of an episode is the policy's version when it is sampled, minus its own `policy_version`. `sample` returns
    no episode older than `max_policy_age`. `admit` sees to it that hardly any becomes older and is lost: it gives a
    ticket for a new group only if that one, and every group that is held or in flight, can still be used in time
    (`in_time`). `sample` keeps this true: when taking what is there would make groups in flight too old, it waits for
    them. So nothing is generated in vain, as long as versions rise by 1 a batch, the samples are "fifo", and a group is
    no older than the version that it was admitted with.
    """

    def __init__(
        self,
        batch_size: int,
        dp_size: int = 1,
        max_policy_age: int | None = None,
        max_buffer_size: int | None = None,
        max_resample_count: int = 0,
        seed: int | None = None,
        collate: Collate | str | None = None,
        sample_policy: Literal["fifo", "random"] = "fifo",
        group_size: int | None = None,
        drop_zero_variance: bool = False,
        max_empty_batches: int = 10,
    ) -> None:
        """An empty buffer. Raises ValueError for arguments that do not fit together.

        batch_size: episodes of each of `dp_size` ranks. max_policy_age, max_buffer_size: None for no bound; the latter
        counts episodes. max_resample_count: how often an episode may be sampled again; ones that were never sampled
        come first. seed: of "random" samples. collate: what a rank gets is its result for the rank's list of episodes;
        a function or "module:function". sample_policy: "fifo" takes the oldest policy first, then in order of arrival.
        group_size: episodes of a group, which are sampled together; None takes each episode for a group.
        drop_zero_variance: leave out groups whose rewards are equal, which teach nothing. After `max_empty_batches` of
        such groups without another one, `add` and `sample` raise RuntimeError.
        """
        self.group_size = group_size or 1
        total = batch_size * dp_size
        wrong = [
            problem
            for problem, is_so in (
                (f"batch_size {batch_size} must be at least 1", batch_size < 1),
                (f"dp_size {dp_size} must be at least 1", dp_size < 1),
                (f"max_policy_age {max_policy_age} must be at least 0", (max_policy_age or 0) < 0),
                (f"max_resample_count {max_resample_count} must be at least 0", max_resample_count < 0),
                (f"max_empty_batches {max_empty_batches} must be at least 1", max_empty_batches < 1),
                (
                    f"sample_policy {sample_policy!r} must be 'fifo' or 'random'",
                    sample_policy not in ("fifo", "random"),
                ),
                (f"group_size {group_size} must be at least 1", self.group_size < 1),
                (
                    f"{dp_size} ranks of {batch_size} episodes are not whole groups of {group_size}",
                    self.group_size > 0 and total % self.group_size > 0,
                ),
                (
                    f"max_buffer_size {max_buffer_size} must hold a batch, which is {total} episodes",
                    max_buffer_size is not None and max_buffer_size < total,
                ),
                ("drop_zero_variance needs a group_size of at least 2", drop_zero_variance and self.group_size < 2),
            )
            if is_so
        ]
        if wrong:
            raise ValueError("; ".join(wrong))
        self.batch_size, self.dp_size = batch_size, dp_size
        self.max_policy_age, self.max_buffer_size = max_policy_age, max_buffer_size
        self.max_resample_count, self.sample_policy = max_resample_count, sample_policy
        self.drop_zero_variance, self.max_empty_batches = drop_zero_variance, max_empty_batches
        self.groups_per_batch = total // self.group_size
        self._collate: Collate = pkgutil.resolve_name(collate) if isinstance(collate, str) else collate or list
        self._random = random.Random(seed)
        self._ready: list[_Group] = []
        self._forming: dict[str, _Group] = {}
        self._tickets: dict[str, int] = {}  # → the version that its group is to be sampled with
        self._known = OrderedDict[str, None]()  # ids, the latest last
        self._next_version: int | None = None  # of the policy that the next batch will train, as far as is known
        self.newest_version: int | None = None
        """The highest version of the policy that `sample` or `admit` was called with."""
        self._equal_in_a_row = 0  # groups that were dropped
        self._counts = dict.fromkeys(
            ("added", "duplicates", "sampled", "zero_variance_groups", "lost_too_old", "lost_too_many"), 0
        )

    def __len__(self) -> int:
        """Episodes that are held."""
        return sum(len(group.episodes) for group in self._held())

    @property
    def told(self) -> tuple[int | None, int | None]:
        """The versions that decide whom `admit` lets in."""
        return self._next_version, self.newest_version

    def _held(self) -> list[_Group]:
        return [*self._ready, *self._forming.values()]

    # ------------------------------------------------------------ in

    def add(self, episodes: Episode | Sequence[Episode], ticket: str | None = None) -> int:
        """Add the episodes whose ids were not added before; returns how many these are. The ticket is given back.

        With `group_size` the episodes of a group may come apart: it can be sampled, and its ticket is given back, once
        it is complete. Where `max_buffer_size` is exceeded the oldest groups leave, those that were sampled before
        first. Raises ValueError, and adds none, for a reward that is not finite; and RuntimeError, having added them,
        after too many groups of equal rewards.
        """
        given = [episodes] if isinstance(episodes, Episode) else list(episodes)
        for episode in given:
            if not math.isfinite(episode.reward):
                raise ValueError(
                    f"episode {episode.episode_id} of group {episode.group_id} has the reward {episode.reward}; "
                    "it must be finite"
                )
        new = sum(self._add(episode) for episode in given)
        self._counts["duplicates"] += len(given) - new
        if ticket is not None and not any(e.group_id in self._forming for e in given):
            self.release(ticket)
        while self.max_buffer_size is not None and len(self) > self.max_buffer_size:
            first = min(self._held(), key=lambda g: (-g.uses, g.version, g.number))
            self._lose([first], "lost_too_many")
        self._raise_if_starved()
        return new

    def _add(self, episode: Episode) -> bool:
        if episode.episode_id in self._known:
            return False
        self._known[episode.episode_id] = None
        while len(self._known) > REMEMBERED:
            self._known.popitem(last=False)  # a dict would pass over all that it has lost, each time
        self._counts["added"] += 1
        group = self._forming.setdefault(episode.group_id, _Group(self._counts["added"], episode.policy_version))
        group.add(episode)
        if len(group.episodes) == self.group_size:
            self._keep(self._forming.pop(episode.group_id))
        return True

    def _keep(self, group: _Group) -> None:
        """Let a complete group be sampled, unless it is to be dropped."""
        is_equal = self.group_size > 1 and len({e.reward for e in group.episodes}) == 1
        self._counts["zero_variance_groups"] += is_equal
        if is_equal and self.drop_zero_variance:
            self._equal_in_a_row += 1
        else:
            self._equal_in_a_row = 0
            self._ready.append(group)

    def _lose(self, groups: Sequence[_Group], why: str) -> int:
        """Let groups go; returns how many episodes these were. Those that were never sampled are counted as lost."""
        self._ready = [g for g in self._ready if g not in groups]
        self._forming = {name: g for name, g in self._forming.items() if g not in groups}
        self._counts[why] += sum(len(g.episodes) for g in groups if not g.uses)
        return sum(len(g.episodes) for g in groups)

    def _raise_if_starved(self) -> None:
        if self._equal_in_a_row >= self.max_empty_batches * self.groups_per_batch:
            raise RuntimeError(
                f"the last {self._equal_in_a_row} groups each had {self.group_size} equal rewards, so there is nothing "
                f"to learn from them: {self.max_empty_batches} batches (max_empty_batches) without one that is of use. "
                "Look at samples and at the reward function. If all rewards are low, make the tasks easier, sample "
                "more completions a prompt or raise the temperature; if all are high, the tasks are learnt"
            )

    # ------------------------------------------------------------ out

    def sample(self, curr_policy_version: int) -> list[Any] | None:
        """What each rank gets, [dp_rank][i], to train this version of the policy; None while there is too little.

        It is also None while groups in flight, for which there are tickets, would become too old if others were taken
        before them. What has become too old leaves. Raises RuntimeError after too many groups of equal rewards.
        """
        self._raise_if_starved()
        self._next_version = curr_policy_version
        self.newest_version = max(curr_policy_version, self.newest_version or curr_policy_version)
        self.evict(curr_policy_version)
        if len(self._ready) < self.groups_per_batch:
            return None
        if self.sample_policy == "random":
            chosen = self._random.sample(self._ready, self.groups_per_batch)
        else:
            chosen = sorted(self._ready, key=lambda g: (g.uses, g.version, g.number))[: self.groups_per_batch]
            if self._must_wait(chosen):
                return None
        for group in chosen:
            group.uses += 1
        self._ready = [g for g in self._ready if g.uses <= self.max_resample_count]
        self._next_version = curr_policy_version + 1
        self._counts["sampled"] += self.groups_per_batch * self.group_size
        episodes = [e for group in chosen for e in group.episodes]
        ranks = range(0, len(episodes), self.batch_size)
        return [self._collate(episodes[i : i + self.batch_size]) for i in ranks]

    def _must_wait(self, chosen: Sequence[_Group]) -> bool:
        """Whether to take these now would make others too old that are in time when the oldest are taken first."""
        left_now = self._unused(without=chosen)
        left_at_best = sorted(self._unused())[self.groups_per_batch :]
        return self._in_time(left_at_best, 1) and not self._in_time(left_now, 1)

    def _unused(self, without: Sequence[_Group] = ()) -> list[int]:
        """The versions of groups that are in flight, or were never sampled."""
        return [*self._tickets.values(), *(g.version for g in self._ready if not g.uses and g not in without)]

    def _in_time(self, versions: Sequence[int], batches_later: int = 0) -> bool:
        if self.max_policy_age is None or self._next_version is None:
            return True
        return in_time(versions, self._next_version + batches_later, self.groups_per_batch, self.max_policy_age)

    # ------------------------------------------------------------ admission

    def admit(self, curr_policy_version: int) -> str | None:
        """A ticket for a group that this version will sample; None while there are enough.

        Give the generators' version, the oldest if they differ. Whoever has a ticket gives it back by `add` or, where
        nothing comes of the group, by `release`: do that in a `finally`.
        """
        self._next_version = max(curr_policy_version, self._next_version or curr_policy_version)
        self.newest_version = max(curr_policy_version, self.newest_version or curr_policy_version)
        oldest = -math.inf if self.max_policy_age is None else self._next_version - self.max_policy_age
        versions = [*(v for v in self._unused() if v >= oldest), curr_policy_version]  # older ones will leave
        if self.max_buffer_size is not None and len(versions) * self.group_size > self.max_buffer_size:
            return None
        if not self._in_time(versions):
            return None
        ticket = uuid.uuid4().hex
        self._tickets[ticket] = curr_policy_version
        return ticket

    def release(self, ticket: str) -> None:
        """Give a ticket back; one that was given back already is ignored."""
        self._tickets.pop(ticket, None)

    # ------------------------------------------------------------ upkeep

    def evict(self, curr_policy_version: int) -> int:
        """Let episodes go that are too old for this version of the policy; returns how many."""
        if self.max_policy_age is None:
            return 0
        oldest = curr_policy_version - self.max_policy_age
        self._tickets = {ticket: version for ticket, version in self._tickets.items() if version >= oldest}
        return self._lose([g for g in self._held() if g.version < oldest], "lost_too_old")

    def clear(self) -> None:
        """Let all episodes go. Their ids stay known, and tickets out."""
        self._ready, self._forming, self._equal_in_a_row = [], {}, 0

    def state_dict(self) -> dict[str, Any]:
        """All but the arguments and the tickets, whose groups a restart loses. It can be pickled."""
        return {
            "group_size": self.group_size,
            "groups": [(g.number, g.uses, list(g.episodes)) for g in self._held()],
            "known": list(self._known),
            "random": self._random.getstate(),
            "next_version": self._next_version,
            "equal_in_a_row": self._equal_in_a_row,
            "counts": dict(self._counts),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from a state. Raises ValueError for that of a buffer with groups of another size."""
        if state_dict["group_size"] != self.group_size:
            raise ValueError(
                f"the state has groups of {state_dict['group_size']} episodes, but those of this buffer have "
                f"{self.group_size}"
            )
        groups = [
            _Group(number, min(e.policy_version for e in episodes), list(episodes), uses)
            for number, uses, episodes in state_dict["groups"]
        ]
        self._ready = [g for g in groups if len(g.episodes) == self.group_size]
        self._forming = {g.episodes[0].group_id: g for g in groups if len(g.episodes) < self.group_size}
        self._known = OrderedDict.fromkeys(state_dict["known"])
        self._random.setstate(state_dict["random"])
        self._next_version = state_dict["next_version"]
        self._equal_in_a_row = state_dict["equal_in_a_row"]
        self._counts = dict(state_dict["counts"])
        self._tickets = {}

    def stats(self) -> dict[str, int]:
        """Counts of what has been since the beginning, and of what there is now.

        Been: episodes added, duplicates refused, episodes sampled, groups of equal rewards, and episodes lost before
        they were ever sampled, because they were too old or too many. Are: episodes, groups that can be sampled,
        incomplete groups, and groups in flight, for which there are tickets.
        """
        return {
            **self._counts,
            "episodes": len(self),
            "groups": len(self._ready),
            "incomplete_groups": len(self._forming),
            "in_flight": len(self._tickets),
        }


class _Waiting:
    """A call that waits for what it wants."""

    def __init__(self, attempt: Callable[[], Any], same: tuple[str, int]) -> None:
        self.attempt = attempt  # what is wanted, or None
        self.same = same  # one that is refused is refused to all of these
        self.found = asyncio.get_running_loop().create_future()

    def give(self) -> bool:
        """Let the call have what it wants, or the exception that this raises; False if it must wait."""
        try:
            found = self.attempt()
        except Exception as e:
            self.found.set_exception(e)
            return True
        if found is not None:
            self.found.set_result(found)
        return found is not None


class ReplayBuffer(ForgeActor):
    """A `Buffer` as an actor of one rank. No call waits behind another one: `add` goes on while `sample` waits."""

    def __init__(
        self,
        batch_size: int,
        dp_size: int = 1,
        max_policy_age: int | None = None,
        max_buffer_size: int | None = None,
        max_resample_count: int = 0,
        seed: int | None = None,
        collate: Collate | str | None = None,
        sample_policy: Literal["fifo", "random"] = "fifo",
        group_size: int | None = None,
        drop_zero_variance: bool = False,
        max_empty_batches: int = 10,
    ) -> None:
        """The arguments are those of `Buffer`."""
        super().__init__()
        self.buffer = Buffer(
            batch_size,
            dp_size,
            max_policy_age,
            max_buffer_size,
            max_resample_count,
            seed,
            collate,
            sample_policy,
            group_size,
            drop_zero_variance,
            max_empty_batches,
        )
        self._waiting: list[_Waiting] = []

    @endpoint
    async def setup(self) -> None:
        """Refuse a mesh of several ranks, each of which would have other episodes."""
        if self.size != 1:
            raise ValueError(f"a replay buffer has one rank, not {self.size}: leave out procs")

    @endpoint(concurrent=True)
    async def add(self, episodes: Episode | Sequence[Episode], ticket: str | None = None) -> int:
        """Add the episodes whose ids were not added before; returns how many these are. See `Buffer.add`."""
        with self._change():
            return self.buffer.add(episodes, ticket)

    @endpoint(concurrent=True)
    async def sample(self, curr_policy_version: int, timeout: float | None = 0) -> list[Any] | None:
        """What each rank gets, [dp_rank][i], to train this version; None if that took longer than `timeout` seconds.

        0 does not wait, None waits as long as it takes. See `Buffer.sample`.
        """
        wanted = _Waiting(lambda: self.buffer.sample(curr_policy_version), ("sample", curr_policy_version))
        return await self._first(wanted, timeout)

    @endpoint(concurrent=True)
    async def admit(self, curr_policy_version: int, timeout: float | None = None) -> str | None:
        """A ticket for a group that this version will sample; None if that took longer than `timeout` seconds.

        While it waits, the version may get too old for any group. Then the newest that the buffer was told counts in
        its place: so let the generators have a version before you call `sample` with it. See `Buffer.admit`.
        """

        def attempt() -> str | None:
            ticket = self.buffer.admit(curr_policy_version)
            newest = self.buffer.newest_version or curr_policy_version
            return self.buffer.admit(newest) if ticket is None and newest > curr_policy_version else ticket

        return await self._first(_Waiting(attempt, ("admit", curr_policy_version)), timeout)

    @endpoint(concurrent=True)
    async def release(self, ticket: str) -> None:
        """Give a ticket back; one that was given back already is ignored."""
        with self._change():
            self.buffer.release(ticket)

    @endpoint(concurrent=True)
    async def evict(self, curr_policy_version: int) -> int:
        """Let episodes go that are too old for this version; returns how many. `sample` does it by itself."""
        with self._change():
            return self.buffer.evict(curr_policy_version)

    @endpoint(concurrent=True)
    async def clear(self) -> None:
        """Let all episodes go. Their ids stay known, and tickets out."""
        with self._change():
            self.buffer.clear()

    @endpoint(concurrent=True)
    async def state_dict(self) -> dict[str, Any]:
        """All but the arguments and the tickets, whose groups a restart loses. It can be pickled."""
        return self.buffer.state_dict()

    @endpoint(concurrent=True)
    async def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from a state. Raises ValueError for that of a buffer with groups of another size."""
        with self._change():
            self.buffer.load_state_dict(state_dict)

    @endpoint(concurrent=True)
    async def stats(self) -> dict[str, int]:
        """Counts, as of `Buffer.stats`."""
        return self.buffer.stats()

    @contextlib.contextmanager
    def _change(self) -> Iterator[None]:
        """Let whoever waits have what there is after this, also where it raises."""
        try:
            yield
        finally:
            self._serve()

    async def _first(self, wanted: _Waiting, timeout: float | None) -> Any:
        """What is wanted, as soon as it can be had; None if that took too long."""
        self._waiting.append(wanted)
        try:
            self._serve()
            with contextlib.suppress(TooSlow):
                return await within(timeout, wanted.found)
            return None
        finally:
            if wanted in self._waiting:
                self._waiting.remove(wanted)

    def _serve(self) -> None:
        """Give those who wait what there is, in the order in which they came, until there is nothing for anybody."""
        again = True
        while again:
            self._waiting = [waiting for waiting in self._waiting if not waiting.found.done()]
            told, again = self.buffer.told, False
            refused = set[tuple[str, int]]()
            for waiting in self._waiting:
                if waiting.same in refused:
                    continue
                if waiting.give():
                    again = True  # what was taken may let others in
                else:
                    refused.add(waiting.same)
            again |= self.buffer.told != told  # so may a version that the buffer has just been told
