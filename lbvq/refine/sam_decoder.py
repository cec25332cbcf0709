"""The mask decoders of SAM and HQ-SAM for many prompts of one frame, several times as fast as prompt by prompt.

The parameters are read from the packages' own modules; the answers are theirs up to the order of sums. What is saved:

* Attention between T tokens (about 8) and N image tokens (4096) with H heads costs most in the projections of the image
  tokens to keys, values or queries. The tokens are few, so the projection is applied to them instead:
  (W_k y) q = y (W_k^T q) has H T columns rather than the width of the projection, and its output is mixed first and
  projected afterwards.
* Whatever does not depend on the prompt, above all HQ-SAM's features of the frame, is computed once per frame.
* Image tokens stay channels last, where a transposed convolution of stride 2 is a linear map.
* Only the mask that is wanted is computed: of several outputs the first, and for HQ-SAM the sum with its own. The
  last convolution of HQ-SAM meets a single mask embedding, so it has 1 output channel rather than 32.
* On a CPU one prompt after the other, since their data then stay in the caches.

Shapes: M prompts, B of them at a time, T prompt and output tokens, N = h x w image tokens, C channels, H heads.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mask2former.linear import linear

# The decoders whose architecture is computed here; SAM-HQ's repository installs its own under the name of SAM's.
KNOWN_CLASSES = {
    "segment_anything.modeling.mask_decoder.MaskDecoder",
    "segment_anything.modeling.mask_decoder_hq.MaskDecoderHQ",
    "segment_anything_hq.modeling.mask_decoder_hq.MaskDecoderHQ",
}
CPU_PORTION, CUDA_PORTION = 1, 16  # prompts decoded at once; on a CPU more are slower, see above
CPU_STRIPS = 8  # of the image where it has 16 N pixels


def can_decode(decoder: nn.Module) -> bool:
    """Whether `FrameDecoder` computes what this mask decoder computes."""
    kind = type(decoder)
    return f"{kind.__module__}.{kind.__qualname__}" in KNOWN_CLASSES


class FrameDecoder:
    """Decode prompts of one frame to masks; make a new one for every frame."""

    def __init__(self, model: Any, embedding: Tensor, early_features: Tensor | None = None) -> None:
        """
        Args:
            model: `Sam` of segment_anything or segment_anything_hq, in eval mode, with a decoder that `can_decode`.
            embedding: (1, C, h, w), the frame as the encoder returns it.
            early_features: (1, h, w, C_encoder), the first of the encoder's intermediate outputs; HQ-SAM only.
        """
        self.model = model
        self.embedding = embedding
        self.position = _image_tokens(model.prompt_encoder.get_dense_pe())  # (1, N, C)
        self.height, self.width = embedding.shape[2:]
        self.upscale = _Upscaling(model.mask_decoder.output_upscaling)
        is_cpu = embedding.device.type == "cpu"
        self.portion, self.num_strips = (CPU_PORTION, CPU_STRIPS) if is_cpu else (CUDA_PORTION, 1)
        self.hq_features: Tensor | None = None
        if early_features is not None and hasattr(model.mask_decoder, "hf_token"):
            self.hq_features = self._hq_features(early_features)
            # Upscaled pixels, in the same memory for all portions: to get new memory costs more than to compute in it.
            # The first and last row stay zero, the padding that the convolution asks for.
            shape = (self.portion, 4 * self.height + 2, 4 * self.width, self.hq_features.shape[1])
            self._pixels = self.hq_features.new_zeros(shape)

    def portions(self, points: tuple[Tensor, Tensor] | None, boxes: Tensor, masks: Tensor | None) -> Iterator[Tensor]:
        """Decode M prompts.

        Args:
            points: (M, P, 2) coordinates (x, y) in the encoder's frame and (M, P) labels, or None.
            boxes: (M, 4) left, top, right, bottom in the encoder's frame.
            masks: (M, 1, 4 h, 4 w) logits, or None.

        Yields:
            (B, 1, 4 h, 4 w) mask logits; the prompts in order, B of them at a time.
        """
        sparse, dense = self.model.prompt_encoder(points=points, boxes=boxes, masks=masks)
        decoder = self.model.mask_decoder
        kinds = ["iou_token", "mask_tokens"] + ["hf_token"] * (self.hq_features is not None)
        outputs = torch.cat([getattr(decoder, kind).weight for kind in kinds])
        tokens = torch.cat((outputs.expand(len(sparse), -1, -1), sparse), dim=1)
        # Without masks `dense` is one constant, so the prompts share the image that they start from.
        image = _image_tokens(self.embedding + dense[:1]) if masks is None else None
        for start in range(0, len(tokens), self.portion):
            some = slice(start, start + self.portion)
            yield self._decode(tokens[some], _image_tokens(self.embedding + dense[some]) if image is None else image)

    def _decode(self, tokens: Tensor, image: Tensor) -> Tensor:
        """Tokens (B, T, C) and image (B or 1, N, C) -> mask logits (B, 1, 4 h, 4 w)."""
        decoder = self.model.mask_decoder
        wanted = [1] if self.hq_features is None else [1, 1 + len(decoder.mask_tokens.weight)]
        mask_tokens, image = _transform(decoder.transformer, tokens, image, self.position, wanted)
        embedding = decoder.output_hypernetworks_mlps[0](mask_tokens[:, :1])  # (B, 1, C / 8)
        parts = []
        for top, bottom in self._strips(self.height):
            strip = self.upscale(image[:, top * self.width : bottom * self.width])
            parts.append(_products(embedding, strip.flatten(1, 5)))
            if self.hq_features is not None:
                self._pixels[: len(strip), 4 * top + 1 : 4 * bottom + 1] = self._in_rows(strip)
        masks = self._in_rows(torch.cat(parts, dim=2).unflatten(2, (-1, 2, 2, 2, 2, 1))[:, 0])[:, None, :, :, 0]
        if self.hq_features is not None:
            own = decoder.hf_mlp(mask_tokens[:, 1:])
            masks = masks + self._hq_masks(own, self.hq_features, self._pixels[: len(tokens)])
        return masks

    def _hq_masks(self, embedding: Tensor, features: Tensor, pixels: Tensor) -> Tensor:
        """HQ-SAM's own mask logits: (B, 1, C / 8), (16 N, C / 8) and (B, 4 h + 2, 4 w, C / 8) -> (B, 1, 4 h, 4 w)."""
        convolution, norm, activation, last = self.model.mask_decoder.embedding_maskfeature
        # F.fold adds what each pixel sends to its neighbours, a convolution asks the neighbours: hence the flip
        taps = torch.einsum("bqo,ocij->bijc", embedding, last.weight.flip(2, 3)).flatten(1, 2)  # (B, 9, C / 4)
        masks = linear(embedding.flatten(0, 1), features) + embedding[:, 0] @ last.bias[:, None]
        masks = F.pad(masks.float().view(-1, 1, 4 * self.height, 4 * self.width), (0, 0, 1, 1))
        for top, bottom in self._strips(4 * self.height):
            planes = pixels[:, top : bottom + 2].permute(0, 3, 1, 2)
            hidden = F.conv2d(planes, convolution.weight, convolution.bias, padding=(0, 1)).permute(0, 2, 3, 1)
            sent = _products(taps, activation(_norm(hidden, norm)).flatten(1, 2))  # (B, 9, rows * 4 w)
            masks[:, :, top : bottom + 2] += F.fold(sent.float(), (bottom + 2 - top, 4 * self.width), 3, padding=(0, 1))
        return masks[:, :, 1:-1]

    def _hq_features(self, early_features: Tensor) -> Tensor:
        """What HQ-SAM takes from the encoder: (16 N, C / 8)."""
        decoder = self.model.mask_decoder
        early, late = _Upscaling(decoder.compress_vit_feat), _Upscaling(decoder.embedding_encoder)
        embedding = _image_tokens(self.embedding).unflatten(1, (self.height, self.width))
        strips = []
        for top, bottom in self._strips(self.height):
            strip = early(early_features[:, top:bottom].flatten(1, 2)) + late(embedding[:, top:bottom].flatten(1, 2))
            strips.append(self._in_rows(strip))
        return torch.cat(strips, dim=1)[0].flatten(0, 1)

    def _strips(self, height: int) -> Iterator[tuple[int, int]]:
        """Top and bottom of strips of an image; all of it on CUDA, a part that stays in the caches on a CPU."""
        rows = -(-height // self.num_strips)
        for top in range(0, height, rows):
            yield top, min(top + rows, height)

    def _in_rows(self, strip: Tensor) -> Tensor:
        """(B, rows w, 2, 2, 2, 2, c) of `_Upscaling` -> (B, 4 rows, 4 w, c)."""
        strip = strip.unflatten(1, (-1, self.width)).permute(0, 1, 3, 5, 2, 4, 6, 7)
        return strip.flatten(1, 3).flatten(2, 4)


def _transform(
    transformer: Any, tokens: Tensor, image: Tensor, position: Tensor, wanted: list[int]
) -> tuple[Tensor, Tensor]:
    """Let tokens and image attend to each other.

    Args:
        transformer: `TwoWayTransformer`.
        tokens: (B, T, C); they are their own position code.
        image: (B or 1, N, C).
        position: (1, N, C), position code of the image tokens.
        wanted: indices of the K tokens to return.

    Returns:
        (B, K, C) tokens and (B, N, C) image.
    """
    queries, placed = tokens, image + position
    for layer in transformer.layers:
        queries = _update_tokens(layer, queries, tokens, image, placed)
        gathered = _image_to_token(layer.cross_attn_image_to_token, placed, queries + tokens, queries)
        image = layer.norm4(gathered.add_(image) if gathered.dtype == image.dtype else gathered + image)
        placed = image + position
    chosen = queries[:, wanted]
    attended = _token_to_image(transformer.final_attn_token_to_image, chosen + tokens[:, wanted], placed, image)
    return transformer.norm_final_attn(chosen + attended), image


def _update_tokens(layer: Any, queries: Tensor, tokens: Tensor, image: Tensor, placed: Tensor) -> Tensor:
    """One layer's side of the tokens: (B, T, C) -> (B, T, C)."""
    if layer.skip_first_layer_pe:
        queries = layer.self_attn(q=queries, k=queries, v=queries)
    else:
        own = queries + tokens
        queries = queries + layer.self_attn(q=own, k=own, v=queries)
    queries = layer.norm1(queries)
    queries = layer.norm2(queries + _token_to_image(layer.cross_attn_token_to_image, queries + tokens, placed, image))
    return layer.norm3(queries + layer.mlp(queries))


def _token_to_image(attention: Any, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Few queries (B, T, C) attend to many keys and values (B or 1, N, C): (B, T, C).

    The bias of the keys adds the same to all scores of a query, which softmax takes out again.
    """
    heads = attention.num_heads
    query = attention.q_proj(queries).unflatten(2, (heads, -1))
    key_weight = attention.k_proj.weight.unflatten(0, (heads, -1))  # (H, D, C)
    query = torch.einsum("bthd,hdc->bhtc", query / math.sqrt(query.shape[-1]), key_weight)
    weights = _products(query.flatten(1, 2), keys).softmax(dim=2)  # (B, H T, N)
    mixed = _products(weights, values.transpose(1, 2)).unflatten(1, (heads, -1))  # (B, H, T, C)
    value_weight = attention.v_proj.weight.unflatten(0, (heads, -1))
    mixed = torch.einsum("bhtc,hdc->bthd", mixed, value_weight).flatten(2)
    return attention.out_proj(mixed + attention.v_proj.bias)


def _image_to_token(attention: Any, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Many queries (B or 1, N, C) attend to few keys and values (B, T, C): (B, N, C)."""
    heads = attention.num_heads
    key = attention.k_proj(keys).unflatten(2, (heads, -1))
    key = key / math.sqrt(key.shape[-1])
    query_weight = attention.q_proj.weight.unflatten(0, (heads, -1))  # (H, D, C)
    folded = torch.einsum("bthd,hdc->bhtc", key, query_weight).flatten(1, 2)
    offset = torch.einsum("bthd,hd->bht", key, attention.q_proj.bias.unflatten(0, (heads, -1)))
    scores = _products(folded, queries).unflatten(1, (heads, -1))  # (B, H, T, N)
    weights = scores.add_(offset[..., None]).softmax(dim=2).flatten(1, 2)
    value = attention.v_proj(values).unflatten(2, (heads, -1))
    value = torch.einsum("bthd,chd->bcht", value, attention.out_proj.weight.unflatten(1, (heads, -1)))
    return _products(weights.transpose(1, 2), value.flatten(2), attention.out_proj.bias)


def _products(first: Tensor, second: Tensor, bias: Tensor | None = None) -> Tensor:
    """first second^T + bias, pair by pair: (B, I, K), (B or 1, J, K) and (J,) -> (B, I, J)."""
    if len(first) == 1:
        return linear(first[0], second[0], bias)[None]
    out = torch.matmul(first, second.transpose(1, 2))
    return out if bias is None else out + bias


class _Upscaling:
    """Two transposed convolutions with kernel and stride 2, LayerNorm and GELU between them, as linear maps."""

    def __init__(self, layers: nn.Sequential) -> None:
        first, self.norm, self.activation, second, *self.rest = layers
        self.first, self.second = _linear_parameters(first), _linear_parameters(second)

    def __call__(self, tokens: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, 2, 2, 2, 2, c): rows and columns of the first convolution, then of the second."""
        hidden = linear(tokens, *self.first).unflatten(-1, (2, 2, -1))
        out = linear(self.activation(_norm(hidden, self.norm)), *self.second).unflatten(-1, (2, 2, -1))
        return self.rest[0](out) if self.rest else out


def _linear_parameters(convolution: Any) -> tuple[Tensor, Tensor]:
    """Weight (4 c, C) and bias (4 c,) that make 2 x 2 pixels with c channels of each pixel."""
    return convolution.weight.permute(0, 2, 3, 1).flatten(1).T, convolution.bias.repeat(4)


def _norm(tokens: Tensor, norm: Any) -> Tensor:
    """`LayerNorm2d` of channels last: (..., C)."""
    return F.layer_norm(tokens, tokens.shape[-1:], norm.weight, norm.bias, norm.eps)


def _image_tokens(planes: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, N, C), contiguous."""
    return planes.flatten(2).transpose(1, 2).contiguous()
