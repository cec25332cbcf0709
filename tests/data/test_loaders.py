"""Loaders: what a batch is, that a run can go on where it stopped, and that records exist once per machine."""

from __future__ import annotations

import json
import logging
import multiprocessing
import pickle
import random
import signal
import subprocess
import sys
from collections import Counter
from itertools import islice

import data_workers
import numpy as np
import pytest
import torch
from data_cases import small_cfg

from lbvq.data.batches import Pick
from lbvq.data.build import build_test_loader, build_train_loader, build_train_mapper, filter_empty
from lbvq.data.catalog import DatasetCatalog, MetadataCatalog
from lbvq.data.class_maps import class_map_between
from lbvq.data.clip_mapper import VideoClipMapper
from lbvq.data.image_mapper import ImageMapper
from lbvq.data.loader import MappedRecords, seed_worker, seeded
from lbvq.data.pseudo_mapper import PseudoClipMapper
from lbvq.data.record_store import RecordStore
from lbvq.data.synthetic import SyntheticSettings, write_dataset
from lbvq.engine.launch import launch

SETTINGS = SyntheticSettings(height=48, width=64, num_frames=4, min_radius=6, max_radius=10, max_speed=3)


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_dataset(folder, num_train=6, num_val=3, settings=SETTINGS)
    return folder


@pytest.fixture
def synthetic(data_root, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(data_root))


def loader_cfg(*options):
    return small_cfg("DATASETS.TRAIN", ("synthetic_train",), "SOLVER.IMS_PER_BATCH", 2, *options)


def fingerprint(batch):
    """What a batch holds, down to the pixels."""
    return [
        (sample["video_id"], sample["frame_idx"], [int(image.sum()) for image in sample["image"]]) for sample in batch
    ]


def new_loader(*options, seed=0):
    np.random.seed(seed)  # the seed of the plan is drawn from numpy's generator
    return build_train_loader(loader_cfg(*options))


@pytest.fixture
def registered():
    """Registers lists of records under a name for one test."""
    names = []

    def register(name, records, **metadata):
        DatasetCatalog.register(name, lambda: records)
        MetadataCatalog.get(name).set(**{"kind": "video", "thing_classes": ["a"], **metadata})
        names.append(name)

    yield register
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def video(video_id, *frames, width=4):
    """A record whose frames show the given classes."""
    annotations = [[{"iscrowd": 0, "category_id": label, "id": label} for label in labels] for labels in frames]
    return {"video_id": video_id, "width": width, "height": 3, "length": len(frames), "annotations": annotations}


# -- training


def test_a_batch_is_a_list_of_clips(synthetic):
    batch = next(iter(new_loader()))
    assert len(batch) == 2
    for sample in batch:
        assert [tuple(image.shape) for image in sample["image"]] == [(3, *sample["instances"][0].image_size)] * 3
        assert len({len(objects) for objects in sample["instances"]}) == 1


