"""Recipes: YAML files with the options of ``cls2det teacher``, ``train``, ``distill``, ``pretrain`` and ``sweep``.

The first comment line of each says what it is; comments inside say which numbers are the paper's.
"""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent
FOLDERS = (FOLDER, FOLDER.parent / "study" / "recipes")


def find_recipe(name: str | Path) -> Path:
    """Path of a recipe: a file's path, or the name of one that comes with the package."""
    if Path(name).is_file():
        return Path(name)
    for folder in FOLDERS:
        if (shipped := folder / f"{name}.yaml").is_file():
            return shipped
    raise FileNotFoundError(f"no file and no recipe {name}; recipes: {', '.join(_names())}")


def recipes(name: str | None = None) -> None:
    """List the recipes that come with the package, or print one.

    Args:
        name: of a recipe, to print it (`cls2det recipes --name ssd300 > mine.yaml` to change it)
    """
    if name:
        print(find_recipe(name).read_text(), end="")
        return
    for each in _names():
        print(f"{each:34} {find_recipe(each).read_text().splitlines()[0].removeprefix('# ')}")


def _names() -> list[str]:
    return sorted(path.stem for folder in FOLDERS for path in folder.glob("*.yaml"))
