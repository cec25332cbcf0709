from __future__ import annotations

import logging
import weakref
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from PIL import Image
from red_green_model import RedGreenModel

from lbvq.config import get_cfg
from lbvq.inference.frames import ResizedFrames, open_frames
from lbvq.inference.predictor import VideoPredictor, class_names_of, load_config, load_model
from lbvq.refine import REFINERS
from lbvq.video.writer import write_video


def colour_video(num_frames: int = 6, height: int = 60, width: int = 80) -> np.ndarray:
    """Gray frames with a red block on the left that moves down and a green block on the right."""
    frames = np.full((num_frames, height, width, 3), 90, dtype=np.uint8)
    for t in range(num_frames):
        frames[t, 4 * t : 4 * t + 20, 8:28] = (220, 20, 20)
        frames[t, 30:50, 50:70] = (20, 220, 20)
    return frames


def red_mask(frames: np.ndarray) -> np.ndarray:
    return frames[..., 0] > 200


def config(**changes):
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE = "RedGreenModel"
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = ""
    cfg.INPUT.FORMAT = "RGB"
    cfg.INPUT.MIN_SIZE_TEST = 60
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 40
    for key, value in changes.items():
        cfg.merge_from_list([key.replace("__", "."), value])
    return cfg


def test_a_video_becomes_a_prediction_of_its_own_size():
    frames = colour_video()
    prediction = VideoPredictor(config(INPUT__MIN_SIZE_TEST=30))(frames)
    assert prediction.masks.shape == (3, 6, 60, 80) and prediction.image_size == (60, 80)
    overlap = prediction.masks[0].to_dense()[0].numpy() & red_mask(frames)
    assert overlap.sum() > 0.9 * red_mask(frames).sum()


@pytest.mark.parametrize(
    "convert",
    [
        lambda frames: frames,
        lambda frames: list(frames),
        lambda frames: tuple(torch.from_numpy(frame) for frame in frames),
        lambda frames: torch.from_numpy(frames).permute(0, 3, 1, 2),
        lambda frames: [frame.transpose(2, 0, 1) for frame in frames],
        lambda frames: [Image.fromarray(frame) for frame in frames],
    ],
)
def test_every_way_to_hand_over_frames_gives_the_same_masks(convert):
    frames = colour_video()
    predictor = VideoPredictor(RedGreenModel(), cfg=config())
    prediction = predictor(convert(frames))
    assert np.array_equal(prediction.masks[0].to_dense()[0].numpy(), red_mask(frames))


def test_files_folders_and_patterns_are_read(tmp_path):
    frames = colour_video()
    write_video(tmp_path / "video.mp4", frames, 10)
    write_video(tmp_path / "frames", frames, frame_suffix=".png")
    predictor = VideoPredictor(RedGreenModel(), cfg=config())
    for source in (tmp_path / "frames", str(tmp_path / "frames" / "*.png"), tmp_path / "video.mp4"):
        found = predictor(source).masks[0].to_dense()[0].numpy()
        assert (found ^ red_mask(frames)).sum() < 0.1 * red_mask(frames).sum()


def test_the_model_gets_lazily_resized_frames_and_no_dense_masks():
    model = RedGreenModel()
    VideoPredictor(model, cfg=config(INPUT__MIN_SIZE_TEST=48, INPUT__MAX_SIZE_TEST=56))(colour_video())
    sample = model.samples[0]
    assert isinstance(sample["image"], ResizedFrames) and sample["dense_masks"] is False
    assert (sample["height"], sample["width"], sample["video_len"]) == (60, 80, 6)
    assert set(model.sizes) == {(42, 56)}  # the long side limits


@pytest.mark.parametrize(
    "size, min_size, max_size, want",
    [
        ((60, 80), 360, 1333, (360, 480)),
        ((720, 1280), 320, 768, (320, 569)),  # halves are rounded up, torchvision would give 568
        ((1280, 720), 360, 1333, (640, 360)),
        ((60, 80), 0, 1333, (60, 80)),
        ((1, 5000), 360, 1333, (1, 1333)),
        ((31, 17), 360, 1333, (656, 360)),
    ],
)
def test_frames_are_resized_by_the_published_rule(size, min_size, max_size, want):
    frames = [np.zeros((*size, 3), dtype=np.uint8)]
    images = ResizedFrames(frames, min_size=min_size, max_size=max_size)
    assert tuple(images[0].shape) == (3, *want) and images.size == want


