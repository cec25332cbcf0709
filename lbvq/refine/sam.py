"""SAM and HQ-SAM as refiners, on the packages of their authors (`pip install "lbvq[sam]"`).

Kirillov et al., "Segment Anything", ICCV 2023 (package segment-anything); Ke et al., "Segment Anything in High
Quality", NeurIPS 2023 (package segment-anything-hq). Both read the published `.pth` files. The frame goes through their
`SamPredictor`, the prompts through `FrameDecoder`, which is faster.
"""

from __future__ import annotations

import logging
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lbvq.files.torch_files import read_torch_file

from .base import PromptRefiner, Prompts
from .sam_decoder import FrameDecoder, can_decode

logger = logging.getLogger(__name__)

_MASK_PROMPT_LOGIT = 10.0  # certain foreground or background, within the range the decoders write themselves

# model type -> published file; (sam, hq_sam). The light model exists for HQ-SAM only.
CHECKPOINTS = {
    "sam": {
        "vit_b": "https://dl.fbaipublicfiles.com/segment_anything/sam_vit_b_01ec64.pth",
        "vit_l": "https://dl.fbaipublicfiles.com/segment_anything/sam_vit_l_0b3195.pth",
        "vit_h": "https://dl.fbaipublicfiles.com/segment_anything/sam_vit_h_4b8939.pth",
    },
    "hq_sam": {
        "vit_b": "https://huggingface.co/lkeab/hq-sam/resolve/main/sam_hq_vit_b.pth",
        "vit_l": "https://huggingface.co/lkeab/hq-sam/resolve/main/sam_hq_vit_l.pth",
        "vit_h": "https://huggingface.co/lkeab/hq-sam/resolve/main/sam_hq_vit_h.pth",
        "vit_tiny": "https://huggingface.co/lkeab/hq-sam/resolve/main/sam_hq_vit_tiny.pth",
    },
}


class SamRefiner(PromptRefiner):
    """Refine masks with SAM or HQ-SAM; the frame's embedding is computed once and shared by all of its prompts."""

    def __init__(self, predictor: Any, *, autocast_dtype: torch.dtype | None = None, **options: Any) -> None:
        """
        Args:
            predictor: a `SamPredictor` of segment_anything or segment_anything_hq, on its device, in eval mode.
            autocast_dtype: half precision for encoder and decoder, e.g. torch.float16; None computes in float32.
            options: of `PromptRefiner`.
        """
        super().__init__(**options)
        self.predictor = predictor
        self.autocast_dtype = autocast_dtype
        self._decoder: FrameDecoder | None = None

    def set_frame(self, frame: np.ndarray) -> None:
        with torch.inference_mode(), self._autocast():
            self.predictor.set_image(frame)

    def predict(self, prompts: Prompts) -> np.ndarray:
        predictor, size_hw = self.predictor, self.predictor.original_size
        boxes = predictor.transform.apply_boxes(prompts.boxes_xyxy, size_hw)  # (M, 4) of the encoder's frame
        points = masks = None
        if prompts.points_xy is not None:
            coordinates = predictor.transform.apply_coords(prompts.points_xy, size_hw)
            labels = torch.ones(len(prompts), 1, dtype=torch.int, device=predictor.device)
            points = (self._tensor(coordinates)[:, None], labels)  # (M, 1, 2), (M, 1)
        if prompts.masks is not None:
            masks = self._mask_prompts(prompts.masks)
        with torch.inference_mode(), self._autocast():
            return self._decode(points, self._tensor(boxes), masks)[:, 0].cpu().numpy()

    def _decode(self, points: tuple[Tensor, Tensor] | None, boxes: Tensor, masks: Tensor | None) -> Tensor:
        """Prompts in the encoder's frame -> (M, 1, H, W) bool."""
        predictor, model = self.predictor, self.predictor.model
        if not can_decode(model.mask_decoder):
            coordinates, labels = points or (None, None)
            return predictor.predict_torch(coordinates, labels, boxes, masks, multimask_output=False)[0]
        sizes = (predictor.input_size, predictor.original_size)
        return torch.cat(
            [
                model.postprocess_masks(logits, *sizes) > model.mask_threshold
                for logits in self._frame_decoder().portions(points, boxes, masks)
            ]
        )

    def _frame_decoder(self) -> FrameDecoder:
        """The decoder of the frame that the predictor holds now."""
        predictor = self.predictor
        if self._decoder is None or self._decoder.embedding is not predictor.features:
            early_features = getattr(predictor, "interm_features", [None])[0]
            self._decoder = FrameDecoder(predictor.model, predictor.features, early_features)
        return self._decoder

    def _mask_prompts(self, masks: np.ndarray) -> Tensor:
        """(M, H, W) bool -> (M, 1, s, s) logits, s = 256 for the published models, padded like the encoder's frame."""
        side = self.predictor.model.prompt_encoder.mask_input_size[0]
        size = self.predictor.transform.get_preprocess_shape(*masks.shape[1:], side)
        soft = nn.functional.interpolate(self._tensor(masks)[:, None], size=size, mode="bilinear", antialias=True)
        padding = (0, side - size[1], 0, side - size[0])
        return (nn.functional.pad(soft, padding) * 2 - 1) * _MASK_PROMPT_LOGIT

    def _tensor(self, values: np.ndarray) -> Tensor:
        return torch.as_tensor(values, dtype=torch.float, device=self.predictor.device)

    def _autocast(self) -> torch.autocast:
        device_type = torch.device(self.predictor.device).type
        return torch.autocast(device_type, dtype=self.autocast_dtype, enabled=self.autocast_dtype is not None)


