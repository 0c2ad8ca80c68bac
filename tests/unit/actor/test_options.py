"""`options()`: a new subclass each time, checked at once; class attributes are the defaults."""

import abc
import logging
from typing import Any

import pytest

from forgectl import ForgeActor, endpoint
from forgectl.actor.driver.run_client import living_run_client
from forgectl.actor.forge_actor import RESERVED
from forgectl.actor.handle import ActorHandle
from forgectl.actor.service_handle import ServiceHandle
from forgectl.model.plan import HangPolicy, RestartPolicy


class Plain(ForgeActor):
    """Nothing but the defaults."""

    @endpoint
    def text(self) -> str:
        return "plain"


class Wide(Plain):
    procs = 4
    hosts = 2
    with_gpus = True
    num_replicas = 3
    mesh_name = "wide"


def shape(cls: type[ForgeActor]) -> tuple[Any, ...]:
    return cls.procs, cls.hosts, cls.with_gpus, cls.num_replicas, cls.mesh_name


def test_several_configurations_live_side_by_side() -> None:
    two, three = Plain.options(procs=2), Plain.options(procs=3, mesh_name="three")
    assert [shape(c) for c in (Plain, two, three)] == [
        (1, None, False, 1, None),
        (2, None, False, 1, None),
        (3, None, False, 1, "three"),
    ]
    assert issubclass(two, Plain)
    assert two is not three
    assert (two.__name__, two.__module__, two.__qualname__, two.__doc__) == (
        Plain.__name__,
        Plain.__module__,
        Plain.__qualname__,
        Plain.__doc__,
    )


def test_chained_calls_keep_what_the_earlier_ones_set() -> None:
    first = Plain.options(procs=2, env={"A": "1"}, restart=2)
    second = first.options(hosts=["a", "b"], start_method="spawn").options(procs=4)
    unit = second._unit()
    assert (first._settings().logs, first.options(logs=False)._settings().logs) == (True, False)
    assert (unit.procs, unit.hosts, unit.env, unit.start_method) == (4, ("a", "b"), {"A": "1"}, "spawn")
    assert unit.restart == RestartPolicy(2)
    assert first._unit().start_method == "fork"
    assert second.options(hosts=None, mesh_name=None)._unit().hosts is None  # None is a value


def test_class_attributes_are_the_defaults() -> None:
    unit = Wide._unit()
    assert (unit.mesh, unit.procs, unit.hosts, unit.with_gpus) == ("wide", 4, 2, True)
    assert Wide.options(procs=8)._unit().hosts == 2
    assert shape(Wide.options()) == shape(Wide)


@pytest.mark.parametrize(
    ("attribute", "value", "error"), [("procs", 0, ValueError), ("with_gpus", 1, TypeError), ("hosts", "a", TypeError)]
)
def test_class_attributes_are_checked_too(attribute: str, value: Any, error: type[Exception]) -> None:
    """Those that are set later; `test_a_wrong_value_is_an_error_at_once` has those in the body of a class."""
    cls: Any = type("Wrong", (Plain,), {})
    setattr(cls, attribute, value)
    with pytest.raises(error, match=attribute):
        cls._unit()


def test_gpus_are_its_own_or_shared() -> None:
    assert Plain.options(share_gpus_with="wide")._unit().share_gpus_with == "wide"
    with pytest.raises(ValueError, match="with_gpus and share_gpus_with exclude each other"):
        Wide.options(share_gpus_with="wide")._unit()


def test_settings_may_be_class_attributes_too() -> None:
    class Base(Plain):
        restart = 3
        env = {"A": "1"}
        preload = ["json"]

    class Mixed:
        router = "session"

    class Sub(Base, Mixed):
        restart = 1
        max_concurrent_requests = 64

    unit = Sub._unit()
    assert (unit.restart, unit.env, unit.preload) == (RestartPolicy(1), {"A": "1"}, ("json",))
    settings = Sub.options(env={"B": "2"}, restart=0)._settings()
    assert (settings.restart, settings.env, settings.preload) == (0, {"B": "2"}, ("json",))
    assert (settings.router, settings.max_concurrent_requests) == ("session", 64)
    assert Base._settings().restart == 3
    Base.preload = ["csv"]  # later, and still a setting
    assert Sub._unit().preload == ("csv",)


def test_a_method_of_a_settings_name_is_none() -> None:
    class Busy(Plain):
        env = {"A": "1"}

        @endpoint
        def router(self) -> None: ...

        def restart(self) -> None: ...

        @property
        def python(self) -> str:
            return "mine"

    settings = Busy._settings()
    assert (settings.router, settings.restart, settings.python) == ("round_robin", None, None)
    assert Busy.options(restart=2)._unit().restart == RestartPolicy(2)


