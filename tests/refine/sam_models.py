"""SAM, HQ-SAM and SAM 2 in a size for tests: the packages' own classes, random weights, a 256-pixel encoder."""

from __future__ import annotations

from functools import partial
from types import ModuleType

import torch
from torch import nn

IMAGE_SIDE = 256


def small_sam(package: ModuleType) -> nn.Module:
    """`Sam` of segment_anything or segment_anything_hq with a two-block encoder."""
    torch.manual_seed(0)
    parts = package.modeling
    decoder_options = {
        "transformer_dim": 256,
        "transformer": parts.TwoWayTransformer(depth=2, embedding_dim=256, mlp_dim=256, num_heads=8),
    }
    if hasattr(parts, "MaskDecoderHQ"):
        decoder = parts.MaskDecoderHQ(**decoder_options, vit_dim=32)
    else:
        decoder = parts.MaskDecoder(**decoder_options)
    encoder = parts.ImageEncoderViT(
        img_size=IMAGE_SIDE,
        patch_size=16,
        embed_dim=32,
        depth=2,
        num_heads=2,
        out_chans=256,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=14,
        global_attn_indexes=[0, 1],
    )
    prompts = parts.PromptEncoder(
        embed_dim=256,
        image_embedding_size=(IMAGE_SIDE // 16, IMAGE_SIDE // 16),
        input_image_size=(IMAGE_SIDE, IMAGE_SIDE),
        mask_in_chans=16,
    )
    return parts.Sam(image_encoder=encoder, prompt_encoder=prompts, mask_decoder=decoder).eval()


def small_sam2() -> tuple[nn.Module, nn.Module, object, object]:
    """(Sam2Model, Sam2VideoModel, image processor, video processor) of transformers, for 128-pixel frames."""
    import transformers as hf
    from transformers.models.sam2.configuration_sam2 import (
        Sam2HieraDetConfig,
        Sam2MaskDecoderConfig,
        Sam2PromptEncoderConfig,
        Sam2VisionConfig,
    )

    torch.manual_seed(0)
    side = 128
    backbone = Sam2HieraDetConfig(
        hidden_size=16,
        image_size=[side, side],
        blocks_per_stage=[1, 1, 2, 1],
        embed_dim_per_stage=[16, 32, 64, 128],
        num_attention_heads_per_stage=[1, 2, 4, 8],
        window_size_per_stage=[4, 4, 4, 4],
        global_attention_blocks=[3],
        window_positional_embedding_background_size=[4, 4],
    )
    parts = {
        "vision_config": Sam2VisionConfig(
            backbone_config=backbone,
            backbone_channel_list=[128, 64, 32, 16],
            backbone_feature_sizes=[[side // 4] * 2, [side // 8] * 2, [side // 16] * 2],
        ),
        "prompt_encoder_config": Sam2PromptEncoderConfig(image_size=side),
        "mask_decoder_config": Sam2MaskDecoderConfig(mlp_dim=64),
    }
    video_parts = {name: part.to_dict() for name, part in parts.items()}  # version 4 takes no objects
    video_config = hf.Sam2VideoConfig(
        **video_parts, image_size=side, memory_attention_num_layers=1, memory_attention_rope_feat_sizes=[side // 16] * 2
    )
    size = {"height": side, "width": side}
    image_processor = getattr(hf, "Sam2ImageProcessor", None) or hf.Sam2ImageProcessorFast  # its name in version 4
    image_processor = image_processor(size=size)
    video_processor = hf.Sam2VideoProcessor(
        image_processor=image_processor, video_processor=hf.Sam2VideoVideoProcessor(size=size), target_size=side
    )
    model = hf.Sam2Model(hf.Sam2Config(**parts)).eval()
    return model, hf.Sam2VideoModel(video_config).eval(), image_processor, video_processor
