"""lbvq train: its settings for few videos, the files it takes, and the runs it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lbvq.__main__ import main
from lbvq.cli import train
from lbvq.zoo import load_config

SMALL = "synthetic/minvis_R18_tiny"


def settings(*of_the_user: object, model: str = SMALL, steps: int = 400, processes: int = 1) -> dict:
    items = train.recipe(load_config(model, list(of_the_user)), steps, processes)
    return dict(zip(items[::2], items[1::2], strict=True))


def test_the_recipe_evaluates_eight_times_and_keeps_the_best():
    found = settings()
    assert found["SOLVER.MAX_ITER"] == 400 and found["TEST.EVAL_PERIOD"] == found["SOLVER.CHECKPOINT_PERIOD"] == 50
    assert found["SOLVER.BEST_METRIC"] == "segm/AP" and found["SOLVER.EARLY_STOP"] == 4


@pytest.mark.parametrize(
    ("frames_of_a_clip", "batch", "processes", "expected"),
    [(2, 16, 1, 2), (2, 1, 1, 1), (1, 16, 1, 4), (8, 16, 1, 1), (2, 16, 4, 8), (2, 4, 4, 4), (2, 2, 4, 4)],
)
def test_the_batch_fits_a_small_gpu_and_the_learning_rate_follows_it(frames_of_a_clip, batch, processes, expected):
    user = ["SOLVER.IMS_PER_BATCH", batch, "SOLVER.BASE_LR", 0.0016, "INPUT.SAMPLING_FRAME_NUM", frames_of_a_clip]
    found = settings(*user, processes=processes)
    assert found["SOLVER.IMS_PER_BATCH"] == expected
    assert found["SOLVER.BASE_LR"] == pytest.approx(0.0016 * (expected / batch) ** 0.5)


def test_the_backbone_rests_only_where_there_are_weights():
    assert settings("MODEL.WEIGHTS", "")["SOLVER.REST_BACKBONE_ITERS"] == 0
    assert settings("MODEL.WEIGHTS", "some.pth")["SOLVER.REST_BACKBONE_ITERS"] == 100


def write(folder: Path, *names: str) -> Path:
    folder.mkdir()
    for name in names:
        (folder / name).write_text(json.dumps({"videos": [], "annotations": [], "categories": []}))
    return folder


def test_a_split_is_used_and_its_absence_is_said(tmp_path, capsys):
    data = write(tmp_path / "my pets", "annotations.json", "train.json", "dev.json")
    assert [path.name for path in train.parts_of(data).values()] == ["train.json", "dev.json"]
    entries = train.data_settings(data)
    assert f"my_pets_dev={data}/dev.json:{data}/frames" in str(entries) and capsys.readouterr().out == ""
    (data / "dev.json").unlink()
    assert set(train.parts_of(data).values()) == {data / "annotations.json"}
    train.data_settings(data)
    assert "scores are of videos that were trained on" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("names", "data", "words"),
    [
        ((), "nothing", "There is no data folder nothing"),
        (("images.txt",), "data", "data is no data folder: it has no annotations.json"),
    ],
)
def test_what_is_no_data_folder_is_refused(tmp_path, monkeypatch, capsys, names, data, words):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "data", *names)
    assert main(["train", data, "--model", SMALL]) == 2
    assert words in capsys.readouterr().err


def test_scores_are_told_before_and_after(tmp_path, capsys):
    lines = [
        {"iteration": 9, "total_loss": 1.0},
        *({"iteration": i, "segm/AP": ap} for i, ap in ((9, 31.26), (19, 30))),
    ]
    (tmp_path / "metrics.json").write_text("\n".join(map(json.dumps, lines)))
    train.print_scores(tmp_path)
    out = capsys.readouterr().out
    assert "AP after: best 31.3 (step 9), last 30.0 (step 19)" in out and "before" not in out  # a run that was resumed
    (tmp_path / "inference").mkdir()
    for score, words in ((12.34, "AP before training: 12.3"), (None, "none, no object is annotated")):
        (tmp_path / "inference" / "metrics_before.json").write_text(json.dumps({"segm": {"AP": score}}))
        train.print_scores(tmp_path)
        assert words in capsys.readouterr().out
