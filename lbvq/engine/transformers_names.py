"""Weights of Mask2Former as the package transformers writes them, under our names.

transformers has two spellings: the one of the files on the Hugging Face Hub, and the one that its version 5 uses in
memory. Both are read. Where attention has one matrix each for queries, keys and values, ours has the three stacked.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping

import torch
from torch import Tensor

MARK = "pixel_level_module."  # in every file of these models, and nowhere else

_ENCODER = r"pixel_level_module\.encoder\."
_SWIN_BLOCK = _ENCODER + r"(?:swin\.)?encoder\.layers\.(\d+)\.blocks\.(\d+)\."
_DECODER = r"pixel_level_module\.decoder\."
_PIXEL_LAYER = _DECODER + r"encoder\.layers\.(\d+)\."
_OURS_PIXEL = "sem_seg_head.pixel_decoder."
_QUERIES = r"transformer_module\."
_QUERY_LAYER = _QUERIES + r"decoder\.layers\.(\d+)\."
_OURS_QUERIES = "sem_seg_head.predictor."
_SELF = _OURS_QUERIES + r"transformer_self_attention_layers.\1."
_CROSS = _OURS_QUERIES + r"transformer_cross_attention_layers.\1."
_FFN = _OURS_QUERIES + r"transformer_ffn_layers.\1."
_BLOCK = r"backbone.layers.\1.blocks.\2."

# Beginning of a name there -> ours; the first that fits is taken.
_RULES: list[tuple[str, str]] = [
    # Swin
    (_ENCODER + r"(?:swin\.)?embeddings\.patch_embeddings\.projection\.", "backbone.patch_embed.proj."),
    (_ENCODER + r"(?:swin\.)?embeddings\.norm\.", "backbone.patch_embed.norm."),
    (_SWIN_BLOCK + r"layernorm_before\.", _BLOCK + "norm1."),
    (_SWIN_BLOCK + r"layernorm_after\.", _BLOCK + "norm2."),
    (_SWIN_BLOCK + r"attention\.(?:self\.)?relative_position_bias\.", _BLOCK + "attn."),
    (_SWIN_BLOCK + r"attention\.self\.relative_position_", _BLOCK + "attn.relative_position_"),
    (_SWIN_BLOCK + r"attention\.(?:output\.dense|o_proj)\.", _BLOCK + "attn.proj."),
    (_SWIN_BLOCK + r"(?:intermediate\.dense|mlp\.fc1)\.", _BLOCK + "mlp.fc1."),
    (_SWIN_BLOCK + r"(?:output\.dense|mlp\.fc2)\.", _BLOCK + "mlp.fc2."),
    (_ENCODER + r"(?:swin\.)?encoder\.layers\.(\d+)\.downsample\.", r"backbone.layers.\1.downsample."),
    # ResNet
    (_ENCODER + r"embedder\.embedder\.convolution\.", "backbone.stem.conv1."),
    (_ENCODER + r"embedder\.embedder\.normalization\.", "backbone.stem.conv1.norm."),
    # pixel decoder
    (_DECODER + r"input_projections\.", _OURS_PIXEL + "input_proj."),
    (_DECODER + r"level_embed", _OURS_PIXEL + "transformer.level_embed"),
    (_PIXEL_LAYER + r"self_attn\.", _OURS_PIXEL + r"transformer.encoder.layers.\1.self_attn."),
    (_PIXEL_LAYER + r"self_attn_layer_norm\.", _OURS_PIXEL + r"transformer.encoder.layers.\1.norm1."),
    (_PIXEL_LAYER + r"(?:mlp\.)?fc([12])\.", _OURS_PIXEL + r"transformer.encoder.layers.\1.linear\2."),
    (_PIXEL_LAYER + r"final_layer_norm\.", _OURS_PIXEL + r"transformer.encoder.layers.\1.norm2."),
    (_DECODER + r"mask_projection\.", _OURS_PIXEL + "mask_features."),
    (_DECODER + r"(adapter|layer)_1\.0\.", _OURS_PIXEL + r"\1_1."),
    (_DECODER + r"(adapter|layer)_1\.1\.", _OURS_PIXEL + r"\1_1.norm."),
    # transformer decoder
    (_QUERIES + r"queries_embedder\.", _OURS_QUERIES + "query_embed."),
    (_QUERIES + r"queries_features\.", _OURS_QUERIES + "query_feat."),
    (_QUERIES + r"level_embed\.", _OURS_QUERIES + "level_embed."),
    (_QUERY_LAYER + r"self_attn\.", _SELF + "self_attn."),
    (_QUERY_LAYER + r"self_attn_layer_norm\.", _SELF + "norm."),
    (_QUERY_LAYER + r"cross_attn\.", _CROSS + "multihead_attn."),
    (_QUERY_LAYER + r"cross_attn_layer_norm\.", _CROSS + "norm."),
    (_QUERY_LAYER + r"(?:mlp\.)?fc([12])\.", _FFN + r"linear\2."),
    (_QUERY_LAYER + r"final_layer_norm\.", _FFN + "norm."),
    (_QUERIES + r"decoder\.layernorm\.", _OURS_QUERIES + "decoder_norm."),
    (
        _QUERIES + r"decoder\.mask_predictor\.mask_embedder\.(\d+)\.0\.",
        _OURS_QUERIES + r"mask_embed.layers.\1.",
    ),
    (r"class_predictor\.", _OURS_QUERIES + "class_embed."),
]
_STAGE_NORM = re.compile(_ENCODER + r"hidden_states_norms\.(?:stage)?(\d+)\.(.*)")
_RESNET_LAYER = re.compile(
    _ENCODER + r"encoder\.stages\.(\d)\.layers\.(\d+)\.(?:layer\.(\d)|(shortcut))\.(convolution|normalization)\.(.*)"
)
_UNUSED = re.compile(_ENCODER + r"(?:swin\.)?layernorm\.|.*num_batches_tracked$")  # of a head that is not there
# Queries, keys and values, each by itself: Swin's (both spellings), and self-attention of the transformer decoder.
_SEPARATE = (
    (re.compile(_SWIN_BLOCK + r"attention\.(?:self\.)?(query|key|value|[qkv]_proj)\.(weight|bias)"), True),
    (re.compile(_QUERY_LAYER + r"self_attn\.([qkv])_proj\.(weight|bias)"), False),
)


def is_transformers_mask2former(names: Mapping[str, Tensor]) -> bool:
    """Whether the names are those of transformers' Mask2Former."""
    return any(name.removeprefix("model.").startswith(MARK) for name in names)


