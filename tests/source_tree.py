"""The Python sources of the project, parsed: what the rules of the house read."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGES = ("mask2former", "lbvq")
SCRIPT_FOLDERS = ("demo", "tools", "datasets")


def sources(root: Path, with_tests: bool = True) -> Iterator[tuple[Path, ast.Module]]:
    """Yield every Python file of the project, parsed."""
    folders = [*PACKAGES, *SCRIPT_FOLDERS, *(["tests"] if with_tests else [])]
    paths = [path for folder in folders for path in sorted((root / folder).rglob("*.py"))]
    for path in [*sorted(root.glob("*.py")), *paths]:
        yield path, ast.parse(path.read_text(encoding="utf-8"), str(path))


def module_name(root: Path, path: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(root: Path, path: Path, tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield (line, absolute name) of everything a file imports, wherever in the file."""
    package = path.relative_to(root).parts[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            for alias in node.names:
                yield node.lineno, ".".join([*base, *filter(None, [node.module]), alias.name])


def is_inside(name: str, parts: tuple[str, ...] | set[str]) -> bool:
    return any(name == part or name.startswith(f"{part}.") for part in parts)


def place(root: Path, path: Path, line: int) -> str:
    return f"{path.relative_to(root)}:{line}"
