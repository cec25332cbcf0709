"""Names of tensors: from those of other programs to ours, by their endings, and grouped for people to read."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

Shape = tuple[int, ...]

_TORCHVISION_RESNET = ("conv1.weight", "bn1.weight", "layer1.0.conv1.weight", "layer4.0.conv1.weight")
_OUR_RESNET = "stem.conv1.weight"
_LITE0_ENDS = {  # what stands before and behind the blocks, theirs to timm's
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
_LITE0_STAGES = (0, 1, 3, 5, 8, 11, 15)  # numbers of the first blocks of the seven stages


# -- names of other programs ------------------------------------------------------------------------------------------


def caffe2_to_ours(name: str) -> str:
    """Rename one Caffe2 ResNet blob: "res2_0_branch2a_bn_s" -> "res2.0.conv1.norm.weight"."""
    name = re.sub(r"^pred_([wb])$", r"linear_\1", name).replace("_", ".")
    name = re.sub(r"\.b$", ".bias", name)
    name = re.sub(r"\.w$", ".weight", name)
    for ending, ours in (
        (r"(bn\.s|bn\.gamma|gn\.s)", "norm.weight"),
        (r"(bn\.bias|bn\.beta|gn\.bias)", "norm.bias"),
        (r"(bn\.rm|bn\.running\.mean)", "norm.running_mean"),
        (r"(bn\.riv|bn\.running\.var)", "norm.running_var"),
    ):
        name = re.sub(rf"\b{ending}$", ours, name)
    name = re.sub(r"^res\.conv1\.norm\.", "conv1.norm.", name)
    name = re.sub(r"^conv1\.", "stem.conv1.", name)
    name = name.replace(".branch1.", ".shortcut.")
    return re.sub(r"\.branch2([abc])\.", lambda match: f".conv{'abc'.index(match[1]) + 1}.", name)


def torchvision_to_ours(name: str) -> str:
    """Rename one tensor of torchvision's ResNet: "layer1.0.downsample.0.weight" -> "res2.0.shortcut.weight"."""
    if "layer" not in name:
        name = f"stem.{name}"
    name = re.sub(r"\blayer([1-4])\b", lambda match: f"res{int(match[1]) + 1}", name)
    name = re.sub(r"\bbn([1-3])\b", r"conv\1.norm", name)
    return name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")


def timm_swin_to_ours(name: str) -> str:
    """Rename one tensor of a recent timm Swin, where a stage begins with the merging that ours ends with."""
    return re.sub(r"^layers\.([1-3])\.downsample\.", lambda match: f"layers.{int(match[1]) - 1}.downsample.", name)


def efficientnet_lite0_to_timm(name: str) -> str:
    """Rename one tensor of the package efficientnet_pytorch: "_blocks.3._bn0.bias" -> "blocks.2.0.bn1.bias"."""
    block = re.match(r"_blocks\.(\d+)\.(.*)", name)
    if not block:
        part, _, leaf = name.partition(".")
        return f"{_LITE0_ENDS.get(part, part)}.{leaf}"
    number, rest = int(block[1]), block[2]
    stage = next(stage for stage, start in reversed(list(enumerate(_LITE0_STAGES))) if number >= start)
    # the first block does not widen its input, and timm counts what is there
    first = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    later = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"}
    parts = first if number == 0 else {**later, "_project_conv": "conv_pwl", "_bn2": "bn3"}
    part, _, leaf = rest.partition(".")
    return f"blocks.{stage}.{number - _LITE0_STAGES[stage]}.{parts.get(part, part)}.{leaf}"


