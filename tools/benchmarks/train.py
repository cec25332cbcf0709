"""Training: seconds of a step by stage, iterations, clips and frames per second, peak memory.

    python tools/benchmark.py train
    python tools/benchmark.py train --config-file configs/youtubevis_2019/lbvq_R50_bs8.yaml --synthetic 480 854 20 \\
        DATASETS.TRAIN "('synthetic_train',)" DATASETS.DATASET_RATIO "[1.0]" MODEL.SEM_SEG_HEAD.NUM_CLASSES 5
    python tools/benchmark.py train --published --processor-time --threads 1

Videos of the built-in data set are written to a temporary folder, so nothing needs to be there; with --real the data
sets of the configuration are used. The step is the engine's own, with its mixed precision, clipping and optimizer.

With --published every step is done twice in turn, by this code and with the published arithmetic, from the same
weights, batch and random numbers, and their quotients are printed with the differences of losses and gradients. The
published forms are: convolutions and their normalisation one after the other on maps whose channels come first;
deformable attention by grid_sample; attention weights kept; a full-size mask of every query after every decoder layer,
of frames and of clips, with gradients; in every layer, image by image, both sides of the matching costs read anew, and
annotated masks padded and made float32; one AdamW group per parameter. Losses of the clip module, where a method has
one; methods whose criteria are their own are refused.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar
from unittest.mock import patch

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

import lbvq.modeling
import lbvq.modeling.clips.segmenter as clip_segmenter
import lbvq.modeling.lbvq as lbvq_module
import mask2former.group_norm as group_norm
import mask2former.layers as layers
import mask2former.linear as linear
from lbvq.data import build_train_loader
from lbvq.data.synthetic import SyntheticSettings, write_dataset
from lbvq.engine.activation_checkpointing import enable_activation_checkpointing
from lbvq.engine.defaults import training_amp_dtype
from lbvq.engine.memory import peak_memory_mib
from lbvq.engine.random_state import seed_all_rng
from lbvq.engine.solver import build_gradient_clipper, build_optimizer
from lbvq.engine.trainer import TrainStep
from lbvq.files.data_entries import data_options
from lbvq.modeling.clips.criterion import ClipCriterion, clip_class_loss, layers_of
from lbvq.modeling.clips.decoder import ClipMasks
from lbvq.zoo import load_config
from mask2former.modeling.criterion import SetCriterion
from mask2former.modeling.deform_attn import MSDeformAttn
from mask2former.modeling.matcher import HungarianMatcher, Match
from mask2former.modeling.transformer_decoder import NUM_LEVELS, MultiScaleMaskedTransformerDecoder, blocked_keys
from mask2former.registry import build_model

AnyStep = TypeVar("AnyStep", bound="StageTimer")


class StageTimer(TrainStep):
    """Measures the parts of each step; waiting for the GPU after each part makes the step a little slower."""

    clock: Callable[[], float] = time.perf_counter

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.seconds = {"data": 0.0, "forward and losses": 0.0, "backward": 0.0, "clip and optimizer": 0.0}

    def __call__(self, iteration: int, after_backward: Any = None) -> Any:
        before = sum(self.seconds.values())
        start = self._now()
        losses = super().__call__(iteration, after_backward)
        self.seconds["backward"] += self._now() - start - (sum(self.seconds.values()) - before)
        return losses

    def next_batch(self) -> Any:
        return self._timed("data", super().next_batch)

    def _losses(self, part: Any) -> Any:
        return self._timed("forward and losses", super()._losses, part)

    def _optimizer_step(self) -> None:
        self._timed("clip and optimizer", super()._optimizer_step)

    def _timed(self, stage: str, function: Any, *args: Any) -> Any:
        start = self._now()
        result = function(*args)
        self.seconds[stage] += self._now() - start
        return result

    def _now(self) -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return type(self).clock()


def run(args: argparse.Namespace) -> None:
    logging.basicConfig(level=logging.WARNING)
    if args.threads:
        torch.set_num_threads(args.threads)
    StageTimer.clock = time.process_time if args.processor_time else time.perf_counter
    cfg = load_config(args.config_file, [*data_options(args.data), *args.opts])
    seed_all_rng(max(cfg.SEED, 0))
    with tempfile.TemporaryDirectory() as folder:
        if not args.real:
            write_videos(folder, args)
        if args.published:
            compare_with_published(cfg, args)
            return
        step = build_step(cfg)
        for iteration in range(args.warmup + args.iterations):
            if iteration == args.warmup:
                step.seconds = dict.fromkeys(step.seconds, 0.0)
            step(iteration)
        _print_table(cfg, step, args.iterations)


def write_videos(folder: str, args: argparse.Namespace) -> None:
    height, width, num_frames = args.synthetic
    scale = min(height / 96, width / 128)
    settings = SyntheticSettings.scaled(scale, height=height, width=width, num_frames=num_frames)
    write_dataset(folder, num_train=args.videos, num_val=1, settings=settings)
    os.environ["DETECTRON2_DATASETS"] = folder


def build_step(cfg: Any) -> StageTimer:
    model = build_model(cfg)
    if cfg.SOLVER.ACTIVATION_CHECKPOINTING:
        enable_activation_checkpointing(model)
    return step_of(cfg, model, build_optimizer(cfg, model), build_train_loader(cfg))


def step_of(cfg: Any, model: nn.Module, optimizer: Any, loader: Any, kind: type[AnyStep] = StageTimer) -> AnyStep:
    return kind(
        model,
        loader,
        optimizer,
        clip_gradients=build_gradient_clipper(cfg, optimizer),
        amp_dtype=training_amp_dtype(cfg, next(model.parameters()).device),
        accumulate_steps=cfg.SOLVER.ACCUMULATE_STEPS,
    )


def _print_table(cfg: Any, step: StageTimer, iterations: int) -> None:
    total = sum(step.seconds.values())
    print(f"{'stage':<22}{'ms per iteration':>18}{'share':>8}")
    for stage, seconds in {**step.seconds, "total": total}.items():
        print(f"{stage:<22}{1000 * seconds / iterations:>18.1f}{seconds / total:>8.1%}")
    clips = cfg.SOLVER.IMS_PER_BATCH * iterations / total
    frames = clips * cfg.INPUT.SAMPLING_FRAME_NUM
    print(f"{iterations / total:.3f} iterations/s, {clips:.2f} clips/s, {frames:.2f} frames/s", end=", ")
    if step.device_type == "cuda":
        print(f"peak GPU memory {torch.cuda.max_memory_allocated() / 2**20:.0f} MiB")
    else:
        print(f"peak memory {peak_memory_mib():.0f} MiB, {torch.get_num_threads()} threads")


# -- beside the published arithmetic ----------------------------------------------------------------------------------


def compare_with_published(cfg: Any, args: argparse.Namespace) -> None:
    """Do every step twice in turn and print the quotients, and how far losses and gradients are apart."""
    ours, published = build_step(cfg), build_published_step(cfg)
    batches = iter(ours.data_loader)
    differences: dict[str, list[float]] = {"losses": [], "gradients": []}
    for iteration in range(args.warmup + args.iterations):
        if iteration == args.warmup:
            ours.seconds, published.seconds = (dict.fromkeys(ours.seconds, 0.0) for _ in range(2))
        batch = ours._timed("data", next, batches)
        published.model.load_state_dict(ours.model.state_dict())
        order = (ours, published) if iteration % 2 else (published, ours)
        found = {step: one_step(step, batch, iteration) for step in order}
        for name, one, other in zip(differences, found[ours], found[published], strict=True):
            differences[name].append(((one - other).abs().max() / other.abs().max()).item())
    published.seconds["data"] = ours.seconds["data"]  # both were given the same
    print_comparison(ours.seconds, published.seconds, args.iterations)
    for name, values in differences.items():
        print(f"{name} differ by {statistics.median(values):.1e} of the largest one", end=" ")
        print(f"(median of {len(values)} steps; at most {max(values):.1e})")


def one_step(step: StageTimer, batch: Any, iteration: int) -> tuple[Tensor, Tensor]:
    """All losses, and the clipped gradients of all parameters, as vectors in one order."""
    step._batches = iter([batch])
    data = step.seconds["data"]
    seed_all_rng(iteration + 1)
    losses = step(iteration)
    step.seconds["data"] = data
    gradients = [each.grad.flatten() for _, each in sorted(step.model.named_parameters()) if each.grad is not None]
    return torch.stack([losses[name] for name in sorted(losses)]), torch.cat(gradients)


def print_comparison(ours: dict[str, float], published: dict[str, float], iterations: int) -> None:
    print(f"{'ms per iteration':<22}{'ours':>12}{'published':>12}{'times as fast':>15}")
    for stage in (*ours, "whole step"):
        mine, theirs = ((each.get(stage) or sum(each.values())) * 1000 / iterations for each in (ours, published))
        print(f"{stage:<22}{mine:>12.1f}{theirs:>12.1f}{theirs / mine:>15.2f}")


class PublishedStep(StageTimer):
    """A step with the published arithmetic."""

    def __call__(self, iteration: int, after_backward: Any = None) -> Any:
        with published_arithmetic(self.model):
            return super().__call__(iteration, after_backward)


def build_published_step(cfg: Any) -> PublishedStep:
    """The same model with channels first in its weights, and an optimizer with one group per parameter."""
    model = build_model(cfg).to(memory_format=torch.contiguous_format)
    refuse_other_criteria(model)
    for module in model.modules():
        if isinstance(module, MSDeformAttn):
            module.kernel = "grid_sample"
    groups = build_optimizer(cfg, model).param_groups
    settings = [
        {"params": [parameter], "lr": group["lr"], "weight_decay": group["weight_decay"]}
        for group in groups
        for parameter in group["params"]
    ]
    optimizer = torch.optim.AdamW(settings, lr=cfg.SOLVER.BASE_LR)
    return step_of(cfg, model, optimizer, (), PublishedStep)


def refuse_other_criteria(model: nn.Module) -> None:
    predictor = getattr(getattr(model, "sem_seg_head", None), "predictor", None)
    is_plain = getattr(type(predictor), "predict", None) is MultiScaleMaskedTransformerDecoder.predict
    criteria = [module for module in model.modules() if isinstance(module, (SetCriterion, ClipCriterion))]
    if not is_plain or any(type(each) not in (SetCriterion, ClipCriterion) for each in criteria):
        name = type(model).__name__
        raise ValueError(f"--published knows the losses of LBVQ, VITA, MinVIS and VISAGE, not those of {name}.")


@contextlib.contextmanager
def published_arithmetic(model: Any) -> Iterator[None]:
    """Train as the published code does inside the block; results are the same up to rounding."""
    predictor, criterion, clips = model.sem_seg_head.predictor, model.criterion, getattr(model, "clip_criterion", None)
    with contextlib.ExitStack() as stack:
        change = lambda owner, name, new: stack.enter_context(patch.object(owner, name, new))  # noqa: E731
        change(linear, "_HAS_ONEDNN", False)
        change(group_norm, "FEW_CHANNELS", 0)
        change(layers, "attend", attend_with_weights)
        change(predictor, "forward", partial(decode_with_full_masks, predictor))
        change(criterion, "forward", partial(frame_losses, criterion))
        if clips is not None:
            change(clips, "forward", partial(clip_losses, clips))
            change(clip_segmenter, "ClipMasks", lambda embed, features: ClipMasks(embed, features).dense())
        change(lbvq_module, "FRAMES_AT_ONCE", 1)
        handle = model.backbone.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(),))
        stack.callback(handle.remove)
        yield


def attend_with_weights(
    attention: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor, mask: Any = None, padding: Any = None
) -> Tensor:
    """`attention.attend` by PyTorch's module, with one mask per head and the weights as a second result."""
    if mask is not None and mask.dim() == 4:
        mask = mask.expand(-1, attention.num_heads, -1, -1).flatten(0, 1)
    return attention(query, key, value, attn_mask=mask, key_padding_mask=padding)[0]


