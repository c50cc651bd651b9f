"""Processes of a test's own: they fork from a server that has everything imported."""

import contextlib
import multiprocessing
import os
import runpy
import socket
import sys
import time
from pathlib import Path

FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(["tenfold.bench.compare", "torch.distributed.fsdp", "accelerate", "sklearn.datasets"])


def in_two_processes(script: Path, folder: Path) -> None:
    """Run a script twice, as ``torchrun --nproc-per-node 2 SCRIPT FOLDER`` would: the same environment, one machine."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    workers = [FORKED.Process(target=_work, args=(script, folder, rank, port), daemon=True) for rank in (0, 1)]
    for worker in workers:
        worker.start()
    end = time.monotonic() + 300
    while any(w.is_alive() for w in workers) and not any(w.exitcode for w in workers) and time.monotonic() < end:
        time.sleep(0.05)
    for worker in workers:  # one that waits for another that has failed would wait for ever
        worker.kill()
        worker.join()
    said = "\n".join((folder / f"{rank}.log").read_text(encoding="utf-8")[-4000:] for rank in (0, 1))
    assert [w.exitcode for w in workers] == [0, 0], said


def _work(script: Path, folder: Path, rank: int, port: int) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(port),
    }
    sys.argv = [str(script), str(folder)]
    with (
        (folder / f"{rank}.log").open("w", encoding="utf-8", buffering=1) as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        try:
            runpy.run_path(str(script), run_name="__main__")
        except BaseException:
            import traceback

            traceback.print_exc(file=log)
            raise
