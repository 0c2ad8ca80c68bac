"""Who keeps whom waiting: the verdict over the recorded collectives and the stacks of all ranks of a mesh. Pure.

A rank is a suspect only if the records leave no other reading. Where ranks wait for each other, or too little is known,
the verdict says so and accuses nobody.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from forgectl.frozen import dataclass
from forgectl.model.event import ranges
from forgectl.stacks import JOINING
from forgectl.stacks.evidence import Collective, Group, RankEvidence
from forgectl.stacks.places import callee, fold, main_stack

Kind = Literal["nothing", "missing", "mismatch", "each_other", "all_in", "unknown"]
"""`nothing`: no rank waits in a collective. `missing`: some have not entered one that others wait in. `mismatch`: ranks
are in different ones, or with different shapes. `each_other`: ranks wait for each other in different groups. `all_in`:
all are in the same one. `unknown`: some wait, and it cannot be told for whom."""
SAME_SHAPES = frozenset(
    {"all_reduce", "broadcast", "reduce", "_allgather_base", "_all_gather_base", "_reduce_scatter_base"}
)
"""Collectives whose input has the same shape on all ranks. Of others it may differ by rank."""
BETWEEN_TWO = frozenset({"send", "recv", "batch_isend_irecv", "send_object_list", "recv_object_list"})
SHOWN_PLACES = 4
MOST_LINES = 20
"""Most groups of which a verdict tells."""
SHORT_SECONDS = 1.0
"""Who has waited for less is not taken for waiting: ranks are looked at one after the other, while the run goes on."""
LONG_SECONDS = 5.0
"""Who has not entered a collective after so long is said to have never entered it."""


@dataclass(frozen=True)
class Verdict:
    """Who keeps whom waiting. `text` says it to people; it is empty if no rank waits in a collective.

    `suspects` are the ranks to look at first, `waiting` those that wait for them in `operation` number `sequence` of
    the process group `group`, for `seconds` by now.
    """

    kind: Kind
    text: str = ""
    suspects: tuple[int, ...] = ()
    waiting: tuple[int, ...] = ()
    group: str = ""
    operation: str = ""
    sequence: int | None = None
    seconds: float | None = None


def diagnose(ranks: Sequence[RankEvidence]) -> Verdict:
    """The verdict over all ranks of a mesh, of which some may be unknown."""
    by_rank = {r.rank: r for r in ranks}
    records = _records(ranks)
    waits = [w for group in _groups(ranks) if (w := _wait_in(group, by_rank, records)) is not None]
    if not waits:
        return _joining(by_rank)
    blocked_by = {r: _causes(r, waits) for r in by_rank}
    verdicts = [_verdict(w, by_rank, blocked_by) for w in waits]
    order: tuple[Kind, ...] = ("mismatch", "missing", "each_other", "unknown", "all_in", "nothing")
    verdicts.sort(key=lambda v: (order.index(v.kind), -len(v.waiting)))
    first = verdicts[0]
    if not first.suspects and first.kind in ("mismatch", "each_other"):
        first = _by_one(waits, by_rank) or first
    others = [v.text for v in verdicts[1:] if v.kind in ("mismatch", "missing") or (v.kind == first.kind)]
    return _with_text(first, "\n".join(list(dict.fromkeys([first.text, *others]))[:MOST_LINES]))


# ---------------------------------------------------------------- the waits


@dataclass(frozen=True)
class _Members:
    """A process group by one backend, and of its members those that are known; `all_known`: there are no others."""

    backend: str
    name: str
    description: str
    ranks: tuple[int, ...]
    all_known: bool


@dataclass(frozen=True)
class _Wait:
    """The first collective of a group in which ranks wait, what each member entered with its number, and who did not.

    `unknown` are the members of which no record is here.
    """

    members: _Members
    sequence: int
    entered: dict[int, tuple[Collective, ...]]
    waiting: tuple[int, ...]
    missing: tuple[int, ...]
    unknown: tuple[int, ...]
    mismatch: bool


_Records = dict[tuple[str, str, int], list[Collective]]
"""Backend, group and rank → the collectives of all members that it entered there."""


def _groups(ranks: Sequence[RankEvidence]) -> list[_Members]:
    known: dict[str, Group] = {g.name: g for r in ranks for g in r.groups}
    found: dict[tuple[str, str], tuple[str, set[int]]] = {}
    for rank in ranks:
        for c in rank.collectives:
            if c.peer is None:
                found.setdefault((c.backend, c.group), (c.description, set()))[1].add(rank.rank)
    groups = []
    for (backend, name), (description, seen) in found.items():
        if name in known:
            groups.append(_Members(backend, name, description, known[name].ranks, True))
        else:
            whole = description == "default_pg"
            members = tuple(r.rank for r in ranks) if whole else tuple(sorted(seen))
            groups.append(_Members(backend, name, description, members, whole))
    return groups


def _records(ranks: Sequence[RankEvidence]) -> _Records:
    found: _Records = {}
    for rank in ranks:
        for c in rank.collectives:
            if c.peer is None:
                found.setdefault((c.backend, c.group, rank.rank), []).append(c)
    return found


def _wait_in(members: _Members, by_rank: Mapping[int, RankEvidence], records: _Records) -> _Wait | None:
    """What ranks of a group wait in; None if none waits."""
    recorded = {
        r: records.get((members.backend, members.name, r), [])
        for r in members.ranks
        if r in by_rank and by_rank[r].recorded
    }
    pending = [next((c.sequence for c in f if c.pending and c.age >= SHORT_SECONDS), None) for f in recorded.values()]
    first = min((s for s in pending if s is not None), default=None)
    if first is None:
        return None
    sequence, mismatch = _first_mismatch(recorded, first)
    entered = {r: at for r, found in recorded.items() if (at := tuple(c for c in found if c.sequence == sequence))}
    waiting = tuple(r for r, found in recorded.items() if any(c.pending and c.sequence >= sequence for c in found))
    missing = [r for r, found in recorded.items() if (found[-1].sequence if found else 0) < sequence]
    missing += [r for r in members.ranks if r in by_rank and by_rank[r].view == "ended"]
    unknown = tuple(r for r in members.ranks if r not in recorded and r not in missing)
    return _Wait(members, sequence, entered, waiting, tuple(sorted(missing)), unknown, mismatch)


def _first_mismatch(recorded: Mapping[int, Sequence[Collective]], waited: int) -> tuple[int, bool]:
    """The first number up to the waited one at which ranks entered different collectives; else the waited one."""
    for sequence in sorted({c.sequence for found in recorded.values() for c in found if c.sequence <= waited}):
        if len(set(_kinds(recorded, sequence).values())) > 1:
            return sequence, True
    return waited, False


def _kinds(recorded: Mapping[int, Sequence[Collective]], sequence: int) -> dict[int, str]:
    """What each rank entered under a number, in words that are equal where it is the same."""
    found = {r: [c for c in entered if c.sequence == sequence] for r, entered in recorded.items()}
    operations = {r: sorted(c.operation for c in entered) for r, entered in found.items() if entered}
    if len(set(map(tuple, operations.values()))) > 1:
        return {r: " and ".join(names) for r, names in operations.items()}
    return {r: _kind(entered) for r, entered in found.items() if entered}


def _kind(entered: Sequence[Collective]) -> str:
    first = entered[0]
    if len(entered) > 1 or first.operation not in SAME_SHAPES:
        return " and ".join(sorted(c.operation for c in entered))
    tensors = ", ".join(f"{d}{list(s)}" for s, d in zip(first.shapes, first.dtypes, strict=False))
    return f"{first.operation} of {tensors}" if tensors else first.operation


def _causes(rank: int, waits: Iterable[_Wait]) -> frozenset[int]:
    """The other ranks that a rank waits for, as far as records tell."""
    return frozenset(r for w in waits if rank in w.waiting for r in (*w.missing, *w.unknown)) - {rank}


# ---------------------------------------------------------------- one that explains all


def _by_one(waits: Sequence[_Wait], by_rank: Mapping[int, RankEvidence]) -> Verdict | None:
    """The verdict where exactly one rank explains why all wait: had it done as the others expect, all would go on."""
    if any(w.unknown or not w.members.all_known for w in waits):
        return None
    found = [r for r in by_rank if _explains(r, waits)]
    missed = [w for w in waits if len(found) == 1 and found[0] in w.missing]
    if not missed:
        return None
    rank, wait = found[0], max(missed, key=lambda w: len(w.waiting))
    other = next((w for w in waits if rank in w.entered), None)
    instead = f"it entered {_name(other, rank)} instead" if other else "it did not enter it"
    return _made("missing", wait, f"{_head(wait)}; rank {rank} does not: {instead}, {_places([by_rank[rank]])}", [rank])


def _explains(rank: int, waits: Sequence[_Wait]) -> bool:
    """Whether nothing is left to wait for if this rank alone had entered what the others wait in."""
    for wait in waits:
        if wait.mismatch and len({k for r, k in _kinds(wait.entered, wait.sequence).items() if r != rank}) > 1:
            return False
    left = list(waits)
    while left:
        held = {r for w in left for r in w.waiting}
        waiting = {r for w in waits for r in w.waiting}
        over = [w for w in left if all(r == rank or (r in waiting and r not in held) for r in w.missing)]
        if not over:
            return False
        left = [w for w in left if w not in over]
    return True


# ---------------------------------------------------------------- the verdict


def _verdict(wait: _Wait, by_rank: Mapping[int, RankEvidence], blocked_by: Mapping[int, frozenset[int]]) -> Verdict:
    if wait.mismatch:
        return _mismatch(wait, by_rank)
    head = _head(wait)
    if not wait.missing:
        return _nobody_missing(wait, head, by_rank)
    free = [r for r in wait.missing if not blocked_by.get(r) and not _between_two(by_rank[r])]
    if free:
        long = _seconds(wait) >= LONG_SECONDS
        words = (
            "never entered it" if long else "has not entered it yet" if len(free) == 1 else "have not entered it yet"
        )
        text = f"{head}; {_ranks(free)} {words}: {_places(by_rank[r] for r in free)}"
        return _made("missing", wait, text, free)
    return _made("each_other", wait, f"{head}; {_chain(wait, by_rank, blocked_by)}", ())


def _nobody_missing(wait: _Wait, head: str, by_rank: Mapping[int, RankEvidence]) -> Verdict:
    unknown = [r for r in wait.unknown if r in by_rank]
    if len(unknown) == 1 and wait.members.all_known and len(wait.waiting) == len(wait.members.ranks) - 1:
        silent = by_rank[unknown[0]]
        what = "cannot enter or finish it" if silent.view == "stopped" else "did not say which it has entered"
        return _made("missing", wait, f"{head}; rank {silent.rank} {what}: {_places([silent])}", unknown)
    if unknown or not wait.members.all_known:
        who = f"{_ranks(unknown)} did not answer: {_places(by_rank[r] for r in unknown)}" if unknown else ""
        who = who or "which other ranks are in this group is not known"
        return _made("unknown", wait, f"{head}; cannot tell for whom: {who}", ())
    text = f"all {len(wait.members.ranks)} ranks have entered {_name(wait)}: none is missing"
    return _made("all_in", wait, text, ())


def _mismatch(wait: _Wait, by_rank: Mapping[int, RankEvidence]) -> Verdict:
    kinds = _kinds(wait.entered, wait.sequence)
    counts = Counter(kinds.values()).most_common()
    ranks_of = {kind: [r for r in kinds if kinds[r] == kind] for kind, _ in counts}
    clear = counts[0][1] > len(kinds) / 2
    odd = [r for kind, _ in counts[1:] for r in ranks_of[kind]] if clear else []
    parts = [
        f"{_ranks(ranks_of[kind])} entered {kind} ({_places(by_rank[r] for r in ranks_of[kind])})" for kind, _ in counts
    ]
    group = wait.members.description or wait.members.name
    text = f"ranks differ in collective #{wait.sequence} of {group}: {', '.join(parts)}"
    if not clear:
        text += "; cannot tell which is right"
    return _made("mismatch", wait, text, odd)


def _chain(wait: _Wait, by_rank: Mapping[int, RankEvidence], blocked_by: Mapping[int, frozenset[int]]) -> str:
    """Why those that are missing do not come: what they wait for themselves."""
    parts = []
    for rank in wait.missing[:SHOWN_PLACES]:
        causes = sorted(blocked_by.get(rank, ()))
        whom = f"for {_ranks(causes)} " if causes else "for another rank, which cannot be told, "
        parts.append(f"rank {rank} did not enter it, as it waits {whom}itself: {_places([by_rank[rank]])}")
    return "; ".join(parts)


def _joining(by_rank: Mapping[int, RankEvidence]) -> Verdict:
    """The verdict where no recorded collective is waited for: some may wait for others to join a process group."""
    for name in JOINING:
        inside = [r for r, e in by_rank.items() if any(f.function == name for f in main_stack(e))]
        if not inside:
            continue
        head = f"{_count(len(inside), len(by_rank), True)} in {name}"
        out = [r for r in by_rank if r not in inside]
        joined = any(by_rank[r].groups or by_rank[r].view == "unreachable" for r in out)
        if name == "init_process_group" and out and not joined:
            text = f"{head}; {_ranks(out)} did not: {_places(by_rank[r] for r in out)}"
            return Verdict("missing", text, tuple(out), tuple(inside), operation=name)
        rest = f"; {_places(by_rank[r] for r in out)}" if out else ""
        return Verdict("unknown", f"{head}; cannot tell for whom{rest}", (), tuple(inside), operation=name)
    return Verdict("nothing")


def _made(kind: Kind, wait: _Wait, text: str, suspects: Iterable[int]) -> Verdict:
    operation = next(iter(wait.entered.values()))[0].operation if wait.entered else ""
    group = wait.members.description or wait.members.name
    return Verdict(kind, text, tuple(suspects), wait.waiting, group, operation, wait.sequence, _seconds(wait))


def _with_text(verdict: Verdict, text: str) -> Verdict:
    return Verdict(**{**vars(verdict), "text": text})


def _between_two(rank: RankEvidence) -> bool:
    """Whether it waits for a message of another rank, which gloo's recorder does not know."""
    if any(c.pending and c.peer is not None for c in rank.collectives):
        return True
    frames = main_stack(rank)
    return callee(frames) in BETWEEN_TWO if frames else False


