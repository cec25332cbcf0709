"""Saving and resuming: published names and content, complete files only, the rules of resuming."""

from __future__ import annotations

import stat

import pytest
import torch
from torch import nn

from lbvq.engine.checkpoint import Checkpointer, save_checkpoint


class Counter:
    """A state beside the model."""

    def __init__(self, value=0):
        self.value = value

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state):
        self.value = state["value"]


def test_a_checkpoint_has_the_published_names_and_content(tmp_path):
    model = nn.Linear(2, 2)
    checkpointer = Checkpointer(nn.DataParallel(model), tmp_path / "run", trainer=Counter(3))
    path = checkpointer.save("model_0004999", iteration=4999)
    assert path == tmp_path / "run" / "model_0004999.pth"
    assert (tmp_path / "run" / "last_checkpoint").read_bytes() == b"model_0004999.pth"
    content = torch.load(path, weights_only=True)
    assert list(content) == ["model", "trainer", "iteration"]
    assert content["trainer"] == {"value": 3} and content["iteration"] == 4999
    assert list(content["model"]) == ["weight", "bias"] and content["model"]._metadata[""] == {"version": 1}
    assert sorted(p.name for p in path.parent.iterdir()) == ["last_checkpoint", "model_0004999.pth"]


def test_a_resumed_run_gets_everything_back(tmp_path):
    model = nn.Linear(2, 2)
    Checkpointer(model, tmp_path, trainer=Counter(7)).save("model_final", iteration=9)
    other, counter = nn.Linear(2, 2), Counter()
    checkpointer = Checkpointer(other, tmp_path, trainer=counter)
    assert checkpointer.resume_or_load("not_used.pth", resume=True) == {"iteration": 9}
    assert torch.equal(other.weight, model.weight) and counter.value == 7


def test_without_resume_only_the_model_is_loaded(tmp_path):
    model = nn.Linear(2, 2)
    path = Checkpointer(model, tmp_path / "old", trainer=Counter(7)).save("model_final", iteration=9)
    counter = Counter()
    checkpointer = Checkpointer(nn.Linear(2, 2), tmp_path / "new", trainer=counter)
    assert checkpointer.resume_or_load(path) == {} and counter.value == 0
    assert torch.equal(checkpointer.model.weight, model.weight)
    assert not checkpointer.has_checkpoint()


def test_resuming_an_empty_folder_starts_from_the_weights(tmp_path, caplog):
    model = nn.Linear(2, 2)
    save_checkpoint(tmp_path / "start.pth", {"model": model.state_dict()})
    checkpointer = Checkpointer(nn.Linear(2, 2), tmp_path / "run")
    assert checkpointer.resume_or_load(tmp_path / "start.pth", resume=True) == {}
    assert torch.equal(checkpointer.model.weight, model.weight) and "nothing to resume" in caplog.text
    with pytest.raises(ValueError, match="nothing to evaluate"):
        checkpointer.resume_or_load("", resume=True)
    training = Checkpointer(nn.Linear(2, 2), tmp_path / "run", trainer=Counter(7))
    assert training.resume_or_load("", resume=True) == {}


class Detector(nn.Module):
    def __init__(self, clip):
        super().__init__()
        self.backbone = nn.Linear(2, 2)
        if clip:
            self.clip_module = nn.Linear(2, 2)


def test_training_may_start_from_an_image_model_and_evaluation_may_not(tmp_path):
    save_checkpoint(tmp_path / "image.pth", {"model": Detector(clip=False).state_dict()})
    Checkpointer(Detector(clip=True), tmp_path, trainer=Counter()).resume_or_load(tmp_path / "image.pth")
    with pytest.raises(ValueError, match="only a backbone"):
        Checkpointer(Detector(clip=True), tmp_path).resume_or_load(tmp_path / "image.pth")


def test_resuming_needs_every_tensor(tmp_path):
    Checkpointer(Detector(clip=False), tmp_path).save("model_final")
    with pytest.raises(ValueError, match="clip_module"):
        Checkpointer(Detector(clip=True), tmp_path).resume_or_load("", resume=True)


def test_a_state_that_the_file_lacks_is_reported(tmp_path, caplog):
    Checkpointer(nn.Linear(2, 2), tmp_path).save("model_final", iteration=1)
    counter = Counter(5)
    assert Checkpointer(nn.Linear(2, 2), tmp_path, scheduler=counter).load(tmp_path / "model_final.pth") == {
        "iteration": 1
    }
    assert counter.value == 5 and "no state of the scheduler" in caplog.text


