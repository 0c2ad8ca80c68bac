"""`parity.py FOLDER ARGS…`: writes what a rank sees and does to FOLDER/RANK.json, for a comparison of launchers."""

import atexit
import json
import multiprocessing
import os
import pickle
import random
import resource
import signal
import subprocess
import sys
import threading
from typing import Any

HERE = {name: value for name, value in globals().items() if name.startswith("__")}
DESCRIPTORS = {fd: os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")}
RANK = int(os.environ["RANK"])


class Point:
    """Defined in the script: it must pickle by the name `__main__.Point`."""

    def __init__(self, x: int) -> None:
        self.x = x


class Squares:
    """A data set that workers of a DataLoader must be able to import."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, i: int) -> int:
        return i * i


def double(point: Point) -> Point:
    return Point(2 * point.x)


def interpreter() -> dict[str, Any]:
    with open("/proc/self/status") as file:
        status = dict(line.split(":\t") for line in file.read().splitlines() if ":\t" in line)
    mask = os.umask(0)
    os.umask(mask)
    return {
        "argv": sys.argv[2:],
        "script": os.path.realpath(sys.argv[0]),
        "path0": sys.path[0],
        "cwd": os.getcwd(),
        "executable": os.path.realpath(sys.executable),
        "prefix": sys.prefix,
        "optimize": sys.flags.optimize,
        "encoding": [sys.stdout.encoding, sys.stderr.errors, sys.getdefaultencoding(), sys.getfilesystemencoding()],
        "main": {
            name: HERE.get(name) for name in ("__name__", "__file__", "__package__", "__doc__", "__annotations__")
        },
        "main_names": sorted(HERE),
        "signals": {
            s.name: str(signal.getsignal(s)) for s in sorted(signal.valid_signals()) if isinstance(s, signal.Signals)
        },
        "blocked": status["SigBlk"],
        "ignored": status["SigIgn"],
        "umask": mask,
        "files": resource.getrlimit(resource.RLIMIT_NOFILE),
        "nice": os.nice(0),
        "threads": [t.name for t in threading.enumerate()],
        "recursion": sys.getrecursionlimit(),
        "excepthook": sys.excepthook is sys.__excepthook__,
    }


def randomness() -> dict[str, Any]:
    import numpy
    import torch

    return {
        "random": random.random(),
        "urandom": os.urandom(8).hex(),
        "numpy": float(numpy.random.rand()),
        "torch": torch.rand(2).tolist(),
    }


def pickling() -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        [doubled] = pool.map(double, [Point(4)])
    return {
        "own": pickle.loads(pickle.dumps(Point(3))).x,  # noqa: S301
        "module": Point.__module__,
        "spawned": doubled.x,
        "same_class": type(doubled) is Point,
    }


def training() -> dict[str, Any]:
    import torch
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    torch.set_num_threads(1)
    store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    if RANK == 0:
        store.set("parity", "said by rank 0")
    heard = store.get("parity").decode()
    dist.init_process_group("gloo")
    total = torch.tensor([RANK + 1.0])
    dist.all_reduce(total)
    torch.manual_seed(0)
    model = DistributedDataParallel(torch.nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(3):
        optimizer.zero_grad()
        model(torch.full((3, 4), 1.0 + RANK + step)).square().mean().backward()
        optimizer.step()
    dist.destroy_process_group()
    return {
        "heard": heard,
        "total": total.item(),
        "parameters": [p.tolist() for p in model.parameters()],
        "cuda": torch.cuda.is_initialized(),
    }


def loading() -> dict[str, Any]:
    """What a DataLoader with workers yields, by start method; only where it is asked for: it is slow."""
    from torch.utils.data import DataLoader

    found = {}
    for method in os.environ.get("PARITY_LOADERS", "").split() if RANK == 0 else []:
        workers = 2 if method == "fork" else 1  # each spawned one imports torch anew
        loader = DataLoader(Squares(), 4, num_workers=workers, multiprocessing_context=method)
        found[method] = [batch.tolist() for batch in loader]
    return found


def linger(main: threading.Thread) -> None:
    """A thread that outlives the main one."""
    main.join()
    print(f"rank {RANK}: thread")


def main() -> None:
    out, err = sys.stdout, sys.stderr
    for i in range(3):
        print(f"rank {RANK}: out {i}", file=out)
        print(f"rank {RANK}: err {i}", file=err)
        os.write(1, f"rank {RANK}: raw {i}\n".encode())
        subprocess.run(["echo", f"rank {RANK}: child {i}"], check=True)
    seen = {
        "env": dict(os.environ),
        "interpreter": interpreter(),
        "descriptors": DESCRIPTORS,
        "random": randomness(),
        "pickling": pickling(),
        "training": training(),
        "loading": loading(),
    }
    with open(os.path.join(sys.argv[1], f"{RANK}.json"), "w") as file:
        json.dump(seen, file)
    atexit.register(print, f"rank {RANK}: atexit")
    threading.Thread(target=linger, args=(threading.main_thread(),)).start()
    print(f"rank {RANK}: end of main")


if __name__ == "__main__":
    main()
