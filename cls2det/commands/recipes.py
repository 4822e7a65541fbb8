"""``cls2det recipes``: the recipes that come with the package."""

from __future__ import annotations

from cls2det.commands.options import RecipesOptions
from cls2det.recipes import find_recipe, recipe_names


def recipes(options: RecipesOptions = RecipesOptions()) -> None:  # noqa: B008 (frozen)
    """List them, or print one."""
    if options.name:
        print(find_recipe(options.name).read_text(encoding="utf-8"), end="")
        return
    for name in recipe_names():
        print(f"{name:34} {find_recipe(name).read_text(encoding='utf-8').splitlines()[0].removeprefix('# ')}")