def decode_with_full_masks(
    decoder: Any, multi_scale: Sequence[Tensor], mask_features: Tensor, clip_features: Any = None
) -> tuple[dict[str, Any], Tensor, Any]:
    """`MultiScaleMaskedTransformerDecoder.forward`: attention masks are resized from the masks of all queries."""
    memories, positions = decoder.flatten_maps(multi_scale)
    queries, query_pos = decoder.start_queries(len(mask_features))
    states, predictions = [], []
    for index in range(decoder.num_layers + 1):
        states.append(decoder.normalise(queries))
        masks = torch.einsum("bqc,bchw->bqhw", decoder.mask_embed(states[-1]), mask_features)
        predictions.append({"pred_logits": decoder.class_embed(states[-1]), "pred_masks": masks})
        if index < decoder.num_layers:
            level = index % NUM_LEVELS
            small = F.interpolate(masks, size=multi_scale[level].shape[-2:], mode="bilinear", align_corners=False)
            blocked = blocked_keys(small.detach().flatten(2))
            queries = decoder.layer(index, queries, query_pos, memories[level], positions[level], blocked)
    return decoder.collect_outputs(predictions), torch.stack(states[-decoder.last_layer_num :]), clip_features


def frame_losses(criterion: Any, outputs: dict[str, Any], targets: list[Any]) -> tuple[dict[str, Tensor], list[Any]]:
    """`SetCriterion.forward`, one layer after the other."""
    num_masks = max(sum(len(target["labels"]) for target in targets), 1)
    sampling = (criterion.num_points, criterion.oversample_ratio, criterion.importance_sample_ratio)
    most = max(len(target["labels"]) for target in targets)
    losses, matches = {}, []
    for suffix, layer in layers_of(outputs):
        found = match(criterion.matcher, layer["pred_logits"], layer["pred_masks"], targets)
        images = torch.cat([torch.full_like(queries, image) for image, (queries, _) in enumerate(found)])
        queries, objects = (torch.cat(column) for column in zip(*found, strict=True))
        padded = torch.stack([F.pad(each["masks"], (0, 0, 0, 0, 0, most - len(each["masks"]))) for each in targets])
        pairs = (layer["pred_masks"][images, queries], padded[images, objects])
        losses[f"loss_ce{suffix}"] = criterion.class_loss(layer["pred_logits"], targets, found)
        losses[f"loss_mask{suffix}"], losses[f"loss_dice{suffix}"] = mask_losses(*pairs, sampling, num_masks)
        matches.append(found)
    return losses, [*matches[1:], matches[0]][-criterion.last_layer_num :]