@pytest.mark.parametrize("name", ["shutdown", "options", "size", "scale", "rank", "as_actor", "mesh", "__call__"])
def test_an_endpoint_whose_name_is_needed_is_refused(name: str) -> None:
    def method(self: object) -> None: ...

    def make(made: Any) -> type:
        return type("Taken", (ForgeActor,), {name: made})

    make(method)
    with pytest.raises(TypeError, match=rf"^Taken\.{name} cannot be an endpoint of this name: .* as_service, hosts, "):
        make(endpoint(method))


def test_no_name_that_handles_or_the_class_have_can_be_that_of_an_endpoint() -> None:
    needed = {name for cls in (ForgeActor, ActorHandle, ServiceHandle) for name in dir(cls) if name[0] != "_"}
    assert (needed - {"setup"}) | {"mesh"} == RESERVED


def test_an_abstract_class_is_refused() -> None:
    class Abstract(ForgeActor, abc.ABC):
        @endpoint
        @abc.abstractmethod
        def work(self) -> None: ...

        @abc.abstractmethod
        def rest(self) -> None: ...

    class Worker(Abstract):
        def work(self) -> None: ...  # type: ignore[override]

    class Whole(Worker):
        def rest(self) -> None: ...

    for cls, missing in ((Abstract, "rest, work"), (Worker.options(procs=2), "rest")):
        with pytest.raises(TypeError, match=f"cannot be launched: it does not define {missing}$"):
            cls.as_actor().get()
        with pytest.raises(TypeError, match=missing):
            cls.as_service().get()
    assert living_run_client() is None
    Whole._unit()


def test_rank_and_size_may_be_assigned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")

    class Own(ForgeActor):
        def __init__(self) -> None:
            self.rank = self.rank + 10
            self.size = 20

    assert (Own().rank, Own().size, Own()._rank, Own()._size) == (13, 20, 3, 4)


def test_a_mesh_is_named_after_its_class() -> None:
    class _Private_(Plain):
        pass

    assert Plain._unit().mesh == "plain"
    assert Plain.options(procs=2)._unit().mesh == "plain"
    assert _Private_._unit().mesh == "private"


