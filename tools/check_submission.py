"""Check a results file before it is submitted, and pack it.

    python tools/check_submission.py results.json --gt ytvis_2021/valid.json --server ytvis --zip submission.zip

Looks at ids, categories, sizes, scores, masks, numbers of frames, and the layout of an archive; the annotation file may
be one without annotations. The first faults are named by entry, video and frame, and nothing is packed then; a wrong
layout or encoding of the file itself is mended by --zip.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lbvq.engine.user_errors import user_command
from lbvq.evaluation.submission import SERVERS, check_submission, pack

LARGE = 300e6  # bytes of an archive that many servers refuse


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="results.json, or the archive that would be uploaded")
    parser.add_argument("--gt", type=Path, required=True, help="annotation file of the data set: videos and categories")
    parser.add_argument("--server", choices=sorted(SERVERS), required=True)
    parser.add_argument("--zip", type=Path, metavar="FILE", help="write the archive to upload")
    parser.add_argument("--max-faults", type=int, default=20, help="stop after so many (default 20)")
    return parser.parse_args(arguments)


@user_command
def main(arguments: list[str] | None = None) -> int:
    args = parse_arguments(arguments)
    findings = check_submission(args.results, args.gt, args.server, args.max_faults)
    for remark in findings.remarks:
        print(f"note: {remark}")
    for fault in (*findings.faults, *findings.layout):
        print(f"fault: {fault}")
    if findings.faults or (findings.layout and not args.zip):
        print(f"{args.results} has faults, {_what_now(args, bool(findings.faults))}")
        return 1
    no_fault = "no fault found" if not findings.layout else "no fault in them; the archive is written anew"
    print(f"{args.results}: {findings.num_entries} predictions, {no_fault}")
    if args.zip:
        size = pack(args.results, args.zip)
        print(f"{args.zip}: {size / 1e6:.1f} MB" + (" (many servers refuse files so large)" if size > LARGE else ""))
    return 0


def _what_now(args: argparse.Namespace, in_results: bool) -> str:
    if in_results:
        return "so nothing was packed" if args.zip else "which must be mended where they were made"
    return "which --zip FILE mends"


if __name__ == "__main__":
    sys.exit(main())
