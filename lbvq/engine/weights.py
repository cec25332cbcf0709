"""Load a weight file into a model and report what fitted.

Published rules: names are matched as they are, or by their endings when the file asks for it; tensors of another shape
are left out (fine-tuning on other classes needs it). Beyond them, a file that does not fit is an error and not a line
in a log.
"""

from __future__ import annotations

import logging
import os
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from lbvq.files.class_list import ClassList

from .name_matching import (
    absent_module,
    caffe2_to_ours,
    group_names,
    match_suffixes,
    rename_for_model,
)
from .name_prefixes import find_prefix, is_average, shared_prefixes, split_flat_average, strip_prefix, without_wrappers
from .transformers_names import from_transformers_mask2former, is_transformers_mask2former
from .vit_names import from_plain_vit
from .weight_files import WeightFile, read_weights_of

logger = logging.getLogger(__name__)

ALLOW_MISSING = ("none", "losses", "classifier", "new_modules", "all")
LOSS_PARTS = frozenset({"criterion", "empty_weight", "empty_object_weight", "freq_weight"})  # nothing else reads them
CLASSIFIER_PARTS = frozenset({"class_embed"})
CONSTANTS = frozenset({"pixel_mean", "pixel_std"})  # at the root of the model: from the configuration, not learned
# in any module: computed, or without effect
CONSTANT_LEAVES = (
    "relative_position_index",
    "num_batches_tracked",
    "attn_mask_probs",
    "encoder.pixel_mean",
    "encoder.pixel_std",
)


@dataclass
class LoadReport:
    """What happened to the names of a model and of a file.

    Attributes:
        source: the file.
        kind: what the file is.
        others: keys under which the file holds the same model again.
        classes: categories of the model, if the file has them.
        matched: model names that have their value from the file.
        missing: model names that keep the value they had, sorted; those of another shape included.
        unexpected: file names that the model does not have, in file order.
        mismatched: (name, shape in the file, shape in the model) of tensors left out for their shape.
        resized: the same of tensors that a module brought to its own shape, as a ViT does with another patch size.
    """

    source: str
    kind: str
    others: list[str] = field(default_factory=list)
    classes: ClassList | None = None
    matched: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)
    resized: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """True when every name of the model came from the file and the file had nothing else."""
        return not (self.missing or self.unexpected)

    def __str__(self) -> str:
        lines = [f"{self.source} ({self.kind}): {len(self.matched)} tensors loaded."]
        if self.resized:
            lines.append("Resized to the shape of the model:")
            lines += [f"  {name}: {file} in the file, {model} in the model" for name, file, model in self.resized]
        if self.mismatched:
            lines.append("Left out because of their shape:")
            lines += [f"  {name}: {file} in the file, {model} in the model" for name, file, model in self.mismatched]
        shapes = {name for name, _, _ in self.mismatched}
        missing = [name for name in self.missing if name not in shapes]
        loaded_or_seen = [*self.matched, *shapes]
        for title, names, other in (
            ("Not in the file:", missing, loaded_or_seen),
            ("Not in the model:", self.unexpected, [*loaded_or_seen, *self.missing]),
        ):
            if names:
                lines += [title, *(f"  {line}" for line in group_names(names, other))]
        if self.others:
            average = next((name for name in self.others if is_average(name)), self.others[0])
            lines.append(
                f"The file holds this model again under {', '.join(self.others)}, which was not taken; name it as "
                f"{self.source}?key={average} to load it instead."
            )
        return "\n".join(lines)

    @property
    def lacks_parts(self) -> bool:
        """Whether names are missing that are read when the model is run, and not by its losses alone."""
        return any(not LOSS_PARTS.intersection(name.split(".")) for name in self.missing)

    @property
    def new_classifier(self) -> list[str]:
        """Names of class weights that the file does not have, or has for another number of classes."""
        return [name for name in self.missing if CLASSIFIER_PARTS.intersection(name.split("."))]