def test_an_equal_seed_gives_equal_batches_and_another_one_others(synthetic):
    first, again, other = (list(map(fingerprint, islice(new_loader(seed=seed), 6))) for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_loader_goes_on_with_the_same_pixels(synthetic, workers):
    loader = new_loader("DATALOADER.NUM_WORKERS", workers)
    batches = iter(loader)
    for _ in range(5):
        next(batches)
    state = json.loads(json.dumps(loader.state_dict()))  # plain enough for any checkpoint
    want = [fingerprint(next(batches)) for _ in range(3)]
    resumed = new_loader("DATALOADER.NUM_WORKERS", workers, seed=99)
    resumed.load_state_dict(state)
    assert [fingerprint(batch) for batch in islice(resumed, 3)] == want
    assert resumed.position == 8


def test_the_number_of_workers_may_change_when_a_run_is_resumed(synthetic):
    loader = new_loader("DATALOADER.NUM_WORKERS", 2)
    state = loader.state_dict()
    want = [fingerprint(batch) for batch in islice(loader, 4)]
    resumed = new_loader("DATALOADER.NUM_WORKERS", 0, seed=5)
    resumed.load_state_dict(state)
    assert [fingerprint(batch) for batch in islice(resumed, 4)] == want


def test_batches_prepared_by_workers_do_not_count_before_they_are_taken(synthetic):
    loader = new_loader("DATALOADER.NUM_WORKERS", 2)
    batches = iter(loader)
    next(batches)
    assert loader.state_dict()["position"] == 1


def test_a_state_cannot_be_loaded_into_a_running_loader(synthetic):
    loader = new_loader()
    next(iter(loader))
    with pytest.raises(RuntimeError, match="running already"):
        loader.load_state_dict(loader.state_dict())


def test_going_on_with_another_batch_size_keeps_the_amount_of_data_and_warns(synthetic, caplog):
    loader = new_loader()
    loader.load_state_dict({**loader.state_dict(), "position": 10, "batch_size": 4, "world_size": 2})
    assert loader.position == 40 and "not exactly" in caplog.text


def test_going_on_with_other_data_warns(synthetic, caplog):
    loader = new_loader()
    loader.load_state_dict({**loader.state_dict(), "num_records": [7]})
    assert "another one" in caplog.text


def test_loading_leaves_the_random_numbers_of_the_model_alone(synthetic):
    loader = new_loader()
    random.seed(3), np.random.seed(3), torch.manual_seed(3)
    want = (random.random(), np.random.rand(), torch.rand(1))
    random.seed(3), np.random.seed(3), torch.manual_seed(3)
    next(iter(loader))
    assert (random.random(), np.random.rand(), torch.rand(1)) == want


def test_two_samples_of_one_video_differ(synthetic):
    batches = islice(new_loader("SOLVER.IMS_PER_BATCH", 1), 30)
    seen = Counter(json.dumps(fingerprint(batch)) for batch in batches)
    assert len(seen) > 20


def test_videos_without_objects_are_dropped_when_asked(registered, caplog):
    caplog.set_level(logging.INFO, logger="lbvq")
    crowd = video(3, [0])
    crowd["annotations"][0][0]["iscrowd"] = 1
    registered("some_empty", [video(1, [], []), video(2, [], [0]), crowd])
    cfg = small_cfg("DATASETS.TRAIN", ("some_empty",), "SOLVER.IMS_PER_BATCH", 1)
    loader = build_train_loader(cfg, mappers=[lambda record: record])
    assert {batch[0]["video_id"] for batch in islice(loader, 10)} == {2}
    assert "Removed 2 images with no usable annotations. 1 images left." in caplog.text
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    loader = build_train_loader(cfg, mappers=[lambda record: record])
    assert {batch[0]["video_id"] for batch in islice(loader, 10)} == {1, 2, 3}


def test_images_are_filtered_like_videos():
    images = [{"annotations": []}, {"annotations": [{"iscrowd": 1}]}, {"annotations": [{"category_id": 0}]}]
    assert filter_empty(images) == images[2:] and filter_empty([]) == []


def test_nothing_to_train_on_is_an_error(registered):
    registered("all_empty", [video(1, [])])
    with pytest.raises(ValueError, match="No valid data found in 'all_empty'"):
        build_train_loader(small_cfg("DATASETS.TRAIN", ("all_empty",), "SOLVER.IMS_PER_BATCH", 1))


def test_repeat_factor_sampling_is_honoured(registered):
    registered("unbalanced", [video(n, [int(n == 0)]) for n in range(20)])
    counts = []
    for sampler in ("TrainingSampler", "RepeatFactorTrainingSampler"):
        options = ["DATALOADER.SAMPLER_TRAIN", sampler, "DATALOADER.REPEAT_THRESHOLD", 0.8]
        cfg = small_cfg("DATASETS.TRAIN", ("unbalanced",), "SOLVER.IMS_PER_BATCH", 1, *options)
        loader = build_train_loader(cfg, mappers=[lambda record: record])
        counts.append(sum(batch[0]["video_id"] == 0 for batch in islice(loader, 230)))
    assert 10 <= counts[0] <= 13 and 38 <= counts[1] <= 42  # sqrt(0.8 / 0.05) = 4 times per epoch


def test_wide_and_tall_videos_do_not_meet_in_a_batch(registered):
    registered("shapes", [video(n, [0], width=2 + 2 * (n % 2)) for n in range(9)])
    for grouping in (True, False):
        options = ["SOLVER.IMS_PER_BATCH", 3, "DATALOADER.ASPECT_RATIO_GROUPING", grouping]
        cfg = small_cfg("DATASETS.TRAIN", ("shapes",), *options)
        loader = build_train_loader(cfg, mappers=[lambda record: record])
        mixed = [len({sample["width"] for sample in batch}) > 1 for batch in islice(loader, 20)]
        assert any(mixed) is not grouping


def test_square_videos_are_grouped_with_the_tall_ones(registered):
    registered("squares", [video(n, [0], width=2 + n % 3) for n in range(9)])  # of height 3
    options = ["SOLVER.IMS_PER_BATCH", 3, "DATALOADER.ASPECT_RATIO_GROUPING", True]
    loader = build_train_loader(small_cfg("DATASETS.TRAIN", ("squares",), *options), mappers=[lambda record: record])
    widths = [{sample["width"] for sample in batch} for batch in islice(loader, 30)]
    assert {2, 3} in widths and all(each == {4} or 4 not in each for each in widths)


def test_data_sets_are_mixed_within_batches_by_their_ratio(registered):
    registered("left", [video(n, [0]) for n in range(5)])
    registered("right", [video(n, [0]) for n in range(100, 110)])
    for ratio, share in (([3.0, 1.0], 0.75), ([], 1 / 3)):
        options = ["DATASETS.DATASET_RATIO", ratio, "SOLVER.IMS_PER_BATCH", 4]
        cfg = small_cfg("DATASETS.TRAIN", ("left", "right"), *options)
        loader = build_train_loader(cfg, mappers=[lambda record: record] * 2)
        ids = [sample["video_id"] for batch in islice(loader, 300) for sample in batch]
        assert abs(sum(each < 100 for each in ids) / len(ids) - share) < 0.05
        assert set(ids) == {*range(5), *range(100, 110)}


@pytest.mark.parametrize(
    "options, message",
    [
        (["DATASETS.TRAIN", ()], "DATASETS.TRAIN is empty"),
        (
            ["DATASETS.TRAIN", ("synthetic_train",) * 2, "DATASETS.DATASET_RATIO", [1.0]],
            "DATASET_RATIO needs one number",
        ),
        (["SOLVER.IMS_PER_BATCH", 0], "IMS_PER_BATCH must be a multiple"),
        (["DATALOADER.SAMPLER_TRAIN", "Lottery"], "SAMPLER_TRAIN must be one of"),
        (["DATASETS.TRAIN", ("ytvis_2019_trian",)], "ytvis_2019_train"),
    ],
)
def test_a_wrong_setting_names_its_key(synthetic, options, message):
    with pytest.raises((ValueError, KeyError), match=message):
        build_train_loader(loader_cfg(*options))


def test_a_data_set_that_does_not_say_what_it_holds_is_refused(registered):
    registered("mystery", [video(1, [0])], kind="puzzle")
    with pytest.raises(ValueError, match="'mystery' does not say what it holds"):
        build_train_loader(small_cfg("DATASETS.TRAIN", ("mystery",), "SOLVER.IMS_PER_BATCH", 1))


def test_an_error_in_a_worker_keeps_its_message(registered):
    record = {**video(1, [0]), "file_names": ["gone/0.jpg"]}
    registered("imageless", [record])
    options = ["DATASETS.TRAIN", ("imageless",), "DATALOADER.NUM_WORKERS", 1, "SOLVER.IMS_PER_BATCH", 1]
    with pytest.raises(FileNotFoundError, match=r"gone/0.jpg of video 1"):
        next(iter(build_train_loader(small_cfg("DATALOADER.CHECK_FILES", False, *options))))


# -- mappers and classes


def test_the_kind_of_data_and_the_model_choose_the_mapper():
    cfg = small_cfg()
    assert isinstance(build_train_mapper(cfg, "ytvis_2019_train", "ytvis_2019_train"), VideoClipMapper)
    pseudo = build_train_mapper(cfg, "coco2ytvis2019_train", "ytvis_2019_train")
    assert isinstance(pseudo, PseudoClipMapper) and len(pseudo.class_map) == 21
    cfg.MODEL.META_ARCHITECTURE = "MaskFormer"
    assert isinstance(build_train_mapper(cfg, "coco_2017_train", "coco_2017_train"), ImageMapper)
    with pytest.raises(ValueError, match="MaskFormer trains on images"):
        build_train_mapper(cfg, "ytvis_2019_train", "ytvis_2019_train")


def test_images_that_are_the_target_are_not_moved_like_a_clip():
    cfg = small_cfg("INPUT.SAMPLING_FRAME_NUM", 1)
    moving = build_train_mapper(cfg, "coco2ytvis2019_train", "ytvis_2019_train").policies
    still = build_train_mapper(cfg, "coco_2017_train", "coco_2017_train").policies
    assert len(moving) == len(still) + 1  # the rotation


def test_classes_are_translated_by_the_published_tables():
    table = class_map_between("coco2ytvis2021_train", "ytvis_2021_train")
    coco, video_classes = (MetadataCatalog.get(name).thing_classes for name in ("coco_2017_train", "ytvis_2021_train"))
    named = {coco[source]: video_classes[target] for source, target in table.items()}
    assert named["frisbee"] == "flying_disc" and named["bicycle"] == "motorbike" and "bottle" not in named


def test_classes_without_a_table_are_matched_by_name():
    table = class_map_between("ovis_train", "ytvis_2021_train")
    assert len(table) > 10 and table[12] == 16  # Giant_panda, giant_panda
    assert class_map_between("hq_ytvis_train", "ytvis_2019_train") is None  # the same classes
    with pytest.raises(ValueError, match="No class of 'synthetic_train'"):
        class_map_between("synthetic_train", "ovis_train")


def test_a_class_unknown_to_the_target_gets_no_class_and_no_id(synthetic):
    record = DatasetCatalog.get("synthetic_train")[0]
    sample = VideoClipMapper([], num_frames=2, class_map={})(record)
    for objects in sample["instances"]:
        assert (objects.gt_classes == -1).all() and (objects.gt_ids == -1).all()


# -- samples and seeds


def test_a_record_that_gives_no_sample_is_replaced():
    records = MappedRecords([list(range(10))], [lambda record: None if record < 9 else {"record": record}])
    assert records[Pick(0, 2, (0, 0, 0))] == {"record": 9}
    with pytest.raises(RuntimeError, match="in a row gave no sample"):
        _ = MappedRecords([[1, 2]], [lambda record: None])[Pick(0, 0, (0, 0, 0))]


def test_a_mapper_may_ask_for_a_second_record():
    class Pairs:
        needs_partner = True

        def __call__(self, record, draw_partner):
            return {"pair": (record, draw_partner())}

    records = MappedRecords([list(range(100))], [Pairs()])
    assert records[Pick(0, 7, (1, 0, 0))]["pair"][0] == 7
    partners = {records[Pick(0, 7, (1, 0, n))]["pair"][1] for n in range(20)}
    assert len(partners) > 10


def test_workers_outlive_a_signal_to_the_whole_job_but_not_their_trainer(synthetic):
    others = multiprocessing.active_children()
    batches = iter(new_loader("DATALOADER.NUM_WORKERS", 1))
    next(batches)
    (worker,) = set(multiprocessing.active_children()) - set(others)
    for number in (signal.SIGTERM, signal.SIGUSR2):  # as a scheduler sends them: not from the training process
        subprocess.run([sys.executable, "-c", f"import os; os.kill({worker.pid}, {int(number)})"], check=True)
    next(batches)
    assert worker.is_alive()
    worker.terminate()
    worker.join(30)
    assert worker.exitcode == 0


def test_a_seeded_block_gives_its_numbers_back():
    with seeded((1, 2, 3)):
        first = (random.random(), np.random.rand(), torch.rand(1))
    before = random.getstate()[1], np.random.get_state()[2], torch.get_rng_state()
    with seeded((1, 2, 3)):
        assert (random.random(), np.random.rand(), torch.rand(1)) == first
    assert random.getstate()[1] == before[0] and np.random.get_state()[2] == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])
    with seeded((1, 2, 4)):
        assert random.random() != first[0]


