"""Two real processes that talk by gloo over the loopback: what the simulated ranks of the core are compared with.

    results = gloo.run("tests.gloo.zero:train")  # one dict of tensors from each rank

A worker is a function of (rank, ranks) that returns a dict of tensors; the process group is ready when it is called.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).parents[2]
LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"


def run(worker: str, *, ranks: int = 2, timeout: float = 180) -> list[dict[str, Tensor]]:
    """Run module:function in `ranks` processes and return what each rank returns.

    Raises:
        RuntimeError: a rank failed, with what it said; or they take longer than `timeout` seconds, and are ended.
    """
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": LOOPBACK}
        logs = [Path(folder) / f"{rank}.log" for rank in range(ranks)]
        processes = []
        try:
            for rank, log in enumerate(logs):
                command = [sys.executable, "-m", "tests.gloo", worker, str(rank), str(ranks), folder]
                with log.open("w") as stream:
                    processes.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=stream, stderr=stream))
            deadline = time.monotonic() + timeout
            for process in processes:
                process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"{worker} took longer than {timeout:g} s") from None
        finally:
            for process in processes:
                process.kill()
                process.wait()
        for process, log in zip(processes, logs, strict=True):
            if process.returncode:
                raise RuntimeError(f"{worker} failed: {log.read_text()}")
        return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(ranks)]