def clip_losses(
    criterion: Any, outputs: dict[str, Any], targets: list[Any], frame_targets: list[Any], frame_matches: list[Any]
) -> dict[str, Tensor]:
    """`ClipCriterion.forward`, one layer after the other."""
    num_outputs, prefix, losses = len(outputs["pred_logits"]), f"loss_{criterion.prefix}_", {}
    repeated = targets * num_outputs
    num_masks = max(sum(len(target["labels"]) for target in repeated), 1)
    for suffix, layer in layers_of(outputs):
        masks = layer["pred_masks"].flatten(0, 1)
        found = match(criterion.matcher, layer["pred_logits"].flatten(0, 1), masks, repeated)
        entries = torch.cat([torch.full_like(queries, entry) for entry, (queries, _) in enumerate(found)])
        pred = masks[entries, torch.cat([queries for queries, _ in found])]
        annotated = torch.cat([each["masks"][objects] for each, (_, objects) in zip(repeated, found, strict=True)])
        mask, dice = mask_losses(pred, annotated, criterion.point_sampling, num_masks)
        ce = clip_class_loss(layer["pred_logits"], targets, found, criterion.empty_weight)
        losses |= {f"{prefix}ce{suffix}": ce, f"{prefix}mask{suffix}": mask, f"{prefix}dice{suffix}": dice}
        if suffix == "" and layer["pred_fq_embed"] is not None:
            losses[f"{prefix}sim"] = criterion.sim_loss(layer, targets, found, frame_targets, frame_matches)
    return losses


