"""What test_cls2det_jobs.py runs: in a module of its own, which the processes can import."""

import os
import time


def good_job(path, progress):
    progress(1, 2, "half")
    path.write_text(str(os.getpid()))


def loading_job(path, progress):
    from torch.utils.data import DataLoader

    path.write_text(str(sum(int(batch) for batch in DataLoader(range(4), num_workers=1))))


def bad_job(progress):
    raise ValueError("broken on purpose")


def dying_job(progress):
    os._exit(7)


def endless_job(path, progress):
    path.write_text(str(os.getpid()))
    time.sleep(600)


def thread_job(path, progress):
    import torch

    path.write_text(f"{torch.get_num_threads()} {os.environ['OMP_NUM_THREADS']} {os.environ['OMP_WAIT_POLICY']}")
