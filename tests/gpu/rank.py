"""What a rank with a GPU does: it computes in CUDA after its fork, joins NCCL, and prints what it saw as JSON."""

from __future__ import annotations

import json
import math
import os
import sys
import time

import torch
import torch.distributed as dist

dist.init_process_group("nccl", device_id=torch.device("cuda", int(os.environ["LOCAL_RANK"])))
torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
total = torch.full((1024, 1024), float(dist.get_rank() + 1), device="cuda")
dist.all_reduce(total)
product = (total @ total).sum().item()
properties = torch.cuda.get_device_properties(torch.cuda.current_device())
seen = {
    "visible": os.environ["CUDA_VISIBLE_DEVICES"],
    "count": torch.cuda.device_count(),
    "uuid": str(properties.uuid),
    "sum": total[0, 0].item(),
    "finite": math.isfinite(product),
}
print(json.dumps(seen), flush=True)
dist.destroy_process_group()
time.sleep(float(sys.argv[1]) if len(sys.argv) > 1 else 0)
