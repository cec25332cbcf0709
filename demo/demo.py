"""Segment videos and draw what was found.

    python demo/demo.py --config-file configs/youtubevis_2019/lbvq_R50_bs8.yaml --weights lbvq_r50_ytvis19.pth \
        --input video.mp4 --output out.mp4 out.json

Inputs are video files, folders of frames, or patterns. Outputs are videos (.mp4), folders of frames, and results in
YouTube-VIS format (.json), as many as wanted. Every object keeps its colour and its number in the whole video.
Without weights the network is untrained: the command runs, and says that what it draws is noise.
"""

from __future__ import annotations

import argparse
import sys

from lbvq.engine.user_errors import user_command


@user_command
def main() -> int:
    from lbvq.cli.predict import add_arguments, run  # takes seconds; Ctrl-C ends it without a traceback

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    return run(parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
