"""What an endpoint or constructor sets in torch for its thread holds in all later endpoints of the rank."""

import asyncio
import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from forgectl.actor import torch_state
from forgectl.actor.endpoint import endpoint
from forgectl.actor.performer import Performer, call_ids, calling

Look = Callable[[], Any]


def _enter(manager: Any) -> object:
    kept.append(manager)
    return manager.__enter__()


kept: list[Any] = []

SETTINGS: dict[str, tuple[Callable[[], object], Look, Any]] = {
    "grad mode": (lambda: torch.set_grad_enabled(False), torch.is_grad_enabled, False),
    "no_grad": (lambda: _enter(torch.no_grad()), torch.is_grad_enabled, False),
    "inference mode": (lambda: _enter(torch.inference_mode()), torch.is_inference_mode_enabled, True),
    "autocast": (
        lambda: _enter(torch.autocast("cpu", torch.float16)),
        lambda: (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")),
        (True, torch.float16),
    ),
    "what autocast does": (
        lambda: _enter(torch.autocast("cpu", torch.bfloat16)),
        lambda: (torch.ones(2, 2) @ torch.ones(2, 2)).dtype,
        torch.bfloat16,
    ),
    "autocast of CUDA": (
        lambda: torch.set_autocast_dtype("cuda", torch.bfloat16),
        lambda: torch.get_autocast_dtype("cuda"),
        torch.bfloat16,
    ),
    "autocast's cache": (lambda: torch.set_autocast_cache_enabled(False), torch.is_autocast_cache_enabled, False),
    "default device": (lambda: torch.set_default_device("meta"), lambda: torch.empty(1).device.type, "meta"),
    "device as a context": (lambda: _enter(torch.device("meta")), lambda: torch.empty(1).device.type, "meta"),
    "threads": (lambda: torch.set_num_threads(3), torch.get_num_threads, 3),
}


class Subject:
    """Sets what the test chooses, and looks."""

    performer: Performer

    @endpoint
    async def do(self, what: Callable[[], object]) -> Any:
        return what()

    @endpoint
    def do_plain(self, what: Callable[[], object]) -> Any:
        return what()

    @endpoint
    async def back(self, what: Callable[[], object]) -> Any:
        """Has a plain endpoint do it while this one waits: in another thread than its own."""
        return await self.performer.perform("do_plain", (what,), {}, (*calling.get(), next(call_ids)))

    @endpoint
    def fail(self, what: Callable[[], object]) -> None:
        what()
        raise ValueError("afterwards")


@contextlib.contextmanager
def rank() -> Iterator[Callable[[str, Callable[[], object]], Any]]:
    """A performer in a thread of its own, so that pytest's keeps its settings."""
    with ThreadPoolExecutor(1) as thread:
        loop, subject = asyncio.new_event_loop(), Subject()

        async def make() -> None:
            subject.performer = Performer(subject)

        def perform(name: str, what: Callable[[], object]) -> Any:
            call = subject.performer.perform(name, (what,), {}, (next(call_ids),))
            return thread.submit(loop.run_until_complete, call).result(60)

        thread.submit(loop.run_until_complete, make()).result()
        try:
            yield perform
        finally:
            thread.submit(loop.run_until_complete, loop.shutdown_default_executor()).result()
            subject.performer._thread.shutdown()
            thread.submit(loop.close).result()


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    """New threads begin with the number that was set last, in whatever thread."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("setter", ["do", "do_plain", "back", "fail"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_a_setting_holds_in_all_later_endpoints(setting: str, setter: str) -> None:
    change, look, value = SETTINGS[setting]
    with rank() as perform:
        for name in ("do", "do_plain", "back"):  # every thread has been in use
            assert perform(name, look) != value
        with contextlib.suppress(ValueError):
            perform(setter, change)
        for name in ("do", "do_plain", "back", "do_plain"):
            assert perform(name, look) == value, name


def test_modes_can_be_left_again_elsewhere() -> None:
    with rank() as perform:
        for _ in range(3):
            perform("do", lambda: (_enter(torch.inference_mode()), torch.set_default_device("meta")))
            for name in ("do_plain", "do", "back"):
                assert perform(name, torch.is_inference_mode_enabled)
                assert not perform(name, torch.is_grad_enabled)
            perform("do_plain", lambda: (_enter(torch.inference_mode(False)), torch.set_default_device(None)))
            for name in ("do", "do_plain", "back"):
                assert not perform(name, torch.is_inference_mode_enabled)
                assert perform(name, lambda: torch.empty(1).device.type) == "cpu"


def test_grad_within_inference_mode_is_kept_as_it_is() -> None:
    def both() -> None:
        _enter(torch.inference_mode())
        torch.set_grad_enabled(True)

    with rank() as perform:
        perform("do", both)
        found = perform("do_plain", lambda: (torch.is_inference_mode_enabled(), torch.is_grad_enabled()))
        assert found == (True, True)


def test_tensors_of_inference_mode_in_setup_are_inference_tensors_in_plain_endpoints() -> None:
    with rank() as perform:
        perform("do", lambda: _enter(torch.inference_mode()))
        made = perform("do_plain", lambda: torch.ones(2))
        assert made.is_inference() and not torch.ones(2).is_inference()


def test_the_default_dtype_belongs_to_the_process() -> None:
    found = []
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        thread = threading.Thread(target=lambda: found.append(torch.get_default_dtype()))
        thread.start()
        thread.join()
    finally:
        torch.set_default_dtype(before)
    assert found == [torch.float64]


def test_without_torch_there_is_nothing_to_carry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch")
    assert torch_state.take() is None
    torch_state.give(None)
