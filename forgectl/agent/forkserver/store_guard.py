"""Admits only this user and root to a store on the loopback address, which every user of the machine can dial.

torch accepts the connections of a store itself and does not check who dials. So the kernel hands each `accept` of
torch's threads to a thread of ours (seccomp_unotify(2)). It accepts instead, and returns the clients that it admits.
Bytes flow as they would without us, and there is no second port, which a proxy would need.

The manual warns against such decisions about calls: the calling thread could change what was inspected. Here that
thread is torch's, not an adversary's, and none of its calls is ever continued.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import queue
import socket
import struct
import threading
import traceback

from forgectl.system.tcp_peers import Peers

_CALLS = {"x86_64": (317, 43, 288), "aarch64": (277, 202, 242)}
"""Numbers of seccomp, accept and accept4."""
_IO_URING_SETUP = 425  # on every machine
_PR_SET_NO_NEW_PRIVS = 38
_SET_MODE_FILTER, _NEW_LISTENER = 1, 8
_ALLOW, _NOTIFY, _FAIL = 0x7FFF0000, 0x7FC00000, 0x00050000
_LOAD_NUMBER, _IF_EQUAL, _RETURN = 0x20, 0x15, 0x06  # instructions of classic BPF; the call's number is at offset 0
_RECEIVE, _ANSWER = 0xC0502100, 0xC0182101
_CALL_BYTES = 80
_CALLER_LEFT = (errno.ENOENT, errno.EINTR)  # a signal interrupted the store's call: it will call again

REFUSED_AT_ONCE = 16
"""Connections of other users that are refused in one call, before the store serves its clients again."""


def guard(listener: socket.socket) -> threading.Event:
    """Guard what this thread, and threads that it starts, accept from now on. Raises OSError if that is impossible.

    Whatever socket they pass to accept, they get clients of `listener`, as sockets that do not block. The event is set
    once the first client was admitted.
    """
    listener.setblocking(False)
    peers = Peers(listener)
    calls: queue.SimpleQueue[int | None] = queue.SimpleQueue()
    guarded = threading.Event()
    # This thread starts first, as it must not be guarded itself.
    threading.Thread(target=_serve, args=(listener, peers, calls, guarded), name="store guard", daemon=True).start()
    try:
        calls.put(_hand_over_accepts())
    except OSError:
        calls.put(None)
        raise
    return guarded


class _Instruction(ctypes.Structure):
    _fields_ = [("code", ctypes.c_uint16), ("yes", ctypes.c_uint8), ("no", ctypes.c_uint8), ("k", ctypes.c_uint32)]


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_uint16), ("filter", ctypes.POINTER(_Instruction))]


def _hand_over_accepts() -> int:
    """Make the kernel hand over this thread's accepts; the descriptor at which to answer them. Raises OSError."""
    if os.uname().machine not in _CALLS:
        raise OSError(errno.EOPNOTSUPP, f"seccomp's numbers on {os.uname().machine} are not known")
    seccomp, accept, accept4 = _CALLS[os.uname().machine]
    instructions = (
        (_LOAD_NUMBER, 0, 0, 0),
        (_IF_EQUAL, 4, 0, accept),
        (_IF_EQUAL, 3, 0, accept4),
        (_IF_EQUAL, 1, 0, _IO_URING_SETUP),  # io_uring could accept without a call; libuv works without it
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _FAIL | errno.ENOSYS),
        (_RETURN, 0, 0, _NOTIFY),
    )
    libc = ctypes.CDLL(None, use_errno=True)
    program = _Program(len(instructions), (_Instruction * len(instructions))(*(_Instruction(*i) for i in instructions)))
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"no_new_privs: {os.strerror(ctypes.get_errno())}")
    found: int = libc.syscall(
        ctypes.c_long(seccomp), ctypes.c_ulong(_SET_MODE_FILTER), ctypes.c_ulong(_NEW_LISTENER), ctypes.byref(program)
    )
    if found < 0:
        raise OSError(ctypes.get_errno(), f"seccomp: {os.strerror(ctypes.get_errno())}")
    return found


def _serve(
    listener: socket.socket, peers: Peers, calls: queue.SimpleQueue[int | None], guarded: threading.Event
) -> None:
    notified = calls.get()
    if notified is None:
        return
    try:
        while True:
            if _answer(notified, listener, peers):
                guarded.set()
    except BaseException:
        traceback.print_exc()
    os._exit(1)  # a store without its guard admits nobody, but looks alive


def _answer(notified: int, listener: socket.socket, peers: Peers) -> bool:
    """Wait for one accept of the store and make it; whether a client was admitted."""
    call = bytearray(_CALL_BYTES)
    try:
        fcntl.ioctl(notified, _RECEIVE, call)
    except OSError as e:
        if e.errno in _CALLER_LEFT:
            return False
        raise
    [number] = struct.unpack_from("Q", call)
    try:
        client, error = _admit(listener, peers), 0
    except OSError as e:
        client, error = None, -(e.errno or errno.EAGAIN)
    answer = struct.pack("QqiI", number, client.fileno() if client else 0, error, 0)
    try:
        fcntl.ioctl(notified, _ANSWER, bytearray(answer))
    except OSError as e:
        if e.errno in _CALLER_LEFT:
            return False  # closes the client, too, with its object
        raise
    if client is None:
        return False
    client.detach()  # the store owns it now
    return True


def _admit(listener: socket.socket, peers: Peers) -> socket.socket:
    """The next client of this user or root; raises OSError as accept does."""
    allowed = {0, os.geteuid()}
    for _ in range(REFUSED_AT_ONCE):
        client, _ = listener.accept()
        if peers.uid(client) in allowed:
            client.setblocking(False)
            return client
        client.close()
    raise BlockingIOError(errno.EAGAIN, "no client of this user yet")