def test_workers_are_seeded_as_published():
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    torch.manual_seed(2**31 + 40)  # torch has put base seed + worker id here
    seed_worker(2)
    got = random.random(), np.random.rand()
    random.seed(42), np.random.seed(42)
    assert got == (random.random(), np.random.rand())
    random.setstate(states[0]), np.random.set_state(states[1]), torch.set_rng_state(states[2])


# -- testing


def test_a_test_loader_gives_whole_videos_in_order(synthetic):
    loader = build_test_loader(loader_cfg(), "synthetic_val")
    samples = [batch[0] for batch in loader]
    assert len(loader) == 3 and [sample["video_id"] for sample in samples] == [1, 2, 3]
    assert all(len(sample["image"]) == 4 and sample["dense_masks"] is False for sample in samples)


def test_a_test_set_may_be_empty(registered):
    registered("nothing", [])
    assert list(build_test_loader(small_cfg(), "nothing")) == []


# -- records once per machine


def test_a_record_store_gives_back_what_it_was_given():
    records = [{"n": n, "names": ["x"] * n} for n in range(5)]
    store = RecordStore.from_records(records)
    assert list(store) == records and store[-1] == records[4] and len(store) == 5
    assert list(pickle.loads(pickle.dumps(store))) == records
    with pytest.raises(IndexError, match="there are 5"):
        store[5]
    assert list(RecordStore.from_records([])) == []


def test_a_record_that_is_changed_does_not_change_the_store():
    store = RecordStore.from_records([{"annotations": [1]}])
    store[0]["annotations"].append(2)
    assert store[0] == {"annotations": [1]}


@pytest.mark.slow
def test_one_process_of_a_machine_reads_for_all_and_an_error_reaches_all(tmp_path):
    launch(data_workers.share_records, 2, args=(str(tmp_path),))
    first, second = (json.loads((tmp_path / f"result_{rank}.json").read_text()) for rank in range(2))
    assert [path.name for path in tmp_path.glob("read_by_*")] == ["read_by_0"]
    assert first["classes"] == second["classes"] == ["thing"] and first["seed"] == second["seed"]
    assert first["error"] == second["error"] == "the annotation file is broken"
    assert first["test"] + second["test"] == list(range(7))
    seen = Counter(each for result in (first, second) for batch in result["train"] for each in batch)
    assert seen == dict.fromkeys(range(7), 4)  # 28 samples are four epochs
