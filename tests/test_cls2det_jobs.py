"""Jobs run in processes of their own, and their errors come back."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("rich")

from rich.console import Console

from cls2det.errors import JobFailed
from cls2det.study.jobs import Job, cores, run_jobs
from helpers import default_signal
from job_functions import bad_job, dying_job, endless_job, good_job, loading_job, thread_job

QUIET = Console(quiet=True)


def test_each_job_has_its_own_process(tmp_path):
    run_jobs([Job(name, good_job, (tmp_path / name,)) for name in ("a", "b")], 2, QUIET)
    assert len({(tmp_path / "a").read_text(), (tmp_path / "b").read_text(), str(os.getpid())}) == 3


def test_a_job_may_have_loader_workers(tmp_path):
    """Processes of its own, which a daemon may not have."""
    run_jobs([Job("loading", loading_job, (tmp_path / "sum",))], 1, QUIET)
    assert (tmp_path / "sum").read_text() == "6"


@pytest.mark.parametrize("given", [None, "3", "3,1"])
def test_threads_of_a_job(given, tmp_path, monkeypatch):
    """Those of OMP_NUM_THREADS, or its share of the cores; waiting threads sleep. The variables stay as they were."""
    variables = {} if given is None else {"OMP_NUM_THREADS": given, "OMP_WAIT_POLICY": "ACTIVE"}
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    run_jobs([Job("a", thread_job, (tmp_path / "a",))], 1, QUIET)
    number, policy = (3, "ACTIVE") if given else (cores(), "PASSIVE")
    assert (tmp_path / "a").read_text() == f"{number} {number} {policy}"
    assert {name: os.environ[name] for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY") if name in os.environ} == variables


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
    with default_signal(signal.SIGINT), pytest.raises(KeyboardInterrupt):
        run_jobs([Job("endless", endless_job, (tmp_path / "pid",))], 1, QUIET)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_jobs_end_with_a_parent_that_is_killed(tmp_path):
    program = (
        "import sys; from pathlib import Path; from rich.console import Console; from job_functions import endless_job\n"
        "from cls2det.study.jobs import Job, run_jobs\n"
        "if __name__ == '__main__': run_jobs([Job('endless', endless_job, (Path(sys.argv[1]),))], 1, Console(quiet=True))"
    )
    (tmp_path / "main.py").write_text(program)
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    parent = subprocess.Popen([sys.executable, str(tmp_path / "main.py"), str(tmp_path / "pid")], env=env)
    deadline = time.monotonic() + 60
    while not (tmp_path / "pid").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    while time.monotonic() < deadline:
        try:
            os.kill(int((tmp_path / "pid").read_text()), 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail("the job outlived its parent")
