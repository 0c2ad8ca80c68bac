"""`forgectl run` beside torchrun and python: what it takes for a program, its options, and its words of help."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.conftest import Forge

SAY = "import sys; print(sys.argv)\n"
NO_TORCH = ("--preload", "")


def _said(forge: Forge, *arguments: object) -> list[str]:
    """What the ranks of a `run` printed, without the prefixes, sorted."""
    return sorted(line.partition(" │ ")[2] for line in forge.ok("run", *NO_TORCH, *arguments).splitlines())


def _executable(forge: Forge, name: str, text: str) -> Path:
    path = forge.write(name, text)
    path.chmod(0o755)
    return path


@pytest.fixture
def package(forge: Forge) -> Forge:
    """A package with a module `train` and a `__main__`."""
    folder = forge.folder / "pkg"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "__main__.py").write_text(SAY)
    (folder / "train.py").write_text("import sys; print(sys.argv[1:])\n")
    return forge


@pytest.mark.parametrize("own", [["-n", "5"], ["--lr", "3"], ["-h"], ["-d"], ["--", "x"], ["-m", "a"]])
def test_m_ends_the_options_of_forgectl(package: Forge, own: list[str]) -> None:
    assert _said(package, "-n", 2, "-m", "pkg.train", *own) == [str(own)] * 2


def test_a_script_gets_its_own_arguments_and_its_name_as_typed(forge: Forge) -> None:
    forge.write("say.py", SAY)
    forge.write("-say.py", SAY)
    for name in ("say.py", "./say.py", "../work/say.py", str(forge.folder / "say.py"), "./-say.py"):
        assert _said(forge, name, "-n", "3", "--help") == [str([name, "-n", "3", "--help"])]
    assert _said(forge, "--start-method", "spawn", "./say.py") == ["['./say.py']"]
    assert _said(forge, "--", "-say.py") == ["['./-say.py']"]


def test_any_program_runs_as_from_a_shell(forge: Forge) -> None:
    _executable(forge, "go.sh", '#!/bin/sh\necho "$0" "$@" of $RANK\n')
    _executable(forge, "tool", "#!/usr/bin/env python3\nimport sys; print('python', sys.argv)\n")
    forge.write("plain", "import sys; print('python', sys.argv)\n")
    (forge.folder / "echo").mkdir()  # a folder is no program: that of PATH is meant
    assert _said(forge, "./go.sh", "-n", "2") == ["./go.sh -n 2 of 0"]
    assert _said(forge, "-n", 2, "go.sh") == ["./go.sh of 0", "./go.sh of 1"]
    assert _said(forge, "tool") == ["python ['tool']"]
    assert _said(forge, "plain", "x") == ["python ['plain', 'x']"]
    assert _said(forge, "echo", "-n", "x") == ["x"]
    assert _said(forge, shutil.which("echo"), "y") == ["y"]
    assert _said(forge, "--no-python", "./tool") == ["python ['./tool']"]


@pytest.mark.parametrize(
    ("name", "text", "mode", "advice"),
    [
        ("go.sh", "#!/bin/sh -e\n", 0o644, "chmod +x go.sh, or forgectl run /bin/sh -e go.sh"),
        ("go.sh", "echo hi\n", 0o755, "forgectl run sh go.sh"),
    ],
)
def test_a_program_that_the_system_would_not_run_is_refused_before(
    forge: Forge, name: str, text: str, mode: int, advice: str
) -> None:
    forge.write(name, text).chmod(mode)
    result = forge.run("run", name)
    assert (result.returncode, result.stdout) == (66, "")
    assert advice in result.stderr
    assert forge.runs() == []


def test_hints_fit_what_was_typed(package: Forge) -> None:
    for name in ("exit3.py", "omp.py"):
        package.write(name, "")
    advices = {
        "pkg": "forgectl run -m pkg",
        "pkg/": "forgectl run -m pkg",
        "pkg.train": "forgectl run -m pkg.train",
        "pkg/train": "forgectl run -m pkg.train",
        "pkg/trian.py": "did you mean 'pkg/train.py'?",
        "exit.py": "did you mean 'exit3.py'?",
    }
    for typed, advice in advices.items():
        result = package.run("run", typed)
        assert result.returncode == 66, result.stderr
        assert f"hint: {advice}\n" in result.stderr
    for far in ("./-x.py", "nope.py"):
        assert "did you mean" not in package.run("run", far).stderr


def test_torchruns_spellings_are_taken(forge: Forge) -> None:
    forge.write("say.py", SAY)
    options = ["--nproc_per_node=2", "--standalone", "--nnodes", "1", "--max_restarts=0"]
    assert _said(forge, *options, "say.py") == ["['say.py']"] * 2
    assert _said(forge, "--nproc-per-node", 2, "--nnodes=1:1", "say.py") == ["['say.py']"] * 2
    assert _said(forge, "--no_python", "echo", "x") == ["x"]
    cores = len(os.sched_getaffinity(0))
    assert _said(forge, "-n", "cpu", "say.py") == ["['say.py']"] * cores


def test_ranks_start_where_workdir_says(forge: Forge) -> None:
    there = forge.folder / "there"
    there.mkdir()
    (there / "beside.py").write_text("NAME = 'imported'\n")
    forge.write("say.py", "import os, sys, beside; print(os.getcwd(), sys.argv[0], beside.NAME)\n")
    assert _said(forge, "--workdir", "there", "say.py") == [f"{there} {forge.folder / 'say.py'} imported"]


@pytest.mark.parametrize("command", [["run", "x.py"], ["launch", "x.yaml"]])
def test_a_folder_that_was_removed_is_named_as_the_cause(forge: Forge, command: list[str]) -> None:
    gone = forge.folder / "gone"
    gone.mkdir()
    argv = ["sh", "-c", 'rmdir "$PWD" && exec "$@"', "sh", *forge.argv(*command)]
    env = {**forge.env, "PYTHONPATH": str(Path(__file__).parents[2])}
    result = subprocess.run(argv, cwd=gone, env=env, capture_output=True, text=True)
    assert result.returncode == 64, result.stderr
    assert result.stderr == "forgectl: the current folder was removed\n  hint: cd to one that exists\n"


def test_a_mesh_has_the_name_of_its_program(forge: Forge) -> None:
    forge.write("my scrípt 你好.py", "")
    _executable(forge, "go.sh", "#!/bin/sh\n")
    for typed, mesh in {"my scrípt 你好.py": "my-script", "./go.sh": "go", str(shutil.which("true")): "true"}.items():
        assert f"forgectl: {mesh} succeeded" in forge.run("run", *NO_TORCH, typed).stderr


# ------------------------------------------------------------ where torch is not installed


@pytest.fixture
def bare(forge: Forge) -> Path:
    """An interpreter that has psutil, which agents need, and no torch."""
    folder = forge.folder / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (site,) = folder.glob("lib/python3*/site-packages")
    (site / "psutil").symlink_to(Path(psutil.__file__).parent)
    return folder / "bin" / "python"


def test_without_torch_a_program_runs_that_does_not_need_it(forge: Forge, bare: Path) -> None:
    forge.write("say.py", "import sys; print(sys.argv, 'torch' in sys.modules)\n")
    out = forge.ok("run", "-n", 2, "--python", bare, "say.py")
    assert sorted(line.partition(" │ ")[2] for line in out.splitlines()) == ["['say.py'] False"] * 2


def test_without_torch_one_line_says_how_to_install_it(forge: Forge, bare: Path) -> None:
    forge.write("learn.py", "def learn():\n    import torch\n\nlearn()\n")
    cure = f"{bare} -m pip install torch numpy"
    imported = forge.run("run", "--python", bare, "learn.py")
    assert (imported.returncode, imported.stdout.count("\n")) == (69, 1)
    assert f"learn.py imports torch, which {bare} does not have; install it: {cure}" in imported.stdout
    assert "Traceback" not in imported.stdout
    preloaded = forge.run("run", "--python", bare, "--preload", "torch", "learn.py")
    assert (preloaded.returncode, preloaded.stdout) == (69, "")
    assert f"{bare} has no torch, which `preload` names\n  hint: {cure}\n" in preloaded.stderr
    assert preloaded.stderr.count("has no torch") == 1


# ------------------------------------------------------------ variables that torch reads as it is imported


def test_what_a_script_sets_before_it_imports_torch_has_its_effect(forge: Forge) -> None:
    forge.write(
        "set.py",
        "import os, sys\nfresh = 'torch' not in sys.modules\n"
        "os.environ.update(OMP_NUM_THREADS='2', TORCH_LOGS='+inductor')\n"
        "import importlib.util, logging\nspec = importlib.util.find_spec('torch')\n"
        "from torch.nn import Linear\nimport torch, torch.nn.functional as F, pickle\n"
        "same = sys.modules['torch'] is torch and torch.__spec__.origin == spec.origin\n"
        "same = same and torch.nn.Linear is Linear and pickle.loads(pickle.dumps(torch.ones(2))).sum() == 2\n"
        "print(fresh, bool(same), torch.get_num_threads(), logging.getLogger('torch._inductor').level)\n",
    )
    said = [
        forge.ok("run", "-n", 2, *more, "set.py").splitlines()[-1].partition(" │ ")[2]
        for more in ((), ("--start-method", "spawn"))
    ]
    assert said == ["True True 2 10"] * 2  # without: 1 thread, as two ranks share this machine's cores


def test_what_comes_too_late_for_torch_is_named_once_with_what_to_do(forge: Forge) -> None:
    late = "import os\nos.environ['KMP_BLOCKTIME'] = '7'\nimport torch\nimport torch.nn\nprint('done')\n"
    forge.write("late.py", late)
    out = forge.ok("run", "late.py")
    assert out.count("KMP_BLOCKTIME had no effect") == 1
    assert "`forgectl run -e KMP_BLOCKTIME=7 …`" in out
    assert "no effect" not in forge.ok("run", "-e", "KMP_BLOCKTIME=7", "late.py")
    assert "no effect" not in forge.ok("run", "--start-method", "spawn", "late.py")
    forge.write("after.py", "import os, torch\nos.environ['KMP_BLOCKTIME'] = '7'\nimport torch.nn\n")
    assert "no effect" not in forge.ok("run", "after.py"), "under torchrun it has none, either"
