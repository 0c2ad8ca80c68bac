"""`make install` and `make uninstall`, in a home of their own and without a network."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.conftest import until
from tests.process.other_user import NOBODY

TOP = Path(__file__).parents[2]
PIPX = """#!/bin/sh
echo "pipx $*" >>"$HOME/pipx.log"
bin=$HOME/bin venv=$HOME/pipx/venvs/forgectl
case $1 in
environment) printf 'Environment variables (set by user):\\n\\nPIPX_BIN_DIR=\\nDerived values:\\n'
    printf 'PIPX_BIN_DIR=%s\\nPIPX_LOCAL_VENVS=%s\\n' "$bin" "$HOME/pipx/venvs" ;;
install) mkdir -p "$bin" "$venv/bin"; touch "$venv/bin/forgectl"; ln -sf "$venv/bin/forgectl" "$bin/forgectl" ;;
uninstall) rm -r "$venv" "$bin/forgectl" ;;
esac
"""


class Home:
    """A home folder, and `make` in it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "home"
        self.path.mkdir()
        self.link = self.path / ".local/bin/forgectl"
        self.environment = self.path / ".local/share/forgectl/environment"
        packages = folder / "packages"  # what pip would fetch: all that is installed here but forgectl
        packages.mkdir()
        for entry in Path(sysconfig.get_path("purelib")).iterdir():
            if "forgectl" not in entry.name:
                (packages / entry.name).symlink_to(entry)
        kept = {
            k: v for k, v in os.environ.items() if not k.startswith(("FORGE", "PIP", "XDG_", "VIRTUAL_ENV", "MAKE"))
        }
        self.env = {
            **kept,
            "HOME": str(self.path),
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "PYTHONPATH": str(packages),
            "PIP_NO_INDEX": "1",
            "PIP_NO_CACHE_DIR": "1",
            "PIP_NO_BUILD_ISOLATION": "0",  # pip's way to say that there is none
        }

    def make(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        argv = ["make", "-s", *arguments, f"PYTHON={sys.executable}"]
        return subprocess.run(argv, cwd=TOP, env=self.env, capture_output=True, text=True, timeout=200)

    def ok(self, *arguments: str) -> str:
        done = self.make(*arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def refused(self, *arguments: str) -> str:
        """The first line of the errors: what is in the way."""
        done = self.make(*arguments)
        assert done.returncode != 0, done.stdout
        return done.stderr.splitlines()[0]

    def files(self) -> set[str]:
        return {path.relative_to(self.path).as_posix() for path in self.path.rglob("*") if not path.is_dir()}


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


@pytest.mark.timeout(400)
def test_the_command_is_put_on_path_and_taken_away(home: Home) -> None:
    said = home.ok("install")
    assert said.splitlines()[0] == f"installing forgectl in {home.environment} …"
    folder = home.link.parent
    assert f'~/.local/bin/forgectl; {folder} is not on your PATH: add `export PATH="{folder}:$PATH"`' in said
    assert "else under ~/.local/share/forgectl/environment/bin/python\n" in said, "torch is there, by PYTHONPATH"
    shown = subprocess.run([home.link, "--version"], cwd="/", env=home.env, capture_output=True, text=True)
    assert shown.stdout.startswith("forgectl "), shown.stderr
    asks = [str(home.environment / "bin/python"), "-c", "import forgectl; print(forgectl.__file__)"]
    found = subprocess.run(asks, cwd="/", env=home.env, capture_output=True, text=True)
    assert found.stdout.startswith(str(home.environment)), "a copy: the checkout may go"

    home.env["PATH"] = f"{folder}:{home.env['PATH']}"
    again = home.ok("install")
    assert again.splitlines()[0] == f"updating forgectl in {home.environment} …"
    assert f"the command is ~/.local/bin/forgectl; {folder} is on your PATH\n" in again

    with subprocess.Popen([home.environment / "bin/python", "-c", "input()"], stdin=subprocess.PIPE) as user:
        until(lambda: Path(f"/proc/{user.pid}/cmdline").read_bytes().startswith(os.fsencode(home.environment)), "exec")
        for command in ("install", "uninstall"):
            assert f"{command}: forgectl is at work (process {user.pid})" in home.refused(command)
        user.communicate(b"\n")

    assert home.ok("uninstall").startswith(f"forgectl is uninstalled from {home.environment}")
    assert not home.files()
    assert home.ok("uninstall") == "`make install` has installed nothing here\n"


def test_what_others_have_put_there_stays(home: Home) -> None:
    home.link.parent.mkdir(parents=True)
    for make_it in (
        lambda: home.link.write_text("mine"),
        lambda: home.link.symlink_to("nowhere"),
        home.link.mkdir,
    ):
        make_it()
        assert "~/.local/bin/forgectl is another program, and stays as it is" in home.refused("install")
        assert home.ok("uninstall") == "`make install` has installed nothing here\n"
        assert os.path.lexists(home.link) and not home.environment.parent.exists()
        (Path.rmdir if home.link.is_dir() else Path.unlink)(home.link)


def test_a_folder_that_cannot_be_written_is_named(home: Home) -> None:
    home.link.parent.parent.mkdir()
    home.link.parent.symlink_to("/proc/self")  # refused to root, too
    assert home.refused("install").startswith(f"install: {home.link}: ")
    assert not home.files() - {".local/bin"} and not home.environment.exists()


@pytest.mark.timeout(200)
def test_an_install_that_fails_or_is_ended_leaves_nothing(home: Home) -> None:
    home.env["PYTHONPATH"] = ""
    done = home.make("install")
    assert done.returncode != 0 and "failed, for the reason above" in done.stderr, done.stderr
    assert not home.files()
    argv = [sys.executable, str(TOP / "tools/install.py"), "install"]
    with subprocess.Popen(argv, env=home.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        until(home.environment.exists, "its environment")
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert (process.returncode, home.files()) == (143, set())


def test_the_home_of_another_user_is_left_alone(home: Home) -> None:
    if os.geteuid() != 0:
        pytest.skip("A FILE CANNOT BE GIVEN AWAY WITHOUT ROOT")
    os.chown(home.path, NOBODY, NOBODY)
    assert f"install: {home.path} belongs to another user: run it without sudo" in home.refused("install")
    home.env["HOME"] = str(home.path / "none")
    assert "none does not exist: set HOME" in home.refused("install")


def test_pipx_does_it_where_it_is_installed(home: Home) -> None:
    program = home.path / "pipx-bin/pipx"
    program.parent.mkdir()
    program.write_text(PIPX)
    program.chmod(0o755)
    home.env["PATH"] = f"{program.parent}:{home.env['PATH']}"
    (home.path / "bin").mkdir()
    (home.path / "bin/forgectl").write_text("mine")
    assert "~/bin/forgectl is another program" in home.refused("install")
    assert "install" not in (home.path / "pipx.log").read_text()
    (home.path / "bin/forgectl").unlink()
    said = home.ok("install", "EXTRAS=actors,torch")
    assert said.startswith(f"installing forgectl by pipx, in {home.path}/pipx/venvs/forgectl …\n")
    assert "the command is ~/bin/forgectl; " in said
    assert (
        f"pipx install --force --python {sys.executable} {TOP}[actors,torch]\n" in (home.path / "pipx.log").read_text()
    )
    home.ok("uninstall")
    assert (home.path / "pipx.log").read_text().endswith("pipx uninstall forgectl\n")
    assert home.files() == {"pipx-bin/pipx", "pipx.log"}
