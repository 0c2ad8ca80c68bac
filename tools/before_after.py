"""Compares two forgectls: exit codes, what they print, and what they leave behind.

`python tools/before_after.py BEFORE AFTER`, each the path of a forgectl command in an environment of its own. It shows
every difference, and fails if an exit code, standard output or a side effect changed that is not listed as meant.
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = {
    "hello.py": "import os, sys\nprint('rank', os.environ['RANK'], sys.argv[1:])\nprint('aside', file=sys.stderr)\n",
    "stay.py": "import os, time\nopen(f'up-{os.environ[\"RANK\"]}', 'w').close()\nwhile True: time.sleep(0.1)\n",
    "flood.py": "while True: print('line')\n",
    "code.py": "import os, sys\nsys.exit(7 if os.environ['RANK'] == '1' else 0)\n",
    "wrong.py": "def inner():\n    raise ValueError('the cause')\n\ninner()\n",
    "killed.py": "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n",
    "colour.py": "print('\\x1b[31mred\\x1b[0m \\x1b]0;title\\x07')\n",
    "family.py": """import inspect, multiprocessing as mp, os, pickle, sys
class Box: pass
def double(x): return 2 * x
if __name__ == "__main__":
    for way in ("fork", "spawn", "forkserver"):
        with mp.get_context(way).Pool(2) as pool: print(way, pool.map(double, [1, 2]))
    print(type(pickle.loads(pickle.dumps(Box()))).__name__, inspect.getsource(double).strip())
""",
    "daemon.py": """import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0: time.sleep(1000)
    os._exit(0)
""",
    "again.py": """import os, sys
os.chdir("/")
if len(sys.argv) == 1: os.execv(sys.executable, [sys.executable, __file__, "x"])
print(os.getcwd(), sys.argv[1:])
""",
    "pkg/__init__.py": "",
    "pkg/work.py": """import argparse
parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float)
print(parser.parse_args())
""",
}
SPECS = {
    **{f"{Path(p).stem}.yaml": f"run: {p}" for p in PROGRAMS if "/" not in p},
    "arguments.yaml": "run: hello.py --steps 3",
    "module.yaml": "{module: pkg.work --lr 3}",
    "command.yaml": "command: sh -c 'echo $RANK of $WORLD_SIZE'",
}
UP = "for n in 0 1; do until [ -e up-$n ]; do sleep 0.05; done; done"


@dataclass(frozen=True)
class Case:
    """What a shell does; `meant`: why another exit code, output or side effect is right now."""

    name: str
    script: str
    meant: str = ""


CASES = [
    *(
        Case(f"{name}", f"forgectl launch {name}.yaml")
        for name in ("hello", "arguments", "module", "command", "family")
    ),
    *(
        Case(f"{name}", f"forgectl launch {name}.yaml")
        for name in ("again", "daemon", "code", "wrong", "killed", "colour")
    ),
    *(
        Case(
            f"{signal} after {seconds} s", f"timeout --preserve-status -s {signal} {seconds} forgectl launch stay.yaml"
        )
        for signal, seconds in (("INT", 0.4), ("INT", 0.8), ("INT", 3), ("TERM", 3))
    ),
    Case("head", "forgectl launch flood.yaml | head -1; echo ${PIPESTATUS[0]}"),
    Case("a full disk", "forgectl launch hello.yaml >/dev/full"),
    Case("a killed launcher", f"forgectl launch stay.yaml & {UP}; kill -9 $!; wait $!"),
    Case(
        "a hang-up under nohup",
        f"nohup forgectl launch stay.yaml & {UP}; kill -HUP $!; sleep 1; kill -TERM $!; wait $!",
    ),
    Case(
        "detached", f"forgectl launch -d stay.yaml >id; {UP}; forgectl logs a; forgectl shutdown --all; echo $(cat id)"
    ),
    Case(
        "a name in use",
        f"forgectl launch -d stay.yaml; {UP}; forgectl launch -d stay.yaml; echo $?; forgectl shutdown --all",
    ),
    Case(
        "plan",
        "forgectl plan hello.yaml --json | python3 -c 'import json, sys; print(len(json.load(sys.stdin)[\"meshes\"]))'",
    ),
    Case("status of nothing", "forgectl status --json"),
    Case("check", "forgectl check hello.yaml; echo $?"),
    Case(
        "a bad spec",
        "printf 'hosts: [local]\\nscripts:\\n  a: {run: nope.py, proc: 2}\\n' >bad.yaml; forgectl plan bad.yaml",
    ),
    Case("a bad --set", "forgectl plan hello.yaml --set scripts.a.proc=3"),
    Case("a missing variable", "printf 'scripts: {a: {command: \"echo ${NOT_SET}\"}}' >v.yaml; forgectl plan v.yaml"),
    Case("no such spec", "forgectl launch helo.yaml"),
    Case("no such mesh", "forgectl logs nobody"),
    Case("no such option", "forgectl launch --tiemout 3 hello.yaml"),
    Case("init", "forgectl init first; ls first"),
    Case("version", "forgectl --version"),
]


@dataclass(frozen=True)
class Outcome:
    """What came of a case. Lines are sorted: ranks print in any order."""

    code: int
    out: list[str]
    err: list[str]
    left: list[str]


def outcome(case: Case, forgectl: Path) -> Outcome:
    """Play a case with one forgectl, in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="forgectl-compare-") as name:
        folder = Path(name)
        for path, text in PROGRAMS.items():
            (folder / path).parent.mkdir(exist_ok=True)
            (folder / path).write_text(text)
        for path, program in SPECS.items():
            mesh = program.strip("{}")
            (folder / path).write_text(f"scripts:\n  a:\n    {mesh}\n    procs: 2\n    preload: []\n")
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("FORGE", "PYTHON"))}
        env = kept | {"PATH": f"{forgectl.parent}:{os.environ['PATH']}", "NO_COLOR": "1", "COLUMNS": "200"}
        env |= {"FORGECTL_HOME": f"{folder}/home", "FORGECTL_GPU_LOCK_DIR": f"{folder}/locks"}
        before = {path.name for path in folder.iterdir()}
        done = subprocess.run(
            ["bash", "-c", case.script],
            cwd=folder,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=300,
            check=False,
        )
        made = sorted(path.name for path in folder.iterdir() if path.name not in {*before, "home", "locks"})
        out, err = (_plain(text.decode(errors="replace"), name) for text in (done.stdout, done.stderr))
        return Outcome(done.returncode, out, err, [*made, *_processes(f"{folder}/home")])


def _plain(text: str, folder: str) -> list[str]:
    """Sorted lines, without what differs from run to run."""
    text = re.sub(r"-[0-9a-f]{4}\b", "-ID", text.replace(folder, "FOLDER"))
    return sorted(re.sub(r"\s+", " ", re.sub(r"\d+\.\d+|\b\d{2,}\b", "N", line)).strip() for line in text.splitlines())


def _processes(home: str) -> list[str]:
    """What still runs of that home once it has had some seconds to end."""
    mark = f"FORGECTL_HOME={home}".encode()
    deadline = time.monotonic() + 20
    while True:
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except OSError:
                pass  # it has ended, or is another user's
        if not found or time.monotonic() > deadline:
            return [f"process {line}" for line in found]
        time.sleep(0.1)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--only", help="cases whose names have this in them")
    options = parser.parse_args()
    unmeant = 0
    for case in CASES:
        if options.only and options.only not in case.name:
            continue
        old, new = (outcome(case, path.absolute()) for path in (options.before, options.after))
        serious = (old.code, old.out, old.left) != (new.code, new.out, new.left)
        unmeant += serious and not case.meant
        verdict = "same" if old == new else "other words on stderr" if not serious else case.meant or "DIFFERS"
        print(f"{case.name:24} {old.code:3} {new.code:3}  {verdict}", flush=True)
        for title in ("out", "err", "left"):
            lines = difflib.unified_diff(getattr(old, title), getattr(new, title), n=0, lineterm="")
            for line in list(lines)[2:]:
                if not line.startswith("@@"):
                    print(f"    {title} {line[:160]}", flush=True)
    sys.exit(1 if unmeant else 0)


if __name__ == "__main__":
    main()
