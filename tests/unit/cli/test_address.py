"""RUN, MESH, RUN/MESH, MESH/RANK and RUN/MESH/RANK: what they mean, and what is refused."""

from __future__ import annotations

import pytest

from forgectl.cli.address import KnownMesh, KnownRun, meanings, resolve
from forgectl.errors import NotFoundError, UsageError


def run(run_id: str, *meshes: str, services: tuple[str, ...] = (), driver: bool = False, procs: int = 2) -> KnownRun:
    known = {m: KnownMesh("script", procs) for m in meshes} | {m: KnownMesh("service", procs) for m in services}
    return KnownRun(run_id, known | ({"driver": KnownMesh("driver", 1, implicit=True)} if driver else {}))


ALPHA = run("alpha-1111", "train", "eval")
BETA = run("beta-2222", "train", services=("policy.0", "policy.1"))
SOLO = run("solo-3333", "solo", driver=True)
MIXED = run("mixed-4444", "mixed", "other")
NUMBERED = run("numbered-5555", "0", "1")
ALL = [ALPHA, BETA, SOLO, MIXED, NUMBERED]


@pytest.mark.parametrize(
    ("text", "means"),
    [
        ("alpha-1111", ["alpha-1111"]),
        ("alpha", ["alpha-1111"]),
        ("eval", ["alpha-1111/eval"]),
        ("train", ["alpha-1111/train", "beta-2222/train"]),
        ("beta/train", ["beta-2222/train"]),
        ("beta-2222/train", ["beta-2222/train"]),
        ("eval/1", ["alpha-1111/eval/1"]),
        ("beta/train/0", ["beta-2222/train/0"]),
        ("policy", ["beta-2222/policy"]),
        ("policy/0", ["beta-2222/policy/0"]),
        ("policy.1/1", ["beta-2222/policy.1/1"]),
        ("beta/policy", ["beta-2222/policy"]),
        ("solo", ["solo-3333/solo"]),  # as good as the run, whose other mesh is forgectl's own
        ("mixed", ["mixed-4444", "mixed-4444/mixed"]),
        ("mixed-4444", ["mixed-4444"]),
        ("numbered/0", ["numbered-5555/0"]),
        ("0/1", ["numbered-5555/0/1"]),
        ("1", ["numbered-5555/1"]),
        ("nobody", []),
        ("alpha/nobody", []),
        ("alpha/train/x", []),
        ("alpha/train/1/2", []),
        ("alpha/train/-1", []),
        ("eval/²", []),
        ("eval/", []),
        ("/", []),
        ("", []),
    ],
)
def test_what_a_text_may_mean(text: str, means: list[str]) -> None:
    assert [str(a) for a in meanings(text, ALL)] == means


def test_a_run_and_a_mesh_of_one_name_compete_for_a_number() -> None:
    both = [run("x-1111", "0", "other"), run("y-2222", "x")]
    assert [str(a) for a in meanings("x/0", both)] == ["x-1111/0", "y-2222/x/0"]


def test_an_address_written_out_means_itself() -> None:
    for text in ("alpha", "eval", "policy", "policy.0", "eval/0", "solo", "numbered/0", "0/1"):
        found = resolve(text, ALL)
        assert found is not None
        assert resolve(str(found), ALL) == found


def test_the_replicas_of_a_service_are_its_meshes() -> None:
    found = resolve("policy", ALL)
    assert found is not None
    assert (found.target, found.meshes) == ("policy", ("policy.0", "policy.1"))


def test_ambiguities_are_refused_with_the_candidates() -> None:
    with pytest.raises(UsageError) as refusal:
        resolve("train", ALL)
    assert refusal.value.hint == "say which: alpha-1111/train, beta-2222/train"
    with pytest.raises(UsageError) as refusal:
        resolve("mixed", ALL)
    assert refusal.value.hint == "say which: mixed-4444, mixed-4444/mixed"


def test_living_runs_come_first_then_the_first_ended_one() -> None:
    later, earlier = run("alpha-9999", "train"), run("alpha-8888", "train", "older")
    assert str(resolve("alpha", [ALPHA], [later, earlier])) == "alpha-1111"
    assert str(resolve("alpha", [], [later, earlier])) == "alpha-9999"
    assert str(resolve("older", [ALPHA], [later, earlier])) == "alpha-8888/older"
    assert resolve("older", [ALPHA]) is None


def test_no_more_ended_runs_are_looked_at_than_needed() -> None:
    def runs() -> object:
        yield run("alpha-9999", "train")
        raise AssertionError("looked on")

    assert resolve("train", [], runs()) is not None  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["eval/2", "alpha/eval/77", "policy/2"])
def test_a_rank_that_the_mesh_does_not_have(text: str) -> None:
    with pytest.raises(NotFoundError) as refusal:
        resolve(text, ALL)
    assert "has no rank" in refusal.value.message
    assert refusal.value.hint == "it has ranks 0 to 1"
