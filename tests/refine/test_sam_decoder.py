"""Our decoding of prompts against the packages' own mask decoders: logits of low resolution, prompt by prompt."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import segment_anything
import segment_anything_hq
import torch

from lbvq.refine import sam_decoder
from lbvq.refine.sam_decoder import FrameDecoder, can_decode

GRID_HW = (10, 14)  # not square, so that rows and columns cannot be confused
SIDE_HW = (16 * GRID_HW[0], 16 * GRID_HW[1])

# package, channels of the encoder, width of the transformer's hidden layer
MODELS = {
    "sam": (segment_anything, None, 96),
    "hq_sam_vit_b": (segment_anything_hq, 768, 96),
    "hq_sam_vit_tiny": (segment_anything_hq, 160, 2048),
}


def make_model(name):
    """What `FrameDecoder` reads of a `Sam`; all parameters random, also those of the norms."""
    package, encoder_channels, hidden = MODELS[name]
    parts = package.modeling
    torch.manual_seed(3)
    transformer = parts.TwoWayTransformer(depth=2, embedding_dim=256, mlp_dim=hidden, num_heads=8)
    if encoder_channels is None:
        decoder = parts.MaskDecoder(transformer_dim=256, transformer=transformer)
    else:
        decoder = parts.MaskDecoderHQ(transformer_dim=256, transformer=transformer, vit_dim=encoder_channels)
    prompts = parts.PromptEncoder(
        embed_dim=256, image_embedding_size=GRID_HW, input_image_size=SIDE_HW, mask_in_chans=16
    )
    for parameter in [*decoder.parameters(), *prompts.parameters()]:
        parameter.data += 0.05 * torch.randn_like(parameter)
    return SimpleNamespace(mask_decoder=decoder.eval(), prompt_encoder=prompts.eval())


def make_frame(model, seed):
    """Embedding and early features (None for SAM) as the encoder would return them."""
    generator = torch.Generator().manual_seed(seed)
    embedding = torch.randn(1, 256, *GRID_HW, generator=generator)
    if not hasattr(model.mask_decoder, "compress_vit_feat"):
        return embedding, None
    return embedding, torch.randn(1, *GRID_HW, model.mask_decoder.compress_vit_feat[0].in_channels, generator=generator)


def make_prompts(kind, count):
    """Points with labels, boxes and masks of so many prompts, as `FrameDecoder.portions` takes them."""
    generator = torch.Generator().manual_seed(7)
    boxes = torch.rand(count, 4, generator=generator) * 70
    boxes[:, 2:] += boxes[:, :2] + 10
    points = masks = None
    if kind == "box_point":
        points = (boxes[:, None, :2] + 5, torch.ones(count, 1, dtype=torch.int))
    if kind == "mask":
        masks = torch.randn(count, 1, 4 * GRID_HW[0], 4 * GRID_HW[1], generator=generator) * 10
    return points, boxes, masks


def package_logits(model, frame, points, boxes, masks):
    """One call of the package's modules for each prompt."""
    embedding, early_features = frame
    extra = {} if early_features is None else {"hq_token_only": False, "interm_embeddings": [early_features]}
    logits = []
    for m in range(len(boxes)):
        own = slice(m, m + 1)
        sparse, dense = model.prompt_encoder(
            points=None if points is None else (points[0][own], points[1][own]),
            boxes=boxes[own],
            masks=None if masks is None else masks[own],
        )
        answer, _ = model.mask_decoder(
            image_embeddings=embedding,
            image_pe=model.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=False,
            **extra,
        )
        logits.append(answer)
    return torch.cat(logits)


def our_logits(model, frame, prompts):
    return torch.cat(list(FrameDecoder(model, *frame).portions(*prompts)))


def assert_equal_up_to_rounding(ours, expected, share=1e-4):
    assert ours.shape == expected.shape
    assert expected.std() > 0.05 * expected.abs().max()
    torch.testing.assert_close(ours, expected, rtol=share, atol=share * float(expected.abs().max()))


@pytest.fixture(scope="module", params=list(MODELS))
def model(request):
    return make_model(request.param)


@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("kind", ["box", "box_point", "mask"])
@torch.inference_mode()
def test_logits_equal_those_of_the_package(model, kind, count):
    frame, prompts = make_frame(model, 0), make_prompts(kind, count)
    assert_equal_up_to_rounding(our_logits(model, frame, prompts), package_logits(model, frame, *prompts))


@pytest.mark.parametrize("kind", ["box", "mask"])
@torch.inference_mode()
def test_several_prompts_at_once_and_the_image_in_one_piece_give_the_same(model, kind, monkeypatch):
    """As on CUDA; the last portion is smaller than the others."""
    monkeypatch.setattr(sam_decoder, "CPU_PORTION", 3)
    monkeypatch.setattr(sam_decoder, "CPU_STRIPS", 1)
    frame, prompts = make_frame(model, 0), make_prompts(kind, 5)
    portions = list(FrameDecoder(model, *frame).portions(*prompts))
    assert [len(portion) for portion in portions] == [3, 2]
    assert_equal_up_to_rounding(torch.cat(portions), package_logits(model, frame, *prompts))


@torch.inference_mode()
def test_a_decoder_answers_again_as_before_and_for_its_own_frame(model):
    frames, prompts = [make_frame(model, seed) for seed in (0, 1)], make_prompts("box", 2)
    decoders = [FrameDecoder(model, *frame) for frame in frames]
    first, second, again = (torch.cat(list(decoders[i].portions(*prompts))) for i in (0, 1, 0))
    assert torch.equal(first, again)
    assert_equal_up_to_rounding(second, package_logits(model, frames[1], *prompts))
    assert not torch.allclose(first, second, atol=0.01 * float(first.abs().max()))


@torch.inference_mode()
def test_no_prompt_gives_no_mask(model):
    assert list(FrameDecoder(model, *make_frame(model, 0)).portions(None, torch.zeros(0, 4), None)) == []


def assert_half_is_as_good_as_the_packages(model, frame, prompts, device_type, dtype):
    exact = package_logits(model, frame, *prompts)
    with torch.autocast(device_type, dtype=dtype):
        ours, theirs = our_logits(model, frame, prompts), package_logits(model, frame, *prompts)
    assert (ours - exact).abs().mean() < 1.5 * (theirs - exact).abs().mean()


@pytest.mark.parametrize("kind", ["box", "box_point", "mask"])
@torch.inference_mode()
def test_half_precision_is_as_close_to_the_exact_logits_as_the_package(model, kind):
    frame, prompts = make_frame(model, 0), make_prompts(kind, 3)
    assert_half_is_as_good_as_the_packages(model, frame, prompts, "cpu", torch.bfloat16)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("name", list(MODELS))
@torch.inference_mode()
def test_float16_on_cuda_is_as_close_to_the_exact_logits_as_the_package(name):
    model = make_model(name)
    for part in vars(model).values():
        part.to("cuda")
    frame = tuple(None if each is None else each.to("cuda") for each in make_frame(model, 0))
    points, boxes, masks = make_prompts("box", 20)
    assert_half_is_as_good_as_the_packages(model, frame, (points, boxes.to("cuda"), masks), "cuda", torch.float16)


def test_only_decoders_of_known_classes_are_decoded_here(model):
    class Other(type(model.mask_decoder)):
        pass

    assert can_decode(model.mask_decoder)
    assert not can_decode(Other.__new__(Other))