def load_weights(
    model: nn.Module,
    path_or_url: str | os.PathLike,
    *,
    allow_missing: str | Callable[[str], bool] = "losses",
) -> LoadReport:
    """Load a file into `model` in place and return a report, which is also logged when something did not fit.

    Args:
        model: any module; wrappers of data-parallel training and of `torch.compile` are seen through.
        path_or_url: a path, a folder, a name in the folder $VIS_WEIGHTS_DIR, an https:// or a detectron2:// address;
            `?key=` after it chooses one of several sets of weights in the file.
        allow_missing: which names of the model may be absent from the file, or have another shape there. "none";
            "losses": buffers that only losses read: for all that runs the model; "classifier": also class weights,
            which then are random; "new_modules": also whole modules of which the file has nothing, at most two levels
            deep or listed by their owner as `added_modules`: for training from an image model or a backbone; "all"; or
            a function of a name.

    Raises:
        ValueError: the file cannot be read, nothing in it fits, or other names are missing. The model then may have
            taken over a part of the file.
    """
    _check_allow_missing(allow_missing)
    file = read_weights_of(path_or_url)
    return load_weight_file(model, file, allow_missing=allow_missing)


def load_start_files(model: nn.Module, report: LoadReport | None) -> list[LoadReport]:
    """Load what parts of a model start from by themselves, each from the file its attribute `start_file` names.

    Args:
        model: whose parts are looked at; "" as `start_file` is no file.
        report: of the file that the whole model was loaded from; a part of which it had anything is left alone. None:
            there was no such file.

    Returns:
        What was loaded.
    """
    reports = []
    for prefix, part in model.named_modules():
        file = getattr(part, "start_file", "")
        matched = () if report is None else report.matched
        if file and not any(name.startswith(f"{prefix}.") for name in matched if not _is_constant(name)):
            logger.info("%s starts from %s.", prefix, file)
            reports.append(load_weights(part, file, allow_missing="none"))
    return reports


def load_weight_file(
    model: nn.Module, file: WeightFile, *, allow_missing: str | Callable[[str], bool] = "losses"
) -> LoadReport:
    """Load what `read_weights` returned; see `load_weights`."""
    _check_allow_missing(allow_missing)
    model = unwrap(model)
    own = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    tensors, kind = _with_names_of(own, file)
    configured = _configured_names(model)
    for name in configured:
        tensors.pop(name, None)
    classes = ClassList.from_plain(file.rest.get("categories"), str(file.path))
    report = LoadReport(source=str(file.path), kind=kind, others=file.others, classes=classes)
    report.resized = _fit_shapes(model, tensors, own)
    for name in [name for name in tensors if name in own and tensors[name].shape != own[name].shape]:
        report.mismatched.append((name, tuple(tensors.pop(name).shape), tuple(own[name].shape)))
    _load(model, tensors, report, configured)
    used = [name for name in tensors if name not in report.unexpected]
    if not used and (own or tensors):
        raise ValueError(
            f"Nothing in {report.source} ({report.kind}) fits the model. The model has {_some(list(own))}; the file "
            f"has {_some([*tensors, *(name for name, _, _ in report.mismatched)])}."
        )
    _refuse_missing(report, allow_missing, _added_modules(model))
    logger.log(logging.INFO if report.complete and not report.others else logging.WARNING, "%s", report)
    if report.new_classifier:
        logger.warning("The classifier starts anew, with random values: %s.", _why_new(report))
    return report


def compare_classes(report: LoadReport | None, classes: ClassList | None) -> None:
    """Say that class weights of a file, which fit in number, are those of other classes than the ones now trained."""
    own = None if report is None else report.classes
    if report is None or own is None or classes is None or report.new_classifier:
        return
    if set(own.ids_in(classes).items()) != set(enumerate(classes.ids)):
        logger.warning(
            "The classifier in %s is one of %s; it is where the training of %s starts from.",
            report.source,
            own,
            classes,
        )


