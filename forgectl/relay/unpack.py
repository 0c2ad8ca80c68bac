# The first code that runs on a host: it finds or unpacks the shipped code, then becomes the relay.
# It is sent as text, after that of private.py, and run by the host's `python`, whatever its version. So it imports no
# forgectl, and has syntax that an old Python understands: that Python must be able to report that it is too old.
import hashlib
import io
import json
import os
import sys
import tarfile
import tempfile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from forgectl.system.private import NotPrivateError, private_folder  # noqa: TC004 (private.py's text comes first)

MARK = b"forgectl-relay "  # begins each of our lines: a login script may print others before them


def report(**what: object) -> None:
    os.write(1, b"\n" + MARK + json.dumps(what).encode() + b"\n")


def read_line() -> bytes:
    return b"".join(iter(lambda: os.read(0, 1) or b"\n", b"\n"))


def read_bytes(count: int) -> bytes:
    parts = []
    while count:
        part = os.read(0, min(count, 1 << 16))
        if not part:
            sys.exit(1)
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def own_folder(given: str) -> str:
    """Where forgectl keeps its files on this host: `given`, else in /var/tmp, else in our home.

    Another user may have made the folder in /var/tmp first; then the home is used. Raises OSError.
    """
    if given:
        return private_folder(os.path.expanduser(given))
    try:
        return private_folder("/var/tmp/forgectl-%d" % os.getuid())
    except NotPrivateError as e:
        if e.owner == os.getuid():  # this user can repair it
            raise
        try:
            return private_folder(os.path.expanduser("~/.cache/forgectl"))
        except OSError as other:
            raise NotPrivateError("%s; and %s" % (e, other), e.owner) from None


def cure(error: OSError) -> str:
    """The hint for a folder that cannot be used."""
    elsewhere = "or name another folder of yours by `root:` of the host"
    if not isinstance(error, NotPrivateError):
        return "forgectl keeps code, workdirs and logs there: make room, or make it writable, " + elsewhere
    if error.owner == os.getuid():
        return "forgectl keeps code, workdirs and logs there: remove it, or make it private (chmod 700), " + elsewhere
    return "have its owner or root remove it, " + elsewhere


def code_folder(root: str, digest: str) -> str:
    """The folder of the shipped code, unpacked now unless it exists. Raises OSError."""
    folder = os.path.join(private_folder(os.path.join(root, "code")), digest)
    there = os.path.isdir(folder)
    report(have=there)
    if there:
        return folder
    data = read_bytes(int(read_line()))
    if hashlib.sha256(data).hexdigest() != digest:
        raise OSError("the shipped code was damaged on its way")
    draft = tempfile.mkdtemp(dir=os.path.dirname(folder))
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        archive.extractall(draft)
    try:
        os.rename(draft, folder)
    except OSError:  # another connection was first
        import shutil

        shutil.rmtree(draft)
    return folder


def main() -> None:
    """Read the digest of the code and the host's `root:`; report what prevents the relay, or become it."""
    digest, given = read_line().decode(), read_line().decode()
    here = {"python": sys.executable, "version": list(sys.version_info[:3])}
    if sys.version_info < (3, 10):
        report(wrong="old", **here)
        sys.exit(1)
    try:
        import psutil  # noqa: F401
    except ImportError:
        report(wrong="psutil", **here)
        sys.exit(1)
    try:
        root = own_folder(given)
        folder = code_folder(root, digest)
    except OSError as e:
        report(wrong="root", why=e.strerror or str(e), cure=cure(e), **here)
        sys.exit(1)
    sys.path.insert(0, folder)
    from forgectl.relay.relay import main as relay

    sys.path.remove(folder)
    relay(root)


main()
