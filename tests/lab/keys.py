"""Keys and configuration of the lab's ssh: one right way in, and names for each way to fail."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.lab.machine import ENVIRONMENT

SERVER = """\
ListenAddress {address}:22
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/authorized_keys
PidFile none
StrictModes no
UsePAM no
UseDNS no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
PrintMotd no
MaxStartups {max_startups}
Subsystem sftp internal-sftp
"""


def generate(path: Path) -> str:
    """A new key pair; its public half, "TYPE BASE64"."""
    argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(path)]
    subprocess.run(argv, check=True, capture_output=True, env=ENVIRONMENT)
    return " ".join(path.with_name(f"{path.name}.pub").read_text().split()[:2])


def write_server(folder: Path, address: str, max_startups: str, authorized: str) -> str:
    """Write sshd's configuration of one host into its folder; its public host key."""
    text = SERVER.format(address=address, folder=folder, max_startups=max_startups)
    if _version() >= (9, 8):
        text += "PerSourcePenalties no\n"  # else one test's failed logins would shut out the next test
    (folder / "sshd_config").write_text(text)
    (folder / "authorized_keys").write_text(f"{authorized}\n")
    return generate(folder / "host_key")


def _version() -> tuple[int, int]:
    said = subprocess.run(["ssh", "-V"], capture_output=True, text=True, env=ENVIRONMENT).stderr
    found = re.search(r"OpenSSH_(\d+)\.(\d+)", said)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def write_client(
    folder: Path, hosts: Mapping[str, tuple[str, str]], aliases: Mapping[str, str], silent: str, stranger: str
) -> Path:
    """The client's configuration; `hosts` has the address and the public host key of each, `stranger` another key."""
    known = [f"{address} {key}" for address, key in hosts.values()] + [f"changed {stranger}"]
    (folder / "known_hosts").write_text("\n".join(known) + "\n")
    first = next(iter(hosts.values()))[0]
    entries = {name: [f"HostName {address}"] for name, (address, _) in hosts.items()}
    entries |= {alias: entries[name] for alias, name in aliases.items()}
    entries |= {
        "stranger": [f"HostName {first}", "HostKeyAlias stranger"],
        "changed": [f"HostName {first}", "HostKeyAlias changed"],
        "denied": [f"HostName {first}", f"IdentityFile {folder}/denied_key"],
        "silent": [f"HostName {silent}"],
        "refusing": [f"HostName {first}", "Port 1"],
    }
    text = "".join(f"Host {name}\n" + "".join(f"  {line}\n" for line in lines) for name, lines in entries.items())
    text += f"Host * !denied\n  IdentityFile {folder}/key\n"
    text += "Host *\n  User root\n  IdentitiesOnly yes\n  IdentityAgent none\n  StrictHostKeyChecking yes\n"
    text += f"  UserKnownHostsFile {folder}/known_hosts\n  GlobalKnownHostsFile /dev/null\n  UpdateHostKeys no\n"
    (folder / "config").write_text(text)
    return folder / "config"
