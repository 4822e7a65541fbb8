"""The ``cls2det`` command. Each subcommand is a function; its docstring is its ``--help``."""

from __future__ import annotations

import importlib
import inspect
import logging
import os
import re
import sys
from argparse import SUPPRESS
from collections.abc import Callable, Sequence
from typing import Any, get_args, get_origin, get_type_hints

import docstring_parser  # comes with jsonargparse[signatures]
from jsonargparse import ArgumentParser
from yaml import YAMLError

from cls2det.errors import LibraryChanged
from cls2det.recipes import find_recipe
from cls2det.study.jobs import JobFailed

# Subcommand: module and function.
COMMANDS = {
    "demo": ("cls2det.study.demo", "demo"),
    "teacher": ("cls2det.commands", "teacher"),
    "train": ("cls2det.commands", "train"),
    "distill": ("cls2det.commands", "distill"),
    "evaluate": ("cls2det.commands", "evaluate"),
    "predict": ("cls2det.commands.predict", "predict"),
    "export": ("cls2det.commands.export", "export"),
    "report": ("cls2det.study.report", "report"),
    "sweep": ("cls2det.study.sweep", "sweep"),
    "pretrain": ("cls2det.commands.pretrain", "pretrain"),
    "recipes": ("cls2det.recipes", "recipes"),
    "info": ("cls2det.commands.info", "info"),
}
CONFIGURED = ("teacher", "train", "distill", "pretrain")  # take --config


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``cls2det <command>``; returns the exit status."""
    said = logging.getLogger("cls2det")  # which weights a backbone starts from, say
    if not said.handlers:
        said.addHandler(logging.StreamHandler())
        said.setLevel(logging.INFO)
    arguments = [_underscored(argument) for argument in (sys.argv[1:] if arguments is None else arguments)]
    parser = ArgumentParser(prog="cls2det", description="Distil an image classifier into an object detector.")
    subcommands = parser.add_subcommands(required=True)
    functions = {}
    for name in COMMANDS:
        # Of a command that is named, only that is imported.
        if name in arguments[:1] or not set(arguments[:1]) <= set(COMMANDS) or not arguments:
            functions[name] = _function(name)
            subcommands.add_subcommand(name, command_parser(name), help=functions[name].__doc__.split("\n")[0])
    try:
        parsed = parser.parse_args(_with_recipe_paths(arguments))
        options = parser.instantiate_classes(parsed)[parsed.subcommand].as_dict()
        if parsed.subcommand in CONFIGURED:
            options.pop("config")
        result = functions[parsed.subcommand](**options)
    except KeyboardInterrupt:
        print("\nStopped. The same command goes on from the last checkpoint.", file=sys.stderr)
        return 130
    except (OSError, ValueError, ImportError, YAMLError, LibraryChanged) as error:
        print(f"cls2det {arguments[0]}: {error}", file=sys.stderr)
        return 2
    except JobFailed as error:
        print(f"cls2det {arguments[0]}: {error}", file=sys.stderr)
        return 1
    if isinstance(result, dict) and os.environ.get("LOCAL_RANK", "0") == "0":
        _print(result)
    return 0


def command_parser(name: str) -> ArgumentParser:
    """Options of a subcommand: one per parameter of its function, with its docstring as help."""
    # `train` passes its options on to `distill`: one recipe serves both.
    function, described = _function("distill" if name == "train" else name), _function(name)
    parser = ArgumentParser(description=described.__doc__.split("\n\n    Args:")[0])
    if name in CONFIGURED:
        parser.add_argument("--config", action="config", help="a YAML file with these options, or a recipe's name")
    parameters, types = inspect.signature(function).parameters, get_type_hints(function)
    texts = {entry.arg_name: entry.description for entry in docstring_parser.parse(function.__doc__).params}
    flags = [each for each, parameter in parameters.items() if parameter.default is False]
    lists = {each: item for each, kind in types.items() if (item := _item_type(kind)) and each in parameters}
    parser.add_function_arguments(function, as_group=False, skip={"progress", "console", *flags, *lists})
    for each in flags:  # a parameter that is False by default becomes a plain flag
        parser.add_argument(f"--{each}", action="store_true", help=texts[each])
    for each, item in lists.items():  # and a list takes several words, as a shell gives them
        default = parameters[each].default
        if default is parameters[each].empty and name == "report":
            parser.add_argument(each, nargs="+", type=item, help=texts[each])
        else:
            needed = {"required": True} if default is parameters[each].empty else {"default": default}
            parser.add_argument(f"--{each}", nargs="+", type=item, help=texts[each], **needed)
    if name == "train":
        _hide(parser, importlib.import_module(COMMANDS[name][0]).TEACHING)
    return parser


def _hide(parser: ArgumentParser, names: Sequence[str]) -> None:
    """Leave options, and groups of options, out of the help."""
    for action in parser._actions:
        if action.dest.split(".")[0] in names:
            action.help = SUPPRESS
    for group in parser._action_groups:
        if group._group_actions and all(action.help is SUPPRESS for action in group._group_actions):
            group.title = group.description = None


def _item_type(kind: Any) -> Any:
    """``int`` for ``list[int]``, ``list[int] | None`` and the like; None for what is no list."""
    for each in (kind, *get_args(kind)):
        if get_origin(each) in (list, Sequence):
            return get_args(each)[0]
    return None


def parse_options(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """Typed keyword arguments for a subcommand's function, from plain nested values as a YAML file has them."""
    parser = command_parser(name)
    keywords = parser.instantiate_classes(parser.parse_object(options)).as_dict()
    keywords.pop("config", None)
    return keywords


def _function(name: str) -> Callable:
    module, function = COMMANDS[name]
    return getattr(importlib.import_module(module), function)


def _underscored(argument: str) -> str:
    """``--data-root`` means ``--data_root``."""
    return re.sub(r"^--[\w.-]+", lambda match: "--" + match[0][2:].replace("-", "_"), argument)


def _with_recipe_paths(arguments: list[str]) -> list[str]:
    """``--config ssd300`` means the recipe of that name, unless there is such a file.

    It is read first, wherever it stands: options before it would lose against the recipe.
    """
    recipes, others, given = [], [], list(arguments[1:])
    while given:
        argument = given.pop(0)
        if argument == "--config" and given:
            argument = f"--config={given.pop(0)}"
        if argument.startswith("--config="):
            recipes.append(f"--config={find_recipe(argument.removeprefix('--config='))}")
        else:
            others.append(argument)
    return [*arguments[:1], *recipes, *others]


def _print(result: dict) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False)
    for name, value in result.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            table.add_row(name, f"{value:.2f}" if isinstance(value, float) else str(value))
    if table.row_count:
        Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
