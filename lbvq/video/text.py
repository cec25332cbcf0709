"""Text as pixels, in any script for which there is a font.

ASCII is written in Pillow's own font; other Latin letters, Greek and Cyrillic in a part of DejaVu Sans that comes with
this package (`fonts/`, with its licence); what that lacks, such as Chinese, in a font of the system that has it.
"""

from __future__ import annotations

import functools
import logging
import math
import os
import sys
import unicodedata
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

FONT_FILE = Path(__file__).parent / "fonts" / "DejaVuSans.ttf"
_FONT_SUFFIXES = (".ttf", ".otf", ".ttc")
_NO_FONTS = ("lastresort", "adobeblank", "fallback-sil")  # they draw every letter as a box
_NO_CHARACTER = "\uffff"  # a font draws it as what it lacks
_TRIAL_SIZE = 20

logger = logging.getLogger(__name__)


class _Layout(NamedTuple):
    """Where the parts of a text stand, in pixels."""

    runs: list[tuple[str, ImageFont.FreeTypeFont, float]]  # text, font, distance from the first part
    left: float  # of the first letter from its origin
    right: float  # end of the last letter
    ascent: int
    descent: int

    def draw(self, image: Image.Image, x: float, top: float, ink: tuple[int, int, int]) -> None:
        """Write the text with the left edge of its first letter at `x` and the highest letters reaching `top`."""
        pen = ImageDraw.Draw(image)
        for text, font, start in self.runs:
            pen.text((x - self.left + start, top + self.ascent - font.getmetrics()[0]), text, fill=ink, font=font)


@functools.lru_cache(maxsize=512)
def text_plate(text: str, size: int, color: tuple[int, int, int]) -> np.ndarray:
    """Text on a plate of `color`, black or white, whichever is easier to read: (h, w, 3) uint8.

    Args:
        size: of the font in pixels.
        color: RGB.
    """
    layout = _layout(text, size)
    pad = max(2, size // 5)
    brightness = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2]
    ink = (0, 0, 0) if brightness > 125 else (255, 255, 255)
    width = math.ceil(layout.right - layout.left) + 2 * pad
    plate = Image.new("RGB", (width, layout.ascent + layout.descent + pad), color)
    layout.draw(plate, pad, pad // 2, ink)
    return np.asarray(plate)


def draw_text(image: np.ndarray, text: str, xy: tuple[int, int], size: int, color: tuple[int, int, int]) -> None:
    """Write text into (H, W, 3) uint8, its baseline beginning at x, y; what does not fit into the image is cut off."""
    layout = _layout(text, size)
    x, top = xy[0], xy[1] - layout.ascent
    region = image[max(0, top) : max(0, xy[1] + layout.descent), max(0, x) : max(0, x + math.ceil(layout.right))]
    if region.size:
        picture = Image.fromarray(np.ascontiguousarray(region))
        layout.draw(picture, min(x, 0), min(top, 0), color)
        region[:] = np.asarray(picture)


def _layout(text: str, size: int) -> _Layout:
    runs = _runs(text or " ", size)
    widths = [font.getlength(part) for part, font in runs]
    starts = [sum(widths[:index]) for index in range(len(runs))]
    placed = [(part, font, start) for (part, font), start in zip(runs, starts, strict=True)]
    left = runs[0][1].getbbox(runs[0][0])[0]
    right = starts[-1] + runs[-1][1].getbbox(runs[-1][0])[2]
    metrics = [font.getmetrics() for _, font in runs]
    return _Layout(placed, left, right, max(ascent for ascent, _ in metrics), max(descent for _, descent in metrics))


def _runs(text: str, size: int) -> list[tuple[str, ImageFont.FreeTypeFont]]:
    """Split a text into parts that one font can write, with these fonts."""
    if all(" " <= letter <= "~" for letter in text):
        return [(text, _font(None, size))]
    letters = [letter for letter in unicodedata.normalize("NFC", text) if unicodedata.category(letter) != "Cc"]
    pairs = [(written, file) for letter in letters for written, file in _writable(letter)] or [(" ", FONT_FILE)]
    for index, (written, _) in enumerate(pairs[1:], start=1):
        if unicodedata.combining(written[0]):  # an accent goes onto the letter before it
            pairs[index] = (written, pairs[index - 1][1])
    grouped = groupby(pairs, key=lambda pair: pair[1])
    return [("".join(written for written, _ in group), _font(file, size)) for file, group in grouped]


@functools.lru_cache(maxsize=4096)
def _writable(letter: str) -> tuple[tuple[str, Path], ...]:
    """A letter and the font file that has it; where none has, its number in the font that comes along."""
    if letter.isspace():
        return ((" ", FONT_FILE),)
    for file in (FONT_FILE, *_system_fonts()):
        if _has(file, letter):
            return ((letter, file),)
    code = f"U+{ord(letter):04X}"
    logger.warning("No font of this system has the letter %s (%s); its number is written.", letter, code)
    return ((code, FONT_FILE),)


@functools.lru_cache(maxsize=64)
def _font(file: Path | None, size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size) if file is None else ImageFont.truetype(str(file), size)
    assert isinstance(font, ImageFont.FreeTypeFont)  # every wheel of Pillow has FreeType
    return font


def _has(file: Path, letter: str) -> bool:
    """Whether a font draws a letter as something else than what it lacks."""
    try:
        font = _font(file, _TRIAL_SIZE)
        drawn, lacking = font.getmask(letter), font.getmask(_NO_CHARACTER)
    except (OSError, ValueError):  # no font, or one of pictures in other sizes
        return False
    return (drawn.size, bytes(drawn)) != (lacking.size, bytes(lacking))


@functools.lru_cache(maxsize=1)
def _system_fonts() -> tuple[Path, ...]:
    """Font files of this system, plain ones without serifs first."""
    files = [file for folder in _font_folders() for file in folder.rglob("*") if file.suffix.lower() in _FONT_SUFFIXES]
    usable = [file for file in files if not any(name in file.name.lower() for name in _NO_FONTS)]
    return tuple(sorted(usable, key=_plainness))


def _font_folders() -> Iterator[Path]:
    """Where systems keep fonts; what is not there holds no files."""
    if sys.platform == "win32":
        yield Path(os.environ.get("WINDIR", "C:/Windows")) / "Fonts"
        yield Path(os.environ.get("LOCALAPPDATA", "C:/")) / "Microsoft" / "Windows" / "Fonts"
    elif sys.platform == "darwin":
        yield from (Path("/System/Library/Fonts"), Path("/Library/Fonts"), Path.home() / "Library" / "Fonts")
    else:
        data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
        shared = os.environ.get("XDG_DATA_DIRS") or "/usr/local/share:/usr/share"
        yield from (Path(folder) / "fonts" for folder in (data, *shared.split(":")))
        yield Path.home() / ".fonts"


def _plainness(file: Path) -> tuple[bool, bool, str]:
    name = file.name.lower()
    is_styled = any(word in name for word in ("bold", "italic", "oblique", "light", "thin", "black"))
    return is_styled, "serif" in name or "mono" in name, str(file)
