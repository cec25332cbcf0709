"""Check a results file against what evaluation servers accept, and pack it.

Servers answer a wrong file with a bare failure after hours in a queue. Here every fault is named: entry, video, frame.
The rules are those of scoring (`read_detection`), so what passes here can be scored, and those of the servers on top.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lbvq.evaluation.annotations import Detection, GroundTruth, Video, read_detection
from lbvq.evaluation.overlap import check_tubes
from lbvq.files.json_files import PACKING, json_members, open_json
from lbvq.files.mask_file import MaskFile, read_mask_file
from lbvq.files.writing import atomic_path

ARCHIVE_MEMBER = "results.json"
_MASKS_AT_ONCE = 2048  # decoded together
_COUNTED = 100  # predictions of one video (or image) and class that the published metrics look at


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
    usual_per_item: int | None = _COUNTED


SERVERS = {
    "ytvis": Server(),
    "ovis": Server(),
    # The published code looks for height and width of null frames and fails.
    "hq_ytvis": Server(null_frames=False),
    "lvvis": Server(),
    "burst": Server(),
    "coco": Server(images=True),
    "lvis": Server(images=True, max_per_item=300, usual_per_item=None),
}


@dataclass
class Findings:
    """What was found.

    Attributes:
        num_entries: predictions in the file.
        faults: make a server refuse or misread the results.
        layout: faults of the file around the results, which `pack` mends.
        remarks: what a server accepts, but nobody is likely to want.
    """

    num_entries: int = 0
    faults: list[str] = field(default_factory=list)
    layout: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def check_submission(results: str | Path, annotations: str | Path, server: str, max_faults: int = 20) -> Findings:
    """Look for faults; stops after `max_faults`.

    Args:
        results: .json, or .zip as it would be uploaded.
        annotations: file of the data set; its annotations may be missing.
        server: one of SERVERS.
        max_faults: faults to report at most.

    Raises:
        ValueError: the annotation file is broken.
        OSError: a file is missing or cannot be read.
    """
    rules = SERVERS[server]
    truth = _read_items(annotations, rules)
    findings = Findings()
    path = Path(results)
    try:
        _check_layout(path, findings)
        file = read_mask_file(path)
    except ValueError as error:
        findings.faults.append(str(error))
        return findings
    if not isinstance(file.document, list):
        findings.faults.append(f"{file.name}: results must be a list, got {type(file.document).__name__}")
        return findings
    findings.num_entries = len(file.document)
    if not file.document:
        findings.faults.append(f"{file.name}: there is no prediction; the servers' readers fail on an empty list")
        return findings
    counter = _Counter(truth, file.name)
    for detection in _detections(file, truth, rules):
        if isinstance(detection, Detection):
            counter.add(detection)
            continue
        findings.faults.append(detection)
        if len(findings.faults) >= max_faults:
            findings.remarks.append(f"stopped after {max_faults} faults")
            return findings
    counter.report(rules, findings)
    return findings


def _read_items(annotations: str | Path, rules: Server) -> GroundTruth:
    """Videos (or images as videos of one frame) and categories, without annotations."""
    file = read_mask_file(annotations)
    if not isinstance(file.document, Mapping):
        raise ValueError(f"{annotations}: expected an annotation file, got {type(file.document).__name__}")
    noun = "image" if rules.images else "video"
    return GroundTruth(file._replace(document={**file.document, "annotations": None}), noun=noun)


def _check_layout(path: Path, findings: Findings) -> None:
    """Servers want a zip archive with one file, results.json, at its top, in UTF-8 without a byte order mark."""
    with open(path, "rb") as stream:
        head = stream.read(4)
    if path.suffix == ".zip":
        findings.remarks.append(f"archive of {path.stat().st_size / 1e6:.1f} MB")
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
                members = json_members(archive)
                if members:
                    with archive.open(members[0]) as stream:
                        head = stream.read(4)
        except zipfile.BadZipFile as error:
            raise ValueError(f"{path}: not a zip archive ({error})") from None
        except (RuntimeError, NotImplementedError):  # reading the results says more
            return
        if names != [ARCHIVE_MEMBER]:
            found = ", ".join(names[:5]) or "nothing"
            findings.layout.append(f"{path}: an archive must hold only {ARCHIVE_MEMBER}, at the top; found {found}")
    elif path.suffix != ".json":
        findings.layout.append(f"{path}: servers want a .zip archive with {ARCHIVE_MEMBER}")
        return
    encoding = json.detect_encoding(head)
    if encoding != "utf-8":
        name = "a byte order mark" if encoding == "utf-8-sig" else encoding
        findings.layout.append(f"{path}: the results are written with {name}; servers read UTF-8 without a mark")


def _detections(file: MaskFile, truth: GroundTruth, rules: Server) -> Iterator[Detection | str]:
    """Check entry by entry: the detection, or its first fault."""
    batch: list[Detection | str] = []
    num_masks = 0
    for index, entry in enumerate(file.document):
        found = _read_entry(entry, index, file, truth, rules)
        batch.append(found)
        num_masks += len(found.masks) if isinstance(found, Detection) else 0
        if num_masks >= _MASKS_AT_ONCE:
            yield from _with_faults_of_masks(batch, file, truth)
            batch, num_masks = [], 0
    yield from _with_faults_of_masks(batch, file, truth)


def _read_entry(entry: Any, index: int, file: MaskFile, truth: GroundTruth, rules: Server) -> Detection | str:
    """The detection, or its first fault but for those that only decoding its masks shows."""
    try:
        detection = read_detection(entry, index, file, truth)
    except ValueError as error:
        return str(error)
    fault = _number_fault(detection, truth) or _form_fault(detection, entry, truth.videos[detection.video_id], rules)
    return f"{_where(detection, file, truth)}: {fault}" if fault else detection


def _where(detection: Detection, file: MaskFile, truth: GroundTruth) -> str:
    return f"{file.name}: detection {detection.index} ({truth.noun} {detection.video_id})"


def _with_faults_of_masks(
    batch: Sequence[Detection | str], file: MaskFile, truth: GroundTruth
) -> Iterator[Detection | str]:
    """Decode all masks at once, and again one by one only where one of them is broken."""
    by_size: dict[tuple[int, int], list[Detection]] = {}
    for each in batch:
        if isinstance(each, Detection):
            by_size.setdefault(truth.videos[each.video_id].size or (1, 1), []).append(each)
    faults = {index: text for group in by_size.items() for index, text in _faults_of_masks(*group, file, truth)}
    for each in batch:
        yield each if isinstance(each, str) else faults.get(each.index, each)


def _faults_of_masks(
    size: tuple[int, int], detections: Sequence[Detection], file: MaskFile, truth: GroundTruth
) -> Iterator[tuple[int, str]]:
    """Index and first fault of the detections with a broken mask; all have one frame size."""

    def where(index: int, frame: int) -> str:
        return f"{_where(detections[index], file, truth)}, frame {frame}"

    try:
        check_tubes([each.masks for each in detections], size, where)
    except ValueError as error:
        if len(detections) == 1:
            yield detections[0].index, str(error)
            return
        for each in detections:
            yield from _faults_of_masks(size, [each], file, truth)


def _number_fault(detection: Detection, truth: GroundTruth) -> str | None:
    if detection.category_id not in truth.categories:
        ids = list(truth.categories)
        known = (
            f"the {len(ids)} of the data set ({ids[0]} to {ids[-1]})"
            if ids
            else "those of the data set, which has none"
        )
        return f"category_id {detection.category_id} is not among {known}"
    if not 0 <= detection.score <= 1:
        return f"score must be in [0, 1], got {detection.score}"
    return None


def _form_fault(detection: Detection, entry: Mapping[str, object], video: Video, rules: Server) -> str | None:
    """The first fault of the list of masks and of how they are written."""
    texts = detection.masks
    if video.length is not None and len(texts) != video.length:
        return f"expected {video.length} segmentations, one per frame, got {len(texts)}"
    if max(filter(None, texts), default=b"") >= b"[":  # a quotation mark comes before it
        listed = next(frame for frame, text in enumerate(texts) if text is not None and text[:1] == b"[")
        return f"frame {listed}: counts are a list; servers want the compressed string"
    if not rules.null_frames and None in texts and not {"height", "width"} <= set(entry):
        return f"frame {texts.index(None)} is null; this server wants an encoded empty mask there"
    return None


class _Counter:
    """Counts predictions per video and finds those that occur twice."""

    def __init__(self, truth: GroundTruth, name: str) -> None:
        self._truth = truth
        self._name = name
        self._per_item: Counter[int] = Counter()
        self._first: dict[tuple[int, int, int], int] = {}  # video, class and masks -> entry
        self._repeated: list[tuple[int, int]] = []

    def add(self, detection: Detection) -> None:
        self._per_item[detection.video_id] += 1
        key = (detection.video_id, detection.category_id, hash(tuple(detection.masks)))
        first = self._first.setdefault(key, detection.index)
        if first != detection.index:
            self._repeated.append((detection.index, first))

    def report(self, rules: Server, findings: Findings) -> None:
        noun = self._truth.noun
        for limit, found in ((rules.max_per_item, findings.faults), (rules.usual_per_item, findings.remarks)):
            above = [item for item, count in self._per_item.items() if limit is not None and count > limit]
            if above:
                text = f"{len(above)} {noun}s have more than {limit} predictions, the first is {above[0]}"
                kept = "" if found is findings.faults else f"; at most {limit} of a {noun} and class count"
                found.append(f"{self._name}: {text}{kept}")
        if self._repeated:
            index, first = self._repeated[0]
            text = f"{len(self._repeated)} predictions have the {noun}, class and masks of an earlier one"
            findings.remarks.append(f"{self._name}: {text}, which counts as false; the first is {index}, like {first}")
        without = [item for item in self._truth.videos if item not in self._per_item]
        if without:
            total = len(self._truth.videos)
            findings.remarks.append(f"{len(without)} of {total} {noun}s have no prediction, first {without[0]}")


def pack(results: str | Path, archive: str | Path) -> int:
    """Write results as results.json into a new archive and return its size in bytes.

    The source may have any layout that can be read; the copy is UTF-8 without a byte order mark.

    Raises:
        FileExistsError: the archive is there already.
    """
    archive = Path(archive)
    if archive.exists():
        raise FileExistsError(f"{archive} exists already; remove it or choose another name")
    with (
        open_json(results) as source,
        atomic_path(archive) as part,
        zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED, compresslevel=PACKING) as target,
        target.open(ARCHIVE_MEMBER, "w", force_zip64=True) as stream,
    ):
        shutil.copyfileobj(source, stream, 1 << 20)
    return archive.stat().st_size
