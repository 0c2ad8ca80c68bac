"""Ranks that meet at their store again and again, until there is a file `end`; rank 0 writes how often to `turns`."""

import os
import pathlib

import torch.distributed as dist

dist.init_process_group("gloo")
rank, size = dist.get_rank(), dist.get_world_size()
store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
if rank == 0:
    store.set("secret", "hunter2")
    store.set("ours", "kept")
for turn in range(1 << 62):
    if store.add(f"in/{turn}", 1) == size:
        store.set(f"out/{turn}", "end" if pathlib.Path("end").exists() else "on")
    said = store.get(f"out/{turn}")
    if rank == 0:
        pathlib.Path("turns.new").write_text(str(turn))
        pathlib.Path("turns.new").rename("turns")
        for old in (f"in/{turn - 1}", f"out/{turn - 2}"):
            store.delete_key(old)
    if said == b"end":
        break
# What a rank forks is its user's, too.
pid = os.fork()
if pid == 0:
    child = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    child.set(f"child/{rank}", "x")
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
assert store.get(f"child/{rank}") == b"x"
assert store.get("ours") == b"kept"
planted = [
    key for key in ("client", *(f"raw/{how}" for how in ("stay", "half", "reset", "close"))) if store.check([key])
]
assert not planted, planted
print("nobody else was here")
