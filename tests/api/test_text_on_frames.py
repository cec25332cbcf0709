from __future__ import annotations

import logging
import shutil

import numpy as np
import pytest
from PIL import ImageFont

from lbvq.evaluation.plots import draw_bars
from lbvq.video import text as drawn_text
from lbvq.video.text import FONT_FILE, draw_text, text_plate

BLACK = (0, 0, 0)


@pytest.fixture
def fresh_fonts(monkeypatch, tmp_path):
    """A system whose only fonts are in the folder that is returned; nothing is remembered of the true one."""
    caches = (drawn_text._writable, drawn_text._system_fonts, drawn_text._font, text_plate)
    monkeypatch.setattr(drawn_text.sys, "platform", "linux")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_DIRS", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "fonts").mkdir()
    for cache in caches:
        cache.cache_clear()
    yield tmp_path / "fonts"
    for cache in caches:
        cache.cache_clear()


def ascii_font() -> bytes:
    """A font without any letter outside ASCII: the one that Pillow brings along."""
    return ImageFont.load_default(20).font_bytes


def cells(*texts: str) -> list[bytes]:
    return [text_plate(text, 20, BLACK).tobytes() for text in texts]


@pytest.mark.parametrize("letters", ["äöüßÄÖÜ", "éèêçñåøœæ", "šžčćłąęőığ", "ЖйэяКЪ", "αβγδεΩ", "ếữđơư", "€–“”…°"])
def test_letters_of_europe_are_written_without_a_font_of_the_system(fresh_fonts, caplog, letters):
    drawn = cells(*letters)
    assert len(set(drawn)) == len(letters)  # boxes would be equal
    assert all(np.frombuffer(plate, np.uint8).max() > 200 for plate in drawn)
    assert caplog.text == ""


def test_a_letter_made_of_two_is_one(fresh_fonts):
    assert cells("cafe\u0301") == cells("caf\u00e9")


def test_plain_text_looks_as_in_pillow(fresh_fonts):
    font = ImageFont.load_default(20)
    left, _, right, _ = font.getbbox("1 cat 0.90")
    assert text_plate("1 cat 0.90", 20, BLACK).shape == (sum(font.getmetrics()) + 4, right - left + 8, 3)


def test_what_the_font_that_comes_along_lacks_is_taken_from_the_system(fresh_fonts, monkeypatch, caplog):
    shutil.copy(FONT_FILE, fresh_fonts / "some name.TTF")
    (fresh_fonts / "broken.ttf").write_bytes(b"no font")
    wanted = cells("Ж")
    text_plate.cache_clear()
    (fresh_fonts.parent / "ascii.ttf").write_bytes(ascii_font())
    monkeypatch.setattr(drawn_text, "FONT_FILE", fresh_fonts.parent / "ascii.ttf")
    drawn_text._writable.cache_clear()
    assert cells("Ж") == wanted and caplog.text == ""


def test_a_letter_that_no_font_has_is_written_as_its_number_and_said_once(fresh_fonts, caplog):
    with caplog.at_level(logging.WARNING):
        cat, dog = cells("猫", "犬")
        cells("一 猫")
    assert cat != dog
    assert text_plate("猫", 20, BLACK).shape[1] > 4 * text_plate("é", 20, BLACK).shape[1]
    assert caplog.text.count("U+732B") == 1 and "No font of this system has the letter" in caplog.text


def test_control_characters_and_empty_texts_are_harmless(fresh_fonts):
    for text in ("", " ", "\0", "é\r\n\t", "\u0301", "\ud800"):
        assert text_plate(text, 20, BLACK).shape[0] > 10


def test_text_is_written_into_an_image_and_cut_off_at_its_edges(fresh_fonts):
    image = np.zeros((40, 120, 3), np.uint8)
    draw_text(image, "Ünï 0.5", (10, 30), 20, (255, 200, 100))
    rows, columns = np.flatnonzero(image.any(axis=(1, 2))), np.flatnonzero(image.any(axis=(0, 2)))
    assert 10 <= rows[0] and rows[-1] <= 31 and 10 <= columns[0] <= 13 and columns[-1] < 100
    assert image.reshape(-1, 3).max(axis=0).tolist() == [255, 200, 100]
    for corner in [(-5, 5), (110, 45), (300, 300), (-900, -900)]:
        draw_text(image, "Ünï", corner, 20, (255, 200, 100))
    part = np.zeros((40, 120, 3), np.uint8)
    draw_text(part, "Ünï 0.5", (10 - 15, 30), 20, (255, 200, 100))
    whole = np.zeros((40, 120, 3), np.uint8)
    draw_text(whole, "Ünï 0.5", (10, 30), 20, (255, 200, 100))
    assert np.array_equal(part[:, :80], whole[:, 15:95])


def test_plots_of_a_report_tell_names_outside_ascii_apart(fresh_fonts):
    drawn = [draw_bars({name: 50.0}, "AP").tobytes() for name in ("Tür", "Tör", "Кот", "Кит")]
    assert len(set(drawn)) == 4
