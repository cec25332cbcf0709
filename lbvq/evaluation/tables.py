"""Results as text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

_COLUMNS = 9


def format_results(tables: Mapping[str, Mapping[str, float]]) -> str:
    """Task -> metric -> percent as text: the summary first, then classes ("AP-<class>") in columns.

    Classes that the data set does not show are left out: vocabularies have more than a thousand.
    """
    blocks = []
    for task, table in tables.items():
        summary = {name: value for name, value in table.items() if not name.startswith("AP-")}
        classes = {name[3:]: value for name, value in table.items() if name.startswith("AP-")}
        seen = {name: value for name, value in classes.items() if not math.isnan(value)}
        blocks.append(f"Evaluation results for {task}:\n{_grid(list(summary.items()), _COLUMNS)}")
        if seen:
            title = f"Per-category {task} AP, {len(seen)} of {len(classes)} categories have ground truth:"
            blocks.append(f"{title}\n{_grid(list(seen.items()), _COLUMNS - 3)}")
    return "\n".join(blocks)


def format_number(value: float) -> str:
    """Percent with three digits; a dash where there was nothing to measure."""
    return "-" if math.isnan(value) else f"{value:.3f}"


def _grid(cells: Sequence[tuple[str, float]], columns: int) -> str:
    """Names above numbers, `columns` pairs in a row."""
    lines = []
    for start in range(0, len(cells), columns):
        row = [(name, format_number(value)) for name, value in cells[start : start + columns]]
        widths = [max(len(name), len(number)) for name, number in row]
        lines.append("| " + " | ".join(f"{name:^{width}}" for (name, _), width in zip(row, widths, strict=True)) + " |")
        lines.append("| " + " | ".join(f"{num:^{width}}" for (_, num), width in zip(row, widths, strict=True)) + " |")
    return "\n".join(lines)
