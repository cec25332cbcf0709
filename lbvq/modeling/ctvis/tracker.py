"""Births, deaths and memory of the objects of a video: the tracker of CTVIS.

"CTVIS: Consistent Training for Online Video Instance Segmentation" (ICCV 2023), section 3.1, after IDOL (ECCV 2022).
In every frame the best queries are kept as detections. A detection continues the track whose remembered vector is most
like its own, or else begins a new one. All a tracker knows is in the state it is handed: tensors and numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mask2former.transfer import to_device

NO_ROW = -1  # of a track that is remembered and not reported
NO_TRACK = -1  # of a detection

# `frame` and `num_rows` are numbers: of the next frame, and of the rows given away so far. `memory` and `tracks` are
# tables, a tensor per column. The memory has the tracks that detections may continue: `rows` (M,), `means` and
# `recent` (M, C) and (M, cache, C), `num_recent`, `counts` and `last` (M,), the number of vectors in `recent`, of
# appearances, and the last frame with one. The tracks that are reported: `rows` (N,), `logits` (N, K+1), their sum over
# `counts` (N,) frames, and `last` (N,).
TrackerState = dict[str, Any]
Table = dict[str, Tensor]


@dataclass(frozen=True)
class TrackRules:
    """How detections become tracks.

    Attributes:
        keep_above: queries with a class probability above it are detections; the best one always is.
        birth_above: detections with a class probability above it may begin a track.
        overlap_limit: a detection whose mask overlaps that of a better one by more (IoU) is dropped.
        match_above: similarity, 0..1, above which a detection continues a track.
        weigh_appearances: when a detection could continue several tracks, weigh them by their number of appearances.
        cache: vectors of a track that a new one is compared with.
        dead_after: frames without an appearance after which a track is no longer remembered.
        judge_after: after this frame number, short tracks are dropped from the result:
        short_below: those that appeared in fewer frames,
        missing_for: and not in this many last frames.
        least_cosine: a detection continues no track whose remembered vector has a smaller cosine with its own. As
            published there is no such limit (-1), and since similarities are shares, the only detection of a frame
            always continues some track, however unlike.
    """

    keep_above: float = 0.01
    birth_above: float = 0.01
    overlap_limit: float = 0.6
    match_above: float = 0.3
    weigh_appearances: bool = True
    cache: int = 10
    dead_after: int = 20
    judge_after: int = 8
    short_below: int = 3
    missing_for: int = 2
    least_cosine: float = -1.0

    def __post_init__(self) -> None:
        if self.cache < 1:
            raise ValueError(f"MODEL.TRACKER.MEMORY_BANK.maximum_cache must be at least 1, got {self.cache}.")


def start_tracker() -> TrackerState:
    """State before the first frame."""
    return {"frame": 0, "num_rows": 0, "memory": {}, "tracks": {}}


def track_frame(
    rules: TrackRules, state: TrackerState, frame: Mapping[str, Tensor]
) -> tuple[TrackerState, Tensor, Tensor]:
    """Continue, begin and end tracks with the detections of the next frame.

    Args:
        rules: of tracking.
        state: after the frame before; it is left as it is.
        frame: `kept` (n,) queries that are detections, best first; `logits` (Q, K+1) and `embeds` (Q, C). On the CPU.

    Returns:
        The state afterwards; rows (m,) of the tracks that appear in this frame, and the query (m,) of each.
    """
    kept = frame["kept"]
    now = state["frame"]
    logits, vectors = frame["logits"][kept].float(), frame["embeds"][kept].float()
    scores = logits.softmax(dim=-1)[:, :-1].amax(dim=-1)
    matched = match(rules, vectors, state["memory"])
    born = (matched == NO_TRACK) & (scores > rules.birth_above)

    memory = state["memory"] or empty_memory(rules, vectors.shape[1])
    memory, first_born = _with_new_rows(memory, born, vectors), len(memory["rows"])
    matched = torch.where(born, first_born + born.cumsum(0) - 1, matched)
    found = matched != NO_TRACK
    matched, vectors, logits = matched[found], vectors[found], logits[found]

    memory = remember(rules, memory, matched, vectors, now)
    memory, num_rows = give_rows(memory, matched, state["num_rows"])
    rows = memory["rows"][matched]
    tracks = report(state["tracks"] or empty_tracks(logits.shape[1]), rows, logits, now)

    memory = _select(memory, now - memory["last"] <= rules.dead_after)
    tracks, memory = drop_short(rules, tracks, memory, now)
    state = {"frame": now + 1, "num_rows": num_rows, "memory": memory, "tracks": tracks}
    return state, rows, kept[found]


# -- detections -------------------------------------------------------------------------------------------------------


def select_detections(rules: TrackRules, logits: Tensor, masks: Tensor) -> Tensor:
    """Queries of a frame that are detections, best first: (n,) int64, at least one.

    Args:
        rules: of tracking.
        logits: (Q, K+1) on the CPU.
        masks: (Q, h, w) logits.
    """
    scores = logits.float().softmax(dim=-1)[:, :-1].amax(dim=-1)
    scores, order = scores.sort(descending=True, stable=True)
    count = max(1, int((scores > rules.keep_above).sum()))
    order = order[:count]
    overlaps = mask_overlaps(masks[to_device(order, masks.device)] > 0).cpu()  # a probability above 0.5
    chosen: list[int] = []
    for index in range(count):
        if not chosen or overlaps[index, chosen].max() <= rules.overlap_limit:
            chosen.append(index)
    return order[chosen]


def mask_overlaps(masks: Tensor) -> Tensor:
    """IoU of every pair of masks (n, h, w) bool: (n, n); 1 for two masks without a pixel."""
    pixels = masks.flatten(1).float()
    common = pixels @ pixels.T
    areas = pixels.sum(dim=1)
    union = areas[:, None] + areas[None] - common
    return (common + 1e-6) / (union + 1e-6)


# -- matching ---------------------------------------------------------------------------------------------------------


def match(rules: TrackRules, vectors: Tensor, memory: Table) -> Tensor:
    """Which track of the memory each detection (n, C) continues: (n,) int64 rows of the table, or `NO_TRACK`.

    The best detection chooses first. A track that was chosen is worth nothing to the others.
    """
    matched = torch.full((len(vectors),), NO_TRACK, dtype=torch.int64)
    if not memory or len(memory["rows"]) == 0:
        return matched
    similarity = two_way_softmax(vectors @ memory["means"].T)
    if rules.least_cosine > -1:
        cosines = F.normalize(vectors, dim=-1) @ F.normalize(memory["means"], dim=-1).T
        similarity = similarity * (cosines >= rules.least_cosine)
    counts = memory["counts"].to(similarity)
    for detection in range(len(vectors)):
        row = similarity[detection]
        fits = row > rules.match_above
        if rules.weigh_appearances and fits.sum() > 1:
            row = row * torch.where(fits, counts, counts[fits].mean())
        best, track = row.max(dim=0)
        if best > rules.match_above:
            matched[detection] = track
            own = similarity[detection, track].clone()
            similarity[:, track] = 0.0
            similarity[detection, track] = own
    return matched


def two_way_softmax(products: Tensor) -> Tensor:
    """Mean of the softmax over tracks and the softmax over detections, (n, M) -> (n, M)."""
    return (products.softmax(dim=1) + products.softmax(dim=0)) / 2


# -- memory -----------------------------------------------------------------------------------------------------------


def empty_memory(rules: TrackRules, dim: int) -> Table:
    """A memory without tracks."""
    none = torch.zeros(0, dtype=torch.int64)
    return {
        "rows": none,
        "means": torch.zeros(0, dim),
        "recent": torch.zeros(0, rules.cache, dim),
        "num_recent": none,
        "counts": none,
        "last": none,
    }


def remember(rules: TrackRules, memory: Table, matched: Tensor, vectors: Tensor, now: int) -> Table:
    """Take the vectors (n, C) of tracks `matched` (n,) into the memory.

    The mean moves towards the new vector by as much as the new one is like the last few, on average; it does not move
    when it is unlike them. The first vector of a track is its mean.
    """
    memory = {name: column.clone() for name, column in memory.items()}
    recent, number = memory["recent"][matched], memory["num_recent"][matched]
    filled = torch.arange(rules.cache) >= rules.cache - number[:, None]  # the newest stand last
    cosines = F.cosine_similarity(vectors[:, None], recent, dim=-1) * filled
    share = (cosines.sum(dim=1) / number.clamp(min=1)).clamp(min=0)
    share = torch.where(number == 0, 1.0, share)[:, None]
    memory["means"][matched] = (1 - share) * memory["means"][matched] + share * vectors
    memory["recent"][matched] = torch.cat((recent[:, 1:], vectors[:, None]), dim=1)
    memory["num_recent"][matched] = (number + 1).clamp(max=rules.cache)
    memory["counts"][matched] += 1
    memory["last"][matched] = now
    return memory


def give_rows(memory: Table, matched: Tensor, num_rows: int) -> tuple[Table, int]:
    """Give a row of the result to every track that appears and has none; returns also how many rows there are now."""
    homeless = matched[memory["rows"][matched] == NO_ROW]
    rows = memory["rows"].clone()
    rows[homeless] = num_rows + torch.arange(len(homeless))
    return {**memory, "rows": rows}, num_rows + len(homeless)


def _with_new_rows(memory: Table, born: Tensor, vectors: Tensor) -> Table:
    """Add an empty entry for every detection (n,) that begins a track."""
    count = int(born.sum())
    longer = {}
    for name, column in memory.items():
        fill = NO_ROW if name == "rows" else 0
        longer[name] = torch.cat((column, column.new_full((count, *column.shape[1:]), fill)))
    return longer


# -- result -----------------------------------------------------------------------------------------------------------


def empty_tracks(num_logits: int) -> Table:
    """No track is reported."""
    none = torch.zeros(0, dtype=torch.int64)
    return {"rows": none, "logits": torch.zeros(0, num_logits, dtype=torch.float64), "counts": none, "last": none}


def report(tracks: Table, rows: Tensor, logits: Tensor, now: int) -> Table:
    """Add the logits (n, K+1) of the tracks in `rows` (n,) of the result; rows that are new are larger than all."""
    known = torch.isin(rows, tracks["rows"])
    order = torch.argsort(rows[~known])
    tracks = {
        "rows": torch.cat((tracks["rows"], rows[~known][order])),
        "logits": F.pad(tracks["logits"], (0, 0, 0, int((~known).sum()))),
        "counts": F.pad(tracks["counts"], (0, int((~known).sum()))),
        "last": F.pad(tracks["last"], (0, int((~known).sum()))),
    }
    places = torch.searchsorted(tracks["rows"], rows)
    tracks["logits"][places] += logits.double()
    tracks["counts"][places] += 1
    tracks["last"][places] = now
    return tracks


def drop_short(rules: TrackRules, tracks: Table, memory: Table, now: int) -> tuple[Table, Table]:
    """Stop reporting tracks that appeared too rarely and are gone; when one comes back it gets a new row."""
    if now <= rules.judge_after:
        return tracks, memory
    short = (tracks["counts"] < rules.short_below) & (now - tracks["last"] >= rules.missing_for)
    homeless = torch.isin(memory["rows"], tracks["rows"][short])
    return _select(tracks, ~short), {**memory, "rows": memory["rows"].masked_fill(homeless, NO_ROW)}


def mean_probabilities(tracks: Table) -> Tensor:
    """Class probabilities (N, K) of the mean logits over the frames in which a track appears."""
    return (tracks["logits"] / tracks["counts"][:, None]).float().softmax(dim=-1)[:, :-1]


def _select(table: Table, chosen: Tensor) -> Table:
    """Entries of a table, by a bool mask."""
    return {name: column[chosen] for name, column in table.items()}
