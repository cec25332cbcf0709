"""EventStorage and its writers, against lines recorded from the published engine (golden/events.json)."""

from __future__ import annotations

import json
import logging
import sys
import types

import pytest
import torch
from helpers import GOLDEN

from lbvq.engine.event_writers import TensorBoardWriter, WandbWriter
from lbvq.engine.events import CommonMetricPrinter, EventStorage, JSONWriter, get_event_storage, has_event_storage


@pytest.fixture
def events():
    return json.loads((GOLDEN / "events.json").read_text())


def replay(events, writers):
    """Put the recorded numbers and write when the recorded run wrote."""
    by_iteration: dict[int, list[dict]] = {}
    for iteration, scalars in events["puts"]:
        by_iteration.setdefault(iteration, []).append(scalars)
    with EventStorage(0) as storage:
        for storage.iter in range(events["max_iter"]):
            for scalars in by_iteration.get(storage.iter, []):
                for name, value in scalars.items():
                    storage.put_scalar(name, value, smoothing_hint=name not in events["no_smoothing"])
            if (storage.iter + 1) % events["period"] == 0:
                for writer in writers:
                    writer.write()


def test_console_and_json_lines_equal_the_recorded_ones(events, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with caplog.at_level(logging.INFO, logger="lbvq.engine.events"):
        logging.getLogger("lbvq").propagate = True
        replay(events, [CommonMetricPrinter(events["max_iter"]), JSONWriter(tmp_path / "metrics.json")])
    assert [record.message for record in caplog.records] == events["console"]
    assert (tmp_path / "metrics.json").read_text().splitlines() == events["metrics_json"]


def test_values_put_late_in_one_go_give_the_same_smoothed_numbers(events):
    """Losses leave a GPU 20 at a time; the medians must not notice."""
    with EventStorage(0) as one_by_one, EventStorage(0) as in_one_go:
        for iteration in range(20):
            one_by_one.iter = iteration
            one_by_one.put_scalar("loss", iteration % 7)
        in_one_go.iter = 19
        for iteration in range(20):
            in_one_go.put_scalar("loss", iteration % 7, cur_iter=iteration)
    assert one_by_one.latest_with_smoothing_hint(5) == in_one_go.latest_with_smoothing_hint(5) == {"loss": (3.0, 19)}


def test_median_takes_only_the_window_of_its_own_name():
    with EventStorage(0) as storage:
        for iteration, value in ((0, 100.0), (30, 1.0), (35, 3.0), (40, 8.0)):
            storage.put_scalar("loss", value, cur_iter=iteration)
        storage.put_scalar("lr", 0.5, smoothing_hint=False, cur_iter=7)
        storage.put_scalar("lr", 0.25, smoothing_hint=False, cur_iter=8)
    assert storage.latest_with_smoothing_hint(20) == {"loss": (3.0, 40), "lr": (0.25, 8)}


def test_smoothing_hint_of_a_name_may_not_change():
    with EventStorage(0) as storage:
        storage.put_scalar("loss", 1.0)
        with pytest.raises(ValueError, match=r"'loss'.*smoothing_hint=True"):
            storage.put_scalar("loss", 1.0, smoothing_hint=False)


def test_name_scope_prefixes_and_nests():
    with EventStorage(0) as storage:
        with storage.name_scope("outer"), storage.name_scope("inner"):
            storage.put_scalar("loss", 1.0)
        storage.put_scalar("loss", 2.0)
    assert list(storage.histories()) == ["outer/inner/loss", "loss"]
    with pytest.raises(KeyError, match="outer/inner/loss"):
        storage.history("missing")


def test_get_event_storage_is_the_innermost_and_needs_one():
    assert not has_event_storage()
    with pytest.raises(RuntimeError, match="no EventStorage"):
        get_event_storage()
    with EventStorage(0), EventStorage(5) as inner:
        assert get_event_storage() is inner
    assert not has_event_storage()


def test_json_writer_appends_and_repairs_a_line_cut_off_by_a_crash(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text('{"iteration": 19}\n{"iteration": 3')
    with EventStorage(20) as storage:
        storage.put_scalar("loss", 1.5)
        writer = JSONWriter(path)
        writer.write()
        writer.write()  # nothing new: no second line
        writer.close()
    assert path.read_text() == '{"iteration": 19}\n{"iteration": 3\n{"iteration": 20, "loss": 1.5}\n'


def test_a_value_that_is_no_number_is_null_in_the_json_file(tmp_path):
    with EventStorage(3) as storage:
        storage.put_scalars(loss=float("nan"), lr=float("inf"), time=0.5)
        JSONWriter(tmp_path / "metrics.json").write()
    assert (tmp_path / "metrics.json").read_text() == '{"iteration": 3, "loss": null, "lr": null, "time": 0.5}\n'


def test_writers_with_an_empty_storage_write_nothing_wrong(tmp_path, caplog):
    with EventStorage(0), caplog.at_level(logging.INFO):
        JSONWriter(tmp_path / "metrics.json").write()
        CommonMetricPrinter(10).write()
    assert (tmp_path / "metrics.json").read_text() == ""
    assert "iter: 0" in caplog.text and "lr: N/A" in caplog.text


def test_console_prints_nothing_after_the_last_iteration(caplog):
    with EventStorage(10), caplog.at_level(logging.INFO):
        CommonMetricPrinter(10).write()
    assert caplog.text == ""


def test_eta_without_timed_iterations_comes_from_the_clock_between_writes(caplog, monkeypatch):
    clock = iter([100.0, 110.0, 110.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    with EventStorage(0) as storage, caplog.at_level(logging.INFO):
        printer = CommonMetricPrinter(100)
        storage.iter = 9
        printer.write()
        storage.iter = 19
        printer.write()
    assert "eta" not in caplog.messages[0]
    assert caplog.messages[1].startswith(" eta: 0:01:20  iter: 19")  # 1 s an iteration, 80 to go


def test_tensorboard_gets_each_value_once_with_its_iteration(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with EventStorage(0) as storage:
        writer = TensorBoardWriter(tmp_path)
        for storage.iter in range(3):
            storage.put_scalar("lr", storage.iter / 10, smoothing_hint=False)
            storage.put_histogram("weights", torch.arange(10.0), bins=5)
            storage.put_histogram("empty", torch.zeros(0))
            writer.write()
            writer.write()
        writer.close()
    read = EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, round(event.value, 3)) for event in read.Scalars("lr")] == [(0, 0.0), (1, 0.1), (2, 0.2)]
    assert read.Tags()["histograms"] == ["weights"]
    assert read.Histograms("weights")[0].histogram_value.num == 10


def test_wandb_gets_steps_in_order_and_a_resumed_run_goes_on(tmp_path, monkeypatch):
    """The package is replaced by a recorder: what counts is what we hand to it."""
    started, logged = [], []

    class Run:
        id = "abc"

        def log(self, scalars, step):
            logged.append((step, scalars))

        def finish(self):
            logged.append("finished")

    fake = types.ModuleType("wandb")
    fake.init = lambda **keywords: started.append(keywords) or Run()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with EventStorage(0) as storage:
        writer = WandbWriter("project", tmp_path, {"SEED": 1})
        storage.put_scalar("loss", 2.0, cur_iter=39)
        storage.put_scalar("segm/AP", 40.0, cur_iter=24)
        writer.write()
        writer.close()
    WandbWriter("project", tmp_path, {"SEED": 1})
    assert logged == [(24, {"segm/AP": 40.0, "iteration": 24}), (39, {"loss": 2.0, "iteration": 39}), "finished"]
    assert [run["id"] for run in started] == [None, "abc"]


@pytest.mark.slow
def test_wandb_itself_keeps_a_run_without_a_network(tmp_path, monkeypatch):
    """The package in its offline mode: a run with our numbers is on the disk, and a resumed one has the same id."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    ids = []
    for iteration in (3, 7):
        with EventStorage(iteration) as storage:
            writer = WandbWriter("project", tmp_path, {"SEED": 1})
            storage.put_scalar("loss_of_masks", 2.5)
            writer.write()
            ids.append(writer._run.id)
            writer.close()
    assert ids[0] == ids[1] == (tmp_path / "wandb_run_id").read_text().strip()
    kept = b"".join(path.read_bytes() for path in tmp_path.glob(f"wandb/offline-run-*-{ids[0]}/*.wandb"))
    assert b"loss_of_masks" in kept and b"SEED" in kept


def test_missing_wandb_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match=r"lbvq\[wandb\]"):
        WandbWriter("project", tmp_path, {})
