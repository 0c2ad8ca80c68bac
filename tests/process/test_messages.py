"""The message plane as its users meet it: who may call, in what order, how much at once, and what is left of it."""

from __future__ import annotations

import pytest

from tests.conftest import Forge
from tests.process.actor_scripts import play, the_run
from tests.process.outputs import log_of

# ---------------------------------------------------------------- order, and how much at once


def test_calls_of_several_threads_have_one_order_on_every_rank(forge: Forge) -> None:
    """Or collectives of two callers would meet each other."""
    play(forge, "play_messages.py calls_of_several_threads_have_one_order_on_every_rank")


def test_a_flood_of_calls_waits_at_the_caller_and_loses_none(forge: Forge) -> None:
    """A rank that is slow has at most a window of them; all are answered in order."""
    play(forge, "play_messages.py a_flood_of_calls_waits_at_the_caller_and_loses_none")


def test_a_flood_of_broadcasts_blocks_until_there_is_room(forge: Forge) -> None:
    """And ends when the rank does."""
    play(forge, "play_messages.py a_flood_of_broadcasts_blocks_until_there_is_room")


def test_a_broadcast_from_plain_code(forge: Forge) -> None:
    play(forge, "play_messages.py a_broadcast_from_plain_code")


def test_nothing_is_kept_of_calls_that_are_over(forge: Forge) -> None:
    play(forge, "play_messages.py nothing_is_kept_of_calls_that_are_over")


# ---------------------------------------------------------------- who may call


def test_a_process_that_the_script_starts_may_call(forge: Forge) -> None:
    """A handle is data: processes of the run's machine use it, forked or spawned, and learn of deaths."""
    play(forge, "play_messages.py a_process_that_the_script_starts_may_call")


def test_a_plain_endpoint_calls_others_in_loops_of_its_own(forge: Forge) -> None:
    play(forge, "play_messages.py a_plain_endpoint_calls_others_in_loops_of_its_own")


def test_a_handle_of_another_run_says_so(forge: Forge) -> None:
    forge.env["HANDLE"] = str(forge.folder / "handle")
    play(forge, "play_messages.py a_handle_of_another_run_says_so")


# ---------------------------------------------------------------- values


def test_arrays_and_tensors_arrive_writable_and_their_senders_may_go_on(forge: Forge) -> None:
    pytest.importorskip("torch")
    play(forge, "play_messages.py arrays_and_tensors_arrive_writable_and_their_senders_may_go_on")


def test_what_was_passed_may_be_changed_before_the_call_is_awaited(forge: Forge) -> None:
    """Whether it goes through shared memory or a socket; and whoever got it may keep it."""
    play(forge, "play_messages.py what_was_passed_may_be_changed_before_the_call_is_awaited")


def test_shared_memory_under_calls_that_are_cancelled_and_processes_that_are_killed(forge: Forge) -> None:
    """No byte is wrong, and whatever was killed leaves no memory behind."""
    play(forge, "play_messages.py shared_memory_under_calls_that_are_cancelled_and_processes_that_are_killed")


def test_garbage_from_a_process_of_the_run_is_reported_and_dropped(forge: Forge) -> None:
    """The same user's: others cannot connect (test_privacy.py)."""
    play(forge, "play_messages.py garbage_from_a_process_of_the_run_is_reported_and_dropped")
    assert "dropped a message that is not a request" in log_of(forge, the_run(forge), "counter", 0)