def test_a_class_within_others_is_still_found_by_its_path() -> None:
    class Local(Plain):
        pass

    target = Local.options(procs=2)._unit().program.target
    assert target.endswith(":test_a_class_within_others_is_still_found_by_its_path.<locals>.Local")


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        ({"procs": 0}, ValueError, "procs is 0; it must be 1 to 4096"),
        ({"procs": 4097}, ValueError, "procs is 4097"),
        ({"procs": "4"}, TypeError, "procs is '4'; it must be a whole number"),
        ({"procs": 2.0}, TypeError, "procs is 2.0"),
        ({"procs": True}, TypeError, "procs is True"),
        ({"procs": None}, TypeError, "procs is None"),
        ({"num_replicas": 0}, ValueError, "num_replicas is 0"),
        ({"hosts": 0}, ValueError, "hosts is 0"),
        ({"hosts": "gpu01"}, TypeError, "hosts is 'gpu01'"),
        ({"hosts": []}, TypeError, r"hosts is \[\]"),
        ({"hosts": ["a", "a"]}, ValueError, "a host is named twice"),
        ({"with_gpus": 4}, TypeError, "with_gpus is 4"),
        ({"share_gpus_with": 4}, TypeError, "share_gpus_with is 4; it must be the name of a mesh, or the handle of an"),
        ({"share_gpus_with": "a b"}, TypeError, "share_gpus_with is 'a b'"),
        ({"logs": "off"}, TypeError, "logs is 'off'; it must be True or False"),
        ({"mesh_name": "no way"}, ValueError, "mesh_name is 'no way'"),
        ({"mesh_name": "../etc"}, ValueError, "mesh_name"),
        ({"mesh_name": ""}, ValueError, "mesh_name"),
        ({"env": {"A": 1}}, TypeError, "env"),
        ({"env": ["A=1"]}, TypeError, "env"),
        ({"start_method": "forkserver"}, ValueError, "start_method is 'forkserver'; it must be 'fork' or 'spawn'"),
        ({"preload": "torch"}, TypeError, "preload is 'torch'; it must be a list"),
        ({"restart": -1}, ValueError, "restart is -1"),
        ({"restart": True}, ValueError, "restart is True"),
        ({"restart": {"maximum": 3}}, ValueError, "restart is {'maximum': 3}"),
        (
            {"restart": {"max": 3, "within": "10m"}},
            ValueError,
            "restart within '10m'; give a positive number of seconds",
        ),
        ({"restart": {"max": 3, "within": 0}}, ValueError, "restart within 0"),
        ({"restart": {"max": 3, "backoff": -1}}, ValueError, "restart backoff -1; give a number of seconds"),
        ({"restart": {"max": 3, "backoff": "5s"}}, ValueError, "restart backoff '5s'"),
        ({"restart": RestartPolicy(3, backoff=float("nan"))}, ValueError, "restart backoff nan"),
        ({"restart": {"max": 3, "on": ["crashes"]}}, ValueError, "restart on"),
        ({"restart": {"max": 3, "on": "crash"}}, ValueError, "restart on 'crash'"),
        ({"time_limit": "2h"}, ValueError, "time_limit is '2h'; give a positive number of seconds"),
        ({"time_limit": 0}, ValueError, "time_limit is 0"),
        ({"time_limit": float("inf")}, ValueError, "time_limit is inf"),
        ({"hang": 600}, TypeError, "hang is 600; give {'after'"),
        ({"hang": {"after": "10m"}}, ValueError, "hang is HangPolicy"),
        ({"hang": {"begin": 5}}, ValueError, "it has no 'begin'"),
        ({"hang": {"do": "kill"}}, ValueError, "do='kill'"),
        ({"router": "fastest"}, ValueError, "fastest"),
        ({"max_concurrent_requests": 0}, ValueError, "max_concurrent_requests"),
        ({"max_concurrent_requests": "8"}, TypeError, "max_concurrent_requests is '8'; it must be a whole number"),
        ({"max_queue": 1.5}, TypeError, "max_queue is 1.5"),
        ({"health_poll_rate": "often"}, TypeError, "health_poll_rate is 'often'; it must be a number of seconds"),
    ],
)
def test_a_wrong_value_is_an_error_at_once(given: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        Plain.options(**given)
    with pytest.raises(error, match=f"^class Wrong: {text}" if text.startswith(next(iter(given))) else text):
        type("Wrong", (Plain,), given)


@pytest.mark.parametrize(
    ("wrong", "near"),
    [("prcs", "procs"), ("nprocs", "procs"), ("replicas", "num_replicas"), ("start_methd", "start_method")],
)
def test_an_unknown_setting_names_the_nearest(wrong: str, near: str) -> None:
    given: dict[str, Any] = {wrong: 1}
    with pytest.raises(TypeError, match=f"no setting '{wrong}'; did you mean '{near}'"):
        Plain.options(**given)


def test_an_unknown_setting_that_is_near_none_names_all() -> None:
    with pytest.raises(TypeError, match=r"no setting 'zzz'; there are procs, hosts, with_gpus, .*, env, .*router"):
        Plain.options(zzz=1)  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("given", "policy"),
    [
        (None, RestartPolicy()),
        (0, RestartPolicy()),
        (3, RestartPolicy(3)),
        ({"max": 3, "within": 60}, RestartPolicy(3, 60)),
        ({"max": 3, "backoff": 0}, RestartPolicy(3, backoff=0)),
        ({"max": 3, "within": 60, "backoff": 2.5}, RestartPolicy(3, 60, 2.5)),
        ({"max": 3, "on": ["oom", "crash"]}, RestartPolicy(3, on=("crash", "oom"))),
        (RestartPolicy(1, 2.0), RestartPolicy(1, 2.0)),
    ],
)
def test_restart_may_be_written_in_several_ways(given: Any, policy: RestartPolicy) -> None:
    assert Plain.options(restart=given)._unit().restart == policy


def test_a_hang_may_be_written_in_several_ways() -> None:
    policy = HangPolicy(60.0, 90.0, "restart")
    for given in ({"after": 60.0, "start": 90.0, "do": "restart"}, policy):
        assert Plain.options(hang=given)._unit().hang == policy
    assert Plain._unit().hang == HangPolicy()


def test_a_time_limit_is_of_the_mesh() -> None:
    assert (Plain._unit().time_limit, Plain.options(time_limit=90)._unit().time_limit) == (None, 90)


def test_an_object_can_be_made_without_a_mesh() -> None:
    """For unit tests of the user's own class."""

    class Forgetful(ForgeActor):
        def __init__(self) -> None:
            self.n = 1

    for made in (Forgetful(), Plain(1, a=2)):
        assert (made.rank, made.size) == (0, 1)
    assert Plain().text() == "plain"


def test_the_logger_names_class_rank_and_size_and_leaves_the_root_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "4")

    class Speaker(ForgeActor):
        pass

    logger = Speaker.options(procs=4)().logger
    assert Speaker().logger is logger
    assert root.handlers == []
    logger.info("hello")
    [line] = capsys.readouterr().err.splitlines()
    assert line.endswith("Speaker 2/4] hello")
    root.addHandler(logging.NullHandler())  # the user's own logging: it is shown by that, not twice
    logger.info("again")
    assert "again" not in capsys.readouterr().err
