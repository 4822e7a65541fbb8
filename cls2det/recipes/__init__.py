"""Recipes: YAML files with the options of ``cls2det teacher``, ``train``, ``distill``, ``pretrain`` and ``sweep``.

The first comment line of each says what it is; comments inside say which numbers are the paper's.
"""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).parents[1]
FILES = ("recipes/*.yaml", "study/recipes/*.yaml")  # in the package


def shipped_recipes() -> dict[str, Path]:
    """The recipes that come with the package, by name."""
    return {path.stem: path for pattern in FILES for path in PACKAGE.glob(pattern)}


def recipe_names() -> list[str]:
    return sorted(shipped_recipes())


def find_recipe(name: str | Path) -> Path:
    """Path of a recipe: a file's path, or the name of one that comes with the package."""
    if Path(name).is_file():
        return Path(name)
    if path := shipped_recipes().get(str(name)):
        return path
    raise FileNotFoundError(f"no file and no recipe {name}; recipes: {', '.join(recipe_names())}")
