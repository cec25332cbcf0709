"""Begin a run: log files, a report of the environment, random seeds."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import Any

import torch
import yaml

from lbvq.files.writing import write_text

from . import comm
from .arguments import default_argument_parser
from .environment import environment_report
from .random_state import seed_all_rng
from .run_folder import make_run_folder, set_aside

__all__ = ["default_argument_parser", "default_setup", "setup_logger"]

PACKAGES = ("lbvq", "mask2former")  # loggers that a run shows and stores


def default_setup(cfg: Any, args: argparse.Namespace) -> None:
    """Make OUTPUT_DIR, open the logs, write down everything needed to repeat the run, and seed.

    Log order: process and group size, environment, command line, text of the configuration file, full configuration.
    Process 0 writes the full configuration to OUTPUT_DIR/config.yaml.
    """
    output_dir = Path(cfg.OUTPUT_DIR)
    rank = comm.get_rank()
    make_run_folder(output_dir)
    for name in (*PACKAGES, "__main__"):
        setup_logger(output_dir, rank, name)
    logger = logging.getLogger(__name__)
    logger.info("Rank of this process: %d of %d", rank, comm.get_world_size())
    logger.info("Environment:\n%s", environment_report())
    logger.info("Command line: %s", " ".join(sys.argv))
    config_file = getattr(args, "config_file", "")
    if Path(config_file).is_file():
        logger.info("Contents of %s:\n%s", config_file, Path(config_file).read_text(encoding="utf-8"))
    logger.info("Full configuration:\n%s", cfg.dump())
    write_config(cfg, eval_only=getattr(args, "eval_only", False))
    seed_all_rng(None if cfg.SEED < 0 else cfg.SEED + rank)
    _set_backends(cfg, getattr(args, "eval_only", False))


def write_config(cfg: Any, *, eval_only: bool = False, replace: bool = False) -> None:
    """Write the full configuration to OUTPUT_DIR/config.yaml on process 0; one that says something else is kept.

    Args:
        cfg: the configuration.
        eval_only: an evaluation, which leaves the file of a training alone and writes its own beside the results.
        replace: what is there was written by this run.
    """
    if not comm.is_main_process():
        return
    path = Path(cfg.OUTPUT_DIR) / "config.yaml"
    if eval_only and path.is_file():
        path = path.parent / "inference" / path.name
    elif not replace and path.is_file() and _facts(path.read_text(encoding="utf-8")) != _facts(cfg.dump()):
        set_aside(path)
    write_text(path, cfg.dump())
    logging.getLogger(__name__).info("Full configuration saved to %s", path)


def _facts(text: str) -> Any:
    """What a configuration file says besides the categories, which are known only when the data have been read."""
    try:
        tree = yaml.safe_load(text)
        tree.get("MODEL", {}).pop("CATEGORIES", None)
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, RecursionError):
        return None  # a file of somebody else
    return tree


def _set_backends(cfg: Any, eval_only: bool) -> None:
    if not eval_only:  # sizes differ from video to video there
        torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK
    if cfg.FLOAT32_PRECISION:
        if cfg.FLOAT32_PRECISION not in ("highest", "high", "medium"):
            raise ValueError(
                f"FLOAT32_PRECISION must be 'highest', 'high', 'medium' or '', got {cfg.FLOAT32_PRECISION!r}."
            )
        torch.set_float32_matmul_precision(cfg.FLOAT32_PRECISION)


class _ConsoleFormatter(logging.Formatter):
    """`[11/21 10:00:00 name]: message`, in colour on a terminal."""

    _WORDS = ((logging.ERROR, "ERROR"), (logging.WARNING, "WARNING"))

    def __init__(self, coloured: bool) -> None:
        super().__init__(datefmt="%m/%d %H:%M:%S")
        self._coloured = coloured

    def formatMessage(self, record: logging.LogRecord) -> str:
        head = f"[{record.asctime} {record.name}]:"
        word = next((word for level, word in self._WORDS if record.levelno >= level), "")
        if self._coloured:
            head = f"\x1b[32m{head}\x1b[0m"
            word = f"\x1b[31m{word}\x1b[0m" if word else ""
        return " ".join(filter(None, (head, word, record.message)))

    def usesTime(self) -> bool:
        return True


def setup_logger(
    output: str | Path | None = None, distributed_rank: int = 0, name: str = PACKAGES[0]
) -> logging.Logger:
    """Send a logger's messages to the console (process 0) and to a file (every process); may be called again.

    Args:
        output: folder for `log.txt` (`log.txt.rank1` and so on elsewhere), or a .txt or .log file; None: no file.
        distributed_rank: number of this process.
        name: logger to set up; its children write through it.
    """
    logger = logging.getLogger(name)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    wanted: dict[str, logging.Handler] = {}
    if distributed_rank == 0:
        wanted["console"] = logging.StreamHandler(sys.stdout)
        wanted["console"].setFormatter(_ConsoleFormatter(coloured=sys.stdout.isatty()))
        wanted["console"].setLevel(logging.INFO)
    if output is not None:
        path = _log_path(Path(output), distributed_rank)
        path.parent.mkdir(parents=True, exist_ok=True)
        wanted[str(path.resolve())] = logging.FileHandler(path, mode="a", encoding="utf-8")
        plain = logging.Formatter("[%(asctime)s] %(name)s %(levelname)s: %(message)s", datefmt="%m/%d %H:%M:%S")
        wanted[str(path.resolve())].setFormatter(plain)
    for handler in list(logger.handlers):  # a second run in the same process gets its own files
        if handler.name and handler.name.startswith("lbvq:"):
            logger.removeHandler(handler)
            handler.close()
    for key, handler in wanted.items():
        handler.name = f"lbvq:{name}:{key}"
        logger.addHandler(handler)
    return logger


def _log_path(output: Path, rank: int) -> Path:
    path = output if output.suffix in (".txt", ".log") else output / "log.txt"
    return path if rank == 0 else path.with_name(f"{path.name}.rank{rank}")
