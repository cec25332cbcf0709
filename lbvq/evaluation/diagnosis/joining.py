"""The best joining of predicted masks into tracks: what AP would be if identities were right.

The masks that one category has in one video are dealt out anew: in every frame each track of the ground truth gets one
of them or none, and no mask is used twice, so that the tracks are found at as many IoU thresholds as possible. Where
every track can have its own best tube, as nearly always, this is exact by Dinkelbach's method; tracks that want the
same masks are settled by an integer program. Only where that is too large, or takes too long, do the tracks choose in
the order of their best overlaps; `Joining.exact` tells.

A joined track has the best score among its parts. Masks that it does not use stay in the tracks they were in; one that
it pushes out of its own track goes to the track whose mask came in its place, and one that nothing came for either
stays or becomes a track of its own: both are tried. The new tracks are scored like any prediction. The tracks as they
are, are a joining too. Of the three a category takes the best at every threshold, so the result is never below AP.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array, csr_array

from lbvq.evaluation.diagnosis.frames import FramePixels
from lbvq.evaluation.diagnosis.outcomes import Outcomes

MAX_CHOICES = 20_000  # of an integer program
_SECONDS = 20.0  # after which the best joining so far is taken
_GAP = 1e-4  # of the number of thresholds: less than one
_TIE = 1e-3  # share of a threshold that better overlaps are worth together


@dataclass(frozen=True)
class JoinedTrack:
    """A track of the ground truth and the masks that are its best tube.

    Attributes:
        track: position in the ground truth.
        parts: positions of the detections that give masks, best score first.
        iou_before: of the best single one of them.
        iou: of the tube.
    """

    track: int
    parts: tuple[int, ...]
    iou_before: float
    iou: float


@dataclass
class Joining:
    """Detections after the best joining.

    Attributes:
        variants: all detections in the form of `compare_all`, without and with masks that stay.
        tracks: joined of several predictions.
        exact: whether every joining is the best there is.
    """

    variants: list[dict[str, np.ndarray]]
    tracks: list[JoinedTrack] = field(default_factory=list)
    exact: bool = True


def best_joining(judged: Outcomes, collected: Mapping[str, np.ndarray], frames: Iterable[FramePixels]) -> Joining:
    """Join the masks of every video and category anew.

    Args:
        judged: outcomes.
        collected: what `compare_all` returns; its detections are those that `frames` name by their `order`.
        frames: what `frame_pixels` returns.
    """
    position = {order: index for index, order in enumerate(collected["order"].tolist())}
    kept = np.zeros(len(position), bool)  # what the detection limit leaves out takes no part
    kept[judged.source] = True
    takes_part = kept.copy()
    joining = Joining([])
    added: tuple[list[_NewTrack], list[_NewTrack]] = [], []
    for part in frames:
        source = np.array([position.get(each, -1) for each in part.detections.tolist()], np.int64)
        rows = np.flatnonzero((source >= 0) & takes_part[source])
        rows = rows[np.lexsort((source[rows], -collected["score"][source[rows]]))]
        group = _Group(part, rows, judged)
        choice, exact = group.assign(judged.thresholds)
        joining.exact &= exact
        homes = group.homes(choice)
        if homes is None:
            continue
        kept[source[rows]] = False
        joining.tracks += group.joined(choice, source)
        added[0].extend(group.deal(choice, homes, source))
        added[1].extend(group.deal(group.put_back(choice, homes), homes, source))
    joining.variants = [_replace(collected, kept, each) for each in added]
    return joining


@dataclass(frozen=True)
class _NewTrack:
    source: int  # the detection that gives score, place in the file, and the like
    track: np.ndarray  # positions of the tracks of its group
    iou: np.ndarray  # with each of them


class _Group:
    """The masks of one video and category, those of the best scores first."""

    def __init__(self, part: FramePixels, rows: np.ndarray, judged: Outcomes) -> None:
        self._part, self._rows = part, rows
        self._found, self._shared = part.found[rows], part.shared[rows]
        self._goals = np.flatnonzero(judged.counted[part.tracks])

    def assign(self, thresholds: np.ndarray) -> tuple[np.ndarray, bool]:
        """(g, T) which mask each track gets, -1 for none, and whether that is the best."""
        choice = np.full(self._part.wanted.shape, -1)
        reach = np.zeros(len(choice))
        for g in self._goals.tolist():
            choice[g], reach[g] = self._best_tube(g)
        hopeless = reach < thresholds[0]
        choice[hopeless] = -1
        exact = True
        for members in _conflicts(choice):
            program = self._program(members, reach, thresholds)
            if program is None:
                self._in_turn(members[np.argsort(-reach[members], kind="stable")], choice)
                exact = False
            else:
                choice[members], proved = program
                exact &= proved
        return choice, exact

    def _best_tube(self, g: int, free: np.ndarray | None = None) -> tuple[np.ndarray, float]:
        """(T,) masks of the tube with the largest IoU with one track, and that IoU; only `free` (n, T) masks."""
        shared, found, wanted = self._shared[:, g], self._found, self._part.wanted[g]
        if not len(shared) or not wanted.any():
            return np.full(len(wanted), -1), 0.0
        frame = np.arange(len(wanted))
        choice, iou = np.full(len(wanted), -1), 0.0
        while True:  # Dinkelbach: the IoU grows with every step, and there are finitely many tubes
            gain = shared - iou * (found - shared)
            gain = gain if free is None else np.where(free, gain, -np.inf)
            best = gain.argmax(0)
            used = (gain[best, frame] > 0) & (shared[best, frame] > 0)
            inside = shared[best, frame][used].sum()
            new = inside / max(1, wanted.sum() + found[best, frame][used].sum() - inside)
            if new <= iou:
                return choice, iou
            choice, iou = np.where(used, best, -1), new

    def _in_turn(self, members: np.ndarray, choice: np.ndarray) -> None:
        """One track after the other takes its best tube of the masks that are left."""
        free = np.ones(self._found.shape, bool)
        for g in members.tolist():
            choice[g], _ = self._best_tube(g, free)
            frame = np.flatnonzero(choice[g] >= 0)
            free[choice[g][frame], frame] = False

    def _program(
        self, members: np.ndarray, reach: np.ndarray, thresholds: np.ndarray
    ) -> tuple[np.ndarray, bool] | None:
        """(members, T) masks that let the tracks reach most thresholds together; None if there are too many choices.

        x = 1 uses a mask for a track in a frame, y = 1 says that a track reaches a threshold t: pixels shared minus t
        times the union are not negative then. All are linear in x.
        """
        mask, member, frame = np.nonzero(self._shared[:, members])
        goals = [(m, t) for m, g in enumerate(members.tolist()) for t in thresholds[thresholds <= reach[g]].tolist()]
        if len(mask) > MAX_CHOICES:
            return None
        shared, found = self._shared[mask, members[member], frame], self._found[mask, frame]
        wanted = self._part.wanted[members].sum(1)
        rows: list[np.ndarray] = []
        columns: list[np.ndarray] = []
        values: list[np.ndarray] = []
        lower = []
        for place, (m, t) in enumerate(goals):  # sum x (shared - t (found - shared)) - (t wanted + low) y >= -low
            own = np.flatnonzero(member == m)
            gain = shared[own] - t * (found[own] - shared[own])
            low = -np.minimum(gain, 0).sum()
            rows.append(np.full(len(own) + 1, place))
            columns.append(np.append(own, len(mask) + place))
            values.append(np.append(gain, -(t * wanted[m] + low)) / max(1, wanted[m]))
            lower.append(-low / max(1, wanted[m]))
        size = len(mask) + len(goals)
        reaches = coo_array(
            (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))), (len(goals), size)
        )
        constraints = [
            LinearConstraint(csr_array(reaches), np.array(lower), np.inf),
            LinearConstraint(_at_most_one(mask * self._found.shape[1] + frame, size), -np.inf, 1),
            LinearConstraint(_at_most_one(member * self._found.shape[1] + frame, size), -np.inf, 1),
        ]
        better = _TIE * (shared - 0.5 * (found - shared)) / max(1, wanted.sum())
        result = milp(
            -np.concatenate((better, np.ones(len(goals)))),
            constraints=constraints,
            bounds=Bounds(0, 1),
            integrality=np.ones(size),
            options={"time_limit": _SECONDS, "mip_rel_gap": _GAP},
        )
        if result.x is None:
            return None
        choice = np.full((len(members), self._found.shape[1]), -1)
        used = np.flatnonzero(result.x[: len(mask)] > 0.5)
        choice[member[used], frame[used]] = mask[used]
        return choice, result.status == 0

    def homes(self, choice: np.ndarray) -> dict[int, int] | None:
        """Track -> the row whose place in the results it takes, if one is free; None where nothing changes."""
        parts = {g: np.unique(masks[masks >= 0]).tolist() for g, masks in enumerate(choice) if (masks >= 0).any()}
        if all(len(each) == 1 for each in parts.values()) and len({each[0] for each in parts.values()}) == len(parts):
            return None
        homes: dict[int, int] = {}
        for g in sorted(parts, key=lambda each: parts[each][0]):  # the best score first
            home = next((row for row in parts[g] if row not in homes.values()), None)
            if home is not None:
                homes[g] = home
        return homes

    def put_back(self, choice: np.ndarray, homes: Mapping[int, int]) -> np.ndarray:
        """Masks that nothing came for stay in the tracks they were in."""
        choice = choice.copy()
        for g, row in homes.items():
            choice[g, (choice[g] < 0) & (self._found[row] > 0) & ~(choice == row).any(0)] = row
        return choice

    def deal(self, choice: np.ndarray, homes: Mapping[int, int], source: np.ndarray) -> list[_NewTrack]:
        """All masks as new tracks."""
        goals = np.flatnonzero((choice >= 0).any(1)).tolist()
        new = [self._track(choice[g], source[self._rows[choice[g][choice[g] >= 0].min()]]) for g in goals]
        left = self._left(choice, homes)
        rows = np.flatnonzero((left >= 0).any(1)).tolist()
        return new + [self._track(left[row], source[self._rows[row]]) for row in rows]

    def _left(self, choice: np.ndarray, homes: Mapping[int, int]) -> np.ndarray:
        """(n, T) masks that no joined track uses, by the row of the track in which they are then; -1 for none."""
        left = np.full(self._found.shape, -1)
        for t in range(left.shape[1]):
            pushed = {home: int(choice[g, t]) for g, home in homes.items() if choice[g, t] >= 0}
            used = set(choice[:, t].tolist())
            for row in np.flatnonzero(self._found[:, t]).tolist():
                if row not in used:
                    place = row
                    while place in pushed:  # another mask came in its place: it goes where that one was
                        place = pushed[place]
                    left[place, t] = row
        return left

    def _track(self, masks: np.ndarray, source: int) -> _NewTrack:
        """Overlap the tube of (T,) masks with all tracks."""
        frame = np.flatnonzero(masks >= 0)
        shared = self._shared[masks[frame], :, frame].sum(0)
        union = self._part.wanted.sum(1) + self._found[masks[frame], frame].sum() - shared
        return _NewTrack(int(source), self._part.tracks, shared / np.maximum(union, 1))

    def joined(self, choice: np.ndarray, source: np.ndarray) -> list[JoinedTrack]:
        """The tracks that are made of several predictions."""
        found = []
        for g in range(len(choice)):
            parts = np.unique(choice[g][choice[g] >= 0])
            if len(parts) > 1:
                total = self._shared[parts, g].sum(1)
                alone = total / np.maximum(self._found[parts].sum(1) + self._part.wanted[g].sum() - total, 1)
                iou = self._track(choice[g], 0).iou[g]
                names = tuple(source[self._rows[parts]].tolist())
                found.append(JoinedTrack(int(self._part.tracks[g]), names, float(alone.max()), float(iou)))
        return found


def _conflicts(choice: np.ndarray) -> list[np.ndarray]:
    """Groups of tracks that want the same masks, directly or through others."""
    group = np.arange(len(choice))
    for t in range(choice.shape[1]):
        for mask in np.unique(choice[:, t][choice[:, t] >= 0]).tolist():
            together = np.unique(group[choice[:, t] == mask])
            group[np.isin(group, together)] = together[0]
    return [members for each in np.unique(group).tolist() if len(members := np.flatnonzero(group == each)) > 1]


def _at_most_one(key: np.ndarray, size: int) -> csr_array:
    """Rows that add up the choices of equal keys."""
    _, row = np.unique(key, return_inverse=True)
    return csr_array(coo_array((np.ones(len(key)), (row, np.arange(len(key)))), (int(row.max()) + 1, size)))


def _replace(collected: Mapping[str, np.ndarray], kept: np.ndarray, added: list[_NewTrack]) -> dict[str, np.ndarray]:
    """Detections and pairs with some taken out and others appended."""
    new_index = np.cumsum(kept) - 1
    pairs = kept[collected["pair_detection"]]
    source = np.concatenate((np.flatnonzero(kept), np.array([each.source for each in added], np.int64)))
    lengths = [len(each.track) for each in added]
    columns = {key: value[source] for key, value in collected.items() if not key.startswith("pair_")}
    own = np.repeat(np.arange(len(added)) + np.count_nonzero(kept), lengths)
    columns["pair_detection"] = np.concatenate((new_index[collected["pair_detection"][pairs]], own))
    for key, values in (("pair_track", [each.track for each in added]), ("pair_iou", [each.iou for each in added])):
        columns[key] = np.concatenate([collected[key][pairs], *values])
    return columns
