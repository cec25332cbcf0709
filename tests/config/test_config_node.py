"""The configuration node: what a merge accepts, what it refuses, and what it says."""

from __future__ import annotations

import copy
import logging
import pickle

import pytest
import yaml
from fvcore.common.config import CfgNode as FvcoreCfgNode

from lbvq.config.node import CfgNode, UnknownKeyError, decode, dotted_leaves
from mask2former.config import add_missing


def small_cfg() -> CfgNode:
    return CfgNode(
        {
            "VERSION": 2,
            "NAME": "a",
            "SIZES": (800,),
            "LIST": [1, 2],
            "FLAG": False,
            "NONE": None,
            "SOLVER": {"BASE_LR": 0.1, "MAX_ITER": 10, "AMP": {"ENABLED": False}},
        }
    )


def write(path, text):
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize(
    "key, given, want",
    [
        ("SIZES", "(360, 480)", (360, 480)),  # a string to YAML, a tuple to Python
        ("SIZES", [360, 480], (360, 480)),
        ("SIZES", 480, (480,)),
        ("SIZES", "one", ("one",)),
        ("SIZES", "()", ()),
        ("LIST", (3,), [3]),
        ("LIST", "[]", []),
        ("FLAG", "true", True),
        ("FLAG", "False", False),
        ("FLAG", True, True),
        ("NAME", "b", "b"),
        ("NAME", None, None),
        ("NONE", 3, 3),
        ("SOLVER.BASE_LR", "1e-4", 1e-4),
        ("SOLVER.BASE_LR", 1, 1.0),
        ("SOLVER.MAX_ITER", "7", 7),
        ("SOLVER.AMP.ENABLED", "true", True),
    ],
)
def test_a_value_is_converted_to_the_type_of_its_key(key, given, want):
    cfg = small_cfg()
    cfg.merge_from_list([key, given])
    got = dotted_leaves(cfg)[key]
    assert got == want and type(got) is type(want)


