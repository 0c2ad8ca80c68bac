"""Another user, or a peer elsewhere on the network, who tries to get at a run's actors. Says what came of it as JSON.

intruder.py unix PATH…               connects to these sockets, raw and by ZeroMQ, and calls
intruder.py net HOST PORT KEYS       dials a messenger: without a key, with another run's, with garbage, by halves;
                                     KEYS: the server's public key
intruder.py flood HOST PORT FROM…    keeps connecting, from these addresses in turn, to say nothing or half a greeting,
                                     and holds what it can; a line each 1,000 connections, until standard input ends
intruder.py store PORT              tries to use the rendezvous store at this port of the loopback address, in each way
intruder.py fill PORT COUNT          holds so many connections to it until standard input ends
intruder.py plant FOLDER             makes what the JSON on standard input says there: {path: text, or {"link": target}}
intruder.py listen PATH…             listens at these paths until standard input ends; how many bytes it was told
"""

import contextlib
import itertools
import json
import os
import pathlib
import pickle
import random
import resource
import selectors
import socket
import struct
import sys
from collections.abc import Iterable

import zmq
from zmq.utils.monitor import recv_monitor_message

CALL = bytes([1]) + (1).to_bytes(8, "big")
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01CURVE" + bytes(47)
LET_IN = pickle.dumps(("invoke", "add", (1000,), {}, ()))
HALVES = 1000
HELD = 4000
LEFT = 256
AT_ONCE = 16


def unix(paths: Iterable[str]) -> dict[str, list[str]]:
    """Path → whether a plain connection and a call got through."""
    found = {}
    for path in paths:
        try:
            with socket.socket(socket.AF_UNIX) as raw:
                raw.settimeout(5)
                raw.connect(path)
            how = "connected"
        except OSError as e:
            how = type(e).__name__
        found[path] = [how, call(f"ipc://{path}")]
    return found


def call(url: str, **options: bytes) -> str:
    """What came of a call by ZeroMQ: "answered", or how the connection ended."""
    peer: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
    peer.linger = 0
    for name, value in options.items():
        setattr(peer, name, value)
    monitor = peer.get_monitor_socket()
    monitor.rcvtimeo = peer.rcvtimeo = 1500
    peer.connect(url)
    peer.send_multipart([CALL, LET_IN])
    events: set[int] = set()
    with contextlib.suppress(zmq.Again):
        peer.recv_multipart()
        return "answered"
    with contextlib.suppress(zmq.Again):
        while len(events) < 50:
            events.add(recv_monitor_message(monitor)["event"])
            monitor.rcvtimeo = 0
    peer.disable_monitor()
    monitor.close()
    peer.close()
    return "let in" if zmq.EVENT_HANDSHAKE_SUCCEEDED in events and not events & REFUSED else "refused"


REFUSED = {
    zmq.EVENT_HANDSHAKE_FAILED_AUTH,
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL,
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL,
    zmq.EVENT_DISCONNECTED,
}


def net(host: str, port: str, server: str) -> None:
    """What came of each attempt."""
    url = f"tcp://{host}:{port}"
    public, secret = zmq.curve_keypair()
    keyed = {"curve_publickey": public, "curve_secretkey": secret, "curve_serverkey": server.encode()}
    found: dict[str, str | int] = {"no key": call(url), "another key": call(url, **keyed)}
    chance = random.Random(1)
    held = []
    for k in range(HALVES):
        peer = socket.create_connection((host, int(port)), 10)
        with contextlib.suppress(OSError):
            peer.sendall(GREETING[: chance.randint(0, 64)] if k % 2 else chance.randbytes(200))
        held.append(peer)
    found["halves"] = len(held)
    print(json.dumps(found), flush=True)
    sys.stdin.read()  # they are held open until we are told to end


