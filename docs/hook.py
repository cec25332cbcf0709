"""What MkDocs does besides rendering: pages that are made from the repository, and links that lead there.

README, INSTALL and the like become pages as they are. The table of models is made from `lbvq/zoo.py`, the page of
configuration keys from the sources of the schema. Nothing of the network is imported, so PyTorch is not needed.
"""

from __future__ import annotations

import ast
import posixpath
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGES = {  # file of the repository: page of the site
    "README.md": "index.md",
    "INSTALL.md": "install.md",
    "datasets/README.md": "data_sets.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changes.md",
    "SECURITY.md": "security.md",
}
SCHEMA = (  # the first one to name a key gives its default
    *("lbvq/config/defaults.py", "mask2former/config.py", "lbvq/config/methods.py", "lbvq/config/tracking.py"),
    "lbvq/config/node.py",
)
UNUSED = "lbvq/config/unused.py"  # keys that are there so that published files load, with reasons
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s]+)(#[^)]*)?\)")
_FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)


# ---- pages


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are made, and the pictures of the README."""
    from mkdocs.structure.files import File

    made = {page: (ROOT / source).read_text(encoding="utf-8") for source, page in PAGES.items()}
    made |= {"models.md": models_page(), "configuration.md": configuration_page()}
    for name, text in made.items():
        files.append(File.generated(config, name, content=text))
    for picture in sorted((ROOT / "demo").glob("*.jpg")):
        files.append(File.generated(config, f"demo/{picture.name}", abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Let the links of a page lead to pages; where the site has none, only their words stay."""
    sources = {page_name: source for source, page_name in PAGES.items()}
    name = page.file.src_uri
    return linked(markdown, sources.get(name, f"docs/{name}"), name)


