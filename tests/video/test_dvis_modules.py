"""The tracker, the refiner, the noise and the contrastive losses of DVIS and DVIS++ against recorded numbers.

`dvis_modules.npz`, `dvis_plus_modules.npz`: tracker and refiner of small size on five frames of shuffled queries.
Attention over shuffled queries is sharp: this very code in 64 bit is up to 2.4e-4 away from the recorded masks (of 14)
and 3.4e-5 from the logits. `dvis_plus_train_modules.npz`: the tracker in training with each noise, where the published
code in 64 bit moves masks by 4.8e-4 and embeddings by 1.5e-4.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fixed_points import fixed_rand
from golden_fill import fill_
from golden_tame import tame_
from helpers import GOLDEN
from torch import Tensor

from lbvq.modeling.contrast import mean_terms
from lbvq.modeling.dvis import contrast, noise
from lbvq.modeling.dvis.contrast import ClassMemory, clip_terms, neighbour_terms
from lbvq.modeling.dvis.noise import MatchNoise
from lbvq.modeling.dvis.refiner import TemporalRefiner
from lbvq.modeling.dvis.tracker import ReferringTracker, ReferringTrackerPlus

SIZES = {"hidden_dim": 32, "num_heads": 4, "dim_feedforward": 64, "num_layers": 3, "mask_dim": 32, "num_classes": 6}
RECORDED = {name: np.load(GOLDEN / f"{name}_modules.npz") for name in ("dvis", "dvis_plus", "dvis_plus_train")}
TRACKERS = {"dvis": ReferringTracker, "dvis_plus": ReferringTrackerPlus}


def want(method: str, name: str) -> Tensor:
    return torch.from_numpy(RECORDED[method][name])


def tamed(module: torch.nn.Module) -> torch.nn.Module:
    return tame_(fill_(module), ("transformer_",)).eval()


def rows(method: str, name: str) -> Tensor:
    """Recorded (C, T, Q) -> (T, Q, 1, C)."""
    return want(method, name).permute(1, 2, 0)[:, :, None]


def inputs(method: str) -> tuple[Tensor, Tensor]:
    """What is compared and what is read."""
    compared = rows(method, "in_frame_embeds")
    return compared, rows(method, "in_frame_embeds_no_norm") if method == "dvis_plus" else compared


def close(got: Tensor, wanted: Tensor, atol: float = 1e-4) -> None:
    torch.testing.assert_close(got, wanted, atol=atol, rtol=0)


MASKS = 5e-4  # absolute, of mask logits up to 15


def masks_of(embeddings: Tensor, features: Tensor) -> Tensor:
    """(T, Q, c), (T, c, h, w) -> (Q, T, h, w)."""
    return torch.einsum("tqc,tchw->qthw", embeddings, features)


@pytest.fixture(scope="module", params=["dvis", "dvis_plus"])
def tracked(request):
    method = request.param
    tracker = tamed(TRACKERS[method](**SIZES))
    with torch.no_grad():
        frames, _ = tracker(*inputs(method), {})
    return method, tracker, frames


@torch.no_grad()
def test_the_tracker_follows_the_objects_as_recorded(tracked):
    method, tracker, frames = tracked
    assert torch.equal(frames.orders[0], want(method, "trk/indices"))
    logits, embeddings = tracker.predict(frames.outputs[-1, 0], frames.references[0])
    features = tracker.mask_features(want(method, "in_mask_features"))
    close(logits, want(method, "trk/pred_logits"))
    close(masks_of(embeddings, features), want(method, "trk/pred_masks"), MASKS)
    objects, _ = tracker.for_refiner(frames.outputs[-1, 0], inputs(method)[1])
    close(objects.permute(2, 0, 1), want(method, "trk/pred_embds"))
    if method == "dvis_plus":
        close(frames.references[0].permute(2, 0, 1), want(method, "trk/pred_references"))


@torch.no_grad()
@pytest.mark.parametrize("layer", [0, 1])
def test_every_layer_predicts_as_recorded(layer):
    tracker = tamed(ReferringTracker(**SIZES))
    frames, _ = tracker(*inputs("dvis"), {})
    logits, embeddings = tracker.predict(frames.outputs[layer, 0], frames.references[0])
    close(logits, want("dvis", f"trk/aux{layer}_logits"))
    close(masks_of(embeddings, want("dvis", "in_mask_features"))[::3], want("dvis", f"trk/aux{layer}_masks_s3"), MASKS)


def shuffles() -> Tensor:
    """(T, Q) where object q of the first frame is in every frame."""
    return want("dvis", "in_perm").argsort(dim=1)


def test_dvis_plus_matches_every_query_and_dvis_only_when_it_is_asked_to():
    """As published DVIS uses the inverse of the order it finds."""
    compared, memory = inputs("dvis")
    with torch.no_grad():
        right, _ = tamed(ReferringTracker(**SIZES, inverse_order=False))(compared, memory, {})
        published, _ = tamed(ReferringTracker(**SIZES))(compared, memory, {})
        plus, _ = tamed(ReferringTrackerPlus(**SIZES))(*inputs("dvis_plus"), {})
    assert torch.equal(right.orders[0], shuffles())
    assert torch.equal(plus.orders[0], shuffles())
    assert (published.orders[0, 1:] == shuffles()[1:]).float().mean() < 0.1


@torch.no_grad()
def test_a_video_in_pieces_gives_the_same_bits(tracked):
    method, tracker, whole = tracked
    compared, memory = inputs(method)
    first, state = tracker(compared[:3], memory[:3], {})
    second, _ = tracker(compared[3:], memory[3:], state)
    assert torch.equal(torch.cat((first.outputs, second.outputs), dim=2), whole.outputs)
    assert torch.equal(torch.cat((first.references, second.references), dim=1), whole.references)


@torch.no_grad()
def test_two_videos_at_once_are_two_videos(tracked):
    method, tracker, whole = tracked
    pair = [torch.cat((each, each.flip(0)), dim=2) for each in inputs(method)]
    both, _ = tracker(*pair, {})
    close(both.outputs[:, :1], whole.outputs, 1e-5)
    alone, _ = tracker(*(each.flip(0) for each in inputs(method)), {})
    close(both.outputs[:, 1:], alone.outputs, 1e-5)
    assert torch.equal(both.orders, torch.cat((whole.orders, alone.orders)))


@torch.no_grad()
@pytest.mark.parametrize("method", ["dvis", "dvis_plus"])
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_the_refiner_gives_recorded_numbers(method, mode):
    refiner = tamed(TemporalRefiner(**SIZES)).train(mode == "train")
    objects = rows(method, "trk/pred_embds")
    layers = refiner(objects, rows(method, "refiner_frame_embeds"))[:, 0]  # (L, T, Q, C)
    features = want(method, "in_mask_features")
    for layer, prefix, step in ((2, "pred", 1), (0, "aux0", 3), (1, "aux1", 3)):
        if prefix != "pred" and f"ref_{mode}/{prefix}_logits" not in RECORDED[method]:
            continue  # published only in training
        suffix = "" if step == 1 else "_s3"
        logits = refiner.classify(layers[layer]).expand(5, -1, -1)
        close(logits, want(method, f"ref_{mode}/{prefix}_logits"))
        masks = masks_of(refiner.mask_embed(layers[layer]), features)[::step]
        close(masks, want(method, f"ref_{mode}/{prefix}_masks{suffix}"), MASKS)
    close(layers[2].permute(2, 0, 1), want(method, f"ref_{mode}/pred_embds"))


@torch.no_grad()
@pytest.mark.parametrize("method", ["dvis", "dvis_plus"])
def test_the_refiner_reads_the_frames_as_recorded(method):
    tracker = tamed(TRACKERS[method](**SIZES))
    _, memory = inputs(method)
    _, frames = tracker.for_refiner(torch.zeros(1, 32), memory)
    close(frames[:, :, 0].permute(2, 0, 1), want(method, "refiner_frame_embeds"))


@torch.no_grad()
@pytest.mark.parametrize("mode", ["none", "rs", "wa", "cc"])
def test_noise_changes_the_starts_as_recorded(mode, monkeypatch):
    """Frames 1 to 4 draw 0.9, 0.1, 0.2, 0.3 and the ratio is 0.5: frame 1 is left alone."""
    shares = iter(want("dvis_plus_train", "random_draws").tolist())
    monkeypatch.setattr(noise, "draw_share", lambda: next(shares))
    for name, recorded in (("draw_permutation", "perms"), ("draw_cuts", "cuts")):
        if f"{mode}/{recorded}" in RECORDED["dvis_plus_train"]:
            draws = iter(want("dvis_plus_train", f"{mode}/{recorded}"))
            monkeypatch.setattr(noise, name, lambda *_, draws=draws: next(draws))
    tracker = tamed(ReferringTrackerPlus(**SIZES)).train()
    with fixed_rand():
        frames, _ = tracker(*inputs("dvis_plus"), {}, MatchNoise(mode, 0.5))
    assert torch.equal(frames.orders[0], want("dvis_plus_train", f"{mode}/indices"))
    outputs, references = frames.outputs[:, 0], frames.references[0]
    logits, embeddings = tracker.predict(outputs, references)
    features = tracker.mask_features(want("dvis_plus", "in_mask_features"))
    close(logits[-1], want("dvis_plus_train", f"{mode}/pred_logits"), 2e-3)
    close(logits[0], want("dvis_plus_train", f"{mode}/aux0_logits"), 2e-3)
    close(logits[1], want("dvis_plus_train", f"{mode}/aux1_logits"), 2e-3)
    close(masks_of(embeddings[-1], features)[::3], want("dvis_plus_train", f"{mode}/pred_masks_q3"), 2e-3)
    close(outputs[-1].permute(2, 0, 1), want("dvis_plus_train", f"{mode}/pred_embds"), 2e-3)
    close(references.permute(2, 0, 1), want("dvis_plus_train", f"{mode}/pred_references"), 2e-3)


@pytest.mark.parametrize("settings", [("wax", 0.5), ("wa", 1.5)])
def test_unknown_noise_is_refused(settings):
    with pytest.raises(ValueError, match=r"MODEL\.TRACKER\.NOISE_"):
        MatchNoise(*settings)


def test_without_luck_the_match_is_used():
    queries, order = torch.randn(3, 2, 4), torch.tensor([[2, 0, 1], [0, 2, 1]])
    starts, taken = MatchNoise("rs", 0.0)(queries, order)
    assert torch.equal(taken, order)
    assert torch.equal(starts[:, 0], queries[order[0], 0]) and torch.equal(starts[:, 1], queries[order[1], 1])


def test_neighbouring_frames_are_contrasted_as_recorded():
    references = want("dvis_plus_train", "cl/references").requires_grad_()
    losses = mean_terms(neighbour_terms(references, want("dvis_plus_train", "cl/match_q")))
    for name, loss in losses.items():
        close(loss, want("dvis_plus_train", f"cl_online/{name}"), 1e-5)
    sum(losses.values()).backward()
    close(references.grad, want("dvis_plus_train", "cl/grad_references"), 1e-5)


def test_clips_are_contrasted_with_remembered_ones_as_recorded(monkeypatch):
    monkeypatch.setattr(contrast, "shuffled", torch.arange)
    memory, queries = ClassMemory(), want("dvis_plus_train", "cl/match_q")
    labels = torch.tensor([4, 1, 4])[want("dvis_plus_train", "cl/match_t")]
    for step in range(4):
        embeddings = want("dvis_plus_train", f"cl_offline{step}/in_embds").requires_grad_()
        losses = mean_terms(clip_terms(embeddings, queries, labels, memory))
        for name, loss in losses.items():
            close(loss, want("dvis_plus_train", f"cl_offline{step}/{name}"), 1e-5)
        sum(losses.values()).backward()
        close(embeddings.grad, want("dvis_plus_train", f"cl_offline{step}/grad"), 1e-5)
        sizes = [len(memory.recall(label)) for label in (1, 4)]
        assert sizes == RECORDED["dvis_plus_train"][f"cl_offline{step}/memory_sizes"].tolist()


def test_a_clip_without_objects_has_no_contrast_but_a_graph():
    embeddings = torch.randn(3, 4, 2, requires_grad=True)
    nothing = torch.zeros(0, dtype=torch.int64)
    for terms in (neighbour_terms(embeddings, nothing), clip_terms(embeddings, nothing, nothing, ClassMemory())):
        losses = mean_terms(terms)
        assert [loss.item() for loss in losses.values()] == [0.0, 0.0]
        sum(losses.values()).backward()
    assert embeddings.grad.abs().sum() == 0


def test_a_clip_of_one_frame_has_no_neighbours():
    losses = mean_terms(neighbour_terms(torch.randn(1, 4, 2, requires_grad=True), torch.tensor([1, 2])))
    assert losses["loss_reid"].item() == 0 and losses["loss_reid"].requires_grad
