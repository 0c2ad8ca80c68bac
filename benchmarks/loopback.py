"""An sshd of the benchmark's own on 127.0.0.1, with keys made for it, that goes when the block is left."""

from __future__ import annotations

import getpass
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from measure import BenchmarkError, started, wait_for

SERVER = """\
ListenAddress 127.0.0.1
Port {port}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/key.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
"""
CLIENT = """\
Host loopback
  HostName 127.0.0.1
  Port {port}
  User {user}
  IdentityFile {folder}/key
  IdentitiesOnly yes
  IdentityAgent none
  UserKnownHostsFile {folder}/known_hosts
  GlobalKnownHostsFile /dev/null
  StrictHostKeyChecking yes
"""


@contextmanager
def sshd(folder: Path) -> Iterator[str]:
    """The ssh command that knows the host `loopback`; BenchmarkError where there is no sshd."""
    program = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/sbin:/usr/bin")
    if program is None or not shutil.which("ssh"):
        raise BenchmarkError("there is no sshd here: install openssh-server and openssh-client")
    folder.mkdir(mode=0o700)
    for name in ("host_key", "key"):
        argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(argv, check=True, stdin=subprocess.DEVNULL)
    port = _free_port()
    (folder / "sshd_config").write_text(SERVER.format(port=port, folder=folder))
    (folder / "config").write_text(CLIENT.format(port=port, folder=folder, user=getpass.getuser()))
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {(folder / 'host_key.pub').read_text()}")
    if program.startswith("/usr/sbin"):
        Path("/run/sshd").mkdir(exist_ok=True)  # which a service would have made
    argv = [program, "-D", "-e", "-f", str(folder / "sshd_config")]
    with started(argv, {"PATH": "/usr/bin:/bin"}, folder / "log") as process:

        def listens() -> bool:
            if process.poll() is not None:
                raise BenchmarkError(f"sshd ended with {process.returncode}:\n{(folder / 'log').read_text()[-3000:]}")
            with socket.socket() as sock:
                return sock.connect_ex(("127.0.0.1", port)) == 0

        wait_for(listens, "sshd")
        yield f"ssh -F {folder / 'config'}"


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port