@pytest.mark.parametrize(
    "key, given",
    [
        ("SOLVER.MAX_ITER", 7.0),
        ("SOLVER.MAX_ITER", True),
        ("SOLVER.MAX_ITER", "many"),
        ("SOLVER.BASE_LR", True),
        ("SOLVER.BASE_LR", "fast"),
        ("FLAG", 1),
        ("FLAG", "yes"),
        ("NAME", "123"),
        ("SIZES", True),
        ("SIZES", "(ytvis_2019_train,)"),  # not a Python tuple: the name lacks quotes
        ("LIST", 3),
        ("SOLVER", 3),
        ("SOLVER", None),
        ("NAME.DEEPER", 3),
        ("NONE", {"A": 1}),
        ("NAME", b"bytes"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_and_nothing_changes(key, given):
    cfg = small_cfg()
    with pytest.raises(ValueError, match=key.split(".")[0]):
        cfg.merge_from_list(["SOLVER.MAX_ITER", 5, key, given])
    assert cfg == small_cfg()


def test_an_unknown_key_names_the_nearest_one_and_its_file(tmp_path):
    path = write(tmp_path / "a.yaml", "VERSION: 2\nSOLVER: {MAX_ITR: 5}\n")
    with pytest.raises(UnknownKeyError, match=r"SOLVER\.MAX_ITR .*a\.yaml.*SOLVER\.MAX_ITER"):
        small_cfg().merge_from_file(path)


def test_an_unknown_key_in_a_base_names_the_base(tmp_path):
    write(tmp_path / "base.yaml", "VERSION: 2\nSOLVER: {BASE_LRR: 5.0}\n")
    path = write(tmp_path / "leaf.yaml", "_BASE_: base.yaml\nNAME: x\n")
    with pytest.raises(KeyError, match=r"base\.yaml"):
        small_cfg().merge_from_file(path)


def test_a_right_name_in_the_wrong_group_is_found():
    with pytest.raises(UnknownKeyError, match=r"nearest one is SOLVER\.MAX_ITER"):
        small_cfg().merge_from_list(["TRAINING.SCHEDULE.LENGTH.MAX_ITER", 5])


def test_an_odd_list_of_settings_is_refused():
    with pytest.raises(ValueError, match="pairs"):
        small_cfg().merge_from_list(["NAME"])


def test_an_empty_list_and_an_empty_file_change_nothing(tmp_path):
    cfg = small_cfg()
    cfg.merge_from_list([])
    cfg.merge_from_file(write(tmp_path / "empty.yaml", "# nothing\n"))
    assert cfg == small_cfg()


def test_bases_are_merged_in_order_and_the_file_wins(tmp_path):
    (tmp_path / "sub").mkdir()
    write(tmp_path / "one.yaml", "VERSION: 2\nNAME: one\nSOLVER: {MAX_ITER: 1, BASE_LR: 1.0}\n")
    write(tmp_path / "sub" / "two.yaml", "_BASE_: ../one.yaml\nSOLVER: {MAX_ITER: 2}\n")
    write(tmp_path / "three.yaml", "SOLVER: {BASE_LR: 3.0, AMP: {ENABLED: true}}\n")
    leaf = write(tmp_path / "leaf.yaml", f"_BASE_: [sub/two.yaml, {tmp_path}/three.yaml]\nNAME: leaf\n")
    cfg = small_cfg()
    cfg.merge_from_file(leaf)
    assert (cfg.NAME, cfg.SOLVER.MAX_ITER, cfg.SOLVER.BASE_LR, cfg.SOLVER.AMP.ENABLED) == ("leaf", 2, 3.0, True)
    assert FvcoreCfgNode.load_yaml_with_base(leaf) == CfgNode.load_yaml_with_base(leaf)


def test_a_base_in_the_home_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "home.yaml", "VERSION: 2\nNAME: home\n")
    (tmp_path / "x").mkdir()
    cfg = small_cfg()
    cfg.merge_from_file(write(tmp_path / "x" / "leaf.yaml", "_BASE_: ~/home.yaml\n"))
    assert cfg.NAME == "home"


@pytest.mark.parametrize(
    "text, message",
    [
        ("_BASE_: leaf.yaml\n", "circle"),
        ("_BASE_: missing.yaml\n", "missing.yaml.*leaf.yaml"),
        ("_BASE_: 3\n", "path or a list"),
        ("_BASE_: https://example.org/a.yaml\n", "address"),
        ("VERSION: 1\n", "VERSION 1"),
        ("- a\n- b\n", "mapping"),
        ("NAME: [\n", "not valid YAML"),
        ("NAME: !!python/object/apply:os.system ['true']\n", "plain values"),
    ],
)
def test_a_file_that_cannot_be_read_says_why(tmp_path, text, message):
    path = write(tmp_path / "leaf.yaml", text)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        small_cfg().merge_from_file(path)


def test_a_group_over_a_value_between_files_names_both(tmp_path):
    write(tmp_path / "base.yaml", "NAME: one\n")
    leaf = write(tmp_path / "leaf.yaml", "_BASE_: base.yaml\nNAME: {A: 1}\n")
    with pytest.raises(ValueError, match=r"leaf\.yaml.*base\.yaml"):
        small_cfg().merge_from_file(leaf)


def test_a_key_written_twice_is_reported(tmp_path, caplog):
    cfg = small_cfg()
    cfg.merge_from_file(write(tmp_path / "a.yaml", "VERSION: 2\nNAME: one\nNAME: two\n"))
    assert cfg.NAME == "two" and "NAME is written twice" in caplog.text


def test_a_file_without_version_is_read_with_a_warning(tmp_path, caplog):
    small_cfg().merge_from_file(write(tmp_path / "a.yaml", "NAME: x\n"))
    assert "no VERSION" in caplog.text


def test_code_in_configuration_files_is_never_run(tmp_path):
    source = write(tmp_path / "a.py", "raise SystemExit('ran')\n")
    with open(source) as file, pytest.raises(ValueError, match="Python code"):
        CfgNode.load_cfg(file)
    with pytest.raises(ValueError, match="allow_unsafe"):
        CfgNode.load_yaml_with_base(source, allow_unsafe=True)


def test_a_frozen_configuration_does_not_change():
    cfg = small_cfg()
    cfg.freeze()
    with pytest.raises(AttributeError):
        cfg.NAME = "b"
    with pytest.raises(AttributeError):
        cfg.SOLVER.MAX_ITER = 3
    with pytest.raises(AttributeError, match="defrost"):
        cfg.merge_from_list(["NAME", "b"])
    clone = cfg.clone()
    clone.defrost()
    clone.merge_from_list(["NAME", "b", "LIST", [9]])
    clone.LIST.append(10)
    assert cfg.NAME == "a" and cfg.LIST == [1, 2] and clone.LIST == [9, 10]


def test_a_dump_can_be_merged_back():
    cfg = small_cfg()
    cfg.merge_from_list(["SIZES", "(1, 2)", "NONE", "3"])
    text = cfg.dump()
    assert list(yaml.safe_load(text)) == sorted(yaml.safe_load(text))
    again = small_cfg()
    again.merge_from_other_cfg(yaml.safe_load(text))
    assert again == cfg and again.SIZES == (1, 2)


def test_a_configuration_survives_copying_and_pickling():
    cfg = small_cfg()
    cfg.register_unused_key("NAME", "no reason")
    for other in (copy.deepcopy(cfg), pickle.loads(pickle.dumps(cfg))):
        assert other == cfg and other.SOLVER.AMP.ENABLED is False and other.unused_keys() == {"NAME": "no reason"}


def test_setting_a_key_without_effect_is_reported_once_it_differs(caplog):
    cfg = small_cfg()
    cfg.register_unused_key("SOLVER.AMP.ENABLED", "nothing reads it")
    cfg.register_unused_key("NAME", "nobody cares", quiet_values=("usual",))
    cfg.merge_from_list(["SOLVER.AMP.ENABLED", False, "NAME", "usual"])
    assert caplog.text == ""
    cfg.merge_from_list(["SOLVER.AMP.ENABLED", True])
    assert "SOLVER.AMP.ENABLED = True has no effect: nothing reads it" in caplog.text


def test_ignored_groups_are_skipped_with_one_warning(caplog):
    cfg = small_cfg()
    cfg.register_ignored_group("RPN")
    cfg.register_ignored_group("SOLVER.OLD")
    cfg.merge_from_other_cfg({"NAME": "b", "RPN": {"A": 1, "B": 2}, "SOLVER": {"OLD": 3}})
    assert cfg.NAME == "b" and "RPN" not in cfg and "OLD" not in cfg.SOLVER
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_renamed_keys_say_their_new_name():
    cfg = small_cfg()
    cfg.register_renamed_key("SOLVER.LR", "SOLVER.BASE_LR")
    with pytest.raises(KeyError, match=r"SOLVER\.BASE_LR"):
        cfg.merge_from_list(["SOLVER.LR", 1.0])


def test_new_keys_are_taken_where_they_are_allowed():
    cfg = small_cfg()
    cfg.set_new_allowed(True)
    cfg.merge_from_other_cfg({"EXTRA": {"A": 1}})
    assert cfg.EXTRA.A == 1 and isinstance(cfg.EXTRA, CfgNode)


def test_base_key_is_for_files_only():
    with pytest.raises(KeyError, match="_BASE_"):
        small_cfg().merge_from_list(["_BASE_", "a.yaml"])


def test_missing_keys_are_added_and_present_ones_kept():
    cfg = FvcoreCfgNode({"A": {"B": 1}})
    defaults = {"A": {"B": 2, "C": [3]}, "D": {"E": {"F": 4}}}
    add_missing(cfg, defaults)
    add_missing(cfg, defaults)
    assert cfg == {"A": {"B": 1, "C": [3]}, "D": {"E": {"F": 4}}}
    assert type(cfg.D.E) is FvcoreCfgNode
    cfg.A.C.append(5)
    assert defaults["A"]["C"] == [3]


@pytest.mark.parametrize("text", ["{[]: 1}", "(" * 500, "a b", "1 +", ""])
def test_text_that_is_no_literal_stays_text(text):
    assert decode(text) == text


def test_settings_are_accepted_with_an_equals_sign_too():
    cfg = small_cfg()
    cfg.merge_from_list(["SOLVER.MAX_ITER=3", "NAME", "a=b", "SOLVER.BASE_LR=1e-3"])
    assert (cfg.SOLVER.MAX_ITER, cfg.NAME, cfg.SOLVER.BASE_LR) == (3, "a=b", 1e-3)
    cfg.merge_from_list(["NAME=x=y", "SOLVER.MAX_ITER", 4])
    assert (cfg.SOLVER.MAX_ITER, cfg.NAME) == (4, "x=y")
    cfg.merge_from_list(["NAME="])
    assert cfg.NAME == ""


def test_an_option_among_the_settings_is_named():
    with pytest.raises(ValueError, match="--eval-only stands among the settings"):
        small_cfg().merge_from_list(["NAME", "x", "--eval-only"])
