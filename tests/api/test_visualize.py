from __future__ import annotations

import numpy as np
import pytest

from lbvq.inference.results import VideoPrediction
from lbvq.video.draw import contact_sheet, draw_objects, draw_video, identity_color


def gray(height: int = 120, width: int = 160) -> np.ndarray:
    return np.full((height, width, 3), 128, dtype=np.uint8)


def square(height: int = 120, width: int = 160, top: int = 40, left: int = 50, side: int = 40) -> np.ndarray:
    mask = np.zeros((height, width), dtype=bool)
    mask[top : top + side, left : left + side] = True
    return mask


def test_the_first_identities_have_clearly_different_colours():
    colors = np.array([identity_color(identity) for identity in range(1, 17)], dtype=float)
    distance = np.linalg.norm(colors[:, None] - colors[None], axis=2)
    assert distance[~np.eye(16, dtype=bool)].min() > 60
    assert len({identity_color(identity) for identity in range(1, 101)}) == 100


def test_the_colour_depends_only_on_the_identity():
    alone = draw_objects(gray(), square()[None], [7])
    beside = draw_objects(gray(), np.stack([square(left=110), square()]), [3, 7])
    assert np.array_equal(alone[60, 70], beside[60, 70])
    assert not np.array_equal(beside[60, 70], beside[60, 130])


def test_masks_tint_their_inside_and_outline_their_edge_only():
    frame = gray()
    drawn = draw_objects(frame, square()[None], [2], alpha=0.5)
    color = np.array(identity_color(2))
    assert drawn[60, 70] == pytest.approx((128 + color) / 2, abs=1)
    assert drawn[60, 50].astype(int) == pytest.approx(color, abs=16)  # outline
    outside = np.ones(frame.shape[:2], bool)
    outside[38:82, 48:92] = False
    assert np.array_equal(drawn[outside], frame[outside])
    assert (frame == 128).all()  # the input is not changed


def test_the_first_object_is_drawn_on_top():
    drawn = draw_objects(gray(), np.stack([square(), square()]), [1, 2], alpha=1.0)
    assert drawn[60, 70].tolist() == list(identity_color(1))


def test_nothing_to_draw_gives_a_copy():
    frame = gray()
    for masks in (np.zeros((0, 120, 160), bool), np.zeros((2, 120, 160), bool)):
        drawn = draw_objects(frame, masks, range(1, len(masks) + 1), ["text"] * len(masks))
        assert np.array_equal(drawn, frame) and drawn is not frame


@pytest.mark.parametrize("height, width", [(1, 1), (7, 300), (45, 63), (64, 64), (540, 960), (2160, 3840)])
@pytest.mark.parametrize("corner", [(0, 0), (-1, -1)])
def test_labels_stay_inside_frames_of_any_size(height, width, corner):
    mask = np.zeros((height, width), bool)
    mask[corner] = True
    drawn = draw_objects(gray(height, width), mask[None], [1], ["1 tennis_racket 0.98"], alpha=0.0)
    assert drawn.shape == (height, width, 3)
    assert not np.array_equal(drawn, gray(height, width))


def test_labels_grow_with_the_frame():
    def label_rows(height: int, width: int) -> int:
        mask = square(height, width, height // 2, width // 2, 4)
        drawn = draw_objects(gray(height, width), mask[None], [1], ["1 dog 0.98"], alpha=0.0)
        return int((drawn != 128).any(axis=(1, 2)).sum())

    assert 11 <= label_rows(96, 128) <= 24
    assert 40 <= label_rows(2160, 3840) <= 160


def test_labels_of_close_objects_do_not_cover_each_other():
    masks = np.stack([square(480, 640, 100, 100 + 3 * n, 50) for n in range(6)])
    plain = draw_objects(gray(480, 640), masks, range(1, 7), alpha=0.0)
    labelled = draw_objects(gray(480, 640), masks, range(1, 7), [f"{n} object 0.50" for n in range(6)], alpha=0.0)
    single = draw_objects(gray(480, 640), masks[:1], [1], ["0 object 0.50"], alpha=0.0)
    one_label = (single != draw_objects(gray(480, 640), masks[:1], [1], alpha=0.0)).any(axis=2).sum()
    assert (labelled != plain).any(axis=2).sum() > 5.5 * one_label


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"frame": np.zeros((4, 4, 3))}, "uint8 RGB"),
        ({"frame": np.zeros((4, 4), np.uint8)}, "uint8 RGB"),
        ({"masks": np.zeros((1, 120, 161), bool)}, "like the frame"),
        ({"masks": np.zeros((1, 120, 160))}, "like the frame"),
        ({"ids": [1, 2]}, "one for each mask"),
        ({"captions": []}, "one for each mask"),
        ({"alpha": 2}, "alpha"),
    ],
)
def test_what_does_not_fit_the_frame_is_refused(change, reason):
    arguments = {"frame": gray(), "masks": square()[None], "ids": [1], "captions": ["x"], **change}
    with pytest.raises(ValueError, match=reason):
        draw_objects(**arguments)


def test_a_prediction_is_drawn_over_its_video():
    masks = np.stack([np.stack([square(), square(left=90)])])
    prediction = VideoPrediction(masks, [0.9], [0], (120, 160), ["cat"])
    drawn = list(draw_video([gray(), gray()], prediction))
    assert len(drawn) == 2
    assert not np.array_equal(drawn[0][60, 55], [128] * 3) and np.array_equal(drawn[1][60, 55], [128] * 3)


def test_a_contact_sheet_has_the_asked_width_and_all_pictures():
    pictures = [np.full((30, 40, 3), 40 * index, dtype=np.uint8) for index in range(5)]
    sheet = contact_sheet(pictures, columns=3, width=326, gap=4)
    assert sheet.shape == (2 * 80 + 4, 326, 3)
    assert [int(sheet[40, 53 + 110 * column, 0]) for column in range(3)] == [0, 40, 80]
    assert [int(sheet[124, 53 + 110 * column, 0]) for column in range(3)] == [120, 160, 255]
    titled = contact_sheet(pictures, columns=3, width=326, gap=4, titles=["a", "b", "c", "d", "e"])
    assert titled.shape == sheet.shape and not np.array_equal(titled, sheet)


def test_a_heading_stands_above_the_pictures_of_a_contact_sheet():
    pictures = [gray() for _ in range(4)]
    plain, headed = (contact_sheet(pictures, width=300, heading=text) for text in ("", "Наши слова " * 20))
    assert headed.shape[1] == 300 and np.array_equal(headed[-len(plain) :], plain)
    assert (headed[: -len(plain)] == 0).any() and (headed[: -len(plain), :2] == 255).all()


def test_pictures_of_another_shape_keep_theirs_in_a_contact_sheet():
    sheet = contact_sheet([gray(60, 80), gray(80, 20)], columns=2, width=206, gap=6)
    cell = sheet[:, 106:]
    assert cell.shape[:2] == (75, 100)
    assert (cell[:, 50] == 128).all() and (cell[:, :30] == 255).all() and (cell[:, 70:] == 255).all()


def test_impossible_contact_sheets_are_refused():
    with pytest.raises(ValueError, match="at least one"):
        contact_sheet([])
    with pytest.raises(ValueError, match="do not fit"):
        contact_sheet([gray()] * 100, columns=100, width=300)