def test_resizing_is_that_of_pillow():
    frame = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    got = ResizedFrames([frame], min_size=33, max_size=1333)[0]
    want = np.asarray(Image.fromarray(frame).resize((44, 33), Image.Resampling.BILINEAR))
    assert np.array_equal(got.permute(1, 2, 0).numpy(), want)


def test_the_channel_order_follows_the_configuration():
    frame = np.zeros((8, 8, 3), dtype=np.uint8)
    frame[..., 0] = 200
    for image_format, channel in (("RGB", 0), ("BGR", 2)):
        image = ResizedFrames([frame], min_size=8, max_size=99, image_format=image_format)[0]
        assert image.flatten(1).float().mean(1).argmax() == channel
    with pytest.raises(ValueError, match=r"INPUT\.FORMAT"):
        ResizedFrames([frame], min_size=8, max_size=99, image_format="L")


def test_lazy_frames_behave_like_a_list():
    images = ResizedFrames(colour_video(5), min_size=60, max_size=1333)
    assert len(images) == 5 and len(images[1:4]) == 3 and torch.equal(images[-1], images[4])
    assert [tuple(image.shape) for image in images] == [(3, 60, 80)] * 5
    with pytest.raises(IndexError):
        images[5]


@pytest.mark.parametrize(
    "video, reason",
    [
        (np.zeros((0, 8, 8, 3), np.uint8), "no frames"),
        ([], "no frames"),
        (np.zeros((8, 8, 3), np.uint8), r"\(T, H, W, 3\)"),
        (np.zeros((2, 8, 8, 3), np.float32), "uint8 with values 0 to 255, got float32"),
        (np.zeros((2, 8, 8), np.uint8), r"\(T, H, W, 3\)"),
        ([np.zeros((8, 8), np.uint8)], r"frame 0 must have shape"),
        ([np.zeros((8, 8, 4), np.uint8)], r"frame 0 must have shape"),
        ([np.zeros((0, 8, 3), np.uint8)], "no pixels"),
        ([np.zeros((8, 8, 3), np.uint8), np.zeros((8, 9, 3), np.uint8)], "frame 1 is 8 x 9, frame 0 is 8 x 8"),
        (3, "cannot read a video from int"),
        (None, "cannot read a video from NoneType"),
    ],
)
def test_what_is_no_video_is_refused(video, reason):
    with pytest.raises(ValueError, match=reason):
        VideoPredictor(RedGreenModel(), cfg=config())(video)


def test_tiny_and_single_frames_work():
    predictor = VideoPredictor(RedGreenModel(), cfg=config())
    assert predictor(colour_video(1)).masks.shape == (3, 1, 60, 80)
    assert predictor(np.zeros((2, 3, 5, 3), np.uint8)).masks.shape == (3, 2, 3, 5)


def test_progress_ends_at_the_number_of_frames():
    calls = []
    VideoPredictor(RedGreenModel(), cfg=config())(colour_video(4), progress=lambda *call: calls.append(call))
    assert calls == [("segment", done, 4) for done in (0, 1, 2, 3, 4)]


def test_the_model_keeps_its_mode():
    model = RedGreenModel().train()
    VideoPredictor(model, cfg=config())(colour_video(1))
    assert model.training


def test_class_names_come_from_the_data_set_of_the_configuration():
    predictor = VideoPredictor(config(DATASETS__TEST=("ovis_val",), MODEL__SEM_SEG_HEAD__NUM_CLASSES=25))
    assert predictor.names[:3] == ("Person", "Bird", "Cat")
    assert [item.name for item in predictor(colour_video(1))] == ["Bird", "Person", "Cat"]
    assert class_names_of(config(DATASETS__TEST=("my_videos",))) is None
    assert VideoPredictor(config())(colour_video(1))[0].name is None


def test_a_frozen_configuration_of_an_image_data_set_gives_its_names_and_stays():
    cfg = config(DATASETS__TEST=("coco_2017_val",), MODEL__SEM_SEG_HEAD__NUM_CLASSES=80)
    cfg.freeze()
    predictor = VideoPredictor(cfg)
    assert predictor.names[0] == "person" and cfg.DATASETS.TEST == ("coco_2017_val",)


def test_given_class_names_win_and_must_be_enough():
    cfg = config(MODEL__SEM_SEG_HEAD__NUM_CLASSES=3, DATASETS__TEST=("ovis_val",))
    assert VideoPredictor(cfg, ["a", "b", "c"])(colour_video(1))[0].name == "b"
    with pytest.raises(ValueError, match="3 classes, got 2 names"):
        VideoPredictor(cfg, ["a", "b"])


