# The first thing that runs on a host: finds or unpacks the shipped code, then becomes the relay.
# Sent as text and run by whatever `python` the host has: no forgectl here, and syntax that an old Python understands,
# so that it can say that it is too old.
import errno
import hashlib
import io
import json
import os
import stat
import sys
import tarfile
import tempfile

MARK = b"forgectl-relay "  # what a login script prints before it is noise


def say(**what: object) -> None:
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


def private(path: str) -> str:
    """Make a folder (0700), or see that it is ours alone."""
    try:
        os.mkdir(path, 0o700)
    except OSError as e:
        if e.errno != errno.EEXIST:
            raise
    info = os.lstat(path)
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.getuid() or info.st_mode & 0o077:
        raise OSError("%s must be a folder of this user with mode 0700" % path)
    return path


def code_folder(root: str, digest: str) -> str:
    """Where the shipped code is, unpacked now unless it is there."""
    folder = os.path.join(private(os.path.join(root, "code")), digest)
    there = os.path.isdir(folder)
    say(have=there)
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
    """Answer the digest of the code with what is in the way, or with the relay."""
    digest = read_line().decode()
    here = {"python": sys.executable, "version": list(sys.version_info[:3])}
    if sys.version_info < (3, 10):
        say(wrong="old", **here)
        sys.exit(1)
    try:
        import psutil  # noqa: F401
    except ImportError:
        say(wrong="psutil", **here)
        sys.exit(1)
    try:
        root = private("/var/tmp/forgectl-%d" % os.getuid())
        folder = code_folder(root, digest)
    except OSError as e:
        cure = "remove it: forgectl keeps code, workdirs and logs there"
        if e.errno is not None:
            cure = "forgectl keeps code, workdirs and logs in /var/tmp: make room there, or make it writable"
        say(wrong="root", why=e.strerror or str(e), cure=cure, **here)
        sys.exit(1)
    sys.path.insert(0, folder)
    from forgectl.relay.main import main as relay

    sys.path.remove(folder)
    relay(root)


main()