def build_sam_refiner(
    kind: str,
    *,
    model_type: str,
    checkpoint: str,
    device: str = "cpu",
    half: bool = True,
    **options: Any,
) -> SamRefiner:
    """Build SAM or HQ-SAM from its published `.pth` file.

    Args:
        kind: "sam" or "hq_sam".
        model_type: vit_b, vit_l, vit_h, or vit_tiny (HQ-SAM only).
        checkpoint: path of the `.pth` file; "" is the published file name in the working directory.
        device: where it runs.
        half: compute in float16 on CUDA; the CPU always computes in float32.
        options: of `PromptRefiner`.

    Raises:
        ModuleNotFoundError: the package is missing; the message says how to install it.
        FileNotFoundError: the checkpoint is missing; the message says where it is published.
        ValueError: unknown kind or model type, or the file does not fit the model.
    """
    if model_type not in CHECKPOINTS.get(kind, {}):
        known = [f"{name} {model}" for name, models in CHECKPOINTS.items() for model in models]
        raise ValueError(
            f"no model {kind!r} {model_type!r}; known: {', '.join(known)}; set REFINE.NAME, REFINE.MODEL_TYPE"
        )
    package = _import_package(kind)
    model = package.sam_model_registry[model_type]()
    url = CHECKPOINTS[kind][model_type]
    load_sam_weights(model, checkpoint or Path(url).name, url)
    predictor = package.SamPredictor(model.to(device).eval())
    is_cuda = torch.device(device).type == "cuda"
    return SamRefiner(predictor, autocast_dtype=torch.float16 if half and is_cuda else None, **options)


def load_sam_weights(model: nn.Module, checkpoint: str, url: str) -> None:
    """Fill `model` from a published file; every parameter must be in it."""
    if not Path(checkpoint).is_file():
        raise FileNotFoundError(
            f"no SAM checkpoint at {checkpoint!r}; get it with: curl -L -o {checkpoint} {url} and set REFINE.CHECKPOINT"
        )
    state = read_torch_file(checkpoint)
    try:
        report = model.load_state_dict(state, strict=False)
    except (RuntimeError, TypeError, AttributeError) as error:  # other shapes, or no names and tensors at all
        message = f"{checkpoint} is not a file of this model; published: {url}; set REFINE.MODEL_TYPE"
        raise ValueError(message) from error
    missing, unexpected = report.missing_keys, report.unexpected_keys
    if missing:
        raise ValueError(f"{checkpoint} lacks {len(missing)} parameters, first {missing[:3]}; published: {url}")
    if unexpected:
        logger.warning("%s: %d parameters are not used, first %s", checkpoint, len(unexpected), unexpected[:3])


def _import_package(kind: str) -> ModuleType:
    try:
        if kind == "sam":
            import segment_anything as package
        else:
            import segment_anything_hq as package
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f'{kind} needs the package {error.name}; install it with: pip install "lbvq[sam]"'
        ) from error
    return package
