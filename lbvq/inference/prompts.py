"""Class names as a user gives them, and the sentences they stand in for CLIP; nothing here needs a network."""

from __future__ import annotations

from collections.abc import Sequence

# "{}" stands for the name; the embedding of a name is the mean over its prompts, each of length one.
PROMPT_SETS: dict[str, tuple[str, ...]] = {
    "photo": ("a photo of a {}.",),
    "video": ("a photo of a {}.", "a video frame with a {}.", "a {} in motion.", "a blurry picture of a {}."),
    "name": ("{}",),
}


def parse_classes(text: str) -> list[str]:
    """Names from "cat, skateboard, potted plant"."""
    return check_classes([name.strip() for name in text.split(",")])


def check_classes(names: Sequence[str]) -> list[str]:
    """Return the names; ValueError when there is none, an empty one, or one twice."""
    if isinstance(names, str):
        raise ValueError(f"classes must be a list of names, got the text {names!r}.")
    names = list(names)
    if not names or not all(isinstance(name, str) and plain_name(name) for name in names):
        raise ValueError(f"classes must be names that are not empty, got {names}.")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"every class may be named once; {twice} are named more often.")
    return names


def plain_name(name: str) -> str:
    """Name as it stands in a prompt: without underscores and brackets, as for the published embeddings."""
    return " ".join(name.replace("_", " ").replace("(", "").replace(")", "").split())
