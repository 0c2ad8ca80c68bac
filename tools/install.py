"""Puts the command forgectl on PATH, or takes it away: `make install`, `make uninstall`.

By pipx where that is installed, else into an environment of its own with a link in ~/.local/bin. This file runs before
anything is installed: it needs the standard library alone.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TOP = Path(__file__).parents[1]


class Refusal(Exception):
    """What is in the way, and what to do about it."""


@dataclass(frozen=True)
class Place:
    """Where the command goes: into an environment, and as a link into a folder that is to be on PATH."""

    environment: Path
    link: Path
    pipx: str | None = None

    @property
    def program(self) -> Path:
        return self.environment / "bin/forgectl"

    @property
    def links_here(self) -> bool:
        """Whether the link is ours, also where the environment is gone."""
        return self.link.is_symlink() and os.path.realpath(self.link) == os.path.realpath(self.program)


def place() -> Place:
    """Where forgectl is installed, or where it would be."""
    data = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share")
    own = Place(data / "forgectl/environment", Path.home() / ".local/bin/forgectl")
    pipx = shutil.which("pipx")
    if not pipx or own.environment.exists():
        return own
    lines = _output([pipx, "environment"]).splitlines()
    found = dict(line.split("=", 1) for line in lines if "=" in line)  # the last of a name is what pipx computed
    return Place(Path(found["PIPX_LOCAL_VENVS"]) / "forgectl", Path(found["PIPX_BIN_DIR"]) / "forgectl", pipx)


def install(to: Place, extras: str) -> None:
    """Install this checkout, or install it again; raises Refusal before anything has changed."""
    _refuse_other_users_home()
    if os.path.lexists(to.link) and not to.links_here:
        raise Refusal(f"{_short(to.link)} is another program, and stays as it is: rename it, or use that one")
    _refuse_use(to)
    source = f"{TOP}[{extras}]" if extras else str(TOP)
    again = to.environment.exists()
    print(f"{'updating' if again else 'installing'} forgectl {'by pipx, ' if to.pipx else ''}in {to.environment} …")
    with _build_elsewhere():
        if to.pipx:
            _run([to.pipx, "install", "--force", "--python", sys.executable, source])
        else:
            _install_without_pipx(to, source)
    print(f"the command is {_short(to.link)}; {_about_path(to)}")
    python = to.environment / "bin/python"
    lacks = "" if _has(python, "torch") else ", which has no torch"
    print(f"ranks run under `python:` of the spec or `forgectl run --python`, else under {_short(python)}{lacks}")


def uninstall(to: Place) -> None:
    """Remove what `install` made; raises Refusal before anything has changed."""
    if not to.environment.exists() and not to.links_here:
        print("`make install` has installed nothing here")
        return
    _refuse_use(to)
    if to.pipx:
        _run([to.pipx, "uninstall", "forgectl"])
    else:
        if to.links_here:
            to.link.unlink()
        if to.environment.exists():
            shutil.rmtree(to.environment)
        with contextlib.suppress(OSError):  # where others have something there
            to.environment.parent.rmdir()
    print(f"forgectl is uninstalled from {to.environment}; the records of runs stay in {_short(_state())}")


def _install_without_pipx(to: Place, source: str) -> None:
    python = to.environment / "bin/python"
    fresh = not to.environment.exists()
    try:
        to.link.parent.mkdir(parents=True, exist_ok=True)
        if not to.links_here:
            to.link.symlink_to(to.program)  # the first, since it may be refused
        if _version(python) != sys.version_info[:2]:
            _run([sys.executable, "-m", "venv", "--clear", to.environment])
        _run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", source])
    except BaseException:
        if fresh:
            if to.links_here:
                to.link.unlink()
            shutil.rmtree(to.environment, ignore_errors=True)
        raise


def _refuse_other_users_home() -> None:
    home = Path.home()
    if not home.is_dir():
        raise Refusal(f"your home folder {home} does not exist: set HOME")
    if home.stat().st_uid != os.geteuid():
        raise Refusal(f"{home} belongs to another user: run it without sudo, as the user who will use forgectl")


def _refuse_use(of: Place) -> None:
    """Runs that go on would lose the modules that they have not imported yet."""
    mine = os.fsencode(of.environment) + b"/"
    users = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and (entry / "cmdline").read_bytes().startswith(mine):
                users.append(entry.name)
    if users:
        raise Refusal(f"forgectl is at work (process {', '.join(users)}): `forgectl shutdown --all` ends its runs")


def _about_path(to: Place) -> str:
    folder = to.link.parent
    first = shutil.which("forgectl")
    if first and Path(first) == to.link:
        return f"{folder} is on your PATH"
    if first:
        return f"but your PATH finds {first} first"
    return f'{folder} is not on your PATH: add `export PATH="{folder}:$PATH"` to ~/.profile, and log in again'


@contextlib.contextmanager
def _build_elsewhere() -> Iterator[None]:
    """Let setuptools build in a temporary folder: what it leaves in a checkout gets into later wheels."""
    with tempfile.TemporaryDirectory(prefix="forgectl-build-") as folder:
        config = Path(folder, "setup.cfg")
        config.write_text(f"[build]\nbuild_base = {folder}/build\n[egg_info]\negg_base = {folder}\n")
        os.environ["DIST_EXTRA_CONFIG"] = str(config)
        yield


def _short(path: Path) -> str:
    """A path as users write it."""
    return str(path).replace(f"{Path.home()}/", "~/", 1)


def _state() -> Path:
    """Where forgectl keeps runs."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state"
    return Path(os.environ.get("FORGECTL_HOME") or Path(state, "forgectl"))


def _version(python: Path) -> tuple[int, ...] | None:
    """(3, 12) of an interpreter that works; None of another."""
    text = _output([python, "-c", "import sys; print(*sys.version_info[:2])"])
    return tuple(map(int, text.split())) or None


def _has(python: Path, module: str) -> bool:
    return bool(
        _output([python, "-c", f"from importlib.util import find_spec as f; print(f({module!r}) or '')"]).strip()
    )


def _output(argv: list[str | Path]) -> str:
    """What a command prints; "" if it fails."""
    try:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return "" if done.returncode else done.stdout


def _run(argv: list[str | Path]) -> None:
    """Run a command that says itself why it fails."""
    sys.stdout.flush()
    if subprocess.run(argv, check=False).returncode:
        raise Refusal(f"`{shlex.join(map(str, argv))}` failed, for the reason above")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("command", choices=["install", "uninstall"])
    parser.add_argument("--extras", default="", help="extras of pyproject.toml, such as actors,torch")
    options = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))  # what was begun is removed
    try:
        if options.command == "install":
            install(place(), options.extras)
        else:
            uninstall(place())
    except Refusal as e:
        sys.exit(f"{options.command}: {e}")
    except OSError as e:
        sys.exit(f"{options.command}: {e.filename2 or e.filename}: {e.strerror}")


if __name__ == "__main__":
    main()
