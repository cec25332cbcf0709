"""Classify objects by comparing them with the text embeddings of class names.

OVFormer, "Unified Embedding Alignment for Open-Vocabulary Video Instance Segmentation" (ECCV 2024): a query is brought
into the joint space of CLIP, attends there to CLIP's embedding of the whole image (of all frames of a clip), and is
compared with the text embedding of every class by their cosine. The texts are data: a model is used with another
vocabulary by giving it other embeddings.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mask2former.layers import CrossAttentionLayer
from mask2former.linear import Linear

TEMPERATURE = 50.0  # logits are cosines times this
NUM_HEADS = 8
RANDOM_TEXT = "rand"  # published value of CLIP_TEXT_PATH for class vectors that are learned

HOW_TO_MAKE_TEXT = (
    "Make it with: python tools/save_clip_features.py text --dataset NAME --output {path} (or --classes 'cat, dog'); "
    'this needs pip install "lbvq[open-vocab]". The file is set by MODEL.MASK_FORMER.CLIP_TEXT_PATH.'
)


class ZeroShotClassifier(nn.Module):
    """Class logits of queries: 50 times the cosine with the text of every class, and 0 for "no object"."""

    # never taken from a weight file: two vocabularies may have equal sizes
    configured_buffers: tuple[str, ...] = ("zs_weight",)

    def __init__(self, input_dim: int, *, text: Tensor, is_learned: bool = False) -> None:
        """Args:
        input_dim: C of the queries.
        text: (K, E) embedding of every class, in the order of the contiguous class index; its length is of no effect.
        is_learned: train the class vectors instead of keeping them.
        """
        super().__init__()
        weight = class_weights(text)
        if is_learned:
            self.zs_weight: Tensor = nn.Parameter(weight)
            self.configured_buffers = ()
        else:
            self.register_buffer("zs_weight", weight)  # checkpoint name, (E, K+1)
        text_dim = text.shape[1]
        if text_dim % NUM_HEADS:
            raise ValueError(f"text embeddings must have a multiple of {NUM_HEADS} numbers, got {text_dim} per class.")
        self.linear = nn.Sequential(Linear(input_dim, input_dim), nn.ReLU(), Linear(input_dim, text_dim))
        self.cross_attention = CrossAttentionLayer(text_dim, NUM_HEADS)

    @property
    def text_dim(self) -> int:
        """E, the width of the joint space."""
        return self.zs_weight.shape[0]

    def forward(self, queries: Tensor, image_features: Tensor, text: Tensor | None = None) -> Tensor:
        """Compare queries with texts.

        Args:
            queries: (B, Q, C).
            image_features: (T, B, E), CLIP's embeddings of the T frames of each clip, as CLIP gives them; T is 1 for
                images.
            text: (K', E) of other classes instead of the classifier's own.

        Returns:
            (B, Q, K+1), the last column 0; with `text` (B, Q, K').
        """
        if image_features.shape[1:] != (len(queries), self.text_dim):
            raise ValueError(
                f"image features must have shape (T, {len(queries)}, {self.text_dim}), got "
                f"{tuple(image_features.shape)}; were they and the text embeddings made by the same CLIP model?"
            )
        aligned = self.linear(queries).transpose(0, 1)  # (Q, B, E)
        aligned = self.cross_attention(aligned, image_features.to(aligned.dtype)).transpose(0, 1)
        weight = self.zs_weight if text is None else class_weights(text.to(aligned))[:, :-1]
        return (TEMPERATURE * F.normalize(aligned, dim=-1)) @ weight

    def set_vocabulary(self, text: Tensor) -> None:
        """Classify with the texts (K', E) of other classes from now on."""
        if not self.configured_buffers:
            raise ValueError("the class vectors are learned (CLIP_TEXT_PATH 'rand') and cannot be replaced by texts.")
        if text.dim() != 2 or text.shape[1] != self.text_dim or len(text) == 0:
            raise ValueError(f"text embeddings must have shape (classes, {self.text_dim}), got {tuple(text.shape)}.")
        self.zs_weight = class_weights(text.to(self.zs_weight))


def class_weights(text: Tensor) -> Tensor:
    """Embeddings (K, E) of K texts -> (E, K+1): unit columns, then a column of zeros for "no object"."""
    unit = F.normalize(text.float(), dim=1)
    return torch.cat((unit, unit.new_zeros(1, unit.shape[1]))).T.contiguous()


def open_vocabulary_scores(logits: Tensor, object_logits: Tensor) -> Tensor:
    """Geometric mean of how well an object fits a class and of how surely it is an object.

    Args:
        logits: (..., Q, K+1) of `ZeroShotClassifier`.
        object_logits: (..., Q, 2): object, no object.

    Returns:
        (..., Q, K) in [0, 1].
    """
    return (logits[..., :-1].sigmoid() * object_logits.softmax(-1)[..., :1]).sqrt()


def read_text_embeddings(path: str | Path, num_classes: int | None = None) -> Tensor:
    """Read a .npy file of text embeddings, as published or as `tools/save_clip_features.py` writes it.

    Args:
        path: the file; "rand" gives random vectors, as published.
        num_classes: K that is wanted; None takes any.

    Returns:
        (K, E) float32, row k for contiguous class index k.
    """
    if str(path) == RANDOM_TEXT:
        return torch.randn(num_classes or 0, 512)
    if not str(path):
        raise ValueError(
            "MODEL.MASK_FORMER.CLIP_TEXT_PATH is empty; the classes of this model are given as text. "
            + HOW_TO_MAKE_TEXT.format(path="FILE.npy")
        )
    if not Path(path).is_file():
        raise FileNotFoundError(f"The text embeddings {path} do not exist. " + HOW_TO_MAKE_TEXT.format(path=path))
    try:
        text = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} is no .npy file of plain numbers: {error}") from error
    if not isinstance(text, np.ndarray) or text.ndim != 2 or text.dtype.kind != "f" or 0 in text.shape:
        got = f"{text.dtype} {text.shape}" if isinstance(text, np.ndarray) else "an archive of arrays"
        raise ValueError(f"{path}: expected a float array of shape (classes, 512), got {got}.")
    if num_classes is not None and len(text) != num_classes:
        raise ValueError(
            f"{path} has embeddings of {len(text)} classes, but MODEL.SEM_SEG_HEAD.NUM_CLASSES is {num_classes}; "
            "change it, or choose the file of the data set in MODEL.MASK_FORMER.CLIP_TEXT_PATH."
        )
    lengths = np.linalg.norm(text.astype(np.float64), axis=1)
    if not np.isfinite(lengths).all() or (lengths == 0).any():
        bad = int(np.flatnonzero(~(np.isfinite(lengths) & (lengths > 0)))[0])
        raise ValueError(f"{path}: the embedding of class {bad} is zero or not finite.")
    return torch.from_numpy(text.astype(np.float32))
