"""One rank: python -m tests.gloo MODULE:FUNCTION RANK RANKS FOLDER."""

import importlib
import os
import sys
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed as dist

worker, rank, ranks, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
module, _, function = worker.partition(":")
torch.set_num_threads(1)
dist.init_process_group(
    "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks, timeout=timedelta(seconds=60)
)
torch.save(getattr(importlib.import_module(module), function)(rank, ranks), folder / f"{rank}.pt")
# A rank may end only when no other waits for it; and it ends at once: while Python is taken down, a thread of gloo that
# still holds a tensor would abort the process, though all its results are written.
dist.barrier()
os._exit(0)
