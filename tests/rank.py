"""One process of a gloo group in a test: runs a function of the test's file, saves its result.

The fixture `ranks` starts it in a fork server that has torch loaded, so that a rank costs
milliseconds; `TASK` is put into these globals there.
"""

import datetime
import os
import runpy
import sys

import torch
import torch.distributed as dist

TASK = globals()["TASK"]  # file, function, arguments, rank, world, folder

os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
torch.set_num_threads(1)
_rank, _world, _folder = TASK["rank"], TASK["world"], TASK["folder"]
dist.init_process_group(
    "gloo",
    store=dist.FileStore(f"{_folder}/store", _world),
    rank=_rank,
    world_size=_world,
    timeout=datetime.timedelta(seconds=60),
)
_result = runpy.run_path(TASK["file"])[TASK["function"]](*TASK["arguments"])
torch.save(_result, f"{_folder}/result-{_rank}.pt")
dist.barrier()
dist.destroy_process_group()
