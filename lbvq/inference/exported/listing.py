"""The list of the graphs in an exported folder, `graphs.json`: which there are, and what runs them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from lbvq.files.json_files import read_json, to_json
from lbvq.files.writing import write_text

LIST_FILE = "graphs.json"
FORMATS = ("onnx", "openvino")
PRECISIONS = ("float32", "half", "int8")


@dataclass(frozen=True)
class GraphList:
    """Attributes:
    format: what runs the graphs, one of `FORMATS`.
    precision: of the weights and products, one of `PRECISIONS`.
    size: (height, width) that frames must have as the network gets them, or None for any.
    files: name of a graph -> its file beside the list.
    """

    format: str
    precision: str
    size: tuple[int, int] | None
    files: Mapping[str, str]

    def write(self, folder: Path) -> None:
        """Write `graphs.json` into a folder."""
        write_text(folder / LIST_FILE, to_json({"version": 1, **asdict(self)}, indent=2) + "\n")

    @classmethod
    def read(cls, path: Path) -> GraphList:
        """Read such a file; ValueError when it is none."""
        content = read_json(path)
        try:
            size = content["size"]
            found = cls(
                content["format"],
                content["precision"],
                None if size is None else (int(size[0]), int(size[1])),
                {str(name): str(file) for name, file in content["files"].items()},
            )
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise ValueError(f"{path} is no list of exported graphs: {error!r}; export the model again.") from error
        if content.get("version") != 1 or found.format not in FORMATS or found.precision not in PRECISIONS:
            raise ValueError(
                f"{path} lists graphs of version {content.get('version')}, format {found.format!r} and precision "
                f"{found.precision!r}; expected version 1, a format of {FORMATS} and a precision of {PRECISIONS}. "
                "Export the model again."
            )
        outside = [file for file in found.files.values() if Path(file).name != file]
        if outside:
            raise ValueError(f"{path} lists {outside[0]!r}, which is not a file beside it.")
        return found
