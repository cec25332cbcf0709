from __future__ import annotations

import re

import pytest
from golden_fill import frames
from helpers import ROOT
from vit_models import TINY, VIDEOMT, cfg_of, tiny

import lbvq
from lbvq.inference.stream import StreamPredictor
from lbvq.zoo import MODELS

DOCUMENTS = [
    "README.md",
    "INSTALL.md",
    "CONTRIBUTING.md",
    "datasets/README.md",
    *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")),
]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readme_stays_short():
    assert len(TEXT.splitlines()) < 250


def test_the_model_table_holds_the_published_scores_of_the_zoo():
    told = {}
    for name, *scores in re.findall(r"^\| `(\w+)` \| ([\d.]*) \| ([\d.]*) \| ([\d.]*) \|$", TEXT, re.MULTILINE):
        told.update(
            {f"{name}_{data}": score for data, score in zip(("ytvis19", "ytvis21", "ovis"), scores, strict=True)}
        )
    told = {name: float(score) for name, score in told.items() if score}
    data_sets = ("_ytvis19", "_ytvis21", "_ovis")
    want = {name: model.scores["AP"] for name, model in MODELS.items() if name.endswith(data_sets)}
    assert told == want


def test_other_published_scores_are_those_of_the_zoo():
    for name in (
        "ovformer_r50_lvvis",
        "ovformer_swin_lvvis",
        "vmt_r50_hq_ytvis",
        "vmt_r101_hq_ytvis",
        "ctvis_r50_ytvis22",
    ):
        score = next(iter(MODELS[name].scores.values()))
        assert re.search(rf"{score:.1f}\s\(`{name}`\)", TEXT)


def test_the_models_of_the_commands_exist():
    named = re.findall(r"lbvq (?:predict|download) [^\n`]*?(?:--model )?(\w+_(?:coco|ytvis\d\d|ovis))\b", TEXT)
    assert len(named) >= 3 and set(named) <= set(MODELS)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_files_that_the_documents_name_exist(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    folder = (ROOT / document).parent
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    paths = re.findall(r"\b((?:configs|datasets|demo|lbvq|mask2former|tools|tests)/[\w/.]+\.(?:py|yaml|jpg))", text)
    paths = [path for path in paths if not path.endswith(("foo.py", "foo_R50.yaml"))]
    paths = [path for path in paths if not path.startswith("configs/genvis/")]  # of another repository, as an example
    missing = [link for link in links if not (folder / link).exists()]
    missing += [path for path in [*paths, "train_net.py"] if not (ROOT / path).exists()]
    assert not missing


def test_the_lines_about_tracks_do_what_they_say(monkeypatch):
    """Run as they stand, with a small model in place of the published one: who is where, frame by frame."""
    model, cfg = tiny(), cfg_of({**VIDEOMT, **TINY}, INPUT__MIN_SIZE_TEST=0)
    monkeypatch.setattr(lbvq, "StreamPredictor", lambda name: StreamPredictor(model, cfg=cfg), raising=False)
    lines = TEXT.partition("## Ids are tracks")[2].partition("```python\n")[2].partition("```")[0]
    names = {"frames": frames(6, 48, 64, seed=1).permute(0, 2, 3, 1).numpy()}
    exec(lines, names)
    track, seen_in = names["track"], names["seen_in"]
    assert 0 < len(track) == len(set(track.ids))
    for item in track:
        shown = {number for number, area in enumerate(item.masks.areas()[0]) if area}
        assert set(seen_in.get(item.id, ())) <= shown
    assert "videomt_small_ytvis19" in lines and "videomt_small_ytvis19" in MODELS
