"""Bodies of the processes that distributed tests start; a module of its own, so that new processes can import it."""

from __future__ import annotations

import argparse
import os
import signal
import time
from pathlib import Path

import torch
from torch import nn

from lbvq.engine import comm
from lbvq.engine.defaults import create_ddp_model
from lbvq.engine.graceful_stop import GracefulStop
from lbvq.engine.hooks import PeriodicWriter
from lbvq.engine.trainer import HookBase, TrainLoop, TrainStep


class TinyNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))

    def forward(self, batch):
        error = self.layers(torch.stack(list(batch)))
        return {"loss_square": error.square().mean(), "loss_abs": error.abs().mean()}


def global_batch(seed: int) -> list[torch.Tensor]:
    """Eight samples; process r of w takes those at r, r + w, ..."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(3, generator=generator) for _ in range(8)]


def share_of_batches():
    seed = 0
    while True:
        yield global_batch(seed)[comm.get_rank() :: comm.get_world_size()]
        seed += 1


def make_trainer(accumulate_steps: int = 1) -> TrainLoop:
    torch.manual_seed(comm.get_rank())  # different first weights: DDP must send those of process 0
    model = create_ddp_model(TinyNet())
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    return TrainLoop(TrainStep(model, share_of_batches(), optimizer, accumulate_steps=accumulate_steps))


def train_and_save(folder: str, accumulate_steps: int) -> None:
    """Three steps; save the gradients of the last, the weights after it, and the stored numbers."""
    trainer = make_trainer(accumulate_steps)
    trainer.train(0, 3)
    histories = trainer.storage.histories()
    torch.save(
        {
            "gradients": [parameter.grad for parameter in trainer.step.model.parameters()],
            "weights": [parameter.detach() for parameter in trainer.step.model.parameters()],
            "losses": {name: history.samples for name, history in histories.items() if "loss" in name},
            "names": list(histories),
        },
        Path(folder) / f"rank{comm.get_rank()}.pt",
    )


def exercise_comm(folder: str) -> None:
    rank = comm.get_rank()
    torch.manual_seed(rank)
    comm.synchronize()
    result = {
        "rank": rank,
        "local_rank": comm.get_local_rank(),
        "local_size": comm.get_local_size(),
        "world": comm.get_world_size(),
        "all_gather": comm.all_gather({"rank": rank}),
        "gather": comm.gather(rank * 10),
        "broadcast": comm.broadcast([rank, "x"], src=1),
        "any": [comm.any_process(rank == 1), comm.any_process(False)],
        "seed": comm.shared_random_seed(),
    }
    torch.save(result, Path(folder) / f"rank{rank}.pt")


def fail_in_process_1(folder: str) -> None:
    if comm.get_rank() == 1:
        raise ValueError("broken on purpose")


def train_until_terminated(folder: str) -> None:
    """Process 1 gets SIGTERM in iteration 13; all must save and stop at the same later iteration."""
    trainer = make_trainer()

    class Kill(HookBase):
        def before_step(self):
            if comm.get_rank() == 1 and self.trainer.iter == 13:
                os.kill(os.getpid(), signal.SIGTERM)

    def save(name: str) -> None:
        states = comm.gather(comm.get_rank())  # a collective call, as when a real checkpoint is saved
        (Path(folder) / f"saved_{name}_by_{comm.get_rank()}_{len(states)}").touch()

    trainer.register_hooks([PeriodicWriter([]), Kill(), GracefulStop(save)])
    trainer.train(0, 1000)


def wait_for_sigterm(folder: str) -> None:
    """Report the signal that arrives."""
    received = []
    signal.signal(signal.SIGTERM, lambda number, frame: received.append(signal.Signals(number).name))
    (Path(folder) / f"ready{comm.get_rank()}").touch()
    deadline = time.monotonic() + 60
    while not received and time.monotonic() < deadline:
        time.sleep(0.02)
    (Path(folder) / f"got_{received[0] if received else 'nothing'}_{comm.get_rank()}").touch()


def slurm_main(args: argparse.Namespace) -> None:
    """Train until told to stop, or, when resumed, only say so."""
    folder = Path(args.folder)
    (folder / f"started_resume={args.resume}_rank{comm.get_rank()}_of_{comm.get_world_size()}").touch()
    if args.resume:
        return
    trainer = make_trainer()

    class Ready(HookBase):
        def after_step(self):
            if self.trainer.iter == 3:
                ready = folder / f"ready{comm.get_rank()}"
                ready.with_name(f".{ready.name}").write_text(str(os.getpid()))
                ready.with_name(f".{ready.name}").rename(ready)

    trainer.register_hooks([Ready(), GracefulStop(lambda name: None, (signal.SIGTERM, signal.SIGUSR2))])
    trainer.train(0, 10**9)
    (folder / f"stopped{comm.get_rank()}").touch()
