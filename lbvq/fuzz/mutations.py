"""Damage files: bytes anywhere, JSON documents at a node, text at a word."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from random import Random
from typing import Any

MAX_BYTES = 1 << 20  # of an input; damage that repeats parts stops there
_EDGE = 512  # headers and indices stand within so many bytes of the ends of a file
_SIZES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 10_000, 1 << 20)
_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, -5, 1.5, -0.0, 1e308, float("nan"), float("inf")),
    *(2**31, 2**53 + 1, 2**63, -(2**63), 10**400, "", "x", "7", "\ud800", "\0", "../../x", "/etc/hostname"),
    *([], [[]], [None], {}, {"size": [1, 1], "counts": "1"}, {"": {}}, "a" * 5000, [0] * 2000),
)
_WORDS = (
    *(
        "null",
        "true",
        "~",
        "-1",
        "0",
        "1e999",
        ".nan",
        ".inf",
        "9" * 400,
        "''",
        "[]",
        "{}",
        "[1, 2",
        "{a: 1",
        "&a",
        "*a",
    ),
    *(
        "!!bool x",
        "!!python/object:os.system x",
        "!!binary x",
        "2001-99-99",
        "0x",
        "<<: *a",
        "? [a]",
        "---",
        "...",
        "%YAML",
    ),
    *("\t", "\0", "é", "\ud83d", "- " * 300, "[" * 300, "../../x", "_BASE_: x.yaml"),
)


def mutate_bytes(data: bytes, rng: Random) -> bytes:
    """Apply 1 to 4 edits to bytes."""
    edited = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        rng.choice(_BYTE_EDITS)(edited, rng)
    return bytes(edited[:MAX_BYTES])


def mutate_json(data: bytes, rng: Random) -> bytes:
    """Change nodes of a JSON document, or its bytes."""
    if rng.random() < 0.25:
        return mutate_bytes(data, rng)
    document = json.loads(data)
    for _ in range(rng.choice((1, 1, 1, 3))):
        document = _edit_node(document, rng)
    return json.dumps(document).encode()[:MAX_BYTES]


def mutate_text(data: bytes, rng: Random) -> bytes:
    """Change words and lines of a text, or its bytes."""
    if rng.random() < 0.25:
        return mutate_bytes(data, rng)
    lines = data.decode("utf-8", "replace").split("\n")
    for _ in range(rng.choice((1, 1, 2, 4))):
        _edit_lines(lines, rng)
    return "\n".join(lines).encode("utf-8", "surrogatepass")[:MAX_BYTES]


def _position(data: bytearray, rng: Random) -> int:
    """A place in the data, half of the time near one of its ends."""
    if rng.random() < 0.5 and len(data) > _EDGE:
        offset = rng.randrange(_EDGE)
        return offset if rng.random() < 0.7 else len(data) - 1 - offset
    return rng.randrange(len(data) + 1)


def _flip_bit(data: bytearray, rng: Random) -> None:
    if data:
        data[min(_position(data, rng), len(data) - 1)] ^= 1 << rng.randrange(8)


def _set_byte(data: bytearray, rng: Random) -> None:
    if data:
        data[min(_position(data, rng), len(data) - 1)] = rng.randrange(256)


def _set_integer(data: bytearray, rng: Random) -> None:
    at, width = _position(data, rng), rng.choice((2, 4, 4, 8))
    value = rng.choice(_SIZES) % (1 << (8 * width))
    data[at : at + width] = value.to_bytes(width, rng.choice(("big", "little")))


def _cut_out(data: bytearray, rng: Random) -> None:
    at = _position(data, rng)
    del data[at : at + rng.choice((1, 4, 64, 1024))]


def _cut_off(data: bytearray, rng: Random) -> None:
    del data[_position(data, rng) :]


def _repeat(data: bytearray, rng: Random) -> None:
    at = _position(data, rng)
    part = data[at : at + rng.choice((1, 4, 64, 1024))]
    data[at:at] = part * rng.choice((1, 2, 50))


def _insert(data: bytearray, rng: Random) -> None:
    at = _position(data, rng)
    data[at:at] = rng.randbytes(rng.choice((1, 4, 64)))


def _move(data: bytearray, rng: Random) -> None:
    at, size = _position(data, rng), rng.choice((4, 16, 256))
    part = bytes(data[at : at + size])
    target = _position(data, rng)
    data[target : target + len(part)] = part


_BYTE_EDITS: tuple[Callable[[bytearray, Random], None], ...] = (
    *(_flip_bit, _flip_bit, _set_byte, _set_integer, _set_integer),
    *(_cut_out, _cut_off, _repeat, _insert, _move),
)


def _edit_node(document: Any, rng: Random) -> Any:
    """The document with one node replaced, removed, repeated or exchanged for another one."""
    places = list(_places(document))
    if not places or rng.random() < 0.02:
        return copy.deepcopy(rng.choice(_VALUES))
    parent, key = rng.choice(places)
    kind = rng.choice(("value", "value", "value", "remove", "repeat", "exchange", "rename"))
    if kind == "value":
        parent[key] = copy.deepcopy(rng.choice(_VALUES))  # later edits must not reach the list itself
    elif kind == "remove":
        del parent[key]
    elif kind == "repeat" and isinstance(parent, list):
        parent.insert(key, parent[key])
    elif kind == "rename" and isinstance(parent, dict):
        parent[rng.choice(("", "id", "size", "counts", "x"))] = parent.pop(key)
    else:
        other, other_key = rng.choice(places)
        parent[key] = json.loads(json.dumps(other[other_key]))  # a copy: a node must not hold itself
    return document


def _places(node: Any) -> list[tuple[Any, Any]]:
    """(parent, key) of every node below `node`."""
    keys = range(len(node)) if isinstance(node, list) else list(node) if isinstance(node, dict) else ()
    return [place for key in keys for place in ((node, key), *_places(node[key]))]


def _edit_lines(lines: list[str], rng: Random) -> None:
    at = rng.randrange(len(lines))
    kind = rng.choice(("word", "word", "word", "remove", "repeat", "exchange", "indent", "insert"))
    if kind == "word":
        words = re.split(r"(\s+|[:,\[\]{}])", lines[at])
        words[rng.randrange(len(words))] = rng.choice(_WORDS)
        lines[at] = "".join(words)
    elif kind == "remove" and len(lines) > 1:
        del lines[at]
    elif kind == "repeat":
        lines[at:at] = [lines[at]] * rng.choice((1, 2, 30))
    elif kind == "indent":
        lines[at] = " " * rng.randrange(9) + lines[at].lstrip()
    elif kind == "insert":
        lines.insert(at, rng.choice(_WORDS))
    else:
        other = rng.randrange(len(lines))
        lines[at], lines[other] = lines[other], lines[at]