def match(matcher: HungarianMatcher, logits: Tensor, masks: Tensor, targets: list[Any]) -> list[Match]:
    """Match the queries of every entry: (E, Q, K+1) logits and (E, Q, h, w) or (E, Q, T, h, w) masks."""
    found = []
    for scores, pred, target in zip(logits.detach().softmax(-1), masks.detach(), targets, strict=True):
        points = torch.rand(1, matcher.num_points, 2)
        sampled, annotated = (read_alone(each, points) for each in (pred, target["masks"].to(pred)))
        inside = F.binary_cross_entropy_with_logits(sampled, torch.ones_like(sampled), reduction="none")
        outside = F.binary_cross_entropy_with_logits(sampled, torch.zeros_like(sampled), reduction="none")
        ce = (inside @ annotated.T + outside @ (1 - annotated).T) / sampled.shape[1]
        probabilities = sampled.sigmoid()
        total = probabilities.sum(1)[:, None] + annotated.sum(1)
        dice = 1 - (2 * probabilities @ annotated.T + 1) / (total + 1)
        cost = matcher.cost_mask * ce - matcher.cost_class * scores[:, target["labels"]] + matcher.cost_dice * dice
        found.append(tuple(map(torch.from_numpy, linear_sum_assignment(cost.numpy()))))
    return found


