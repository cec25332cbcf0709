"""Labelling formats: recognise a source, read it into `Labels`, write `Labels` for another tool.

A format is one module with a `FORMAT`; a new one is one more entry in `FORMATS`.
"""

from __future__ import annotations

from lbvq.data.formats import (
    burst,
    coco_video,
    cvat,
    label_studio,
    labelme,
    mots,
    mots_text,
    palette,
    sav,
    scalabel,
    ytvis,
)
from lbvq.data.formats.base import Format, ReadOptions, WriteOptions, Writer
from lbvq.data.formats.labels import Labels
from lbvq.data.formats.source import Source

__all__ = ["FORMATS", "ReadOptions", "WriteOptions", "choose_format", "read_labels", "recognised", "writer"]

# What parts of a file do that are of another type than the format has there; readers name the usual cases themselves.
UNEXPECTED = (TypeError, AttributeError, KeyError, IndexError, OverflowError, RecursionError)

FORMATS: dict[str, Format] = {
    each.name: each
    for each in (
        cvat.FORMAT,
        mots.FORMAT,
        mots_text.FORMAT,
        palette.FORMAT,
        labelme.FORMAT,
        label_studio.FORMAT,
        coco_video.FORMAT,
        sav.FORMAT,
        scalabel.FORMAT,
        burst.FORMAT,
        ytvis.LVVIS,
        ytvis.FORMAT,
    )
}


def recognised(source: Source) -> dict[str, str]:
    """Name of every format that the source looks like -> what makes it look so."""
    found = {name: _reason(each, source) for name, each in FORMATS.items()}
    return {name: reason for name, reason in found.items() if reason}


def _reason(form: Format, source: Source) -> str | None:
    """What makes a source look like a format; a file that is broken in any way does not look like it."""
    try:
        return form.recognise(source)
    except (*UNEXPECTED, ValueError):
        return None


def choose_format(source: Source, name: str | None) -> Format:
    """The named format, or the only one that the source looks like."""
    found = recognised(source)
    if name is not None:
        if name not in FORMATS:
            raise ValueError(f"There is no format {name!r}; there are {', '.join(FORMATS)}.")
        if name not in found and found:
            raise ValueError(f"{source.name} does not look like {name} ({FORMATS[name].title}). {_looks(found)}")
        return FORMATS[name]
    if len(found) == 1:
        return FORMATS[next(iter(found))]
    if not found:
        kinds = sorted({file.suffix or "no suffix" for file in source.files})
        raise ValueError(
            f"{source.name} looks like none of {', '.join(FORMATS)}; it holds {len(source.files)} files "
            f"({', '.join(kinds[:8])}). Say what it is with --from."
        )
    raise ValueError(f"{source.name} is not clear. {_looks(found)} Say which with --from.")


def _looks(found: dict[str, str]) -> str:
    return f"It looks like {'; or '.join(f'{name} ({reason})' for name, reason in found.items())}."


def read_labels(source: Source, name: str | None, options: ReadOptions) -> tuple[Format, Labels]:
    """Read a source in the named format, or in the one it looks like."""
    chosen = choose_format(source, name)
    try:
        labels = chosen.read(source, options)
        labels.check(source.name)
    except UNEXPECTED as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"{source.name} is not as {chosen.title} has to be ({reason}); export it again.") from error
    return chosen, labels


def writer(name: str) -> Writer:
    """The writer of a format."""
    found = {each.name: each.write for each in FORMATS.values() if each.write is not None}
    if name not in found:
        raise ValueError(f"{name!r} cannot be written; formats out are {', '.join(found)}.")
    return found[name]
