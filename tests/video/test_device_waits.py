"""How often the host waits for a device in a training step and in a frame, counted on a device that is not there.

A GPU works through a queue that the host fills. Whoever asks it for a number empties the queue first, and afterwards
the GPU waits for the host. Matching is done on the host, so its costs are copied: those of all decoder layers at once.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from golden_fill import frames
from golden_samples import training_sample
from ovformer_models import CLIP, IMAGE, clip_cfg
from pretend_device import PretendDevice
from synth_targets import clips
from video_models import load_cfg
from vit_models import PMT, TINY, cfg_of

from lbvq.inference.stream import StreamPredictor
from mask2former.registry import build_model
from mask2former.transfer import tensor_like, to_host

NUM_FRAMES = 3
SMALL = {
    "INPUT__SAMPLING_FRAME_NUM": NUM_FRAMES,
    "MODEL__SEM_SEG_HEAD__NUM_CLASSES": 40,
    "MODEL__SEM_SEG_HEAD__TRANSFORMER_ENC_LAYERS": 1,
    "MODEL__MASK_FORMER__TRAIN_NUM_POINTS": 112,
    "MODEL__BACKBONE__NUM_CLASSES": 40,
    "MODEL__BACKBONE__TRAIN_NUM_POINTS": 112,
    "MODEL__VMT__NUM_CLASSES": 42,
}
RESNET18 = {"MODEL__RESNETS__DEPTH": 18, "MODEL__RESNETS__RES2_OUT_CHANNELS": 64, "MODEL__MASK_FORMER__DEC_LAYERS": 4}
CONFIGS = {
    "lbvq": "synthetic/lbvq_R18_tiny.yaml",
    "vita": "synthetic/vita_R18_tiny.yaml",
    "genvis": "synthetic/genvis_R18_tiny_online.yaml",
    "minvis": "synthetic/minvis_R18_tiny.yaml",
    "visage": "synthetic/visage_R18_tiny.yaml",
    "ctvis": "synthetic/ctvis_R18_tiny.yaml",
    "dvis, online": "synthetic/dvis_R18_tiny_online.yaml",
    "dvis, offline": "synthetic/dvis_R18_tiny_offline.yaml",
    "videomt": "synthetic/videomt_tiny.yaml",
    "vmt": "synthetic/vmt_R18_tiny.yaml",
    "mask2former_vis": "youtubevis_2019/video_maskformer2_R50_bs16_8ep.yaml",
}
OPEN_VOCABULARY = {"ovformer, images": IMAGE, "ovformer, clips": CLIP}
IN_A_STEP = {
    "lbvq": 2,  # costs of frames, costs of clips
    "vita": 2,
    "genvis": 2,  # costs of frames, costs of all clips
    "minvis": 1,
    "visage": 1,
    "ctvis": 2,  # costs of the losses, costs of the objects that are told apart
    "dvis, online": 2,  # queries of all frames to follow the objects, costs
    "dvis, offline": 2,
    "videomt": 1,
    "pmt": 1,
    "vmt": 1 + 2 * NUM_FRAMES,  # costs, and how many pixels of each frame of two clips are refined
    "mask2former_vis": 1,
    "ovformer, images": 1,
    "ovformer, clips": 1,
}
IN_A_FRAME = {  # in all: what is reported, which masks there are, these masks
    "genvis": 3 + 1,  # scores and classes, which choose the masks to report
    "minvis": 3 + 1,  # queries and class scores, which are matched
    "visage": 3 + 2,  # the same, and appearances
    "ctvis": 3 + 2,  # the same, and how detections overlap
    "dvis, online": 3 + 3,  # whether all is finite, queries to match, scores and classes
    "videomt": 3 + 2,  # whether all is finite, scores and classes
}


def model_of(method: str, folder: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    if method == "pmt":
        return build_model(cfg_of({**PMT, **TINY}, **{name: SMALL[name] for name in SMALL if "BACKBONE" in name}))
    if method in OPEN_VOCABULARY:
        changes = {name: value for name, value in SMALL.items() if not name.endswith("NUM_CLASSES")}
        every_class = {"MODEL__MASK_FORMER__CLASS_COUNTS_PATH": ""}
        return build_model(clip_cfg(OPEN_VOCABULARY[method], folder, **changes, **RESNET18, **every_class))
    changes = {**SMALL, **RESNET18} if method == "mask2former_vis" else SMALL
    return build_model(load_cfg(CONFIGS[method], **changes))


def samples_of(method: str) -> list[dict[str, Any]]:
    samples = [{**training_sample(clip), "file_names": ["none"] * NUM_FRAMES} for clip in clips(NUM_FRAMES)]
    if method != "ovformer, images":
        return samples
    return [
        {"image": each["image"][0], "instances": shown(each["instances"][0]), "image_id": "none"} for each in samples
    ]


def shown(instances: Any) -> Any:
    return instances[instances.gt_classes >= 0]


@pytest.mark.parametrize("method", IN_A_STEP)
def test_a_training_step_waits_for_the_costs_of_matching_alone(method, tmp_path):
    model = model_of(method, tmp_path).train()
    with PretendDevice() as device:
        model.to(device.name)
        device.waits.clear()  # moving the model
        sum(model(samples_of(method)).values()).backward()
    assert sum(device.waits.values()) == IN_A_STEP[method], dict(device.waits)
    assert any(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("method", IN_A_FRAME)
def test_a_frame_of_a_stream_waits_as_often_as_its_method_must(method, tmp_path):
    video = frames(3, 64, 96, seed=1).permute(0, 2, 3, 1).numpy()
    stream = StreamPredictor(model_of(method, tmp_path).eval())
    wanted = stream.steps(video)
    with PretendDevice() as device:
        stream.model.to(device.name)
        stream.reset()
        for frame, want in zip(video, wanted, strict=True):
            device.waits.clear()
            got = stream.step(frame)
            assert got.masks.shape == want.masks.shape and got.ids.tolist() == want.ids.tolist()
    assert sum(device.waits.values()) == IN_A_FRAME[method], dict(device.waits)


def test_tensors_of_all_types_come_to_the_host_in_one_copy():
    tensors = [
        torch.tensor([[True, False], [False, True]]),
        torch.arange(3, dtype=torch.float64).exp(),
        torch.zeros(0, 4),
        torch.tensor(2.5, dtype=torch.float16),
        torch.arange(12).view(3, 4).mT,
    ]
    with PretendDevice() as device:
        copies = to_host([tensor.to(device.name) for tensor in tensors])
        assert sum(count for what, count in device.waits.items() if "to the host" in what) == 1
    for copy, tensor in zip(copies, tensors, strict=True):
        assert copy.dtype == tensor.dtype and torch.equal(copy, tensor)
    assert to_host(tensors)[0] is tensors[0]


def test_the_pretended_device_sees_what_a_gpu_would_wait_for():
    waited = {
        "_local_scalar_dense": lambda x: x.sum().item(),
        "nonzero": lambda x: x.nonzero(),
        "index by truth values": lambda x: x[x > 1],
        "index copied from the host": lambda x: x[torch.tensor([1, 0])],
        "copied to the host": lambda x: x.cpu(),
        "copied from the host": lambda x: x + torch.ones(3).to(x.device),
    }
    for what, action in waited.items():
        with PretendDevice() as device:
            x = torch.arange(3.0, device=device.name)
            action(x)
        assert [wait.split(",")[0] for wait in device.waits] == [what]
    with PretendDevice() as device:
        x = torch.arange(3.0, device=device.name)
        assert tensor_like([1, 2, 3], x).device == x.device and not device.waits
        with pytest.raises(RuntimeError, match="of the device and of the host"):
            x + torch.ones(3)
