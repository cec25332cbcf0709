"""The masked-attention decoder against recorded numbers; the lean evaluation path against the full one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from golden_fill import fill_
from helpers import GOLDEN

from mask2former.modeling.transformer_decoder import MultiScaleMaskedTransformerDecoder, blocked_keys


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "m2f_parts.npz") as arrays:
        names = [name for name in arrays.files if name.startswith(("pd/", "dec_"))]
        return {name: torch.from_numpy(np.asarray(arrays[name])) for name in names}


@pytest.fixture(scope="module")
def inputs(golden):
    return [golden[f"pd/multi_scale{i}"] for i in range(3)], golden["pd/mask_features"]


def make_decoder(pre_norm=False, **options):
    sizes = {"num_classes": 5, "hidden_dim": 32, "num_queries": 10, "nheads": 4, "dim_feedforward": 64}
    decoder = MultiScaleMaskedTransformerDecoder(
        32, **sizes, dec_layers=4, mask_dim=16, pre_norm=pre_norm, last_layer_num=3, **options
    )
    return fill_(decoder)


def close(value, want):
    torch.testing.assert_close(value, want, rtol=0, atol=1e-3)


@pytest.mark.parametrize("kind", ["post", "pre"])
@torch.no_grad()
def test_predictions_of_every_layer_equal_the_recorded_ones(golden, inputs, kind):
    decoder = make_decoder(kind == "pre").train()  # without dropout, training only adds the layers before the last
    outputs, queries, _ = decoder(*inputs)
    close(outputs["pred_logits"], golden[f"dec_{kind}/pred_logits"])
    close(outputs["pred_masks"], golden[f"dec_{kind}/pred_masks"])
    close(queries, golden[f"dec_{kind}/frame_queries_train"])
    assert len(outputs["aux_outputs"]) == 4
    for index, layer in enumerate(outputs["aux_outputs"]):
        close(layer["pred_logits"], golden[f"dec_{kind}/aux{index}_logits"])
    close(outputs["aux_outputs"][0]["pred_masks"], golden[f"dec_{kind}/aux0_masks"])


@pytest.mark.parametrize("kind", ["post", "pre"])
@torch.no_grad()
def test_evaluation_gives_the_recorded_last_layer_and_nothing_else(golden, inputs, kind):
    outputs, queries, passed = make_decoder(kind == "pre").eval()(*inputs, "handed through")
    close(outputs["pred_logits"], golden[f"dec_{kind}/pred_logits"])
    close(outputs["pred_masks"], golden[f"dec_{kind}/pred_masks"])
    close(queries, golden[f"dec_{kind}/frame_queries"])
    assert outputs["aux_outputs"] == [] and passed == "handed through"


@torch.no_grad()
def test_fully_blocked_queries_look_everywhere(golden, inputs):
    flat = golden["dec_blocked/mask_features"][:, :, None, None].expand_as(inputs[1]).contiguous()
    outputs, *_ = make_decoder().eval()(inputs[0], flat)
    close(outputs["pred_logits"], golden["dec_blocked/pred_logits"])


def test_only_rows_without_any_open_key_are_opened():
    blocked = blocked_keys(torch.tensor([[[-1.0, 2.0, -3.0], [-1.0, -2.0, -3.0], [1.0, 2.0, 3.0]]]))
    assert blocked.tolist() == [[[True, False, True], [False, False, False], [False, False, False]]]


@torch.no_grad()
def test_an_image_gives_the_same_alone_and_in_a_batch(inputs):
    decoder = make_decoder().eval()
    multi_scale, mask_features = inputs
    together, queries, _ = decoder(multi_scale, mask_features)
    alone, alone_queries, _ = decoder([level[1:] for level in multi_scale], mask_features[1:])
    close(alone["pred_masks"], together["pred_masks"][1:])
    close(alone_queries, queries[:, 1:])


@pytest.mark.parametrize("enforce, keys", [(False, 0), (True, 6)])
def test_maps_are_projected_only_when_asked_for(enforce, keys):
    names = make_decoder(enforce_input_project=enforce).state_dict()
    assert sum(name.startswith("input_proj") for name in names) == keys


def test_zoo_files_with_static_query_load():
    decoder = make_decoder()
    state = decoder.state_dict()
    want = state["query_feat.weight"] + 1
    old = {name.replace("query_feat", "static_query"): value for name, value in state.items()}
    old["static_query.weight"] = want
    report = make_decoder().load_state_dict(old, strict=False)  # a plain dict has no module versions
    assert not report.missing_keys and not report.unexpected_keys
    decoder.load_state_dict(old)
    assert torch.equal(decoder.query_feat.weight, want)


def test_gradients_reach_every_parameter(inputs):
    decoder = make_decoder().train()
    outputs, queries, _ = decoder(*inputs)
    loss = queries.sum() + sum(p["pred_logits"].sum() + p["pred_masks"].sum() for p in outputs["aux_outputs"])
    (loss + outputs["pred_logits"].sum() + outputs["pred_masks"].sum()).backward()
    assert [name for name, parameter in decoder.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("last_layer_num", [0, 5])
def test_more_kept_layers_than_there_are_is_refused(last_layer_num):
    with pytest.raises(ValueError, match="LAST_LAYER_NUM"):
        MultiScaleMaskedTransformerDecoder(
            32,
            num_classes=5,
            hidden_dim=32,
            num_queries=10,
            nheads=4,
            dim_feedforward=64,
            dec_layers=4,
            mask_dim=16,
            last_layer_num=last_layer_num,
        )
