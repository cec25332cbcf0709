"""SAM 2 / 2.1 as refiners, through Hugging Face transformers (`pip install "lbvq[sam2]"`).

Ravi et al., "SAM 2: Segment Anything in Images and Videos", 2024. (The package named sam2 on PyPI is not its authors'.)
`Sam2Refiner` prompts every frame for itself. `Sam2VideoRefiner` shows the model one trusted mask of each object, lets
it follow the object through the frames around, and takes the followed mask where it agrees with the original.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .base import PromptRefiner, Prompts, RefinedFrame, mask_ious

_MASK_PROMPT_LOGIT = 10.0  # certain foreground or background
DEFAULT_CHECKPOINT = "facebook/sam2.1-hiera-large"


class Sam2Refiner(PromptRefiner):
    """Refine each frame for itself with `Sam2Model`."""

    def __init__(self, model: Any, image_processor: Any, **options: Any) -> None:
        """
        Args:
            model: a transformers `Sam2Model` on its device and in its dtype, in eval mode.
            image_processor: the `Sam2ImageProcessor` of the same checkpoint.
            options: of `PromptRefiner`.
        """
        super().__init__(**options)
        self.model = model
        self.image_processor = image_processor
        self._embeddings: list[Tensor] = []
        self._size_hw = (0, 0)

    def set_frame(self, frame: np.ndarray) -> None:
        pixels = self.image_processor(images=frame, return_tensors="pt")["pixel_values"]
        with torch.inference_mode():
            self._embeddings = self.model.get_image_embeddings(pixels.to(self.model.device, self.model.dtype))
        self._size_hw = frame.shape[:2]

    def predict(self, prompts: Prompts) -> np.ndarray:
        # Each prompt is its own batch entry: the mask prompt of transformers is one per entry.
        count = len(prompts)
        points = labels = masks = None
        if prompts.points_xy is not None:
            points = self._tensor(self._to_model_frame(prompts.points_xy))[:, None, None]  # (M, 1, 1, 2)
            labels = torch.ones(count, 1, 1, dtype=torch.int32, device=self.model.device)
        if prompts.masks is not None:
            side = self.model.prompt_encoder.mask_input_size
            soft = nn.functional.interpolate(
                self._tensor(prompts.masks)[:, None], side, mode="bilinear", antialias=True
            )
            masks = (soft * 2 - 1) * _MASK_PROMPT_LOGIT  # (M, 1, s, s)
        with torch.inference_mode():
            low_resolution = self.model(
                image_embeddings=[level.expand(count, -1, -1, -1) for level in self._embeddings],
                input_boxes=self._tensor(self._to_model_frame(prompts.boxes_xyxy))[:, None],  # (M, 1, 4)
                input_points=points,
                input_labels=labels,
                input_masks=masks,
                multimask_output=False,
            ).pred_masks  # (M, 1, 1, s, s)
            return (_resize(low_resolution[:, 0], self._size_hw)[:, 0] > 0).cpu().numpy()

    def _to_model_frame(self, coordinates: np.ndarray) -> np.ndarray:
        """(M, 2k) pixels x, y, x, y ... of the frame -> pixels of the square the model sees."""
        height, width = self._size_hw
        side = self.model.config.prompt_encoder_config.image_size
        return coordinates * np.resize([side / width, side / height], coordinates.shape[1])

    def _tensor(self, values: np.ndarray) -> Tensor:
        return torch.as_tensor(values, dtype=self.model.dtype, device=self.model.device)


class Sam2VideoRefiner:
    """Follow one trusted mask of each object through a window of frames with `Sam2VideoModel`.

    Trusted is the mask that SAM 2 itself confirms best: its answer to the mask's box, in that frame alone, has the
    highest IoU with it. From there the object is followed forwards and backwards; in every frame the followed mask
    replaces the original where their IoU is above the acceptance threshold, the rule of the frame refiners.
    Memory grows with the window, not with the video.
    """

    def __init__(self, model: Any, processor: Any, frame_refiner: PromptRefiner, *, window: int = 32) -> None:
        """
        Args:
            model: a transformers `Sam2VideoModel` on its device, in eval mode.
            processor: the `Sam2VideoProcessor` of the same checkpoint.
            frame_refiner: finds the trusted mask; its `iou_threshold` is the acceptance rule of both.
            window: frames that are followed together.
        """
        if window < 1:
            raise ValueError(f"window must be at least 1 frame, got {window}; set REFINE.WINDOW")
        self.model = model
        self.processor = processor
        self.frame_refiner = frame_refiner
        self.window = window

    def refine(self, frame: np.ndarray, masks: np.ndarray) -> np.ndarray:
        """One frame has nothing to follow: refine it by itself."""
        return self.frame_refiner.refine(frame, masks)

    def refine_window(self, frames: list[np.ndarray], masks: np.ndarray) -> list[RefinedFrame]:
        """T frames (H, W, 3) uint8 RGB and (N, T, H, W) bool masks -> T refined frames."""
        confirmed = [self.frame_refiner.refine_frame(frame, masks[:, t]) for t, frame in enumerate(frames)]
        trust = np.stack([frame.ious for frame in confirmed], axis=1)  # (N, T)
        trust[~masks.any(axis=(2, 3))] = -1.0
        answers = masks.copy()
        session = self._start_session(frames)
        for index in np.flatnonzero(trust.max(axis=1, initial=-1.0) >= 0):
            answers[index] = self._follow(session, int(trust[index].argmax()), masks[index])
        return [self._accept(answers[:, t], masks[:, t]) for t in range(len(frames))]

    def _accept(self, answers: np.ndarray, masks: np.ndarray) -> RefinedFrame:
        ious = mask_ious(answers, masks)
        accepted = (ious > self.frame_refiner.iou_threshold) & masks.any(axis=(1, 2))
        return RefinedFrame(np.where(accepted[:, None, None], answers, masks), accepted, ious)

    def _start_session(self, frames: list[np.ndarray]) -> Any:
        return self.processor.init_video_session(
            video=np.stack(frames),
            inference_device=self.model.device,
            dtype=self.model.dtype,
            max_vision_features_cache_size=len(frames),  # every object passes over the same frames
        )

    def _follow(self, session: Any, start: int, masks: np.ndarray) -> np.ndarray:
        """Masks (T, H, W) of one object as the model sees them when shown the one in frame `start`."""
        session.reset_tracking_data()
        followed = masks.copy()
        with torch.inference_mode():
            self.processor.add_inputs_to_inference_session(
                session, frame_idx=start, obj_ids=1, input_masks=torch.from_numpy(masks[start])
            )
            for reverse in (False, True):
                for output in self.model.propagate_in_video_iterator(session, start_frame_idx=start, reverse=reverse):
                    logits = _resize(output.pred_masks, masks.shape[1:])  # (1, 1, H, W)
                    followed[output.frame_idx] = (logits[0, 0] > 0).cpu().numpy()
        return followed


def build_sam2_refiner(
    *,
    checkpoint: str = "",
    video: bool = False,
    window: int = 32,
    device: str = "cpu",
    half: bool = True,
    **options: Any,
) -> Sam2Refiner | Sam2VideoRefiner:
    """Build SAM 2 from a folder or a name of the Hugging Face hub.

    Args:
        checkpoint: folder with `config.json` and `model.safetensors`, or a hub name; "" is SAM 2.1 large.
        video: follow objects through the video (`Sam2VideoRefiner`) instead of frame by frame.
        window: of `Sam2VideoRefiner`.
        device: where it runs.
        half: compute in bfloat16 on CUDA; the CPU always computes in float32.
        options: of `PromptRefiner`.

    Raises:
        ModuleNotFoundError: transformers is missing; the message says how to install it.
        FileNotFoundError: the checkpoint cannot be had; the message says how to get it.
    """
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('sam2 needs transformers; install it with: pip install "lbvq[sam2]"') from error
    source = checkpoint or DEFAULT_CHECKPOINT
    dtype = torch.bfloat16 if half and torch.device(device).type == "cuda" else torch.float32

    def load(model_class: Any) -> nn.Module:
        return model_class.from_pretrained(source, dtype=dtype).to(device).eval()

    try:
        processor_class = getattr(transformers, "Sam2ImageProcessor", None) or transformers.Sam2ImageProcessorFast
        image_processor = processor_class.from_pretrained(source)  # "Fast" was in its name before version 5
        refiner = Sam2Refiner(load(transformers.Sam2Model), image_processor, **options)
        if not video:
            return refiner
        processor = transformers.Sam2VideoProcessor.from_pretrained(source)
        return Sam2VideoRefiner(load(transformers.Sam2VideoModel), processor, refiner, window=window)
    except OSError as error:
        raise FileNotFoundError(
            f"no SAM 2 checkpoint at {source!r}; get one with: hf download {DEFAULT_CHECKPOINT} "
            "--local-dir sam2.1-large, and set REFINE.CHECKPOINT to that folder"
        ) from error


def _resize(logits: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """(N, 1, h, w) -> (N, 1, H, W) float32."""
    return nn.functional.interpolate(logits.float(), size_hw, mode="bilinear", align_corners=False)
