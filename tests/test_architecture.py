"""The project keeps its house rules, and the rules notice what breaks them.

The rules themselves, with the tables of who may import whom, are in `architecture_rules.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import architecture_rules as rules
import pytest
from helpers import ROOT, project

# ---- the project keeps them


def assert_none(violations: list[str]) -> None:
    assert not violations, "\n" + "\n".join(violations)


def test_imports_point_downward_only():
    assert_none(rules.wrong_directions(ROOT))


def test_no_files_import_each_other_in_a_circle():
    assert_none(rules.import_circles(ROOT))


def test_the_root_of_the_package_holds_at_most_six_modules():
    assert_none(rules.crowded_root(ROOT))


def test_nothing_imports_a_script():
    assert_none(rules.imported_scripts(ROOT))


def test_methods_use_shared_modules_and_declared_parents_only():
    assert_none(rules.entangled_methods(ROOT))


def test_nothing_decides_by_the_name_of_a_method_or_data_set():
    assert_none(rules.dispatch_on_names(ROOT))


def test_only_the_plugin_imports_detectron2():
    assert_none(rules.detectron2_imports(ROOT))


def test_extras_are_imported_where_they_are_used():
    assert_none(rules.optional_imports_at_module_level(ROOT))


def test_every_extra_is_known_to_the_rule_about_extras():
    extras = project()["optional-dependencies"]
    names = {line.split(">")[0].split("=")[0].split("[")[0].strip() for group in extras.values() for line in group}
    assert_none(
        [f"add {name} to OPTIONAL in tests/architecture_rules.py" for name in sorted(names - set(rules.OPTIONAL))]
    )


def test_of_fvcore_only_the_clean_parts_are_imported():
    assert_none(rules.unclean_fvcore_imports(ROOT))


def test_no_file_is_longer_than_450_lines():
    assert_none(rules.long_files(ROOT))


def test_no_function_is_longer_than_70_lines():
    assert_none(rules.long_functions(ROOT))


def test_nothing_calls_cuda():
    assert_none(rules.cuda_calls(ROOT))


def test_nothing_imports_a_star():
    assert_none(rules.star_imports(ROOT))


def test_no_except_is_bare():
    assert_none(rules.bare_excepts(ROOT))


def test_no_filter_ignores_every_warning():
    assert_none(rules.blanket_warning_filters(ROOT))


def test_no_class_exists_twice():
    assert_none(rules.repeated_classes(ROOT))


def test_the_rules_read_the_whole_project():
    modules = {rules.module_name(ROOT, path) for path, _ in rules.sources(ROOT)}
    assert {"mask2former.structures", "lbvq.engine.comm", "tools.benchmark", "tests.test_architecture"} <= modules


# ---- the rules notice what breaks them

REGISTERED = "@META_ARCH_REGISTRY.register()\nclass Method:\n    pass\n"
TWIN = 'class {name}:\n    """{text}"""\n\n    def clone(self):\n        return {name}(self.size + 1)\n'

BROKEN: list[tuple[Callable[[Path], list[str]], dict[str, str], str]] = [
    (rules.wrong_directions, {"mask2former/structures.py": "import lbvq"}, "structures.py:1 imports lbvq;"),
    (
        rules.wrong_directions,
        {"mask2former/layers.py": "from .modeling import swin"},
        "imports mask2former.modeling.swin",
    ),
    (
        rules.wrong_directions,
        {"mask2former/modeling/head.py": "from ..config import x"},
        "imports mask2former.config.x",
    ),
    (rules.wrong_directions, {"mask2former/config.py": "from .modeling import x"}, "imports mask2former.modeling.x"),
    (
        rules.wrong_directions,
        {"lbvq/engine/hooks.py": "\nfrom ..data import catalog"},
        "hooks.py:2 imports lbvq.data.catalog",
    ),
    (
        rules.wrong_directions,
        {"lbvq/engine/hooks.py": "import mask2former.structures"},
        "imports mask2former.structures",
    ),
    (
        rules.wrong_directions,
        {"lbvq/data/x.py": "def f():\n    import lbvq.engine.hooks"},
        "x.py:2 imports lbvq.engine.hooks",
    ),
    (rules.wrong_directions, {"lbvq/data/x.py": "from lbvq.engine import trainer"}, "imports lbvq.engine.trainer"),
    (rules.wrong_directions, {"lbvq/modeling/x.py": "from lbvq import data"}, "imports lbvq.data"),
    (rules.wrong_directions, {"lbvq/modeling/vmt/x.py": "from ...evaluation import y"}, "imports lbvq.evaluation.y"),
    (
        rules.wrong_directions,
        {"lbvq/evaluation/x.py": "from lbvq.data.builtin import y"},
        "imports lbvq.data.builtin.y",
    ),
    (rules.wrong_directions, {"lbvq/masks/tubes.py": "from lbvq.video.draw import y"}, "imports lbvq.video.draw.y"),
    (rules.wrong_directions, {"lbvq/video/draw.py": "from lbvq.inference import y"}, "imports lbvq.inference.y"),
    (
        rules.wrong_directions,
        {"lbvq/inference/results.py": "from lbvq.inference.stream import y"},
        "imports lbvq.inference.stream.y",
    ),
    (rules.wrong_directions, {"lbvq/inference/stream.py": "from lbvq.cli import y"}, "imports lbvq.cli.y"),
    (
        rules.import_circles,
        {
            "lbvq/a.py": "from lbvq.b import x",
            "lbvq/b.py": "def f():\n    from . import c",
            "lbvq/c.py": "import lbvq.a",
        },
        "lbvq.a -> lbvq.b -> lbvq.c -> lbvq.a;",
    ),
    (rules.crowded_root, {f"lbvq/m{n}.py": "" for n in range(7)}, "lbvq/ holds 7 modules, at most 6"),
    (rules.wrong_directions, {"lbvq/modeling/x.py": "from lbvq import *"}, "imports lbvq.*"),
    (rules.imported_scripts, {"lbvq/api.py": "from tools.convert import f"}, "imports the script tools.convert.f"),
    (rules.imported_scripts, {"train_net.py": "", "lbvq/api.py": "import train_net"}, "imports the script train_net"),
    (
        rules.imported_scripts,
        {"demo/stream.py": "", "demo/demo.py": "from stream import f"},
        "imports the script stream.f",
    ),
    (rules.imported_scripts, {"lbvq/api.py": "from tests import helpers"}, "imports the script tests.helpers"),
    (
        rules.entangled_methods,
        {"lbvq/modeling/vita.py": REGISTERED, "lbvq/modeling/lbvq.py": f"from .vita import x\n{REGISTERED}"},
        "lbvq.py:1: the method lbvq imports the method vita",
    ),
    (
        rules.entangled_methods,
        {"lbvq/modeling/vita.py": REGISTERED, "lbvq/modeling/base.py": "from lbvq.modeling.vita import x"},
        "base.py:1: a shared module imports the method vita",
    ),
    (
        rules.entangled_methods,
        {"lbvq/modeling/vmt/model.py": REGISTERED, "lbvq/modeling/vita.py": f"from .vmt.heads import x\n{REGISTERED}"},
        "the method vita imports the method vmt",
    ),
    (
        rules.entangled_methods,
        {"lbvq/modeling/online/a.py": REGISTERED, "lbvq/modeling/online/b.py": f"from .a import x\n{REGISTERED}"},
        "the method online.b imports the method online.a",
    ),
    (
        rules.entangled_methods,
        {"lbvq/modeling/genvis.py": REGISTERED, "lbvq/modeling/vita.py": f"from . import genvis\n{REGISTERED}"},
        "the method vita imports the method genvis",
    ),
    (rules.dispatch_on_names, {"lbvq/x.py": "if cfg.MODEL.META_ARCHITECTURE in MODELS:\n    pass"}, "reads META_ARCH"),
    (rules.dispatch_on_names, {"lbvq/x.py": "a = metric == 'ovis'"}, "x.py:1 decides by the name 'ovis'"),
    (rules.dispatch_on_names, {"train_net.py": "a = name in (other, 'coco_2017_val')"}, "the name 'coco_2017_val'"),
    (rules.dispatch_on_names, {"tools/x.py": "a = name.startswith('ytvis_2022')"}, "the name 'ytvis_2022'"),
    (rules.dispatch_on_names, {"lbvq/x.py": "match kind:\n    case 'hq_ytvis':\n        pass"}, "the name 'hq_ytvis'"),
    (
        rules.dispatch_on_names,
        {"lbvq/modeling/a.py": REGISTERED, "lbvq/x.py": "a = type(model).__name__ == 'Method'"},
        "x.py:1 decides by the name 'Method'",
    ),
    (
        rules.dispatch_on_names,
        {"lbvq/modeling/a.py": REGISTERED.replace("()", "('other')"), "lbvq/x.py": "a = 'other' != name"},
        "x.py:1 decides by the name 'other'",
    ),
    (rules.detectron2_imports, {"tools/x.py": "def f():\n    from detectron2 import y"}, "x.py:2 imports detectron2.y"),
    (rules.optional_imports_at_module_level, {"lbvq/refine/sam.py": "import segment_anything"}, "sam.py:1"),
    (
        rules.optional_imports_at_module_level,
        {"lbvq/x.py": "try:\n    import timm\nexcept ImportError:\n    timm = 0"},
        "x.py:2",
    ),
    (
        rules.optional_imports_at_module_level,
        {"lbvq/x.py": "class A:\n    from torch.utils import tensorboard"},
        "x.py:2",
    ),
    (rules.unclean_fvcore_imports, {"lbvq/x.py": "from fvcore.nn import weight_init"}, "imports fvcore.nn.weight_init"),
    (rules.unclean_fvcore_imports, {"lbvq/x.py": "from fvcore.common.checkpoint import y"}, "fvcore.common.checkpoint"),
    (rules.long_files, {"lbvq/x.py": "x = 1\n" * 451}, "lbvq/x.py has 451 lines"),
    (
        rules.long_functions,
        {"tests/x.py": "class A:\n    def f(self):\n" + "        x = 1\n" * 70},
        "x.py:2 f has 71 lines",
    ),
    (rules.long_functions, {"lbvq/x.py": "async def f():\n" + "    x = 1\n" * 70}, "f has 71 lines"),
    (rules.cuda_calls, {"demo/demo.py": "model.to(x).cuda()"}, "demo.py:1 calls .cuda()"),
    (rules.star_imports, {"lbvq/x.py": "from os.path import *"}, "imports os.path.*"),
    (rules.bare_excepts, {"lbvq/x.py": "try:\n    f()\nexcept:\n    pass"}, "x.py:3 has a bare except"),
    (rules.blanket_warning_filters, {"lbvq/x.py": "warnings.filterwarnings('ignore')"}, "x.py:1"),
    (rules.blanket_warning_filters, {"lbvq/x.py": "simplefilter(action='ignore')"}, "x.py:1"),
    (rules.blanket_warning_filters, {"lbvq/x.py": "warnings.filterwarnings('ignore', '', Warning)"}, "x.py:1"),
    (
        rules.blanket_warning_filters,
        {"lbvq/x.py": "with warnings.catch_warnings(action='ignore'):\n    pass"},
        "x.py:1",
    ),
    (
        rules.repeated_classes,
        {"lbvq/a.py": TWIN.format(name="A", text="One."), "mask2former/b.py": TWIN.format(name="B", text="Two.")},
        "b.py:1 B = lbvq/a.py:1 A; keep one",
    ),
]

KEPT: list[tuple[Callable[[Path], list[str]], dict[str, str]]] = [
    (
        rules.wrong_directions,
        {"mask2former/__init__.py": "from .modeling import x", "lbvq/__init__.py": "import lbvq.api"},
    ),
    (
        rules.wrong_directions,
        {"mask2former/modeling/x.py": "from ..layers import y\nfrom . import z", "mask2former/layers.py": ""},
    ),
    (rules.wrong_directions, {"mask2former/registry.py": "from .structures import x", "mask2former/structures.py": ""}),
    (
        rules.wrong_directions,
        {"lbvq/engine/x.py": "import torch\nfrom . import comm\nfrom lbvq.masks import rle\nfrom ..masks import tubes"},
    ),
    (rules.wrong_directions, {"lbvq/data/x.py": "from mask2former.structures import y\nfrom lbvq.engine import comm"}),
    (rules.wrong_directions, {"lbvq/modeling/x.py": "import mask2former\nfrom lbvq.masks.tubes import y"}),
    (rules.wrong_directions, {"lbvq/cli/x.py": "from lbvq.engine import x\nfrom lbvq.inference import y"}),
    (
        rules.import_circles,
        {
            "lbvq/__init__.py": "",
            "lbvq/a.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from lbvq.b import x",
            "lbvq/b.py": "from lbvq import a",
        },
    ),
    (rules.crowded_root, {f"lbvq/m{n}.py": "" for n in range(6)}),
    (rules.imported_scripts, {"tools/demo.py": "from lbvq import demo\nfrom lbvq.tools import x"}),
    (
        rules.entangled_methods,
        {
            "lbvq/modeling/__init__.py": "from . import genvis, vita",
            "lbvq/modeling/base.py": "",
            "lbvq/modeling/vita.py": f"from .base import x\nfrom .vita_parts import y\n{REGISTERED}",
            "lbvq/modeling/vita_parts.py": "from .base import x",
            "lbvq/modeling/genvis.py": f"from .vita import x\n{REGISTERED}",
        },
    ),
    (
        rules.dispatch_on_names,
        {
            "lbvq/data/builtin.py": "a = table == 'ovis'",
            "mask2former/registry.py": "a = cfg.MODEL.META_ARCHITECTURE",
            "lbvq/x.py": "cfg.MODEL.META_ARCHITECTURE = 'Lbvq'\na = TABLE['ovis']\nb = text in ('overlap', 'lvisit')",
        },
    ),
    (rules.detectron2_imports, {"lbvq/detectron2_plugin.py": "import detectron2"}),
    (
        rules.optional_imports_at_module_level,
        {"lbvq/x.py": "def f():\n    import timm\n    from torch.utils import tensorboard"},
    ),
    (rules.optional_imports_at_module_level, {"lbvq/x.py": "if TYPE_CHECKING:\n    import timm\nimport timmy"}),
    (
        rules.unclean_fvcore_imports,
        {"lbvq/x.py": "from fvcore.common.config import CfgNode\nimport fvcore.common.timer"},
    ),
    (rules.long_files, {"lbvq/x.py": "x = 1\n" * 450}),
    (rules.long_functions, {"lbvq/x.py": "@cached\ndef f():\n" + "    x = 1\n" * 69}),
    (rules.cuda_calls, {"lbvq/x.py": "# x.cuda()\ntorch.cuda.is_available()"}),
    (rules.star_imports, {"lbvq/x.py": "from os import path"}),
    (rules.bare_excepts, {"lbvq/x.py": "try:\n    f()\nexcept ValueError:\n    pass"}),
    (
        rules.blanket_warning_filters,
        {"lbvq/x.py": "filterwarnings('ignore', message='x')\nsimplefilter('ignore', FutureWarning)"},
    ),
    (
        rules.blanket_warning_filters,
        {"lbvq/x.py": "warnings.simplefilter('error')\nwarnings.filterwarnings('ignore', 'x')"},
    ),
    (rules.repeated_classes, {"lbvq/x.py": "class A(ValueError):\n    'One.'\nclass B(ValueError):\n    'Two.'"}),
    (rules.repeated_classes, {"lbvq/x.py": "class A:\n    x = 1\nclass B:\n    x = 2"}),
]


def write_tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def names(cases: list[tuple]) -> list[str]:
    return [case[0].__name__ for case in cases]


@pytest.mark.parametrize("rule, files, message", BROKEN, ids=names(BROKEN))
def test_a_rule_notices_what_breaks_it(tmp_path, rule, files, message):
    violations = rule(write_tree(tmp_path, files))
    assert len(violations) == 1
    assert message in violations[0]


@pytest.mark.parametrize("rule, files", KEPT, ids=names(KEPT))
def test_a_rule_leaves_alone_what_keeps_it(tmp_path, rule, files):
    assert rule(write_tree(tmp_path, files)) == []


def test_every_rule_is_tried_both_ways_and_applied_to_the_project():
    own = [each for each in vars(rules).values() if getattr(each, "__module__", "") == rules.__name__]
    returning_violations = {each for each in own if each.__annotations__.get("return") == "list[str]"} - {
        rules._building_blocks
    }
    assert returning_violations == {case[0] for case in BROKEN} == {case[0] for case in KEPT}
    text = Path(__file__).read_text()
    assert all(f"assert_none(rules.{rule.__name__}(ROOT))" in text for rule in returning_violations)


def test_an_empty_tree_breaks_no_rule(tmp_path):
    assert all(rule(tmp_path) == [] for rule in {case[0] for case in BROKEN})
