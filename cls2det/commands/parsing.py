"""From the words of a command line, or the values of a YAML file, to the record of a command's options."""

from __future__ import annotations

import dataclasses
import math
import re
from argparse import SUPPRESS, Action
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_origin, get_type_hints

import docstring_parser  # comes with jsonargparse[signatures]
import yaml
from jsonargparse import ArgumentError, ArgumentParser, DefaultHelpFormatter

from cls2det.commands.renamed import present, present_words
from cls2det.recipes import find_recipe

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Options = TypeVar("Options", bound="DataclassInstance")
POSITIONAL = ("runs",)  # options that are given without their name
METAVARS = {"Path": "PATH", "int": "INT", "float": "FLOAT", "bool": "{true,false}"}  # by part of a type's name; others: TEXT


def parse_words(record: type[Options], words: Sequence[str], command: str, takes_recipe: bool = False) -> Options:
    """The options in the words after ``cls2det <command>``, on top of those of ``--config``, wherever that stands.

    ``--data-root`` means ``--data_root``.

    Raises:
        ValueError: an option that does not exist, is missing, or has a value that does not fit
    """
    words = present_words(
        [re.sub(r"^--[\w.-]+", lambda option: "--" + option[0][2:].replace("-", "_"), word) for word in words]
    )
    if takes_recipe:
        words = _with_recipes_first(words)
    parser = _parser(record, command, takes_recipe)
    try:
        parsed = parser.parse_args(words)
        if takes_recipe:
            parsed.pop("config")
        return _instance(record, parser, parsed.as_dict(), "the command line")
    except ArgumentError as error:
        hint = _nearest(str(error), parser) or f"cls2det {command} --help lists the options"
        raise ValueError(f"{_one_line(error)} ({hint})") from None


def parse_options(record: type[Options], options: Mapping[str, Any]) -> Options:
    """The options in plain nested values, as a YAML file has them.

    Raises:
        ValueError: as ``parse_words``
    """
    parser = _parser(record, "")
    try:
        return _instance(record, parser, options, "")
    except ArgumentError as error:
        raise ValueError(_one_line(error)) from None


