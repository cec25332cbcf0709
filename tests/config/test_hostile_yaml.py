"""YAML files made to take time or memory, damaged ones, odd encodings: one sentence that names the file."""

from __future__ import annotations

import pytest

from lbvq.config import get_cfg

GROUPS = "".join(
    f"x{i}: &x{i} {{p: *{'a' if i == 0 else f'x{i - 1}'}, q: *{'a' if i == 0 else f'x{i - 1}'}}}\n" for i in range(26)
)


@pytest.mark.parametrize(
    "content, message",
    [
        (f"a: &a {{k: 1}}\n{GROUPS}", "aliases .* repeat values"),
        ("a: &a {k: 1}\nb: &b {<<: [*a, *a]}\nc: &c {<<: [*b, *b]}\n", "configuration key"),
        ("MODEL: &m\n  LBVQ: *m\n", "stands inside of what it names"),
        ("MODEL: &m [*m]\n", "stands inside of what it names"),
        ("SEED: !!bool x\n", "none of its kind"),
        ("SEED: 2001-99-99\n", "none of its kind"),
        ("SEED: !!int abc\n", "none of its kind"),
        ("SEED: !!python/object/apply:os.system [ls]\n", "only plain values"),
        ("SEED: !something x\n", "only plain values"),
        ("? [a, b]\n: 1\n", "only plain values"),
        (b"# caf\xe9\n", "not valid YAML"),
        (b"SEED: \x00\n", "not valid YAML"),
        ("SEED: [1, 2\n", "not valid YAML"),
        ("[" * 100_000, "nested too deeply"),
        ("a: " + "{b: " * 5000 + "}" * 5000, "nested too deeply"),
        ("SOLVER: {BASE_LR: " + "9" * 400 + "}\n", "so large"),
        ("SEED: " + "9" * 5000 + "\n", "none of its kind|SEED"),
        ("x: y\n" * 200_000, "at most"),
        ("- a\n", "must hold a mapping"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_by_name(tmp_path, content, message):
    path = tmp_path / "settings.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises((ValueError, KeyError), match=message) as info:
        get_cfg().merge_from_file(str(path))
    assert "settings.yaml" in str(info.value)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_file_may_have_a_byte_order_mark(tmp_path, encoding):
    path = tmp_path / "windows.yaml"
    path.write_bytes("VERSION: 2\r\nOUTPUT_DIR: é\r\n".encode(encoding))
    cfg = get_cfg()
    cfg.merge_from_file(str(path))
    assert cfg.OUTPUT_DIR == "é"


def test_harmless_aliases_are_read(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("VERSION: 2\nSOLVER: &s {MAX_ITER: &n 7}\nTEST: {EVAL_PERIOD: *n}\n")
    cfg = get_cfg()
    cfg.merge_from_file(str(path))
    assert (cfg.SOLVER.MAX_ITER, cfg.TEST.EVAL_PERIOD) == (7, 7)


def test_a_base_named_many_times_is_read_once(tmp_path, monkeypatch):
    """2^30 readings otherwise."""
    (tmp_path / "0.yaml").write_text("VERSION: 2\nSOLVER: {MAX_ITER: 5}\n")
    for number in range(1, 31):
        (tmp_path / f"{number}.yaml").write_text(f"_BASE_: [{number - 1}.yaml, {number - 1}.yaml]\nSEED: {number}\n")
    cfg = get_cfg()
    cfg.merge_from_file(str(tmp_path / "30.yaml"))
    assert (cfg.SOLVER.MAX_ITER, cfg.SEED) == (5, 30)


def test_what_one_file_lays_over_a_base_does_not_show_in_another(tmp_path):
    (tmp_path / "base.yaml").write_text("VERSION: 2\nSOLVER: {MAX_ITER: 5, BASE_LR: 1.0}\n")
    (tmp_path / "left.yaml").write_text("_BASE_: base.yaml\nSOLVER: {MAX_ITER: 6}\n")
    (tmp_path / "right.yaml").write_text("_BASE_: base.yaml\nSOLVER: {BASE_LR: 2.0}\n")
    (tmp_path / "leaf.yaml").write_text("_BASE_: [left.yaml, right.yaml]\n")
    cfg = get_cfg()
    cfg.merge_from_file(str(tmp_path / "leaf.yaml"))
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.BASE_LR) == (5, 2.0)
