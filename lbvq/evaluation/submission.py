"""Check a results file against what evaluation servers accept, and pack it.

Servers answer a wrong file with a bare failure after hours in a queue. Here every fault is named: entry, video, frame.
"""

from __future__ import annotations

import gzip
import math
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lbvq.evaluation.annotations import GroundTruth, Video, read_masks
from lbvq.evaluation.lvis import images_as_videos, results_as_videos
from lbvq.evaluation.mask_file import MaskFile, read_mask_file
from lbvq.evaluation.overlap import TubeRuns
from lbvq.files.writing import atomic_path

ARCHIVE_MEMBER = "results.json"


@dataclass(frozen=True)
class Server:
    """What one server wants beyond the form that all share.

    Attributes:
        images: results are about images, not videos.
        null_frames: frames without the object may be null; otherwise they need an encoded empty mask.
        max_per_item: predictions of one video or image; more are dropped or refused.
        usual_per_item: what is counted at most; more is only reported.
    """

    images: bool = False
    null_frames: bool = True
    max_per_item: int | None = None
    usual_per_item: int | None = None


SERVERS = {
    "ytvis": Server(),
    "ovis": Server(),
    # The published code looks for height and width of null frames and fails.
    "hq_ytvis": Server(null_frames=False),
    "lvvis": Server(),
    "burst": Server(),
    "coco": Server(images=True, usual_per_item=100),
    "lvis": Server(images=True, max_per_item=300),
}


@dataclass
class Findings:
    """Faults make a server refuse or misread the file; remarks do not."""

    num_entries: int = 0
    faults: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def check_submission(results: str | Path, annotations: str | Path, server: str, max_faults: int = 20) -> Findings:
    """Look for faults; stops after `max_faults`.

    Args:
        results: .json, or .zip as it would be uploaded.
        annotations: file of the data set; its annotations may be missing.
        server: one of SERVERS.
        max_faults: faults to report at most.
    """
    rules = SERVERS[server]
    findings = Findings()
    path = Path(results)
    if path.suffix == ".zip":
        _check_archive(path, findings)
    try:
        file = read_mask_file(path)
        truth = _read_items(annotations, rules)
    except ValueError as error:
        findings.faults.append(str(error))
        return findings
    if not isinstance(file.document, list):
        findings.faults.append(f"{file.name}: results must be a list, got {type(file.document).__name__}")
        return findings
    findings.num_entries = len(file.document)
    for fault in _entry_faults(file, truth, rules):
        findings.faults.append(fault)
        if len(findings.faults) >= max_faults:
            findings.remarks.append(f"stopped after {max_faults} faults")
            return findings
    _count_items(file, truth, rules, findings)
    return findings


def _read_items(annotations: str | Path, rules: Server) -> GroundTruth:
    """Videos (or images as videos of one frame) and categories, without annotations."""
    file = images_as_videos(read_mask_file(annotations)) if rules.images else read_mask_file(annotations)
    if not isinstance(file.document, Mapping):
        raise ValueError(f"{annotations}: expected an annotation file, got {type(file.document).__name__}")
    return GroundTruth(file._replace(document={**file.document, "annotations": None}))


