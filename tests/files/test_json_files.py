"""JSON in any wrapping: what is read, what is refused by the name of its file, and that what is written is JSON."""

from __future__ import annotations

import gc
import gzip
import json
import math
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lbvq.files.json_files import collector_paused, read_json, to_json
from lbvq.files.mask_file import MaskFile, read_mask_file, write_mask_file

CONTENT = {"a": [1, None, {"size": [2, 2], "counts": "13"}], "é": "ü\n"}
READ = [read_json, lambda path: read_mask_file(path).document]
READERS = pytest.mark.parametrize("read", READ, ids=["json", "masks"])


def zipped(path, *members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le"])
@pytest.mark.parametrize("suffix", [".json", ".json.gz", ".zip"])
def test_every_unicode_encoding_with_and_without_mark_is_read_from_every_wrapping(encoding, suffix, tmp_path):
    text = json.dumps(CONTENT, ensure_ascii=False).encode(encoding)
    path = tmp_path / f"a{suffix}"
    if suffix == ".zip":
        zipped(path, ("a.json", text))
    else:
        path.write_bytes(gzip.compress(text) if suffix == ".json.gz" else text)
    assert read_json(path) == CONTENT
    file = read_mask_file(path)
    assert file.document["a"][2] == range(0, 1) and file.texts == [b'"13"'] and file.document["é"] == "ü\n"


def test_what_a_mac_adds_to_an_archive_is_no_second_file(tmp_path):
    path = zipped(tmp_path / "a.zip", ("r.json", "[1]"), ("__MACOSX/._r.json", b"\0\5\x16\7"), ("._r.json", b"\0"))
    assert read_json(path) == [1]


DAMAGED = {
    "cut.json": (b'{"a": [1, 2', "not valid JSON: .*line 1 column 12"),
    "empty.json": (b"", "not valid JSON"),
    "nested.json": (b"[" * 100_000 + b"]" * 100_000, "nested too deeply"),
    "nested_objects.json": (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested too deeply"),
    "nan.json": (b'{"a": NaN}', "the word NaN is not JSON; write a number or null"),
    "infinite.json": (b'{"a": [-Infinity]}', "the word -Infinity is not JSON"),
    "digits.json": (b'{"a": ' + b"9" * 5000 + b"}", r"not valid JSON: .*\(4300"),
    "latin1.json": ('{"a": "é"}'.encode("latin1"), "not valid JSON: 'utf-8' codec can't decode"),
    "half_utf16.json": ('{"a": 1}'.encode("utf-16")[:-1], "not valid JSON: 'utf-16-le' codec can't decode"),
    "damaged.json.gz": (b"\x1f\x8b\x08\0" + b"\0" * 20, "the archive cannot be read"),
    "no.json.gz": (b"[]", "the archive cannot be read"),
    "cut.json.gz": (gzip.compress(b"[" + b"1," * 1000 + b"1]")[:-9], "the archive cannot be read"),
    "no.zip": (b"PK", "the archive cannot be read"),
}


@READERS
@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_files_are_refused_by_name(read, name, tmp_path):
    content, reason = DAMAGED[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name}: .*{reason}"):
        read(tmp_path / name)


@READERS
def test_archives_with_a_flipped_byte_a_password_or_an_unknown_method_are_refused_by_name(read, tmp_path):
    text = json.dumps([{"size": [2, 2], "counts": f"{k}"} for k in range(3000)]).encode()
    packed = bytearray(gzip.compress(text))
    packed[30] ^= 255
    (tmp_path / "flipped.json.gz").write_bytes(packed)
    zipped(tmp_path / "flipped.zip", ("a.json", text))
    content = bytearray((tmp_path / "flipped.zip").read_bytes())
    for name, place, value in (("password", 6, 1), ("method", 8, 99), ("flipped", 60, content[60] ^ 255)):
        changed = bytearray(content)
        directory = changed.index(b"PK\1\2")
        changed[place] = value
        if place < 30:
            changed[directory + 2 + place] = value  # the directory repeats the header two bytes later
        (tmp_path / f"{name}.zip").write_bytes(changed)
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(ValueError, match=rf"{path.name}: the archive cannot be read"):
            read(path)


@READERS
@pytest.mark.parametrize("suffix", [".json.gz", ".zip"])
def test_archives_that_unpack_to_far_more_than_masks_do_are_refused(read, suffix, tmp_path):
    path = tmp_path / f"blanks{suffix}"
    blanks = b" " * (72 << 20)
    if suffix == ".zip":
        zipped(path, ("a.json", blanks))
    else:
        path.write_bytes(gzip.compress(blanks))
    with pytest.raises(ValueError, match=rf"blanks{suffix} unpacks to more than 67108864 bytes .* unpack it yourself"):
        read(path)


@pytest.mark.parametrize(
    "start", ['{"size": [,', '{"counts": [1,', '{"size": [1, 1], "counts": [', '{"counts": "', "{"]
)
def test_text_that_begins_masks_again_and_again_takes_no_longer_than_other_text(start, tmp_path):
    """Searched again from each beginning, 1 MB would take half a minute."""
    path = tmp_path / "again.json"
    path.write_bytes(b"[" + start.encode() * (1_100_000 // len(start)))
    program = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_CPU, (15, 15))\n"
        "from lbvq.files.mask_file import read_mask_file\n"
        f"try: read_mask_file({str(path)!r})\n"
        "except ValueError as error: sys.exit(0 if 'again.json' in str(error) else 1)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_a_mask_that_is_longer_than_a_search_takes_the_slow_way(tmp_path, monkeypatch):
    monkeypatch.setattr("lbvq.files.mask_file._MAX_MASK_BYTES", 1000)
    monkeypatch.setattr("lbvq.files.mask_file.BLOCK_BYTES", 400)
    content = [{"size": [2, 2], "counts": "1" * length} for length in (10, 5000, 10)]
    (tmp_path / "a.json").write_text(json.dumps(content))
    file = read_mask_file(tmp_path / "a.json")
    assert file.document[1] == content[1] and len(file.texts) == 2


def test_folders_and_missing_files_are_named(tmp_path):
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(ValueError, match=r"folder\.json is a folder"):
        read_json(tmp_path / "folder.json")
    with pytest.raises(FileNotFoundError, match=r"none\.json"):
        read_mask_file(tmp_path / "none.json")


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(), inner, max_size=3)),
    max_leaves=10,
)