def linked(markdown: str, source: str, page: str) -> str:
    """Text of a file of the repository with its links as they are on the site."""

    def replace(found: re.Match[str]) -> str:
        picture, words, target, anchor = found.groups()
        if "://" in target:
            return found[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        there = PAGES.get(path) or path.removeprefix("docs/")
        if path in PAGES or path.startswith("docs/") or picture:
            return f"{picture}[{words}]({posixpath.relpath(there, posixpath.dirname(page) or '.')}{anchor or ''})"
        return f"{words} (`{path}`)" if words != path and (ROOT / path).exists() else f"`{path}`"

    parts = _FENCE.split(markdown)
    return "".join(part if part.startswith("```") else _LINK.sub(replace, part) for part in parts)


# ---- models


def models_page() -> str:
    """Every published model with its scores, and every weight file with its size, licence and address."""
    sys.path.insert(0, str(ROOT))
    from lbvq.engine.known_weights import ADDRESSES
    from lbvq.zoo import MODELS

    lines = [
        *("# Models", "", "Made from `lbvq/zoo.py`. Scores are **as published by the authors of each method**, on the"),
        "validation set unless the metric says otherwise; they were not measured here. Sizes are computed from the",
        "number of parameters. An empty licence means that it is not stated here: see where the file comes from.",
        *("", "| model | configuration | data set | published scores | MB | weights | licence |"),
        "|---|---|---|---|--:|---|---|",
    ]
    for model in MODELS.values():
        scores = ", ".join(f"{metric} {value:g}" for metric, value in model.scores.items())
        address = ADDRESSES.get(model.weights)
        where = f"[{model.weights}]({address})" if address else f"`{model.weights}`. {model.source}"
        cells = (
            f"`{model.name}`",
            f"`{model.config}`",
            model.dataset,
            scores,
            model.size_mb or "",
            where,
            model.licence,
        )
        lines.append("| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


# ---- configuration


@dataclass(frozen=True)
class Key:
    """One key of the configuration: its dotted name, its default as Python, and what its comment says."""

    name: str
    default: str
    comment: str


class Schema:
    """Reads keys from dictionaries in Python sources, without running them."""

    def __init__(self, files: tuple[str, ...] = SCHEMA) -> None:
        self._values: dict[str, tuple[ast.expr, list[str]]] = {}  # name of a module: what it is, lines of its file
        self._roots: list[tuple[ast.expr, list[str]]] = []
        for file in files:
            text = (ROOT / file).read_text(encoding="utf-8")
            self._read(ast.parse(text), text.splitlines())

    def _read(self, tree: ast.Module, lines: list[str]) -> None:
        for node in tree.body:
            target = node.target if isinstance(node, ast.AnnAssign) else getattr(node, "targets", [None])[0]
            if isinstance(target, ast.Name) and getattr(node, "value", None) is not None:
                self._values.setdefault(target.id, (node.value, lines))  # type: ignore[attr-defined]
        if "DEFAULTS" in self._values and not self._roots:
            self._roots.append(self._values["DEFAULTS"])
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "add_missing" and "cfg" in ast.unparse(node):
                self._roots.append((node.args[1], lines))

    def keys(self) -> list[Key]:
        """Every key once, sorted by name; of one that nothing reads it says why."""
        found: dict[str, Key] = {}
        for node, lines in self._roots:
            of_root = {key.name: key for key in self._walk(node, lines, "")}  # the last one of a dictionary counts
            found = of_root | found  # and the first dictionary
        for name, (reason, _) in unused_keys().items():
            found[name] = Key(name, found[name].default, f"not read: {reason}")
        return [found[name] for name in sorted(found)]

    def _walk(self, node: ast.expr, lines: list[str], prefix: str) -> Iterator[Key]:
        node, lines = self._resolved(node, lines)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "dict.fromkeys":
            names, value = node.args
            yield from (Key(prefix + name, ast.unparse(value), "") for name in ast.literal_eval(names))
        if not isinstance(node, ast.Dict):
            return  # a comprehension repeats keys of the engine
        for key, value in zip(node.keys, node.values, strict=True):
            if key is None:
                yield from self._walk(value, lines, prefix)
                continue
            name = prefix + ast.literal_eval(key)
            inner, inner_lines = self._resolved(value, lines)
            if isinstance(inner, ast.Dict | ast.DictComp):
                yield from self._walk(inner, inner_lines, f"{name}.")
            else:
                yield Key(name, ast.unparse(inner), comment_at(lines, key.lineno))

    def _resolved(self, node: ast.expr, lines: list[str]) -> tuple[ast.expr, list[str]]:
        """What a name or an entry of a dictionary stands for."""
        if isinstance(node, ast.Name) and node.id in self._values:
            return self._values[node.id]
        if isinstance(node, ast.Subscript):
            holder, lines = self._resolved(node.value, lines)
            if isinstance(holder, ast.Dict):
                entries = {
                    ast.literal_eval(key): value for key, value in zip(holder.keys, holder.values, strict=True) if key
                }
                return self._resolved(entries[ast.literal_eval(node.slice)], lines)
        return node, lines


def unused_keys() -> dict[str, tuple[str, tuple]]:
    """Keys that nothing reads, with reasons: what the module says, run without its imports."""
    tree = ast.parse((ROOT / UNUSED).read_text(encoding="utf-8"))
    tree.body = [node for node in tree.body if not isinstance(node, ast.Import | ast.ImportFrom)]
    names: dict[str, Any] = {}
    flags = annotations.compiler_flag  # types stay text
    exec(compile(tree, UNUSED, "exec", flags), names)
    return names["UNUSED_KEYS"]


def comment_at(lines: list[str], number: int) -> str:
    """The comment of line `number`, counted from 1: behind the key, or in the lines just above it."""
    _, mark, text = lines[number - 1].partition("  # ")
    if mark:
        return text
    above = []
    while number >= 2 and lines[number - 2].lstrip().startswith("# "):
        above.insert(0, lines[number - 2].lstrip()[2:])
        number -= 1
    return " ".join(above)


def configuration_page() -> str:
    """Every key with its default and its comment, a table for each group."""
    text = ["# Configuration", "", "Every key with its default, made from `lbvq/config` and `mask2former/config.py`."]
    text += ["Keys with (ours) have no published counterpart. Any key can be set at the end of a command:"]
    text += ["`SOLVER.MAX_ITER 1000` or `SOLVER.MAX_ITER=1000`.", ""]
    keys = Schema().keys()
    for group in sorted({group_of(key.name) for key in keys}):
        text += ["", f"## {group or 'On the top level'}", "", "| key | default | |", "|---|---|---|"]
        for key in (key for key in keys if group_of(key.name) == group):
            default, comment = (part.replace("|", "\\|") for part in (key.default, key.comment))
            text.append(f"| `{key.name}` | `{default}` | {comment.replace('<', '&lt;')} |")
    return "\n".join(text) + "\n"


def group_of(name: str) -> str:
    """The table that a key stands in: its first group, or the first two of MODEL; "" on the top level."""
    parts = name.split(".")[:-1]
    return ".".join(parts[: 2 if parts[:1] == ["MODEL"] else 1])
