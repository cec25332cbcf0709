"""Pages of the site that are made from sources say what the sources say; `make docs` builds all of them."""

from __future__ import annotations

import ast
import re
import runpy

import pytest
import yaml
from helpers import ROOT

from lbvq.config import get_cfg
from lbvq.config.node import dotted_leaves
from lbvq.zoo import MODELS

HOOK = runpy.run_path(str(ROOT / "docs" / "hook.py"))
TROUBLE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
MESSAGES = re.findall(r"^### `(.+)`$", TROUBLE, re.MULTILINE)
KEYS = {key.name: key for key in HOOK["Schema"]().keys()}


def test_the_page_of_keys_has_every_key_with_its_default():
    want = dotted_leaves(get_cfg())
    assert {name: ast.literal_eval(key.default) for name, key in KEYS.items()} == want
    page = HOOK["configuration_page"]()
    assert all(f"| `{name}` | `" in page for name in want)


def test_what_a_key_is_for_comes_from_its_comment():
    assert KEYS["MODEL.VITA.DEC_LAYERS"].comment == "clip decoder layers"  # of a dictionary that is used twice
    assert KEYS["INPUT.SAMPLING_FRAME_RANGE"].comment.startswith("how far from the reference frame")  # above the key
    assert KEYS["MODEL.BACKBONE.MASKED"].comment.startswith("not read: ")
    assert [name for name, key in KEYS.items() if not key.comment] == []


def test_the_page_of_models_has_every_model():
    page = HOOK["models_page"]()
    assert all(f"| `{name}` | `{model.config}` |" in page for name, model in MODELS.items())


@pytest.mark.parametrize(
    "text, want",
    [
        ("[a](docs/own_data.md)", "[a](own_data.md)"),
        ("[a](INSTALL.md#here)", "[a](install.md#here)"),
        ("![a](demo/synthetic.jpg)", "![a](demo/synthetic.jpg)"),
        ("see [LICENSE](LICENSE)", "see `LICENSE`"),
        ("[a](https://example.org/x)", "[a](https://example.org/x)"),
        ("```\n[a](LICENSE)\n```", "```\n[a](LICENSE)\n```"),
    ],
)
def test_links_lead_to_pages(text, want):
    assert HOOK["linked"](text, "README.md", "index.md") == want


def test_links_of_other_folders_lead_to_pages():
    assert HOOK["linked"]("[a](../docs/own_data.md)", "datasets/README.md", "data_sets.md") == "[a](own_data.md)"
    assert HOOK["linked"]("[a](../datasets/README.md)", "docs/inputs.md", "inputs.md") == "[a](data_sets.md)"


def test_every_page_is_in_the_contents():
    listed = set(re.findall(r": (\w+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE))
    there = {path.name for path in (ROOT / "docs").glob("*.md")} | set(HOOK["PAGES"].values())
    assert listed == there | {"models.md", "configuration.md"}
    assert yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["strict"] is True


def test_the_number_of_recordings_is_that_of_the_files():
    said = re.search(r"holds (\d+) files of arrays", (ROOT / "docs" / "verified.md").read_text(encoding="utf-8"))
    assert said and int(said[1]) == len(list((ROOT / "tests" / "golden").glob("*.npz")))


def texts_of_the_code() -> list[str]:
    """Every text of the packages, with `...` where something is put in."""
    found = []
    for path in [*(ROOT / "lbvq").rglob("*.py"), *(ROOT / "mask2former").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append(
                    "".join(
                        getattr(part, "value", "") if isinstance(part, ast.Constant) else "..." for part in node.values
                    )
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def test_the_sentences_of_troubleshooting_are_those_of_the_code():
    code = texts_of_the_code()
    patterns = {text: re.compile(".*".join(map(re.escape, text.split("...")))) for text in MESSAGES}
    assert len(MESSAGES) > 20
    assert [text for text, pattern in patterns.items() if not any(pattern.match(each) for each in code)] == []
