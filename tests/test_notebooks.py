"""The notebooks run as they are, in a kernel of their own, with small networks and videos in place of the user's.

As papermill does, a cell with other values goes behind the one with the tag "parameters".
"""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest
from golden_fill import frames
from helpers import ROOT
from labelled_videos import TINY, write_labelled_videos
from report_case import write_report_case
from vit_models import tiny

from lbvq.video.reader import read_video
from lbvq.video.writer import write_video
from lbvq.zoo import DEFAULT_MODEL, MODELS

NOTEBOOKS = {path.stem: path for path in sorted((ROOT / "notebooks").glob("*.ipynb"))}


def cells(name: str, kind: str) -> list[dict[str, Any]]:
    content = json.loads(NOTEBOOKS[name].read_text(encoding="utf-8"))
    return [cell for cell in content["cells"] if cell["cell_type"] == kind]


def parameters(name: str) -> dict[str, Any]:
    """What the first cell of code gives values to."""
    tree = ast.parse("".join(cells(name, "code")[0]["source"]))
    names: dict[str, Any] = {}
    for line in tree.body:
        assert isinstance(line, ast.Assign), "a cell of parameters only gives values"
        target = ast.literal_eval(line.value)
        each = line.targets[0]
        names |= {each.id: target} if isinstance(each, ast.Name) else dict(zip(_ids(each), target, strict=True))
    return names


def _ids(names: Any) -> list[str]:
    return [each.id for each in names.elts]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_begins_with_its_only_cell_of_parameters_and_keeps_no_output(name):
    code = cells(name, "code")
    assert [cell["metadata"].get("tags") for cell in code] == [["parameters"], *[None] * (len(code) - 1)]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in code)
    assert parameters(name)


def test_the_notebooks_name_models_that_exist():
    assert parameters("predict")["model"] == DEFAULT_MODEL
    assert parameters("fine_tune")["model"] in MODELS


def test_the_report_is_by_default_of_what_was_fine_tuned():
    trained, read = parameters("fine_tune"), parameters("read_report")
    assert read["results"] == f"{trained['run']}/eval/inference/results.json"
    assert read["ground_truth"] == f"{trained['data']}/dev.json" and read["frames"] == f"{trained['data']}/frames"


def test_a_command_that_fails_stops_the_notebook(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec("".join(cells("fine_tune", "code")[1]["source"]), names)
    with pytest.raises(RuntimeError, match="lbvq convert ended with exit code 2"):
        names["lbvq"]("convert", "nothing.zip", "--out", "data")


# ---- in a kernel


def run(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, **values: Any) -> list[Any]:
    """Run a notebook in a folder with other values of its parameters; returns its cells of code with their outputs."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    assert set(values) <= set(parameters(name))
    for variable, value in {"PYTHONPATH": ROOT, "HF_HUB_OFFLINE": 1, "IPYTHONDIR": folder / ".ipython"}.items():
        monkeypatch.setenv(variable, str(value))
    book = nbformat.read(NOTEBOOKS[name], as_version=4)
    place = next(index for index, cell in enumerate(book.cells) if cell.cell_type == "code")
    lines = "\n".join(f"{key} = {value!r}" for key, value in values.items())
    book.cells.insert(place + 1, nbformat.v4.new_code_cell(lines))
    nbclient.NotebookClient(book, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()
    return [cell for cell in book.cells if cell.cell_type == "code"]


def text_of(code: list[Any]) -> str:
    return "".join(output.text for cell in code for output in cell.outputs if output.output_type == "stream")


def num_pictures(code: list[Any]) -> int:
    return sum("image/png" in output.get("data", {}) for cell in code for output in cell.outputs)


@pytest.mark.slow
def test_predicting_draws_a_video_and_writes_results_and_a_table(tmp_path, monkeypatch):
    tiny(INPUT__MIN_SIZE_TEST=0).save_pretrained(tmp_path / "model", names=[f"class {n}" for n in range(13)])
    video = list(frames(7, 48, 64, seed=1).permute(0, 2, 3, 1).numpy())
    write_video(tmp_path / "mine.mp4", video, 5)
    code = run("predict", tmp_path, monkeypatch, video="mine.mp4", model="model", least_score=0.0)
    text = text_of(code)
    assert "frames=7, height=48, width=64" in text and "of 7 frames" in text and "class " in text
    assert "number of the model -> number by overlap\nframe 0: {" in text
    assert num_pictures(code) == 1
    assert len(read_video(tmp_path / "video_segmented.mp4")) == 7
    entries = json.loads((tmp_path / "video.json").read_text())
    assert entries and all(len(entry["segmentations"]) == 7 for entry in entries)
    assert (tmp_path / "video.csv").read_text().startswith("frame,")


@pytest.mark.slow
def test_own_labels_become_a_data_set_a_model_its_score_and_a_picture(tmp_path, monkeypatch):
    write_labelled_videos(tmp_path)
    code = run("fine_tune", tmp_path, monkeypatch, model="synthetic/minvis_R18_tiny", steps=4, settings=TINY)
    text = text_of(code)
    assert "CVAT XML 1.1, 5 videos, 2 classes" in text and "AP after" in text
    assert "step      4   AP " in text
    assert num_pictures(code) == 2
    assert (tmp_path / "runs/pets/model_best.pth").exists()
    assert json.loads((tmp_path / "runs/pets/eval/inference/results.json").read_text())


@pytest.mark.slow
def test_the_report_says_where_ap_is_lost_and_shows_it(tmp_path, monkeypatch):
    write_report_case(tmp_path)
    code = run("read_report", tmp_path, monkeypatch, results="dt.json", ground_truth="gt.json", frames="frames")
    text = text_of(code)
    numbers = json.loads((tmp_path / "report" / "analysis.json").read_text())
    assert f"AP {numbers['AP']:.1f}\n" in text and "if classes were right" in text
    assert all(f"\n{kind:13s}" in f"\n{text}" for kind in numbers["kinds"])
    assert f"video {numbers['per_video'][0]['video_id']} (" in text
    assert num_pictures(code) == 2
    assert (tmp_path / "report" / "index.html").exists()