def test_the_model_can_be_loaded_without_the_states(tmp_path):
    Checkpointer(nn.Linear(2, 2), tmp_path, trainer=Counter(5)).save("model_final")
    counter = Counter()
    rest = Checkpointer(nn.Linear(2, 2), tmp_path, trainer=counter).load(tmp_path / "model_final.pth", states=False)
    assert counter.value == 0 and rest == {"trainer": {"value": 5}}


def test_a_wrong_note_of_the_newest_checkpoint_is_told(tmp_path, caplog):
    checkpointer = Checkpointer(nn.Linear(2, 2), tmp_path)
    with pytest.raises(FileNotFoundError, match="has no checkpoint"):
        checkpointer.last_checkpoint()
    checkpointer.save("model_0000001")
    (tmp_path / "last_checkpoint").write_text("model_0000002.pth\n")
    with pytest.raises(FileNotFoundError, match=r"model_0000002\.pth.*the folder has model_0000001\.pth"):
        checkpointer.last_checkpoint()
    checkpointer.resume_or_load("", resume=True)
    assert "model_0000002.pth, noted as the newest checkpoint, is not there" in caplog.text
    (tmp_path / "last_checkpoint").write_text("/somewhere/else/model_0000001.pth\n")  # only the base name counts
    assert checkpointer.last_checkpoint() == tmp_path / "model_0000001.pth"


@pytest.mark.parametrize("old", [b"", b"an older file"])
def test_a_write_that_fails_leaves_the_old_file_and_no_rubbish(tmp_path, old):
    path = tmp_path / "model.pth"
    if old:
        path.write_bytes(old)
    with pytest.raises(AttributeError):  # pickle cannot write a local function
        save_checkpoint(path, {"model": torch.ones(1000), "bad": lambda: None})
    assert [p.read_bytes() for p in tmp_path.iterdir()] == ([old] if old else [])


def test_a_truncated_checkpoint_is_named_when_resuming(tmp_path):
    path = Checkpointer(nn.Linear(20, 20), tmp_path).save("model_final")
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(ValueError, match=r"model_final\.pth is damaged"):
        Checkpointer(nn.Linear(20, 20), tmp_path).resume_or_load("", resume=True)


def test_files_are_readable_for_others(tmp_path):
    path = save_checkpoint(tmp_path / "deep" / "folder" / "a.pth", {"model": {}})
    (tmp_path / "plain").touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_weights_alone_are_not_what_a_run_resumes_from(tmp_path):
    checkpointer = Checkpointer(nn.Linear(2, 2), tmp_path, trainer=Counter())
    checkpointer.save("model_0000001")
    path = checkpointer.save_weights("model_best", scores={"segm/AP": 1.5})
    assert list(torch.load(path, weights_only=True)) == ["model", "scores"]
    assert checkpointer.last_checkpoint().name == "model_0000001.pth"


def test_deleting_spares_the_newest(tmp_path, caplog):
    checkpointer = Checkpointer(nn.Linear(2, 2), tmp_path)
    checkpointer.delete("model_0000000")
    for name in ("model_0000001", "model_0000002"):
        checkpointer.save(name)
    checkpointer.delete("model_0000001")
    checkpointer.delete("model_0000002")
    assert [p.name for p in tmp_path.glob("*.pth")] == ["model_0000002.pth"] and "stays" in caplog.text


def test_an_optimizer_and_a_scaler_are_restored(tmp_path):
    torch.manual_seed(0)
    model = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    scaler = torch.amp.GradScaler("cpu")
    Checkpointer(model, tmp_path, optimizer=optimizer, scaler=scaler).save("model_0000000", iteration=0)
    other = nn.Linear(2, 2)
    optimizer2 = torch.optim.AdamW(other.parameters(), lr=0.5)
    Checkpointer(other, tmp_path, optimizer=optimizer2, scaler=torch.amp.GradScaler("cpu")).resume_or_load(
        "", resume=True
    )
    assert optimizer2.param_groups[0]["lr"] == 0.1
    for net, opt in ((model, optimizer), (other, optimizer2)):
        opt.zero_grad()
        net(torch.ones(1, 2)).sum().backward()
        opt.step()
    assert torch.equal(model.weight, other.weight)