class _Loader(yaml.SafeLoader):
    """Without dates: a run named 2026-01-31 has a name. A key that stands twice is an error: YAML would take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        if twice := [key for number, key in enumerate(keys) if key in keys[:number]]:
            raise yaml.constructor.ConstructorError(None, None, f"{twice[0]} stands twice in one group", node.start_mark)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


_Loader.yaml_implicit_resolvers = {
    letter: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def load_yaml(path: Path) -> Any:
    """Content of a YAML file, without dates.

    Raises:
        ValueError: it is no YAML, or not UTF-8
    """
    try:
        return yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: {_one_line(error)}") from None


def read_yaml(name: str) -> dict[str, Any]:
    """Content of a recipe, under the options' present names.

    Args:
        name: a file's path, or the name of a recipe that comes with the package
    """
    path = find_recipe(name)
    content = load_yaml(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a recipe: expected options by name")
    return present(content, str(path))


@cache
def _parser(record: type[DataclassInstance], command: str, takes_recipe: bool = False) -> ArgumentParser:
    """An option per field of the record, with its docstring as help."""
    about = docstring_parser.parse(record.__doc__)
    texts = {
        text.arg_name: text.description for kind in record.__mro__ for text in docstring_parser.parse(kind.__doc__).params
    }
    types, fields = get_type_hints(record), dataclasses.fields(record)
    required = [field.name for field in fields if field.default is field.default_factory is dataclasses.MISSING]
    words = [name if name in POSITIONAL else f"--{name.replace('_', '-')} …" for name in required]
    parser = ArgumentParser(
        prog=f"cls2det {command}",
        usage=" ".join(("cls2det", command, *words, "[options]")),
        description="\n\n".join(filter(None, (about.short_description, about.long_description))),
        formatter_class=_Help,
        exit_on_error=False,
        allow_abbrev=False,
    )
    if takes_recipe:
        parser.add_argument(
            "--config", action="config", metavar="RECIPE", help="a YAML file with these options, or a recipe's name"
        )
    for field in fields:
        item = _item_type(types[field.name])
        settings: dict[str, Any] = {"nargs": "+", "type": item} if item else {"type": types[field.name]}
        if field.default is False:
            settings = {"action": "store_true"}
        elif field.name in required and field.name not in POSITIONAL:
            settings["required"] = True
        elif field.name not in required:
            settings["default"] = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        name = field.name if field.name in POSITIONAL else f"--{field.name}"
        parser.add_argument(name, help=texts[field.name], **settings)
    return parser


def _item_type(kind: Any) -> Any:
    """``int`` for ``list[int]`` and ``list[int] | None``; None for what is no list."""
    return next((get_args(part)[0] for part in (kind, *get_args(kind)) if get_origin(part) is list), None)


def _instance(record: type[Options], parser: ArgumentParser, values: Mapping[str, Any], source: str) -> Options:
    parsed = parser.parse_object(present(values, source))
    _check_values(record, parsed.as_dict(), "")
    settings = parser.instantiate_classes(parsed)
    return record(**{field.name: _at_home(settings[field.name]) for field in dataclasses.fields(record)})


def _at_home(value: Any) -> Any:
    """Paths with ``~`` as the home folder: a shell does not replace it in ``--out=~/x``, and nothing does in a recipe."""
    if isinstance(value, list):
        return [_at_home(item) for item in value]
    return value.expanduser() if isinstance(value, Path) else value


def _check_values(record: type[DataclassInstance], values: Mapping[str, Any], group: str) -> None:
    """What the parser lets pass in a YAML file: no value where one is due, and numbers that are not finite."""
    for name, kind in get_type_hints(record).items():
        if name not in values:
            continue
        value, option = values[name], group + name
        if dataclasses.is_dataclass(kind):
            if not isinstance(value, Mapping):
                raise ValueError(f"{option} is a group of options, found {value!r}; leave it out for the defaults")
            _check_values(kind, value, f"{option}.")  # type: ignore[arg-type] # a class: mypy takes an instance to be possible
        elif value is None and type(None) not in get_args(kind):
            raise ValueError(f"{option} has no value; leave it out for its default")
        for number in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(number, float) and not math.isfinite(number):
                raise ValueError(f"{option} must be a finite number, found {number}")


def _with_recipes_first(words: list[str]) -> list[str]:
    """Recipes before the other options, which win over them; as YAML with present names."""
    recipes, others, remaining = [], [], iter(words)
    for word in remaining:
        if word == "--config":
            word = f"--config={next(remaining, '')}"
        if word.startswith("--config="):
            recipes.append(f"--config={yaml.safe_dump(read_yaml(word.removeprefix('--config=')), allow_unicode=True)}")
        else:
            others.append(word)
    return [*recipes, *others]


def _nearest(error: str, parser: ArgumentParser) -> str:
    """The option that a word that is none was meant to be: ``--epochs`` is ``--optim.epochs``; empty where none is near."""
    word = re.search(r"[Uu]nrecognized arguments: (--[\w.]+)", error)
    if not word:
        return ""
    names = [name for action in parser._actions for name in action.option_strings if name.startswith("--")]
    near = [name for name in names if name.rpartition(".")[2] == word[1].removeprefix("--")]
    near = near or get_close_matches(word[1], names, 1)
    return f"is it {' or '.join(near)}?".replace("_", "-") if near else ""


def _one_line(error: Exception) -> str:
    return re.sub(r"\s*\n\s*", " ", str(error)).strip()


class _Help(DefaultHelpFormatter):
    """A line per option: --data-root PATH, its text, its default. jsonargparse's own repeats Python's names of types."""

    def _get_help_string(self, action: Action) -> str:
        text = action.help or ""
        if action.required:
            return f"{text} (required)" if action.option_strings else text
        if action.default is None or action.default is False or action.default in (SUPPRESS, []) or "(default" in text:
            return text
        return f"{text} (default: {_as_words(action.default)})"

    def _get_default_metavar_for_optional(self, action: Action) -> str:
        kind = self._get_type_str(action) or ""
        return next((metavar for name, metavar in METAVARS.items() if name in kind), "TEXT")

    def _format_action_invocation(self, action: Action) -> str:
        names = super()._format_action_invocation(action)
        return re.sub(r"--[\w.]+", lambda option: option[0].replace("_", "-"), names)


def _as_words(default: Any) -> str:
    """As it would be typed: several words for a list, [a, b] for a tuple."""
    if isinstance(default, list):
        return " ".join(map(str, default))
    if isinstance(default, tuple):
        return f"[{', '.join(map(str, default))}]"
    return str(default).lower() if isinstance(default, bool) else str(default)