def read_alone(masks: Tensor, points: Tensor) -> Tensor:
    """Read masks (n, h, w) or (n, T, h, w), a map each, at the same points (1, P, 2): (n, P) or (n, T*P)."""
    maps = masks.flatten(1, -3) if masks.dim() == 4 else masks[:, None]
    return read(maps, points.repeat(len(maps), 1, 1)).flatten(1)


def read(maps: Tensor, points: Tensor) -> Tensor:
    """Read maps (n, C, h, w) at points (n, P, 2): (n, C, P)."""
    return F.grid_sample(maps, 2 * points[:, :, None] - 1, align_corners=False).squeeze(3)


def mask_losses(
    pred: Tensor, annotated: Tensor, sampling: tuple[int, float, float], num_masks: float
) -> tuple[Tensor, Tensor]:
    """Mask and dice loss of matched pairs, (n, h, w) or (n, T, h, w), at points drawn for every map."""
    num_points, oversample, important = sampling
    maps, labels = (each.flatten(0, -3)[:, None] for each in (pred, annotated.to(pred)))
    with torch.no_grad():
        candidates = torch.rand(len(maps), int(num_points * oversample), 2)
        chosen = read(maps, candidates)[:, 0].abs().neg().topk(int(important * num_points), dim=1).indices
        anywhere = torch.rand(len(maps), num_points - chosen.shape[1], 2)
        points = torch.cat((candidates.gather(1, chosen[:, :, None].expand(-1, -1, 2)), anywhere), dim=1)
        labels_read = read(labels, points).view(len(pred), -1)
    logits = read(maps, points).view(len(pred), -1)
    probabilities = logits.sigmoid()
    dice = 1 - (2 * (probabilities * labels_read).sum(1) + 1) / (probabilities.sum(1) + labels_read.sum(1) + 1)
    ce = F.binary_cross_entropy_with_logits(logits, labels_read, reduction="none").mean(1)
    return ce.sum() / num_masks, dice.sum() / num_masks
