"""Train and evaluate any method of this project.

    python train_net.py --config-file configs/youtubevis_2019/lbvq_R50_bs8.yaml --num-gpus 8 MODEL.WEIGHTS w.pkl
    python train_net.py --config-file ... --data pets=pets/annotations.json:pets/frames      your own data, by path
    python train_net.py --config-file ... --resume                            go on where a run stopped
    python train_net.py --config-file ... --eval-only MODEL.WEIGHTS w.pth     write results.json and print AP
    torchrun --nproc-per-node 8 train_net.py --config-file ...                the same run, started by torchrun
    python train_net.py --slurm partition=gpu,time=2880 --num-gpus 8 --num-machines 2 --config-file ...

The configuration (defaults, then the YAML file, then KEY VALUE pairs of the command line) decides everything: which
model is built, on which data it is trained and tested, and how. Results, checkpoints and logs go to OUTPUT_DIR. What a
run is made of is in `lbvq/cli/training.py`; derive from its `Trainer` for a project of your own.
"""

from __future__ import annotations

import sys

from lbvq.engine.arguments import default_argument_parser
from lbvq.engine.user_errors import HINT, user_command
from lbvq.files.data_entries import add_data_argument


@user_command
def run() -> None:
    """The command line."""
    parser = default_argument_parser(f"{__doc__}\n{HINT}")
    add_data_argument(parser)
    args = parser.parse_args()
    from lbvq.cli.training import start  # the network is imported when the arguments are read

    start(args)


if __name__ == "__main__":
    sys.exit(run())
else:  # `from train_net import Trainer`; what a script changes in this module is changed where it acts
    import lbvq.cli.training

    sys.modules[__name__] = lbvq.cli.training
