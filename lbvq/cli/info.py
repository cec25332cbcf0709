"""Print versions, devices and what runs in C, for bug reports: the work behind `lbvq info`."""

from __future__ import annotations

import argparse

EXAMPLES = """examples:
  lbvq info
  lbvq info > report.txt      to be attached to a bug report; it names where Python is, and no other files of yours
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command line of `run`: nothing."""


def run(args: argparse.Namespace) -> int:
    """Print the report."""
    from lbvq.engine.environment import environment_report  # imports torch
    from lbvq.evaluation import boundary
    from lbvq.masks.compiled import LOOPS
    from mask2former.modeling.deform_attn_compiled import SAMPLING

    print(environment_report())
    for source in (LOOPS, boundary.LOOPS, SAMPLING):
        print(f"{source.name}: {source.describe()}")
    return 0