def unwrap(model: nn.Module) -> nn.Module:
    """Return the module inside data-parallel and `torch.compile` wrappers."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def _check_allow_missing(allow_missing: str | Callable[[str], bool]) -> None:
    if not callable(allow_missing) and allow_missing not in ALLOW_MISSING:
        raise ValueError(f"allow_missing must be one of {ALLOW_MISSING} or a function, got {allow_missing!r}.")


def _with_names_of(own: Mapping[str, Tensor], file: WeightFile) -> tuple[OrderedDict[str, Tensor], str]:
    """Return the file's tensors under the model's names as far as they can be found, and what the file is."""
    if file.caffe2_names:
        tensors = OrderedDict((caffe2_to_ours(name), tensor) for name, tensor in file.tensors.items())
        return _match_first([tensors], own, file.kind)
    tensors = without_wrappers(split_flat_average(file.tensors), own)
    bare = [strip_prefix(tensors, prefix) for prefix in shared_prefixes(tensors)]
    for names in bare:
        if is_transformers_mask2former(names):
            return from_transformers_mask2former(names), f"{file.kind} of transformers' Mask2Former"
        plain_vit = from_plain_vit(names, own)
        if plain_vit is not None:
            return plain_vit[0], f"{file.kind}, {plain_vit[1]}"
    for names in bare:
        renamed, recognised = rename_for_model(names, own)
        if recognised:
            ours = OrderedDict((renamed[name], tensor) for name, tensor in names.items())
            return _match_first([ours], own, f"{file.kind}, {recognised}")
    prefix, others = find_prefix(tensors, own)
    file.others += [other.removesuffix(".") for other in others]
    fitting = strip_prefix(tensors, prefix, others)
    if any(name in own for name in fitting) and not file.suffix_matching:
        return fitting, file.kind
    return _match_first([fitting, *bare], own, file.kind)


def _match_first(
    candidates: Iterable[OrderedDict[str, Tensor]], own: Mapping[str, Tensor], kind: str
) -> tuple[OrderedDict[str, Tensor], str]:
    """Match by the endings of names the first of several spellings in which anything matches."""
    candidates = list(candidates)
    for tensors in candidates:
        renamed, matched = _match_endings(own, tensors)
        if matched:
            return renamed, f"{kind}, names matched by their endings"
    return candidates[0], kind


def _match_endings(
    own: Mapping[str, Tensor], tensors: OrderedDict[str, Tensor]
) -> tuple[OrderedDict[str, Tensor], bool]:
    match = match_suffixes(
        {name: tuple(tensor.shape) for name, tensor in own.items()},
        {name: tuple(tensor.shape) for name, tensor in tensors.items()},
    )
    if not match.chosen and not match.mismatched:
        return tensors, False
    renamed = OrderedDict((name, tensors[source]) for name, source in match.chosen.items())
    # A tensor of another shape is reported under the model's name and left out later, unless its ending is so common
    # ("norm.weight") that several names of the model have it: then it means none of them.
    claims = Counter([*match.chosen.values(), *match.mismatched.values()])
    single = {name: source for name, source in match.mismatched.items() if claims[source] == 1}
    renamed.update((name, tensors[source]) for name, source in single.items())
    shown = set(single.values())
    renamed.update((name, tensors[name]) for name in match.unused if name not in shown and name not in renamed)
    return renamed, True


def _load(model: nn.Module, tensors: OrderedDict[str, Tensor], report: LoadReport, configured: set[str]) -> None:
    try:
        result = model.load_state_dict(tensors, strict=False)
    except RuntimeError as error:  # a module renamed a tensor while loading and its shape differs
        raise ValueError(f"{report.source} does not fit the model: {error}") from error
    absent = set(result.missing_keys)
    own = {name: tensor for name, tensor in model.state_dict(keep_vars=True).items() if name not in configured}
    absent -= configured
    loaded = {id(tensor) for name, tensor in own.items() if name not in absent}  # shared ones need one name only
    report.matched = [name for name in own if name not in absent]
    report.missing = sorted(name for name in absent if id(own.get(name)) not in loaded and not _is_constant(name))
    report.unexpected = [name for name in result.unexpected_keys if "anchor_generator.cell_anchors" not in name]


def _fit_shapes(
    model: nn.Module, tensors: OrderedDict[str, Tensor], own: Mapping[str, Tensor]
) -> list[tuple[str, tuple[int, ...], tuple[int, ...]]]:
    """Let modules that offer `fit_weight` bring tensors of another shape to theirs; return what was changed."""
    resized = []
    for prefix, module in model.named_modules():
        for name in [f"{prefix}.{leaf}" if prefix else leaf for leaf in getattr(module, "fitted_weights", ())]:
            if name in tensors and name in own and tensors[name].shape != own[name].shape:
                fitted = module.fit_weight(name.removeprefix(f"{prefix}."), tensors[name])
                if fitted is not None:
                    resized.append((name, tuple(tensors[name].shape), tuple(fitted.shape)))
                    tensors[name] = fitted
    return resized


def _configured_names(model: nn.Module) -> set[str]:
    """Buffers that the configuration fills, such as the text embeddings of a vocabulary; no file replaces them."""
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        for name in getattr(module, "configured_buffers", ())
    }


def _added_modules(model: nn.Module) -> list[str]:
    """Prefixes of the names of modules that the network of images, which training starts from, does not have."""
    return [
        f"{prefix}.{name}." if prefix else f"{name}."
        for prefix, module in model.named_modules()
        for name in getattr(module, "added_modules", ())
    ]


def _is_constant(name: str) -> bool:
    return name in CONSTANTS or name.endswith(CONSTANT_LEAVES)


# -- what a file must at least have ----------------------------------------------------------------------------------


def _refuse_missing(report: LoadReport, allow_missing: str | Callable[[str], bool], added: Iterable[str]) -> None:
    shapes = {name: f"  {name}: {file} in the file, {model} in the model" for name, file, model in report.mismatched}
    # a constant counts for nothing: BatchNorm brings its counter along where the file has nothing of it
    in_file = [*(name for name in report.matched if not _is_constant(name)), *shapes]
    added = tuple(prefix for prefix in added if not any(name.startswith(prefix) for name in in_file))
    refused = [name for name in report.missing if not _may_be_missing(name, in_file, added, allow_missing)]
    if not refused:
        return
    top_level = sorted({name.split(".")[0] for name in report.matched})
    absent = sorted({name.split(".")[0] for name in refused} - set(top_level))
    if absent and len(top_level) == 1:
        raise ValueError(
            f"{report.source} ({report.kind}) holds only a {top_level[0]} ({len(report.matched)} tensors); the model "
            f"also needs {', '.join(absent)}. For training that starts from it, pass allow_missing='new_modules'."
        )
    if set(refused) <= set(report.new_classifier):
        raise ValueError(
            f"{report.source} was trained on another list of classes: {_why_new(report)}. To run the model set "
            "MODEL.SEM_SEG_HEAD.NUM_CLASSES and the data set to those of the file; training may start from it with a "
            "new classifier."
        )
    lines = [f"  {line}" for line in group_names([name for name in refused if name not in shapes], in_file)]
    lines += [shapes[name] for name in refused if name in shapes]
    raise ValueError(
        f"{report.source} ({report.kind}) lacks {len(refused)} tensors of the model:\n" + "\n".join(lines) + "\n"
        "Is it the file for this configuration? allow_missing says what may be absent: 'new_modules' for training "
        "from another model, 'all' for anything."
    )


def _may_be_missing(
    name: str, in_file: Iterable[str], added: tuple[str, ...], allow_missing: str | Callable[[str], bool]
) -> bool:
    if callable(allow_missing):
        return bool(allow_missing(name))
    if allow_missing in ("none", "all"):
        return allow_missing == "all"
    parts = name.split(".")
    if LOSS_PARTS.intersection(parts):
        return True
    if allow_missing != "losses" and CLASSIFIER_PARTS.intersection(parts):
        return True
    return allow_missing == "new_modules" and (name.startswith(added) or absent_module(name, in_file) is not None)


def _why_new(report: LoadReport) -> str:
    """What the file has for the classifier instead."""
    shapes = {name: (file[0], model[0]) for name, file, model in report.mismatched if file and model}
    known = next((shapes[name] for name in report.new_classifier if name in shapes), None)
    if known is None:
        return "the file has none"
    of = f" of {report.classes}" if report.classes else ""
    return f"that of the file has {known[0]} outputs{of}, this one {known[1]}"


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown or "no tensors"