def flood(host: str, port: str, *sources: str) -> None:
    """Prints how many connections were made so far, and how many of them the other side has ended.

    The end of stdin is that of new connections. The other side may still be behind: the last numbers come when it has
    ended all but LEFT of those that are open.
    """
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    ready = selectors.DefaultSelector()
    held: dict[socket.socket, None] = {}  # in the order of their coming
    made = ended = 0
    ready.register(sys.stdin, selectors.EVENT_READ)

    def drop(peer: socket.socket) -> None:
        held.pop(peer)
        ready.unregister(peer)
        peer.close()

    more = True
    for turn in itertools.count():
        for _ in range(AT_ONCE if more else 0):
            new = socket.socket()
            new.setblocking(False)
            new.bind((sources[turn % len(sources)], 0))
            new.connect_ex((host, int(port)))
            ready.register(new, selectors.EVENT_WRITE)
            held[new] = None
        for key, events in ready.select(0 if more else None):
            if not isinstance(peer := key.fileobj, socket.socket):  # standard input
                ready.unregister(sys.stdin)
                more = False
                continue
            try:
                if events & selectors.EVENT_WRITE:
                    peer.sendall(GREETING[: made % 2 * 12])
                    ready.modify(peer, selectors.EVENT_READ)
                    made += 1
                    if made % 1000 == 0:
                        print(json.dumps([made, ended]), flush=True)
                elif not peer.recv(4096):
                    raise ConnectionResetError
            except OSError:
                ended += 1
                drop(peer)
        while len(held) > min(HELD, most - 50):
            drop(next(iter(held)))
        if not more and len(held) <= LEFT:
            print(json.dumps([made, ended]), flush=True)
            return


VALIDATE, SET, COUNT = b"\0" + struct.pack("=I", 0x3C85F7CE), b"\1", b"\7"
"""Of torch's TCPStore: the greeting, and two requests, of which the second is answered."""


def set_raw(port: str, key: str, how: str) -> None:
    """Set a key as the store's own clients do, and be gone before an answer or stay for it; this needs no accept."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", int(port)), 10) as peer:
        texts = (struct.pack("=Q", len(text)) + text for text in (b"/" + key.encode(), b"x"))
        peer.sendall(VALIDATE + SET + b"".join(texts) + COUNT)
        if how == "reset":
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        elif how == "half":
            peer.shutdown(socket.SHUT_WR)
        if how in ("stay", "half"):
            peer.recv(1)


def store(port: str) -> None:
    """How torch's own client ends; keys are set raw as well, many times, by connections that end in each way."""
    for how in ("stay", "half", "reset", "close"):
        for _ in range(20 if how in ("stay", "half") else 200):
            set_raw(port, f"raw/{how}", how)
    from datetime import timedelta

    from torch.distributed import TCPStore

    try:
        client = TCPStore("127.0.0.1", int(port), is_master=False, timeout=timedelta(seconds=2))
        client.set("client", "x")
        client.delete_key("ours")
        print(json.dumps(client.get("secret").decode()))
    except RuntimeError as e:
        print(json.dumps(type(e).__name__))


def fill(port: str, count: str) -> None:
    """How many connections were turned away; those and all others are held until we are told to end."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    held = [socket.create_connection(("127.0.0.1", int(port)), 60) for _ in range(int(count))]
    turned_away = 0
    for peer in held:
        with contextlib.suppress(TimeoutError):
            try:
                turned_away += peer.recv(1) == b""
            except ConnectionResetError:
                turned_away += 1
    print(json.dumps(turned_away), flush=True)
    sys.stdin.read()


def plant(folder: str) -> None:
    """Make files, programs and links, open to all, and the folders that they are in."""
    os.umask(0)
    wanted = json.load(sys.stdin)
    for name, what in wanted.items():
        path = pathlib.Path(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(what, dict):
            path.symlink_to(what["link"])
        else:
            path.write_text(what)
            path.chmod(0o777)
    print(json.dumps(list(wanted)), flush=True)


def listen(paths: Iterable[str]) -> None:
    """Take in whatever anybody says at sockets of these names."""
    os.umask(0)
    ready, told = selectors.DefaultSelector(), 0
    ready.register(sys.stdin, selectors.EVENT_READ)
    for path in paths:
        server = socket.socket(socket.AF_UNIX)
        server.bind(path)
        server.listen()
        ready.register(server, selectors.EVENT_READ, "server")
    print(json.dumps("listening"), flush=True)
    while True:
        for key, _ in ready.select():
            if not isinstance(key.fileobj, socket.socket):  # standard input
                print(json.dumps(told), flush=True)
                return
            if key.data == "server":
                ready.register(key.fileobj.accept()[0], selectors.EVENT_READ)
            elif data := key.fileobj.recv(1 << 16):
                told += len(data)
            else:
                ready.unregister(key.fileobj)


if __name__ == "__main__":
    if sys.argv[1] == "unix":
        print(json.dumps(unix(sys.argv[2:])), flush=True)
    elif sys.argv[1] == "store":
        store(sys.argv[2])
    elif sys.argv[1] == "fill":
        fill(*sys.argv[2:])
    elif sys.argv[1] == "plant":
        plant(sys.argv[2])
    elif sys.argv[1] == "flood":
        flood(*sys.argv[2:])
    elif sys.argv[1] == "listen":
        listen(sys.argv[2:])
    else:
        net(*sys.argv[2:])
