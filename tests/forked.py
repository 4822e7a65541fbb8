"""Code in a process of its own, without the seconds that importing torch takes: a fork of one process that has imported it."""

from __future__ import annotations

import atexit
import functools
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from helpers import clean_environment

SERVER = """
import json, os, signal, sys, traceback
import torch, torch._dynamo  # a second more, which the first TorchDispatchMode would take in every fork

def run(request):
    signal.alarm(240)
    for stream, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(request[name], os.O_WRONLY), stream)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    sys.path.insert(0, request["folder"])
    sys.argv = ["-c", *request["arguments"]]
    try:
        exec(compile(request["code"], "<string>", "exec"), {"__name__": "__main__"})
    except BaseException:
        traceback.print_exc()
        return 1
    return 0

for line in sys.stdin:
    process = os.fork()
    if process == 0:
        code = run(json.loads(line))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    _, status = os.waitpid(process, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
"""


@functools.cache
def _server() -> subprocess.Popen:
    environment = clean_environment() | {"MALLOC_PERTURB_": "165"}  # glibc fills fresh and freed memory: reads outside show
    pipe = subprocess.PIPE
    server = subprocess.Popen([sys.executable, "-c", SERVER], env=environment, stdin=pipe, stdout=pipe, text=True)
    atexit.register(server.kill)
    return server


def run_forked(code: str, *arguments: str, folder: Path | None = None, **environment: str) -> subprocess.CompletedProcess:
    """As helpers.run_python, with torch imported before the environment is set."""
    server = _server()
    settings = clean_environment(folder) | environment
    with tempfile.TemporaryDirectory() as streams:
        paths = {name: Path(streams) / name for name in ("stdout", "stderr")}
        for path in paths.values():
            path.touch()
        request = {"code": code, "arguments": arguments, "folder": settings["PYTHONPATH"], "environment": settings}
        server.stdin.write(json.dumps(request | {name: str(path) for name, path in paths.items()}) + "\n")
        server.stdin.flush()
        returncode = int(server.stdout.readline())
        output = {name: path.read_text() for name, path in paths.items()}
    return subprocess.CompletedProcess([code, *arguments], returncode, **output)
