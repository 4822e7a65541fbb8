"""The ``cls2det`` command. Each subcommand is a function; its docstring is its ``--help``."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Sequence

import docstring_parser  # comes with jsonargparse[signatures]
from jsonargparse import ArgumentParser, Namespace


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``cls2det <command>``; returns the exit status."""
    from cls2det import commands
    from cls2det.demo import demo
    from cls2det.jobs import JobFailed

    functions = {"demo": demo, "teacher": commands.teacher, "train": commands.train, "evaluate": commands.evaluate}
    parser = ArgumentParser(prog="cls2det", description="Distil an image classifier into an object detector.")
    subcommands = parser.add_subcommands(required=True)
    for name, function in functions.items():
        command = ArgumentParser(description=function.__doc__.split("\n\n    Args:")[0])
        _add_arguments(command, function)
        if name != "demo":
            command.add_argument("--config", action="config", help="a YAML file with these options")
        subcommands.add_subcommand(name, command, help=function.__doc__.split("\n")[0])
    arguments = sys.argv[1:] if arguments is None else arguments
    parsed = parser.instantiate_classes(parser.parse_args([_underscored(argument) for argument in arguments]))
    options: Namespace = parsed[parsed.subcommand]
    keywords = {key: value for key, value in options.as_dict().items() if key != "config"}
    try:
        result = functions[parsed.subcommand](**keywords)
    except KeyboardInterrupt:
        print("\nStopped. The same command goes on from the last checkpoint.", file=sys.stderr)
        return 130
    except (FileNotFoundError, FileExistsError, ValueError) as error:
        print(f"cls2det {parsed.subcommand}: {error}", file=sys.stderr)
        return 2
    except JobFailed as error:
        print(f"cls2det {parsed.subcommand}: {error}", file=sys.stderr)
        return 1
    if result:
        _print(result)
    return 0


def _underscored(argument: str) -> str:
    """``--data-root`` means ``--data_root``."""
    return re.sub(r"^--[\w.-]+", lambda match: "--" + match[0][2:].replace("-", "_"), argument)


def _add_arguments(command: ArgumentParser, function: Callable) -> None:
    """An option per parameter, with its docstring as help; a parameter that is False by default becomes a plain flag."""
    flags = [name for name, parameter in inspect.signature(function).parameters.items() if parameter.default is False]
    command.add_function_arguments(function, skip={"progress", *flags}, as_positional=False)
    texts = {entry.arg_name: entry.description for entry in docstring_parser.parse(function.__doc__).params}
    for name in flags:
        command.add_argument(f"--{name}", action="store_true", help=texts[name])


def _print(result: dict) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False)
    for name, value in result.items():
        if isinstance(value, int | float):
            table.add_row(name, f"{value:.2f}" if isinstance(value, float) else str(value))
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