def from_transformers_mask2former(tensors: Mapping[str, Tensor]) -> OrderedDict[str, Tensor]:
    """All tensors under our names; a name that no rule knows is kept, so that the report shows it."""
    ours: OrderedDict[str, Tensor] = OrderedDict()
    separate: dict[str, dict[str, Tensor]] = {}
    for full_name, tensor in tensors.items():
        name = full_name.removeprefix("model.")
        stacked, part = _stacked_name(name)
        if stacked:
            separate.setdefault(stacked, {})[part] = tensor
        elif not _UNUSED.match(name):
            ours[_our_name(name)] = tensor
    for name, parts in separate.items():
        if set(parts) != set("qkv"):
            raise ValueError(f"{name} is made of queries, keys and values; the file has only {', '.join(parts)}.")
        ours[name] = torch.cat([parts[part] for part in "qkv"])
    return ours


def _stacked_name(name: str) -> tuple[str, str]:
    """Our name of a matrix that is a third of one of ours, and which third: "q", "k" or "v"; ("", "") for others."""
    for pattern, is_swin in _SEPARATE:
        found = pattern.fullmatch(name)
        if found:
            *_, part, leaf = found.groups()
            stem = found.expand(_BLOCK + "attn.qkv.") if is_swin else found.expand(_SELF + "self_attn.in_proj_")
            return f"{stem}{leaf}", part[0]
    return "", ""


def _our_name(name: str) -> str:
    norm = _STAGE_NORM.fullmatch(name)
    if norm:
        first = 1 if "stage" in name else 0
        return f"backbone.norm{int(norm[1]) - first}.{norm[2]}"
    layer = _RESNET_LAYER.fullmatch(name)
    if layer:
        stage, block, number, shortcut, kind, leaf = layer.groups()
        conv = shortcut or f"conv{int(number) + 1}"
        return f"backbone.res{int(stage) + 2}.{block}.{conv}.{'norm.' if kind == 'normalization' else ''}{leaf}"
    for pattern, replacement in _RULES:
        found = re.match(pattern, name)
        if found:
            return found.expand(replacement) + name[found.end() :]
    return name