def _check_archive(path: Path, findings: Findings) -> None:
    """Servers want one file, results.json, at the top of the archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if names != [ARCHIVE_MEMBER]:
                found = ", ".join(names[:5]) or "nothing"
                findings.faults.append(f"{path}: an archive must hold only {ARCHIVE_MEMBER}, at the top; found {found}")
    except zipfile.BadZipFile as error:
        findings.faults.append(f"{path}: not a zip archive ({error})")
    findings.remarks.append(f"archive of {path.stat().st_size / 1e6:.1f} MB")


def _entry_faults(file: MaskFile, truth: GroundTruth, rules: Server) -> Iterator[str]:
    """Check entry by entry; at most one fault each."""
    noun = "image" if rules.images else "video"
    if rules.images:
        file = results_as_videos(file, file.name)
    for index, entry in enumerate(file.document):
        where = f"{file.name}: entry {index}"
        if not isinstance(entry, Mapping):
            yield f"{where}: expected an object, got {type(entry).__name__}"
            continue
        missing = [key for key in ("video_id", "category_id", "score", "segmentations") if key not in entry]
        if missing:
            yield f"{where}: lacks {', '.join(missing)}"
            continue
        where = f"{where} ({noun} {entry['video_id']})"
        video = truth.videos.get(entry["video_id"]) if isinstance(entry["video_id"], int) else None
        fault = _number_fault(entry, video, truth, noun) or _mask_fault(entry, file, video, rules, where)
        if fault:
            yield f"{where}: {fault}" if not fault.startswith(where) else fault


def _number_fault(entry: Mapping[str, Any], video: Video | None, truth: GroundTruth, noun: str) -> str | None:
    if video is None:
        return f"the data set has no {noun} with this id"
    category, score = entry["category_id"], entry["score"]
    if isinstance(category, bool) or category not in truth.categories:
        ids = list(truth.categories)
        return f"category_id {category!r} is not among the {len(ids)} of the data set ({ids[0]} to {ids[-1]})"
    if isinstance(score, bool) or not isinstance(score, (int, float)) or not math.isfinite(score):
        return f"score must be a number, got {score!r}"
    if not 0 <= score <= 1:
        return f"score must be in [0, 1], got {score}"
    return None


def _mask_fault(entry: Mapping[str, Any], file: MaskFile, video: Video | None, rules: Server, where: str) -> str | None:
    masks = entry["segmentations"]
    try:
        texts = read_masks(masks, file, video, where)
        if video.length is not None and len(texts) != video.length:
            return f"expected {video.length} segmentations, one per frame, got {len(texts)}"
        if rules.images and None in texts:
            return "has no segmentation"
        listed = [frame for frame, text in enumerate(texts) if text is not None and text[:1] == b"["]
        if listed:
            return f"frame {listed[0]}: counts are a list; servers want the compressed string"
        if not rules.null_frames and None in texts and not {"height", "width"} <= set(entry):
            return f"frame {texts.index(None)} is null; this server wants an encoded empty mask there"
        TubeRuns([texts], video.size or (1, 1), lambda _, frame: f"{where}, frame {frame}")
    except ValueError as error:
        return str(error)
    return None


def _count_items(file: MaskFile, truth: GroundTruth, rules: Server, findings: Findings) -> None:
    noun = "image" if rules.images else "video"
    counts = Counter(entry["image_id" if rules.images else "video_id"] for entry in file.document)
    for limit, found in ((rules.max_per_item, findings.faults), (rules.usual_per_item, findings.remarks)):
        above = [item for item, count in counts.items() if limit is not None and count > limit]
        if above:
            found.append(
                f"{file.name}: {len(above)} {noun}s have more than {limit} predictions, the first is {above[0]}"
            )
    without = [item for item in truth.videos if item not in counts]
    if without:
        findings.remarks.append(f"{len(without)} of {len(truth.videos)} {noun}s have no prediction, first {without[0]}")


def pack(results: str | Path, archive: str | Path) -> int:
    """Write results as results.json into a new archive and return its size in bytes.

    Raises:
        FileExistsError: the archive is there already.
    """
    archive = Path(archive)
    if archive.exists():
        raise FileExistsError(f"{archive} exists already; remove it or choose another name")
    source = Path(results)
    with atomic_path(archive) as part, zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as target:
        if source.suffix == ".json":
            target.write(source, ARCHIVE_MEMBER)
        else:  # an archive of another layout
            with target.open(ARCHIVE_MEMBER, "w", force_zip64=True) as stream:
                stream.write(_read_text(source))
    return archive.stat().st_size


def _read_text(source: Path) -> bytes:
    if source.suffix == ".gz":
        return gzip.decompress(source.read_bytes())
    with zipfile.ZipFile(source) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".json"))
        return archive.read(name)
