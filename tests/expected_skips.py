"""Why a test may be skipped. Any other skip is a failure, so that no test goes missing without a word."""

from __future__ import annotations

import re

ALLOWED = (
    r"needs a CUDA device",
    r"needs CUDA",
    r"needs /dev/full",  # not every system has it
    r"PyTorch was built without oneDNN",
    r"named until closed on other systems",
    r"resource is not available",  # on Windows
    r"could not import 'torch\.utils\.serialization'.*",  # came with PyTorch 2.7
    r"needs AVX2",  # sums are rounded otherwise elsewhere
    r"needs a C compiler",  # the same is done in numpy
    r"needs the administrator's rights",  # to give files to others
    r"trackeval before 1\.2 lacks the categories of BURST",  # later ones need numpy 2
    r"transformers 4\..* has no Videomt",
    r"needs Chromium and playwright",  # a program of the system
    r"could not import 'triton'.*",  # comes with PyTorch for CUDA, on Linux
)


def is_expected(reason: str) -> bool:
    """Whether a test may be skipped for a reason, as pytest words it."""
    reason = reason.removeprefix("Skipped: ")
    return any(re.fullmatch(pattern, reason, re.DOTALL) for pattern in ALLOWED)


def complaint(reason: str) -> str:
    """What is said of any other skip."""
    return (
        f"unexpected skip: {reason}. Install what is missing (pip install -r requirements.lock); if the test may be "
        "skipped for that, add the reason to tests/expected_skips.py. --allow-skips lets every skip pass."
    )
