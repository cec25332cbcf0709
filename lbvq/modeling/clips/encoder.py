"""Let the frame queries of a clip see each other before objects are decoded from them: VITA and GenVIS.

VITA, "Video Instance Segmentation via Object Token Association" (NeurIPS 2022), section 3.2. With windows, only the
queries of W neighbouring frames see each other, so the cost grows linearly with the length of the video; at test every
second layer moves the windows by half of their length, and information travels through the whole video.

The published code pads the video to whole windows, rolls it in every second layer, and masks what must not meet. What
can see each other then are runs of consecutive frames; here the video is cut into these, without padding or masks.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

TOKENS_AT_ONCE = 8192  # of whole windows encoded in one call without gradients; bounds memory for long videos


def encode_frame_queries(
    queries: Tensor, attention_layers: nn.ModuleList, ffn_layers: nn.ModuleList, *, window_size: int, shift: bool
) -> Tensor:
    """Run the encoder layers on the frame queries of clips; without layers nothing happens.

    Args:
        queries: (T, Q, B, C) of B clips.
        attention_layers, ffn_layers: self-attention and feed-forward layers, applied in turn.
        window_size: W frames that see each other; 0 means all.
        shift: move the windows in every second layer.

    Returns:
        (T, Q, B, C).
    """
    for index, layers in enumerate(zip(attention_layers, ffn_layers, strict=True)):
        shifted = shift and index % 2 == 1
        runs = frame_runs(len(queries), window_size, shifted)
        queries = torch.cat([encode_windows(part, length, *layers) for part, length in cut(queries, runs)])
    return queries


def frame_runs(num_frames: int, window_size: int, shifted: bool) -> list[tuple[int, int]]:
    """Cut a video into runs of frames that see each other: list of (how many runs, frames of each), in order.

    Windows of W frames start at frame 0, or when shifted at frame W // 2 with a shorter run before; the last run may be
    shorter as well.
    """
    if window_size == 0:
        return [(1, num_frames)]
    first = min(window_size // 2, num_frames) if shifted else 0
    whole, last = divmod(num_frames - first, window_size)
    return [(count, length) for count, length in ((1, first), (whole, window_size), (1, last)) if count * length]


def cut(queries: Tensor, runs: list[tuple[int, int]]) -> list[tuple[Tensor, int]]:
    """Split (T, Q, B, C) queries by `frame_runs`: list of (queries of a few runs of equal length, that length)."""
    parts = []
    for (_, length), part in zip(runs, queries.split([count * length for count, length in runs]), strict=True):
        step = len(part)
        if not torch.is_grad_enabled():
            step = max(1, TOKENS_AT_ONCE // (length * queries.shape[1])) * length
        parts += [(piece, length) for piece in part.split(step)]
    return parts


def encode_windows(queries: Tensor, length: int, attention: nn.Module, ffn: nn.Module) -> Tensor:
    """Run one encoder layer on runs of `length` frames, each for itself: (n * length, Q, B, C) -> the same shape."""
    num_queries, batch = queries.shape[1:3]
    tokens = (
        queries.unflatten(0, (-1, length)).permute(1, 2, 0, 3, 4).reshape(length * num_queries, -1, queries.shape[3])
    )
    tokens = ffn(attention(tokens))  # (length * Q, n * B, C)
    tokens = tokens.reshape(length, num_queries, -1, batch, tokens.shape[2])
    return tokens.permute(2, 0, 1, 3, 4).flatten(0, 1)
