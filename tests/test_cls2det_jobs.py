"""Jobs run in processes of their own, and their errors come back."""

import os
import signal
import threading
import time

import pytest

pytest.importorskip("rich")

from rich.console import Console

from cls2det.jobs import Job, JobFailed, run_jobs
from job_functions import bad_job, dying_job, endless_job, good_job

QUIET = Console(quiet=True)


def test_each_job_has_its_own_process(tmp_path):
    run_jobs([Job(name, good_job, (tmp_path / name,)) for name in ("a", "b")], 2, QUIET)
    assert len({(tmp_path / "a").read_text(), (tmp_path / "b").read_text(), str(os.getpid())}) == 3


def test_an_error_comes_back_with_its_traceback():
    with pytest.raises(JobFailed, match=r"(?s)bad failed.*broken on purpose"):
        run_jobs([Job("bad", bad_job, ())], 1, QUIET)


def test_a_job_that_dies_is_noticed():
    with pytest.raises(JobFailed, match=r"dying ended with exit code 7"):
        run_jobs([Job("dying", dying_job, ())], 1, QUIET)


def test_ctrl_c_leaves_no_process_behind(tmp_path):
    def interrupt():
        while not (tmp_path / "pid").exists():
            time.sleep(0.05)
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        run_jobs([Job("endless", endless_job, (tmp_path / "pid",))], 1, QUIET)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