@given(JSON)
@settings(max_examples=100, deadline=None)
def test_what_is_written_is_json_with_null_for_what_is_no_number(content):
    def refuse(word):
        raise AssertionError(word)

    def wanted(value):
        if isinstance(value, float) and not math.isfinite(value):
            return None
        if isinstance(value, dict):
            return {key: wanted(each) for key, each in value.items()}
        return [wanted(each) for each in value] if isinstance(value, list) else value

    assert json.loads(to_json(content), parse_constant=refuse) == wanted(content)
    assert to_json({"x": np.float64("nan")}) == '{"x": null}'


def test_texts_of_a_file_are_never_taken_for_its_masks_when_it_is_written_again(tmp_path):
    document = {"note": ["\0000:1", "NaN"], "mask": range(0, 1)}
    file = MaskFile("a", document, [b'"13"'], [b"[2, 2]"])
    write_mask_file(tmp_path / "b.json", document, file)
    assert read_json(tmp_path / "b.json") == {"note": ["\0000:1", "NaN"], "mask": {"size": [2, 2], "counts": "13"}}


@given(st.binary(max_size=60))
@settings(max_examples=150, deadline=None)
def test_any_bytes_are_read_alike_by_both_readers_or_refused_by_name(data):
    with tempfile.TemporaryDirectory() as folder:
        for name in ("a.json", "a.json.gz", "a.zip"):
            path = Path(folder) / name
            path.write_bytes(data)
            outcomes = []
            for read in READ:
                try:
                    outcomes.append(read(path))
                except ValueError as error:
                    assert str(error).startswith(str(path))
                    outcomes.append(ValueError)
            assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("enabled", [True, False])
def test_the_collector_is_as_before_when_a_reader_fails(enabled):
    before = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        with pytest.raises(ValueError, match="x"), collector_paused(), collector_paused():
            assert not gc.isenabled()
            raise ValueError("x")
        assert gc.isenabled() is enabled
    finally:
        (gc.enable if before else gc.disable)()
