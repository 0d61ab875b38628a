"""The recipes that come with the program, known by their names."""

import re
from difflib import get_close_matches
from pathlib import Path

RECIPES = Path(__file__).parent.parent / "recipes"
_SUFFIX = ".yaml"
# Settings that recipes build on; no runs themselves.
_BASES = "base"
_EDITOR_LINE = "# yaml-language-server:"
_SCHEMA = re.compile(rf"^({_EDITOR_LINE} \$schema=)(\S+)$", re.MULTILINE)
_BASE_LINE = re.compile(r"^base: *(\S+) *$", re.MULTILINE)


def recipe_names() -> list[str]:
    """Return the names of all recipes, such as `demo` and `cluster/pythia_2.8b_8_nodes`."""
    names = [name_of(file) for file in sorted(RECIPES.rglob(f"*{_SUFFIX}"))]
    return [name for name in names if not name.startswith(f"{_BASES}/")]


def name_of(file: Path) -> str:
    """Return the name of the file of a recipe."""
    return file.relative_to(RECIPES).as_posix().removesuffix(_SUFFIX)


def find_recipe(name: str) -> Path | None:
    """Return the file of a recipe by its name, with or without `.yaml`; None if there is none."""
    if Path(name).is_absolute() or ".." in Path(name).parts:
        return None
    file = RECIPES / f"{name.removesuffix(_SUFFIX)}{_SUFFIX}"
    return file if file.is_file() else None


def nearest_recipe(name: str) -> str | None:
    """Return the name of the recipe that is most similar to a name; None if none is."""
    close = get_close_matches(name.removesuffix(_SUFFIX), recipe_names(), n=1)
    return close[0] if close else None


def description_of(file: Path) -> str:
    """Return the first sentence of the comment that a recipe begins with."""
    lines = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        # What an editor reads is no description.
        if not line.startswith(_EDITOR_LINE):
            lines.append(line.lstrip("# "))
    return re.split(r"(?<=[.:;]) ", " ".join(lines))[0].rstrip(".:;")


def portable_text(file: Path) -> str:
    """Return a recipe as text that means the same in any folder: base by name, schema for editors in full."""

    def named(match: re.Match[str]) -> str:
        return f"base: {name_of((file.parent / match[1]).resolve())}"

    def in_full(match: re.Match[str]) -> str:
        return f"{match[1]}{(file.parent / match[2]).resolve()}"

    return _SCHEMA.sub(in_full, _BASE_LINE.sub(named, file.read_text(encoding="utf-8")))
