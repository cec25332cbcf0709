"""Weights of plain ViTs, and of VidEoMT and EoMT around them, as other programs write them, under our names.

Read are DINOv2 with registers of timm, of Meta and of the Hugging Face Hub, DINOv3 of the Hub, and VidEoMT and EoMT of
the package transformers. Where these have one matrix each for queries, keys and values, DINOv2 has the three stacked
here.
"""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

_DINOV2_TOKEN, _DINOV3_TOKEN = "reg_token", "patch_embed.register_tokens"  # by which a ViT of ours is found

# Beginning of a name there -> ours inside a ViT; the first that fits is taken.
_DINOV2_RULES = (
    (r"embeddings\.cls_token$", "cls_token"),
    (r"(?:embeddings\.)?register_tokens$", "reg_token"),
    (r"embeddings\.position_embeddings(?:\.weight)?$", "pos_embed"),
    (r"embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"(?:encoder\.layer|layers)\.(\d+)\.layer_scale([12])\.lambda1$", r"blocks.\1.ls\2.gamma"),
    (r"(?:encoder\.layer|layers)\.(\d+)\.attention\.(?:output\.dense|out_proj|o_proj)\.", r"blocks.\1.attn.proj."),
    (r"(?:encoder\.layer|layers)\.(\d+)\.", r"blocks.\1."),
    (r"layernorm\.", "norm."),
    (r"(cls_token|reg_token|pos_embed)$", r"\1"),
    (r"(blocks|norm|patch_embed)\.", r"\1."),
)
_DINOV3_RULES = (
    (r"embeddings\.", "patch_embed."),
    (r"(?:model\.)?layer\.(\d+)\.", r"blocks.\1."),
    (r"norm\.", "norm."),
)
_HEAD_RULES = (  # of VidEoMT and EoMT
    (r"query\.", "q."),
    (r"query_updater\.", "query_updater."),
    (r"class_predictor\.", "class_head."),
    (r"upscale_block\.block\.(\d+)\.layernorm2d\.", r"upscale.\1.norm."),
    (r"upscale_block\.block\.(\d+)\.", r"upscale.\1."),
    (r"mask_head\.fc1\.", "mask_head.0."),
    (r"mask_head\.fc2\.", "mask_head.2."),
    (r"mask_head\.fc3\.", "mask_head.4."),
    (r"attn_mask_probs$", "attn_mask_probs"),
)
_SEPARATE = re.compile(
    r"(?:encoder\.layer|layers)\.(\d+)\.attention\.(?:attention\.)?(query|key|value|[qkv]_proj)\.(weight|bias)"
)
_WRAPPERS = ("dinov2_with_registers.", "backbone.", "base_model.", "model.")  # names that a file may have in front


def from_plain_vit(
    tensors: Mapping[str, Tensor], model_names: Iterable[str]
) -> tuple[OrderedDict[str, Tensor], str] | None:
    """Recognise a file of a plain ViT, or of VidEoMT or EoMT, that a model with such a ViT can take.

    Returns:
        All tensors under the model's names, those that no rule knows under their own, and what was recognised; None
        when it is no such file, or its names are the model's already.
    """
    model_names = list(model_names)
    vit, is_dinov3 = _own_vit(model_names)
    if vit is None or any(name in tensors for name in model_names if not name.startswith("criterion.")):
        return None
    tensors = _without_wrapper(tensors)
    kind = _kind_of(tensors, is_dinov3)
    if not kind:
        return None
    rules = _DINOV3_RULES if is_dinov3 else _DINOV2_RULES
    heads = _own_heads(model_names) if "query.weight" in tensors else None
    ours: OrderedDict[str, Tensor] = OrderedDict()
    separate: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        third = None if is_dinov3 else _SEPARATE.fullmatch(name)
        if third:
            separate.setdefault(f"{vit}blocks.{third[1]}.attn.qkv.{third[3]}", {})[third[2][0]] = tensor
        elif not name.endswith("mask_token"):  # of training the ViT alone
            head = None if heads is None else _renamed(name, _HEAD_RULES, heads)
            ours[head or _renamed(name, rules, vit) or name] = tensor
    for name, parts in separate.items():
        if set(parts) != set("qkv"):
            raise ValueError(f"{name} is made of queries, keys and values; the file has only {', '.join(parts)}.")
        ours[name] = torch.cat([parts[part] for part in "qkv"])
    _take_position_of_class(ours, vit)
    return ours, kind


def _own_vit(model_names: list[str]) -> tuple[str | None, bool]:
    """What stands in front of the names of a model's ViT, and whether it is DINOv3; None without one."""
    for token, is_dinov3 in ((_DINOV2_TOKEN, False), (_DINOV3_TOKEN, True)):
        for name in model_names:
            if name == token or name.endswith(f".{token}"):
                return name.removesuffix(token), is_dinov3
    return None, False


def _own_heads(model_names: list[str]) -> str | None:
    """What stands in front of the names of a model's queries and heads."""
    return next((name.removesuffix("q.weight") for name in model_names if name.endswith(".q.weight")), None)


def _without_wrapper(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Remove what all names have in front."""
    for wrapper in _WRAPPERS:
        if tensors and all(name.startswith(wrapper) for name in tensors):
            return {name.removeprefix(wrapper): tensor for name, tensor in tensors.items()}
    return tensors


def _kind_of(tensors: Mapping[str, Tensor], is_dinov3: bool) -> str:
    """What a file is that a ViT of this kind can take; "" for any other."""
    if is_dinov3:
        has_layers = any(re.match(r"(?:model\.)?layer\.\d+\.", name) for name in tensors)
        return "DINOv3 of transformers" if "embeddings.register_tokens" in tensors and has_layers else ""
    if "embeddings.register_tokens" in tensors:
        if "query.weight" in tensors:
            return "VidEoMT of transformers" if "query_updater.weight" in tensors else "EoMT of transformers"
        return "DINOv2 of transformers" if "layernorm.weight" in tensors else ""
    if "blocks.0.attn.qkv.weight" not in tensors:
        return ""
    return "Meta's DINOv2" if "register_tokens" in tensors else "timm's DINOv2" if "reg_token" in tensors else ""


def _renamed(name: str, rules: Iterable[tuple[str, str]], prefix: str) -> str:
    for pattern, replacement in rules:
        found = re.match(pattern, name)
        if found:
            return prefix + found.expand(replacement) + name[found.end() :]
    return ""


def _take_position_of_class(ours: OrderedDict[str, Tensor], vit: str) -> None:
    """Bring a position table to (1, h w, C): some have a first row for the class token, to which it belongs here."""
    table, token = ours.get(f"{vit}pos_embed"), ours.get(f"{vit}cls_token")
    if table is None or token is None:
        return
    table = table[None] if table.dim() == 2 else table
    rows = table.shape[1]
    if math.isqrt(rows) ** 2 != rows and math.isqrt(rows - 1) ** 2 == rows - 1:
        ours[f"{vit}cls_token"] = token + table[:, :1]
        table = table[:, 1:]
    ours[f"{vit}pos_embed"] = table