def test_a_data_set_with_too_few_names_is_not_used(caplog):
    predictor = VideoPredictor(config(DATASETS__TEST=("ovis_val",), MODEL__SEM_SEG_HEAD__NUM_CLASSES=40))
    assert predictor.names is None and "ovis_val names 25" in caplog.text


def test_weights_are_loaded_and_their_absence_is_announced(tmp_path, caplog):
    torch.save({"model": {"margin": torch.tensor(77.0)}}, tmp_path / "w.pth")
    with caplog.at_level(logging.WARNING):
        trained = VideoPredictor(config(), weights=tmp_path / "w.pth")
    assert trained.is_trained and trained.model.margin.item() == 77 and "UNTRAINED" not in caplog.text
    assert VideoPredictor(config(MODEL__WEIGHTS=str(tmp_path / "w.pth"))).model.margin.item() == 77
    untrained = VideoPredictor(config())
    assert not untrained.is_trained and "UNTRAINED" in caplog.text
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth"):
        VideoPredictor(config(), weights="nowhere.pth")


def test_configurations_are_found_by_path_and_overridden(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("MODEL:\n  META_ARCHITECTURE: RedGreenModel\n  DEVICE: cpu\n  WEIGHTS: nowhere.pth\n")
    assert load_config(path, ["INPUT.MIN_SIZE_TEST", 99]).INPUT.MIN_SIZE_TEST == 99
    model = load_model(path, weights="")
    assert isinstance(model, RedGreenModel) and not model.training
    predictor = VideoPredictor(path, weights="", opts=["INPUT.MIN_SIZE_TEST", 30, "INPUT.FORMAT", "RGB"])
    predictor(colour_video(1))
    assert predictor.model.sizes == [(30, 40)]


def test_models_of_the_zoo_bring_their_weights_along():
    cfg = load_config("lbvq_r50_ytvis21")
    assert cfg.MODEL.WEIGHTS == "lbvq_r50_ytvis21.pth" and cfg.DATASETS.TEST == ("ytvis_2021_val",)
    assert load_config("lbvq_r50_ytvis21", ["MODEL.WEIGHTS", "mine.pth"]).MODEL.WEIGHTS == "mine.pth"
    with pytest.raises(FileNotFoundError, match="lbvq_r50_ytvis21"):
        load_config("lbvq_r50_ytvis23")


@pytest.mark.parametrize(
    "arguments, reason",
    [
        (dict(model=3), "expected a configuration, a name, or a model, got int"),
        (dict(model=RedGreenModel(), weights="a.pth"), "only with a configuration"),
        (dict(model=RedGreenModel(), opts=["A", 1]), "only with the name of a configuration"),
    ],
)
def test_contradicting_arguments_are_refused(arguments, reason):
    with pytest.raises(ValueError, match=reason):
        VideoPredictor(**arguments)


def test_an_image_model_is_refused_with_the_reason():
    with pytest.raises(ValueError, match="image results"):
        VideoPredictor(lambda samples: [{"instances": None}])(colour_video(1))


def test_refinement_asked_for_in_the_configuration_is_applied(monkeypatch):
    class Fill:
        """Answers every mask with the whole frame."""

        def refine(self, frame: np.ndarray, masks: np.ndarray) -> np.ndarray:
            return np.ones_like(masks)

    monkeypatch.setitem(REFINERS, "fill", lambda *arguments: Fill())
    calls = []
    predictor = VideoPredictor(config(REFINE__NAME="fill"))
    prediction = predictor(colour_video(2), progress=lambda *call: calls.append(call))
    assert prediction.masks[0].to_dense().all() and prediction.scores.tolist() == [0.9, 0.4, 0.2]
    assert ("refine", 2, 2) in calls


def test_only_a_few_frames_of_a_long_video_are_in_memory():
    given: list[weakref.ref] = []
    most = 0

    class Generated(Sequence):
        def __len__(self) -> int:
            return 300

        def __getitem__(self, index: int) -> np.ndarray:
            nonlocal most
            frame = np.full((60, 80, 3), index % 200, dtype=np.uint8)
            given.append(weakref.ref(frame))
            most = max(most, sum(reference() is not None for reference in given))
            return frame

    assert VideoPredictor(RedGreenModel(), cfg=config())(Generated()).num_frames == 300
    assert most <= 3


def test_open_frames_reads_lists_of_files(tmp_path):
    write_video(tmp_path / "frames", colour_video(2), frame_suffix=".png")
    paths = sorted((tmp_path / "frames").iterdir())
    assert np.array_equal(open_frames(paths)[1], colour_video(2)[1])
