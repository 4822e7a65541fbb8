"""The ``cls2det`` command: a table of its commands, and what happens around each."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import logging
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from yaml import YAMLError

from cls2det.commands import options
from cls2det.commands.parsing import parse_words
from cls2det.errors import JobFailed, LibraryChanged
from cls2det.study import options as study

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


class Command(NamedTuple):
    """One command.

    Attributes:
        module: where the function of the command's name is, which is imported when it runs
        options: the record that the function takes; its docstring is the help
        reads: the record whose options are accepted, where that is another
        takes_recipe: whether there is a ``--config``
    """

    module: str
    options: type[DataclassInstance]
    reads: type[DataclassInstance] | None = None
    takes_recipe: bool = False


COMMANDS = {
    "demo": Command("cls2det.study.demo", study.DemoOptions),
    "look": Command("cls2det.commands.look", options.LookOptions),
    "teacher": Command("cls2det.commands.teacher", options.TeacherOptions, takes_recipe=True),
    # One recipe serves both `train` and `distill`.
    "train": Command("cls2det.commands.train", options.TrainOptions, reads=options.DistillOptions, takes_recipe=True),
    "distill": Command("cls2det.commands.distill", options.DistillOptions, takes_recipe=True),
    "bank": Command("cls2det.commands.bank", options.BankOptions),
    "evaluate": Command("cls2det.commands.evaluate", options.EvaluateOptions),
    "predict": Command("cls2det.commands.predict", options.PredictOptions),
    "export": Command("cls2det.commands.export", options.ExportOptions),
    "report": Command("cls2det.study.report", study.ReportOptions),
    "sweep": Command("cls2det.study.sweep", study.SweepOptions),
    "pretrain": Command("cls2det.commands.pretrain", options.PretrainOptions, takes_recipe=True),
    "recipes": Command("cls2det.commands.recipes", options.RecipesOptions),
    "info": Command("cls2det.commands.info", options.InfoOptions),
}

TRAININGS = ("teacher", "train", "distill", "pretrain")
LONG = (*TRAININGS, "bank", "sweep", "demo")  # what a stop does not end for good


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``cls2det <command>``; returns the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] not in COMMANDS:
        _parser().parse_args(words[:1] or ["--help"])  # ends with the help, or an error
        return 2
    name, command = words[0], COMMANDS[words[0]]
    _print_everything()
    with _log_on_screen(), _warnings_without_place():
        return _run(name, command, words[1:])


def _run(name: str, command: Command, words: Sequence[str]) -> int:
    """Run a command; errors that a user can do something about are one line."""
    parsed: Any = None
    try:
        wants_help = {"-h", "--help"} & set(words)
        record = command.options if wants_help else command.reads or command.options
        parsed = parse_words(record, words, name, command.takes_recipe)
        with _stopped_by_signals():
            function = getattr(importlib.import_module(command.module), name)
            result = function(parsed)
        if isinstance(result, dict):
            from cls2det.commands.printing import print_result

            print_result(result)
        sys.stdout.flush()  # here, and not when Python ends, a closed pipe can be told from a fault
    except KeyboardInterrupt as stop:
        how = f" by {stop.signal.name}" if isinstance(stop, _Stopped) else ""
        print(f"\nStopped{how}.{_what_is_kept(name, getattr(parsed, 'out', None))}", file=sys.stderr)
        return 128 + (stop.signal if isinstance(stop, _Stopped) else signal.SIGINT)
    except JobFailed as error:
        print(f"cls2det {name}: {error}", file=sys.stderr)
        return 1
    except (OSError, ValueError, ImportError, YAMLError, LibraryChanged, RuntimeError, EOFError) as error:
        if _is_of_a_killed_loader(error):
            print(
                f"cls2det {name}: a process that loads images was killed, as happens where memory runs out "
                f"({str(error) or type(error).__name__}). Give a lower --run.loader-workers or more memory; the same command goes on "
                "from the last checkpoint",
                file=sys.stderr,
            )
            return 1
        if isinstance(error, BrokenPipeError):  # `cls2det recipes | head -1`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left to print goes there
            return 128 + signal.SIGPIPE
        if isinstance(error, RuntimeError | EOFError) and not isinstance(error, LibraryChanged):
            raise
        print(f"cls2det {name}: {error}", file=sys.stderr)
        return 2
    return 0


def _what_is_kept(name: str, out: Path | None) -> str:
    """What the same command does after a stop; empty where nothing is to be said."""
    if out is None or name not in LONG:
        return ""
    if name in TRAININGS and not (out / "last.ckpt").is_file():
        return " There is no checkpoint yet: the same command begins anew."
    return f" The same command goes on from the last checkpoint{'' if name in TRAININGS else 's'}."


def _is_of_a_killed_loader(error: BaseException) -> bool:
    """torch notices the end of a loader process; or its tensors cannot be fetched, if it ended between a batch and its transfer."""
    if isinstance(error, RuntimeError):
        return str(error).startswith("DataLoader worker (pid")
    files = {os.path.basename(frame.filename) for frame in traceback.extract_tb(error.__traceback__)}
    return isinstance(error, EOFError | OSError) and {"dataloader.py", "resource_sharer.py"} <= files


class _Stopped(KeyboardInterrupt):
    """A signal that asks the process to end, treated as Ctrl-C."""

    def __init__(self, number: int):
        super().__init__()
        self.signal = signal.Signals(number)


@contextlib.contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """SIGTERM (a scheduler's) and SIGHUP (a closed terminal's) end a command as Ctrl-C does, but where they are ignored already."""

    def stop(number: int, _frame: object) -> None:
        raise _Stopped(number)

    names = ("SIGTERM", "SIGHUP") if threading.current_thread() is threading.main_thread() else ()
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]  # Windows has no SIGHUP
    handlers = {number: signal.getsignal(number) for number in numbers}
    for number, handler in handlers.items():
        if handler is signal.SIG_DFL:
            signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _parser() -> argparse.ArgumentParser:
    """What lists the commands."""
    parser = argparse.ArgumentParser(
        prog="cls2det",
        usage="cls2det <command> [options]",
        description="Distil an image classifier into an object detector.",
        epilog="cls2det <command> --help lists the options of a command.",
    )
    commands = parser.add_subparsers(title="commands", metavar="<command>", required=True)
    for name, command in COMMANDS.items():
        commands.add_parser(name, help=(command.options.__doc__ or "").partition("\n")[0])
    return parser


def _print_everything() -> None:
    """Write as an escape what the terminal's encoding lacks: a class name must not end a run."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


@contextlib.contextmanager
def _log_on_screen() -> Iterator[None]:
    """Show what this package logs: which weights a backbone starts from, say."""
    logger, handler = logging.getLogger("cls2det"), logging.StreamHandler()
    logger.addHandler(handler)
    level = logger.level
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


@contextlib.contextmanager
def _warnings_without_place() -> Iterator[None]:
    """Show the words of a warning to the user alone: the file and line that gave it help only whoever mends the code."""
    usual = warnings.formatwarning

    def words(message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None) -> str:
        return f"warning: {message}\n" if category is UserWarning else usual(message, category, filename, lineno, line)

    warnings.formatwarning = words
    try:
        yield
    finally:
        warnings.formatwarning = usual


if __name__ == "__main__":
    sys.exit(main())
