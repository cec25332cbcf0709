"""Damaged label files: every refusal is a ValueError or OSError that names the file, and nothing else happens."""

from __future__ import annotations

import json
import random
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from label_cases import PEERS, burst, read, ytvis

from lbvq.data.formats import FORMATS, ReadOptions, WriteOptions, read_labels
from lbvq.data.formats.source import open_source

ODD: list[Any] = [None, True, -1, 0, 1e9, 10**400, "", "x", "\ud800", [], {}, [[]], {"size": [2, 3], "counts": "6"}]


def documents() -> dict[str, Any]:
    """A small valid document of every format in JSON."""
    found = {"burst": burst(), "ytvis": ytvis(), "lvvis": ytvis()}
    found["lvvis"]["categories"][0]["partition"] = 1
    found["label_studio"] = json.loads((PEERS / "label_studio.json").read_text())
    found["scalabel"] = json.loads((PEERS / "scalabel.json").read_text())
    labels = read(PEERS / "mots.zip", "mots")
    labels.videos[0].frames = labels.videos[0].frames[:2]
    for track in labels.videos[0].tracks:
        track.masks = {t: mask for t, mask in track.masks.items() if t < 2}
    labels.videos[0].tracks = [track for track in labels.videos[0].tracks if track.masks]
    for name in ("labelme", "coco"):
        with tempfile.TemporaryDirectory() as folder:
            FORMATS[name].write(labels, Path(folder), WriteOptions())
            path = sorted(Path(folder).rglob("*.json"))[0]
            found[name] = json.loads(path.read_text())
    mask = found["coco"]["annotations"][0]["segmentation"]
    facts = {"video_id": "v", "video_height": mask["size"][0], "video_width": mask["size"][1], "video_frame_count": 9}
    found["sav"] = {**facts, "masklet": [[mask], [mask]], "masklet_id": [0]}
    return found


DOCUMENTS = documents()


def damaged(document: Any, rng: random.Random) -> Any:
    """A copy in which one place, anywhere, is deleted or holds something odd."""
    copy = json.loads(json.dumps(document))
    places = []

    def walk(node: Any) -> None:
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], (dict, list)):
                walk(node[key])

    walk(copy)
    node, key = rng.choice(places)
    if rng.random() < 0.3:
        del node[key]
    else:
        node[key] = rng.choice(ODD)
    return copy


def test_every_json_format_has_a_document():
    others = {"cvat", "mots", "mots_text", "davis"}
    assert set(DOCUMENTS) == set(FORMATS) - others


@pytest.mark.parametrize("name", sorted(DOCUMENTS))
def test_damaged_json_is_read_or_refused_by_name(name, tmp_path_factory):
    path = tmp_path_factory.mktemp("damaged") / "labels.json"

    @settings(max_examples=60, deadline=None)
    @given(st.randoms(use_true_random=False))
    def check(rng):
        path.write_bytes(json.dumps(damaged(DOCUMENTS[name], rng)).encode("utf-8", "surrogatepass"))
        try_to_read(path, name)

    check()


def try_to_read(path: Path, name: str) -> None:
    with open_source(path) as source:
        try:
            read_labels(source, name, ReadOptions(size_of=lambda *_: (2, 3)))
        except (ValueError, OSError) as error:
            assert path.name in str(error) or "v" in str(error), error


@pytest.mark.parametrize("file", ["cvat_images", "cvat_keyframes", "cvat_masks"])
def test_damaged_xml_is_read_or_refused_by_name(file, tmp_path):
    with zipfile.ZipFile(PEERS / f"{file}.zip") as archive:
        text = archive.read("default.xml").decode()
    path = tmp_path / "labels.xml"

    @settings(max_examples=60, deadline=None)
    @given(st.randoms(use_true_random=False))
    def check(rng):
        start = rng.randrange(len(text))
        stop = min(len(text), start + rng.choice([1, 3, 40, 4000]))
        path.write_text(text[:start] + rng.choice(["", "9", "-1", "nan", '"', "<", ";;", "1e999"]) + text[stop:])
        try_to_read(path, "cvat")

    check()


def test_damaged_archives_are_refused_by_name(tmp_path):
    data = (PEERS / "mots.zip").read_bytes()
    path = tmp_path / "labels.zip"

    @settings(max_examples=40, deadline=None)
    @given(st.integers(0, len(data) - 1), st.integers(0, 255))
    def check(place, value):
        path.write_bytes(data[:place] + bytes([value]) + data[place + 1 :])
        try:
            try_to_read(path, "mots")
        except (ValueError, OSError) as error:
            assert "labels.zip" in str(error)

    check()
    path.write_bytes(data[:3000])
    with pytest.raises(ValueError, match=r"labels.zip is no zip archive, or it is cut off"), open_source(path):
        pass


def test_archives_whose_members_lead_outside_are_refused(tmp_path):
    for name in ("../up.json", "/etc/x.json", "C:/x.json"):
        path = tmp_path / "labels.zip"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(name, "{}")
        with pytest.raises(ValueError, match="lies outside the archive's own folder"), open_source(path):
            pass


def test_archives_that_grow_without_limit_are_refused(tmp_path):
    path = tmp_path / "labels.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for k in range(3):
            archive.writestr(f"{k}.json", b" " * 2**26)
    with pytest.raises(ValueError, match="claim to unpack to"), open_source(path):
        pass