# ---------------------------------------------------------------- words


def _head(wait: _Wait) -> str:
    return f"{_count(len(wait.waiting), len(wait.members.ranks), wait.members.all_known)} in {_name(wait)}"


def _name(wait: _Wait, rank: int | None = None) -> str:
    """The collective that ranks wait in, as it is there, or as `rank` entered it."""
    entered = wait.entered.get(rank) if rank is not None else next(iter(wait.entered.values()), None)
    operation = entered[0].operation if entered else "collective"
    seconds = _seconds(wait)
    since = f" for {_duration(seconds)}" if seconds >= 1 else ""
    return f"{operation} #{wait.sequence} of {wait.members.description or wait.members.name}{since}"


def _seconds(wait: _Wait) -> float:
    """How long the first of them has waited."""
    return max((c.age for found in wait.entered.values() for c in found if c.pending), default=0.0)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _count(some: int, all_of: int, known: bool) -> str:
    verb = "waits" if some == 1 else "wait"
    return f"{some} of {all_of} {verb}" if known else f"{some} rank{'s'[: some != 1]} {verb}"


def _ranks(ranks: Iterable[int]) -> str:
    found = list(ranks)
    return f"rank{'s'[: len(found) != 1]} {ranges(found)}"


def _places(ranks: Iterable[RankEvidence]) -> str:
    """`it is at data.py:41 (read)`, or of several ranks where each is."""
    found = fold(ranks)
    if len(found) == 1:
        numbers, text = found[0]
        return f"{'it' if len(numbers) == 1 else 'they'} {_verb(text, len(numbers))}"
    parts = [f"[{ranges(numbers)}] {text}" for numbers, text in found[:SHOWN_PLACES]]
    return " · ".join([*parts, *(["…"] if len(found) > SHOWN_PLACES else [])])


def _verb(text: str, count: int) -> str:
    return f"{'is' if count == 1 else 'are'} {text}" if text.startswith(("at ", "stopped ", "held ")) else text
