"""AP if errors of some kinds had not been made, and what every single error costs.

Mending is that of TIDE, see `kinds`. An error that was meant to find a track finds it; where a better detection has
found it already, the error goes, and where a worse one has, that one goes. All other errors of detections go. Missed
tracks leave the number of tracks to be found, as nobody knows the scores that they would get; a category without
another track has AP 100 then.

So at every score a category has at least the true and at most the false detections that it had: no mended AP is ever
below AP, which is not true of, say, giving every detection the class of the track that it overlaps most.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np

from lbvq.evaluation.diagnosis.kinds import CLASS, MEANT, MISSED, Errors
from lbvq.evaluation.diagnosis.outcomes import Outcomes


@dataclass(frozen=True)
class _Change:
    """What mending does to detections at one threshold."""

    gone: np.ndarray  # rows that are not false any more
    true: np.ndarray  # rows that find a track
    place: np.ndarray  # the categories in which they do
    replaced: np.ndarray  # rows that do not find theirs any more


def mended_precision(judged: Outcomes, errors: Errors, kinds: Collection[int], base: np.ndarray) -> np.ndarray:
    """(S, R, K) precision without errors of these kinds; `base` is `judged.precision()`."""
    true, false = judged.true.copy(), judged.false.copy()
    moved: list[tuple[int, int, int]] = []  # row, threshold, category of detections that find a track of another class
    for s in range(len(judged.thresholds)):
        rows = np.flatnonzero(np.isin(errors.kind[:, s], list(kinds)))
        change = _mend(judged, errors, s, rows)
        false[change.gone, s], true[change.replaced, s] = False, False
        stays = judged.place[change.true] == change.place
        true[change.true[stays], s] = True
        moved += [
            (row, s, k) for row, k in zip(change.true[~stays].tolist(), change.place[~stays].tolist(), strict=True)
        ]
    counts = np.repeat(judged.num_tracks[None], len(judged.thresholds), axis=0)
    if MISSED in kinds:
        for s in range(len(counts)):
            counts[s] -= np.bincount(judged.track_place[errors.missed[:, s]], minlength=counts.shape[1])
    changed = np.zeros(counts.shape[1], bool)
    changed[judged.place[((true != judged.true) | (false != judged.false)).any(1)]] = True
    changed |= (counts != judged.num_tracks).any(0)
    changed[[k for _, _, k in moved]] = True
    precision = base.copy()
    for k in np.flatnonzero(changed & (judged.num_tracks > 0)).tolist():
        others = [(row, s) for row, s, own in moved if own == k]
        precision[..., k] = _category_precision(judged, k, true, false, others, counts[:, k])
    return precision


def _category_precision(
    judged: Outcomes, k: int, true: np.ndarray, false: np.ndarray, others: list[tuple[int, int]], counts: np.ndarray
) -> np.ndarray:
    """(S, R) precision of category k with the detections (row, threshold) that came from other categories."""
    is_own = judged.place == k
    rows = np.union1d(np.flatnonzero(is_own), np.array([row for row, _ in others], np.int64))
    own_true, own_false = true[rows] & is_own[rows, None], false[rows] & is_own[rows, None]
    for row, s in others:
        own_true[np.searchsorted(rows, row), s] = True
    precision = judged.precision_of(rows, own_true, own_false, counts)
    precision[counts == 0] = 1.0
    return precision


def _mend(judged: Outcomes, errors: Errors, s: int, rows: np.ndarray) -> _Change:
    """Mend the errors at ascending `rows` together, at one threshold."""
    meant = rows[np.isin(errors.kind[rows, s], MEANT)]
    target, first = np.unique(errors.target[meant, s], return_index=True)  # the best of those meant for a track
    best = meant[first]
    finder = _finders(judged, s)[target]
    wins = best < finder
    replaced = finder[wins & (finder < len(judged.score))]
    return _Change(rows, best[wins], judged.track_place[target[wins]], replaced)


def _finders(judged: Outcomes, s: int) -> np.ndarray:
    """(G,) best row that has found each track, the number of detections for none."""
    finder = np.full(len(judged.counted), len(judged.score))
    rows = np.flatnonzero(judged.true[:, s])[::-1]
    finder[judged.track[rows, s]] = rows
    return finder


def error_costs(judged: Outcomes, errors: Errors) -> tuple[np.ndarray, np.ndarray]:
    """AP in [0, 1] that mending nothing but one error would bring, at one threshold.

    Returns:
        (D, S) of detections, 0 where they are no error, and (G, S) of missed tracks.
    """
    costs, missed_costs = np.zeros(judged.false.shape), np.zeros(errors.missed.shape)
    counts = judged.num_tracks
    share = 1 / max(1, counts.size and np.count_nonzero(counts)) / max(1, len(judged.thresholds))
    for s in range(len(judged.thresholds)):
        finder = _finders(judged, s)
        for k in np.flatnonzero(counts).tolist():
            category = _Category(judged, k, s)
            for rows, gains in _gains(judged, errors, category, finder):
                np.add.at(costs[:, s], rows, share * gains)
            missed = errors.missed[:, s] & (judged.track_place == k)
            if missed.any():
                missed_costs[missed, s] = share * (category.without_one_track() - category.ap)
    return costs, missed_costs


def _gains(
    judged: Outcomes, errors: Errors, category: _Category, finder: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows of errors, and what mending each of them brings in a category; a class error concerns two of them."""
    kind, target = errors.kind[:, category.threshold], errors.target[:, category.threshold]
    rows = np.arange(len(kind))
    finds = np.isin(kind, MEANT) & (rows < finder[target])
    own = (kind >= 0) & (judged.place == category.place)
    leaves = own & (~finds | (kind == CLASS))
    arrives = finds & (kind == CLASS) & (judged.track_place[target] == category.place)
    yield rows[leaves], category.gains(rows[leaves], drops=True)
    for chosen, drops in ((own & finds & (kind != CLASS), True), (arrives, False)):
        yield rows[chosen], category.gains(rows[chosen], drops=drops, replaced=finder[target[chosen]])


