"""The handle that `as_service` returns: one for all replicas, usable from any event loop."""

from __future__ import annotations

from typing import Any, NoReturn

from forgectl.actor.called_service import CalledService
from forgectl.actor.endpoint import streams_only
from forgectl.actor.ends import Ends
from forgectl.actor.service.session import Session, current_session
from forgectl.actor.shown import Shown
from forgectl.actor.stream import Stream
from forgectl.system.futures import Future


class ServiceHandle(Ends):
    """A service. `service.ENDPOINT.route(…)` calls one healthy replica, `fanout(…)` each; see `ServiceEndpoint`.

    `with` and `async with` shut it down at their end.

    It can be passed to actors as an argument, and works there as in the driver, which grants them replicas: calls go to
    a replica directly. Only `metrics` and `stream` work in the driver alone.
    """

    def __init__(self, service: CalledService) -> None:
        self._service = service

    def __getattr__(self, name: str) -> ServiceEndpoint:
        if name.startswith("__") or "_service" not in self.__dict__:
            raise AttributeError(name)
        interface = self._service.form.interface
        if name not in interface.endpoints:
            raise AttributeError(interface.unknown(name))
        endpoint = self.__dict__[name] = ServiceEndpoint(self, name)
        return endpoint

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self._service.form.interface.endpoints})

    @property
    def name(self) -> str:
        """The service's name. The meshes of its replicas are NAME.0, NAME.1 and so on."""
        return self._service.form.name

    @property
    def adopted(self) -> bool:
        """Whether the driver was restarted, and replicas of the driver before it live on, with their state.

        False in every process but the driver.
        """
        return self._service.adopted

    def session(self, sess_id: str | None = None) -> Session:
        """`async with service.session():` calls inside go to one replica as long as it lives.

        With an id of your own (of a user, of a conversation) they go where `route(…, sess_id=ID)` goes, in any process;
        leaving the block does not end that session.
        """
        return Session(self._service, sess_id)

    async def start_session(self) -> str:
        """Start a session and return its id, for `route(…, sess_id=ID)`. It lasts until `terminate_session`."""
        return await self._service.start_session()

    async def terminate_session(self, session: str) -> None:
        """End a session, also of an id of your own; raises NotFoundError if it is unknown."""
        await self._service.terminate_session(session)

    async def scale(self, replicas: int) -> None:
        """Change the number of replicas; no request is lost. Raises ValueError below 1.

        If a new replica fails to start, none is added, and its error is raised.
        """
        await self._service.scale(replicas)

    def metrics(self) -> dict[str, Any]:
        """Totals, successes, failures, rates per second, latencies in seconds, queues, sessions; also by replica.

        Raises ForgeError outside the driver.
        """
        return self._service.metrics()

    def shutdown(self, timeout: float = 10.0) -> Future[None]:
        """End the service: queued requests raise ServiceStopped, running ones have `timeout` seconds to finish.

        A second call does nothing more.
        """
        return self._service.shutdown(timeout)

    def __repr__(self) -> str:
        return f"<service {self.name} of {self._service.form.interface.name}>"

    def __reduce__(self) -> Any:
        return _from_service, (self._service.foreign(),)


class ServiceEndpoint(Shown):
    """One endpoint of a service."""

    def __init__(self, service: ServiceHandle, name: str) -> None:
        self._service = service._service
        form = self._service.form
        self._streams = name in form.interface.streaming
        super().__init__(form.interface, name, f"{form.name}.{name}")

    def route(self, *args: Any, sess_id: str | None = None, **kwargs: Any) -> Future[Any]:
        """Call one healthy replica, chosen by the current session or else by the router: the value of rank 0.

        `sess_id` names another session: one of `start_session`, or any id of your own, which begins with its first
        call. Of your own ids the 65,536 that were used last are remembered, and all that have calls under way; an older
        one begins anew, perhaps on another replica. Every rank of the replica runs the endpoint; with the setting
        `return_first_rank_result=False` the result is a ValueMesh of all ranks. Raises what the endpoint raises;
        ActorDied if the replica dies during the call (an idempotent endpoint runs again on another replica);
        ServiceUnavailable, ServiceOverloaded or ServiceStopped; NotFoundError for a terminated session of
        `start_session`.
        """
        if self._streams:
            return self._refused()
        return self._service.route(self.name, args, kwargs, self._session(sess_id))

    def fanout(self, *args: Any, **kwargs: Any) -> Future[list[Any]]:
        """Call every healthy replica: their values in the order of replicas."""
        if self._streams:
            return self._refused()
        return self._service.fanout(self.name, args, kwargs)

    def _session(self, sess_id: str | None) -> str | None:
        return sess_id if sess_id is not None else current_session(self._service)

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError(f"{self.name} is an endpoint of a service: use {self.name}.route(…) or fanout")

    def _reject(self, verb: str) -> NoReturn:
        what = "fanout" if verb in ("call", "broadcast", "stream") else "route"
        raise NotImplementedError(
            f"{self._service.form.name} is a service: use {self.name}.{what}(…) in place of {verb}"
        )

    def call(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Only actors have it: raises NotImplementedError."""
        self._reject("call")

    def call_one(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Only actors have it: raises NotImplementedError."""
        self._reject("call_one")

    def choose(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Only actors have it: raises NotImplementedError."""
        self._reject("choose")

    def broadcast(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Only actors have it: raises NotImplementedError."""
        self._reject("broadcast")

    def stream(self, *args: Any, sess_id: str | None = None, **kwargs: Any) -> Stream[Any]:
        """Of an endpoint that yields: the values that rank 0 of one healthy replica yields, chosen as `route` does.

        Every rank of the replica runs the endpoint. The stream is a running request until its generators have ended.
        It raises what `route` raises, and is not repeated on another replica. Only the driver has it: raises
        NotImplementedError elsewhere.
        """
        if not self._streams:
            self._reject("stream")
        return self._service.stream(self.name, args, kwargs, self._session(sess_id))

    def _refused(self) -> Future[Any]:
        label = self._service.form.label(self.name)
        return Future.failed(label, TypeError(streams_only(label, self.name)))


def _from_service(service: CalledService) -> ServiceHandle:
    return ServiceHandle(service)
