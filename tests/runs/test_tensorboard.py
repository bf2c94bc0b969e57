"""Event files beside the history: what TensorBoard reads in them, and that nothing changes by them."""

import resource

import pytest
import torch
from helpers import PSAT, results, stop_after, tiny_with

from sat_core.errors import ConfigError, Interrupted
from sat_core.runs import folder
from sat_core.runs.check import check
from sat_core.runs.tensorboard import EventFiles
from sat_core.runs.train import train
from sat_core.study import Study


def shown(write_study, name):
    return Study(write_study(tiny_with(training={"tensorboard": True}), name))


def test_without_the_package_one_sentence_says_so(write_study, monkeypatch):
    monkeypatch.setattr("sat_core.runs.check.find_spec", lambda name: None)
    study = shown(write_study, "tiny")
    with pytest.raises(ConfigError, match=r"training\.tensorboard: it is not installed here: pip install tensorboard"):
        check(study, study.runs)


def test_it_changes_no_number_and_makes_nothing_stale(write_study, monkeypatch):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    plain, run = Study(write_study()).run(PSAT), shown(write_study, "shown").run(PSAT)
    train(plain)

    def stop(trainer):
        raise Interrupted("between two epochs")

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr("sat_core.runs.trainer.Trainer.finish_epoch", stop)
        train(run)  # the steps of the first epoch are shown and not saved
    torch.rand(3)
    train(run)
    assert results(run) == results(plain)
    assert folder.present(run, "train") == folder.present(plain, "train")

    found = events.EventAccumulator(str(run.folder))
    found.Reload()
    for name in ("step/loss", "step/accuracy"):
        assert [event.step for event in found.Scalars(name)] == list(range(1, 43))
    rows = results(run)[1].splitlines()[1:]
    robust = [event.value for event in found.Scalars("epoch/validation_robust")]
    assert robust == pytest.approx([float(row.split(",")[5]) for row in rows])
    assert [event.step for event in found.Images("attack")] == [21, 42]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard's own
def test_files_that_cannot_be_written_end_no_training(write_study, monkeypatch, caplog):
    pytest.importorskip("tensorboard")
    run = shown(write_study, "shown").run(PSAT)
    limits, step = resource.getrlimit(resource.RLIMIT_FSIZE), EventFiles.step

    def full(self):
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
        step(self)
        if not self.ended:
            self._shown(self.writer.flush)
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    monkeypatch.setattr(EventFiles, "step", full)
    train(run)
    assert folder.finished(run, "train") and caplog.text.count("TensorBoard's files end here: ") == 1


def test_a_training_stopped_in_the_last_step_of_an_epoch_goes_on(write_study, monkeypatch):
    pytest.importorskip("tensorboard")
    run = shown(write_study, "shown").run(PSAT)
    with monkeypatch.context() as patch:
        stop_after(patch, 21)
        with pytest.raises(Interrupted, match="saved in epoch 1, step 21"):
            train(run)
    train(run)
    assert folder.finished(run, "train")
