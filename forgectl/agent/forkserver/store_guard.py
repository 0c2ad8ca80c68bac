"""Lets only this user and root dial a store on the loopback address, which every user of a machine can dial.

torch accepts the connections of a store itself and asks nobody who they are. So the kernel hands each `accept` of
torch's threads to a thread of ours (seccomp_unotify(2)), which accepts in its place and gives it those who may come
in. No byte goes another way than without us, and there is no second port, as there would be behind a relay.

The manual warns of deciding on calls in this way: the thread that makes one could change what was looked at. That
thread is torch's here, not an adversary's, and no call that it made is ever continued.
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
_CALLER_LEFT = (errno.ENOENT, errno.EINTR)  # a signal took the store out of its call: it will call again

REFUSED_AT_ONCE = 16
"""So many others are turned away before the store turns to its clients again, however many there are."""


def guard(listener: socket.socket) -> threading.Event:
    """Guard what this thread, and those that it starts, accept from now on. Raises OSError where that cannot be.

    Whatever they say that they accept from, they get clients of `listener`, whose sockets do not block. The event is
    set once a first one was let in.
    """
    listener.setblocking(False)
    peers = Peers(listener)
    calls: queue.SimpleQueue[int | None] = queue.SimpleQueue()
    guarded = threading.Event()
    # Started first: it must not be guarded itself.
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
    """The descriptor at which this thread's accepts are to be answered; raises OSError."""
    if os.uname().machine not in _CALLS:
        raise OSError(errno.EOPNOTSUPP, f"seccomp's numbers on {os.uname().machine} are not known")
    seccomp, accept, accept4 = _CALLS[os.uname().machine]
    instructions = (
        (_LOAD_NUMBER, 0, 0, 0),
        (_IF_EQUAL, 4, 0, accept),
        (_IF_EQUAL, 3, 0, accept4),
        (_IF_EQUAL, 1, 0, _IO_URING_SETUP),  # by which one could accept without a call; libuv does without
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
    os._exit(1)  # a store without a guard lets nobody in, but looks alive


def _answer(notified: int, listener: socket.socket, peers: Peers) -> bool:
    """Wait for one accept of the store's and make it; whether somebody was let in."""
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
            return False  # and the client is closed with its object
        raise
    if client is None:
        return False
    client.detach()  # it is the store's now
    return True


def _admit(listener: socket.socket, peers: Peers) -> socket.socket:
    """The next client that may come in; raises OSError as accept does."""
    welcome = {0, os.geteuid()}
    for _ in range(REFUSED_AT_ONCE):
        client, _ = listener.accept()
        if peers.uid(client) in welcome:
            client.setblocking(False)
            return client
        client.close()
    raise BlockingIOError(errno.EAGAIN, "nobody who may come in yet")