class _Category:
    """True and false detections of one category at one threshold, and its AP if single ones were otherwise."""

    def __init__(self, judged: Outcomes, place: int, threshold: int) -> None:
        """Prepare the category at `place` and one position in the thresholds."""
        self.place, self.threshold = place, threshold
        own = np.flatnonzero(judged.place == place)
        self._true = own[judged.true[own, threshold]]
        self._false = own[judged.false[own, threshold]]
        self._false_before = np.searchsorted(self._false, self._true)
        self._recalls = judged.recalls
        self._count = int(judged.num_tracks[place])
        self._end = len(judged.score)
        self._weights = self._recall_weights(self._count)
        self.ap = float(self._ap(self._false_before[None])[0])

    def _recall_weights(self, count: int) -> np.ndarray:
        """Share of the recall thresholds that are first reached at each true detection, and one more."""
        needed = np.searchsorted(np.arange(count + 1) / count, self._recalls, side="left")
        columns = np.maximum(needed - 1, 0)[needed <= count]
        width = len(self._true) + 1
        return np.bincount(columns[columns < width], minlength=width) / len(self._recalls)

    def _ap(self, false_before: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
        """(E,) AP from the number of false detections before each of m true ones, (E, m); inf stands for none."""
        weights = self._weights if weights is None else weights
        place = np.arange(1, false_before.shape[1] + 1)
        best = np.maximum.accumulate((place / (place + false_before))[:, ::-1], axis=1)[:, ::-1]
        return best @ weights[: best.shape[1]]

    def without_one_track(self) -> float:
        """AP if one track less was to be found."""
        if self._count == 1:
            return 1.0
        return float(self._ap(self._false_before[None], self._recall_weights(self._count - 1))[0])

    def gains(self, rows: np.ndarray, *, drops: bool, replaced: np.ndarray | None = None) -> np.ndarray:
        """(E,) what AP gains if one detection was otherwise.

        Args:
            rows: (E,) the detections.
            drops: it is not false here any more.
            replaced: if it is true instead: (E,) the true detection that is true no more, past the last row for none.
        """
        if not len(rows):
            return np.zeros(0)
        true_before, false_before = np.searchsorted(self._true, rows), np.searchsorted(self._false, rows)
        if replaced is None:  # where no true detection lies between, the gain is the same
            last = np.zeros_like(rows)
            events = np.stack((true_before, last, last), axis=1)
        else:
            place = np.where(replaced < self._end, np.searchsorted(self._true, replaced), len(self._true))
            events = np.stack((true_before, false_before, place), axis=1)
        events, inverse = np.unique(events, axis=0, return_inverse=True)
        step = max(1, (1 << 21) // (len(self._true) + 1))
        parts = []
        for start in range(0, len(events), step):
            before, false, gone = events[start : start + step].T[..., None]
            parts.append(self._changed(before, false, gone, drops, replaced is not None))
        return (np.concatenate(parts) - self.ap)[inverse.ravel()]

    def _changed(
        self, before: np.ndarray, false_before: np.ndarray, replaced: np.ndarray, drops: bool, inserts: bool
    ) -> np.ndarray:
        """(E,) AP after each event; (E, 1) arrays of true and false detections before it, and which true one goes."""
        num_true = len(self._true)
        column = np.arange(num_true + 1)
        source = np.broadcast_to(column, (len(before), num_true + 1))
        if inserts:
            source = np.where((column > before) & (column <= replaced), column - 1, column)
        padded = np.append(self._false_before, 0).astype(np.float64)
        values = padded[source] - (drops & (source >= before))
        values[source >= num_true] = np.inf
        if inserts:
            values = np.where(column == before, false_before, values)
        return self._ap(values)
