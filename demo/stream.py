"""Segment a video while it plays, frame by frame, with an online method.

    python demo/stream.py --config-file configs/youtubevis_2019/genvis_R50_bs8_online.yaml \
        --weights genvis_r50_online_ytvis19.pth --input 0 --serve 8000

Inputs are a file, a folder of frames, the number of a camera, an address (rtsp://...), or '-' for a pipe. The drawn
frames go to a window (--show), a browser (--serve), and files (--output), as many as wanted. `--save-state` and
`--load-state` stop a stream and go on with it later. Ctrl-C ends it. Offline methods run with TEST.MATCH_FRAMES True.
"""

from __future__ import annotations

import argparse
import sys

from lbvq.engine.user_errors import user_command


@user_command
def main() -> int:
    from lbvq.cli.live import add_arguments, run  # takes seconds; Ctrl-C ends it without a traceback

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    return run(parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