def rename_for_model(names: Iterable[str], model_names: Iterable[str]) -> tuple[dict[str, str], str]:
    """Recognise a backbone file of torchvision or timm by its names, unless the model itself uses them.

    Returns:
        File name to new name for every name, and what was recognised ("" when nothing is renamed).
    """
    names, model_names = list(names), list(model_names)
    known = set(names)

    def model_has(ending: str) -> bool:
        return any(name == ending or name.endswith(f".{ending}") for name in model_names)

    if known.issuperset(_TORCHVISION_RESNET) and model_has(_OUR_RESNET) and not model_has(_TORCHVISION_RESNET[2]):
        return {name: torchvision_to_ours(name) for name in names}, "torchvision ResNet"
    timm_merging = "layers.3.downsample.reduction.weight"
    if timm_merging in known and not model_has(timm_merging):
        return {name: timm_swin_to_ours(name) for name in names}, "timm Swin"
    if "_blocks.0._depthwise_conv.weight" in known and model_has("conv_stem.weight"):
        return {name: efficientnet_lite0_to_timm(name) for name in names}, "EfficientNet-Lite0"
    return {name: name for name in names}, ""


# -- matching by endings ----------------------------------------------------------------------------------------------


@dataclass
class SuffixMatch:
    """Which file name each model name takes.

    Attributes:
        chosen: model name to file name, shapes equal.
        mismatched: model name to the file name it would take if the shapes were equal.
        unused: file names that no model name takes.
    """

    chosen: dict[str, str] = field(default_factory=dict)
    mismatched: dict[str, str] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)


def match_suffixes(model_shapes: Mapping[str, Shape], file_shapes: Mapping[str, Shape]) -> SuffixMatch:
    """Give every model name the longest file name that it equals or ends with after a dot.

    If the shapes differ the model name takes nothing; shorter candidates are not tried. Two model names that take the
    same file name are an error, because it would be unclear which one is meant.
    """
    match = SuffixMatch()
    taken: dict[str, str] = {}
    for name in sorted(model_shapes):
        parts = name.split(".")
        endings = (".".join(parts[start:]) for start in range(len(parts)))
        candidate = next((ending for ending in endings if ending in file_shapes), None)
        if candidate is None:
            continue
        if tuple(model_shapes[name]) != tuple(file_shapes[candidate]):
            match.mismatched[name] = candidate
            continue
        if candidate in taken:
            raise ValueError(
                f"The file's tensor {candidate} fits both {taken[candidate]} and {name} of the model, so the file "
                "cannot be matched by the endings of its names."
            )
        taken[candidate] = name
        match.chosen[name] = candidate
    match.unused = [name for name in file_shapes if name not in taken]
    return match


# -- text -------------------------------------------------------------------------------------------------------------


def absent_module(name: str, present: Iterable[str]) -> str | None:
    """Return the module above `name`, at most two levels deep, that no name in `present` belongs to."""
    parts = name.split(".")
    modules = (".".join(parts[:depth]) for depth in (1, 2) if depth < len(parts))
    return next((module for module in modules if not any(other.startswith(f"{module}.") for other in present)), None)


def group_names(names: Iterable[str], present: Iterable[str] | None = None) -> list[str]:
    """One line per parent module, in order of first appearance: "conv.{weight, bias}", or "conv.weight" alone.

    With `present`, a module at most two levels deep of which nothing is in `present` takes a single line, if that
    stands for more than two names.
    """
    names = list(names)
    present = None if present is None else list(present)
    absent = () if present is None else (absent_module(name, present) for name in names)
    whole = {module: count for module, count in Counter(absent).items() if module and count > 2}
    leaves: dict[str, list[str]] = {}
    for name in names:
        module = next((module for module in whole if name.startswith(f"{module}.")), None)
        parent, _, leaf = name.rpartition(".")
        leaves.setdefault(module or parent, []).append(leaf)
    return [_line(parent, below, parent in whole) for parent, below in leaves.items()]


def _line(parent: str, leaves: list[str], whole: bool) -> str:
    if whole:
        return f"{parent}.* ({len(leaves)} tensors)"
    text = leaves[0] if len(leaves) == 1 else f"{{{', '.join(leaves)}}}"
    return f"{parent}.{text}" if parent else text
