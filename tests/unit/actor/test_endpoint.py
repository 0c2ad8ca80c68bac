"""Endpoints: the marks on methods, their signatures, and what is said of those that are none."""

import inspect
import pickle
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from forgectl.actor.endpoint import (
    EndpointInfo,
    endpoint,
    endpoints_of,
    interface_of,
    method_of,
    service_endpoint,
    signature_of,
)


class EndpointProperty:
    """What Monarch's decorator makes: recognised by its name. tests/process/test_monarch.py has the real one."""

    def __init__(self, method: Callable[..., Any]) -> None:
        self._method = method


def monarch_endpoint(method: Callable[..., Any]) -> Any:
    return EndpointProperty(method)


class Counter:
    @endpoint
    async def add(self, k: int, *, twice: bool = False) -> int:
        return k

    @endpoint
    def plain(self) -> None: ...

    @endpoint(idempotent=True)
    def look(self) -> None: ...

    @service_endpoint(router="session", batch_size=4, batch_timeout=0.5)
    async def many(self, xs: list[int]) -> list[int]:
        return xs

    @monarch_endpoint
    async def theirs(self, x: int) -> int:
        return x

    def helper(self) -> None: ...

    @property
    def trap(self) -> None:
        raise AssertionError("looking for endpoints must run no code of the user's")


class Child(Counter):
    async def add(self, k: int, *, twice: bool = False) -> int:  # type: ignore[override]  # without the mark
        return -k

    @endpoint
    def more(self) -> None: ...


def test_marks_are_found_with_their_settings() -> None:
    assert endpoints_of(Counter) == {
        "add": EndpointInfo(),
        "plain": EndpointInfo(),
        "look": EndpointInfo(idempotent=True),
        "many": EndpointInfo(router="session", batch_size=4, batch_timeout=0.5),
        "theirs": EndpointInfo(),
    }


def test_inherited_marks_count_and_an_override_decides_anew() -> None:
    assert set(endpoints_of(Child)) == {"plain", "look", "many", "theirs", "more"}


def test_a_marked_method_is_still_a_method() -> None:
    assert Counter().plain() is None
    assert inspect.iscoroutinefunction(Counter.add)
    assert inspect.iscoroutinefunction(method_of(Counter, "theirs"))


def test_signatures_are_those_of_callers() -> None:
    assert str(signature_of(Counter, "add")) == "(k: int, *, twice: bool = False) -> int"
    assert str(signature_of(Counter, "theirs")) == "(x: int) -> int"
    assert str(signature_of(Counter, "plain")) == "() -> None"


def test_an_unknown_name_is_answered_with_the_nearest_and_all() -> None:
    said = interface_of(Counter).unknown("ad")
    assert said.startswith("Counter has no endpoint 'ad'; did you mean 'add'?; endpoints: add(k: int, *, twice")
    assert "plain() -> None" in said
    assert "did you mean" not in interface_of(Counter).unknown("zzzzzz")


def test_an_unmarked_method_is_said_to_be_one() -> None:
    assert interface_of(Counter).unknown("helper").startswith("Counter.helper is not marked @endpoint")
    assert interface_of(Child).unknown("add").startswith("Child.add is not marked @endpoint")


def test_an_interface_is_plain_data_for_processes_that_cannot_import_the_class() -> None:
    data = pickle.dumps(interface_of(Counter))
    assert __name__.encode() not in data
    assert pickle.loads(data) == interface_of(Counter)  # noqa: S301 (our own)


def test_a_class_without_endpoints_says_so() -> None:
    assert interface_of(object).unknown("go") == "object has no endpoint 'go'; endpoints: none"


@pytest.mark.parametrize("given", [{"batch_size": 0}, {"batch_size": -1}, {"batch_timeout": -0.1}])
def test_what_cannot_be_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="batch_"):
        service_endpoint(**given)


def test_only_callables_can_be_marked() -> None:
    with pytest.raises(TypeError, match="an endpoint is a method, not int"):
        endpoint(1)  # type: ignore[call-overload]


def test_only_async_methods_are_concurrent() -> None:
    class Subject:
        @endpoint(concurrent=True)
        async def waits(self) -> None: ...

    assert endpoints_of(Subject)["waits"].concurrent
    with pytest.raises(TypeError, match="plain is not async, and so cannot be concurrent"):

        @endpoint(concurrent=True)  # type: ignore[arg-type]
        def plain(self: object) -> None: ...


class Streams:
    @endpoint(concurrent=True)
    async def values(self, n: int) -> AsyncIterator[int]:
        yield n

    @endpoint
    def plain(self) -> Iterator[int]:
        yield 1


def test_async_generators_stream_and_may_be_concurrent() -> None:
    interface = interface_of(Streams)
    assert interface.streaming == {"values"}
    assert endpoints_of(Streams)["values"].concurrent
    with pytest.raises(TypeError, match="is not async"):
        endpoint(concurrent=True)(lambda self: None)  # type: ignore[arg-type, return-value]


def test_signatures_show_annotations_as_they_are_written() -> None:
    """This file has its annotations as strings or not, with `from __future__ import annotations` or without."""

    class Subject:
        @endpoint
        async def say(self, text: "str" = "a b", *, times: int = 2) -> "list[str]": ...  # type: ignore[empty-body]

    assert interface_of(Subject).endpoints == {"say": "(text: str = 'a b', *, times: int = 2) -> list[str]"}
