"""Targets: annotation files as training, scoring and checking read them, and results in every form and wrapping."""

from __future__ import annotations

import gzip
import json
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lbvq.data.coco import load_coco_json, load_lvis_json
from lbvq.evaluation.burst import score_burst
from lbvq.evaluation.image_metrics import IMAGE_CHECKS, IMAGE_METRICS
from lbvq.evaluation.splits import split_videos
from lbvq.evaluation.submission import check_submission
from lbvq.evaluation.tube_ap import TubeAP
from lbvq.evaluation.video_metrics import VideoScorer
from lbvq.files.mask_file import read_mask_file
from lbvq.fuzz.masks import SIZE, ground_truth, write_annotations, write_masks, write_results
from lbvq.fuzz.mutations import mutate_json
from lbvq.fuzz.targets import target
from lbvq.inference.results import VideoPrediction

Content = dict[str, Any]

_BOX = [5, 4, 10, 8]


def _mask(folder: Path) -> Any:
    write_masks(folder)
    return json.loads((folder / "packed.json").read_text())


@target("ground truth", write_annotations, mutate_json)
def score_nothing(path: Path) -> None:
    """The annotations as every video metric reads them, down to the masks."""
    TubeAP(path).check_masks()
    VideoScorer("ovis", path, long_videos=2).update([]).compute()


@target("split", write_annotations, mutate_json)
def split(path: Path) -> None:
    content = read_mask_file(path)
    if not isinstance(content.document, dict):
        raise ValueError(f"{path} is no annotation file")
    split_videos(content.document, 0.5, name=content.name)


def _image_truth(mask: Any) -> Content:
    images = [
        {"id": each, "height": SIZE[0], "width": SIZE[1], "file_name": f"{each}.jpg", "coco_url": f"x/train/{each}.jpg"}
        | {"neg_category_ids": [2], "not_exhaustive_category_ids": []}
        for each in (7, 8)
    ]
    categories = [{"id": each, "name": f"class {each}", "frequency": "rcf"[each]} for each in (1, 2)]
    objects = [
        {
            "id": 1,
            "image_id": 7,
            "category_id": 1,
            "iscrowd": 0,
            "bbox": [5, 4, 10, 8],
            "area": 80,
            "segmentation": mask,
        },
        {"id": 2, "image_id": 7, "category_id": 2, "bbox": [1, 1, 8, 8], "segmentation": [[1, 1, 9, 1, 9, 9]]},
    ]
    return {"images": images, "categories": categories, "annotations": objects}


def write_images(folder: Path) -> None:
    with TemporaryDirectory() as other:
        (folder / "images.json").write_text(json.dumps(_image_truth(_mask(Path(other)))))


@target("image annotations", write_images, mutate_json)
def read_images(path: Path) -> None:
    load_coco_json(path, path.parent)
    load_lvis_json(path, path.parent)


@target("image ground truth", write_images, mutate_json)
def score_images(path: Path) -> None:
    for check in IMAGE_CHECKS.values():
        check(path)


def write_image_results(folder: Path) -> None:
    with TemporaryDirectory() as other:
        entry = {
            "image_id": 7,
            "category_id": 1,
            "score": 0.5,
            "segmentation": _mask(Path(other)),
            "bbox": [5, 4, 10, 8],
        }
    (folder / "results.json").write_text(json.dumps([entry, {**entry, "image_id": 8, "score": 0.25}]))


@target("image results", write_image_results, mutate_json)
def score_image_results(path: Path) -> None:
    with TemporaryDirectory() as folder:
        write_images(Path(folder))
        _checked_and_scored(path, Path(folder) / "images.json", ("coco", "lvis"))


@target("scored results", write_results, mutate_json)
def score_results(path: Path) -> None:
    with TemporaryDirectory() as folder:
        truth = Path(folder) / "annotations.json"
        truth.write_text(json.dumps(ground_truth()))
        _checked_and_scored(path, truth, ("ytvis", "hq_ytvis"))


def _checked_and_scored(path: Path, truth: Path, metrics: tuple[str, ...]) -> None:
    """What passes the check for a server can be scored; AssertionError when it cannot."""
    passed = {metric for metric in metrics if not check_submission(path, truth, metric).faults}
    for metric in metrics:
        try:
            if metric in IMAGE_METRICS:
                IMAGE_METRICS[metric](truth, path)
            else:
                VideoScorer(metric, truth).update(path).compute()
        except ValueError as error:
            assert metric not in passed, f"the check for {metric} found no fault, but: {error}"
            raise


@target("predictions", write_results, mutate_json)
def read_prediction(path: Path) -> None:
    VideoPrediction.from_json(path, video_id=1, image_size=SIZE, num_frames=3)


def write_burst(folder: Path) -> None:
    with TemporaryDirectory() as other:
        rle = _mask(Path(other))["counts"]
    sequence = {"id": 1, "seq_name": "s", "dataset": "d", "height": SIZE[0], "width": SIZE[1]}
    sequence |= {"annotated_image_paths": ["0.jpg", "1.jpg"], "track_category_ids": {"1": 4, "2": 13}}
    sequence |= {"segmentations": [{"1": {"rle": rle}, "2": {"rle": rle, "score": 0.5}}, {"2": {"rle": rle}}]}
    sequence |= {"neg_category_ids": [41], "not_exhaustive_category_ids": [13]}
    categories = [{"id": 4, "name": "airplane"}, {"id": 13, "name": "ambulance"}]
    (folder / "burst.json").write_text(json.dumps({"sequences": [sequence], "categories": categories}))


@target("burst", write_burst, mutate_json)
def score_burst_file(path: Path) -> None:
    """Once as ground truth, once as predictions."""
    score_burst(path, path)
    with TemporaryDirectory() as folder:
        write_burst(Path(folder))
        score_burst(Path(folder) / "burst.json", path, reference=True)


def write_archives(folder: Path) -> None:
    """Results in every wrapping and encoding."""
    write_results(folder)
    text = (folder / "results.json").read_bytes()
    (folder / "mark.json").write_bytes(b"\xef\xbb\xbf" + text)
    (folder / "wide.json").write_bytes(text.decode().encode("utf-16"))
    (folder / "packed.json.gz").write_bytes(gzip.compress(text))
    for name, method in (
        ("stored", zipfile.ZIP_STORED),
        ("deflated", zipfile.ZIP_DEFLATED),
        ("lzma", zipfile.ZIP_LZMA),
    ):
        with zipfile.ZipFile(folder / f"{name}.zip", "w", method) as archive:
            archive.writestr("results.json", text)
            archive.writestr("__MACOSX/._results.json", b"\0\5\x16\7")


@target("archives", write_archives)
def read_archive(path: Path) -> None:
    read_mask_file(path)
