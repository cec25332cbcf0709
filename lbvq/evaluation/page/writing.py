"""One HTML file from the parts in this folder and a document.

Nothing from outside can become markup: the document is JSON in which `<`, `>` and `&` are escaped, scripts put texts in
as text alone, and the page's own rules forbid every script but ours, and every address.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lbvq.files.json_files import to_json
from lbvq.files.writing import write_text

PAGE = "index.html"
_PARTS = Path(__file__).parent
_SCRIPTS = ("elements.js", "charts.js", "filter.js", "drawing.js", "gallery.js", "viewer.js", "sections.js")
_ESCAPES = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"})


def write_page(folder: Path, content: Mapping[str, Any]) -> Path:
    """Write index.html into a folder and return its path.

    Args:
        content: see `page_content`; numbers that are not finite become null.
    """
    style = _part("page.css")
    script = "\n".join(_part(name) for name in _SCRIPTS)
    rules = f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; script-src '{_digest(script)}'"
    page = _part("page.html")
    values = {"RULES": rules, "STYLE": style, "SCRIPT": script, "DATA": to_json(content).translate(_ESCAPES)}
    for name, value in values.items():  # the data come last: nothing in them is taken for a place of the others
        head, tail = page.split(f"@{name}@")
        page = head + value + tail
    write_text(folder / PAGE, page)
    return folder / PAGE


def _part(name: str) -> str:
    return (_PARTS / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
