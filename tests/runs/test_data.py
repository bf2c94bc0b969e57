"""Datasets on disk in their real formats, image folders, splits, streams, and what can be wrong with them."""

import multiprocessing
import pickle
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from formats import write_cifar, write_imagenette
from helpers import MADRY, PSAT, TINY
from PIL import Image

from sat_core.__main__ import main
from sat_core.errors import ConfigError
from sat_core.runs import folder, images
from sat_core.runs.check import check
from sat_core.runs.data import _checked, count_images, load, prepare, rarest_share
from sat_core.runs.images import Images
from sat_core.study import Study
from sat_core.study.settings import Data


def study_of(write_study, dataset, **settings):
    table = {"dataset": dataset, "models": ["small"], "defenses": ["madry"], "epsilons": ["8/255"]}
    return Study(write_study({"tables": {"t": table}, "overrides": [{"set": {"data": settings}}]}))


def one_run(study):
    return next(iter(study.runs))


def write_images(folder, counts, size=(32, 32), mode="RGB"):
    """Class folders of random images; returns the pixels written, by file."""
    rng, written = np.random.default_rng(0), {}
    for label, count in counts.items():
        (folder / label).mkdir(parents=True)
        for i in range(count):
            shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
            path = folder / label / f"{i:03}.png"
            written[path] = rng.integers(0, 256, shape, dtype=np.uint8)
            Image.fromarray(written[path]).save(path)
    return written


@pytest.fixture
def folder_study(write_study, tmp_path):
    """A study on an image folder: three classes of 20 training and 4 test images, defined by YAML alone."""
    for part, count in (("train", 20), ("test", 4)):
        write_images(tmp_path / "pictures" / part, dict.fromkeys(("cat", "dog", "emu", "fox"), count))
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets/pets.yaml").write_text(
        "data: {source: folder, root: pictures, image: [3, 32, 32], mean: [0.5, 0.5, 0.5], std: [0.2, 0.2, 0.2]}\n"
        "training: {epochs: 1, lr: 0.1}\n"
    )
    return lambda **settings: study_of(write_study, "pets", **settings)


def test_an_image_folder_needs_yaml_alone(folder_study, tmp_path):
    study = folder_study()
    check(study, study.runs)
    run = one_run(study)
    assert run.data.classes == 4
    train, validation, test = load(run, "train", "validation", "test")
    assert (len(train), len(validation), len(test)) == (72, 8, 16)
    assert test.labels.bincount().tolist() == [4, 4, 4, 4]
    assert test.labels[:8].unique().numel() > 2  # the first so many are a fair sample, not a class
    x, y = test.batch(slice(None))
    for label, name in enumerate(("cat", "dog", "emu", "fox")):
        files = [np.array(Image.open(path)) for path in sorted((tmp_path / "pictures/test" / name).iterdir())]
        found = (x[y == label] * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        assert sorted(image.tobytes() for image in files) == sorted(image.tobytes() for image in found)


def test_a_folder_may_lie_in_the_users_home(folder_study, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    run = one_run(folder_study(root="~/pictures"))
    assert (run.data.root, run.data.classes, len(load(run, "test")[0])) == (str(tmp_path / "pictures"), 4, 16)


def test_the_prepared_file_is_made_once_and_again_when_damaged(folder_study, tmp_path):
    run = one_run(folder_study())
    record, path = prepare(run), folder.data_file(run)
    before = path.stat().st_mtime_ns
    assert prepare(run) == record and path.stat().st_mtime_ns == before
    path.write_bytes(path.read_bytes()[:100])
    assert prepare(run) == record
    assert len(load(run, "train")[0]) == 72


def test_prepared_images_that_changed_are_told(folder_study):
    run = one_run(folder_study())
    prepare(run)
    content = bytearray(folder.data_file(run).read_bytes())
    content[-1] ^= 1
    folder.data_file(run).write_bytes(content)
    with pytest.raises(ConfigError, match=r"pets.safetensors is damaged: its \w+ images changed; delete it"):
        load(run, "train", "validation", "test")


def test_a_sample_of_the_training_images_is_even_over_the_classes(folder_study):
    def train_and_validation(**settings):
        found = load(one_run(folder_study(**settings)), "train", "validation")
        return torch.cat([part.pixels for part in found]), torch.cat([part.labels for part in found])

    every = {pixels.numpy().tobytes() for pixels in train_and_validation()[0]}
    pixels, labels = train_and_validation(train_images=40)
    assert labels.bincount().tolist() == [10, 10, 10, 10]
    assert len({image.numpy().tobytes() for image in pixels} & every) == 40
    with pytest.raises(ConfigError, match=r"data\.train_images asks for 81, but there are only 80"):
        train_and_validation(train_images=81)
    with pytest.raises(ConfigError, match="80 images cannot be split in two evenly, with 2 apart"):
        train_and_validation(train_images=2)
    assert len(train_and_validation(train_images=80)[0]) == 80


def test_one_defense_may_be_validated_by_another_attack_but_not_on_other_images(write_study, tiny_study):
    """CONTRIBUTING says so of defenses that train with a single step."""

    def study(**validation):
        of_madry = {"where": {"defense": "madry"}, "set": {"validation": validation}}
        return Study(write_study(tiny_study | {"overrides": [*tiny_study["overrides"], of_madry]}))

    steps = study(steps=10, relative_step_size=0.25)
    check(steps, steps.runs)
    record = prepare(steps.runs[1])
    assert prepare(steps.runs[0]) == record == folder.data_record(steps.runs[0])  # not made anew for the other
    fraction = study(fraction=0.2)
    with pytest.raises(ConfigError, match=r"data and validation\.fraction must be the same for all runs of 'digits'"):
        check(fraction, fraction.runs)


def test_a_folder_with_one_class_is_refused_before_work(folder_study, tmp_path):
    write_images(tmp_path / "single/train", {"cat": 2})
    study = folder_study(root="single")
    with pytest.raises(ConfigError, match="single/train must hold a folder for each of four or more classes"):
        check(study, study.runs)


def test_what_a_desktop_or_a_notebook_hides_among_images_is_none(folder_study, tmp_path):
    before = prepare(folder_study().runs[0])
    for place in ("pictures/train", "pictures/train/cat", "pictures/test"):
        (tmp_path / place / ".DS_Store").write_bytes(b"Bud1")
        (tmp_path / place / ".ipynb_checkpoints").mkdir()
    folder.data_file(folder_study().runs[0]).unlink()
    study = folder_study()
    check(study, study.runs)
    assert prepare(study.runs[0]) == before


def test_folders_within_a_class_and_more_images_than_there_are_get_a_sentence(folder_study, tmp_path):
    content = yaml.safe_load(folder_study().path.read_text())
    content["overrides"] = [*content.get("overrides", []), {"set": {"evaluation": {"images": 17}}}]
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(content))
    study = Study("tiny.yaml")
    with pytest.raises(ConfigError, match=r"evaluation.images asks for 17, but there are only 16"):
        check(study, study.runs)
    (tmp_path / "pictures/train/cat/more").mkdir()
    with pytest.raises(ConfigError, match="pictures/train/cat/more is a folder within a class"):
        prepare(folder_study().runs[0])


def test_folders_of_one_name_in_two_places_are_counted_apart(folder_study, tmp_path, monkeypatch):
    run = one_run(folder_study())
    assert (count_images(run), rarest_share(run)) == ((80, 16), 1 / 4)
    for part, counts in (("train", (5, 6, 7, 2)), ("test", (1, 1, 1, 1))):
        write_images(tmp_path / "other/pictures" / part, dict(zip(("cat", "dog", "emu", "fox"), counts, strict=True)))
    monkeypatch.chdir(tmp_path / "other")
    assert (count_images(run), rarest_share(run)) == ((20, 4), 1 / 10)


def test_train_and_test_must_have_the_same_classes(folder_study, tmp_path):
    (tmp_path / "pictures/test/dog").rename(tmp_path / "pictures/test/bee")
    with pytest.raises(ConfigError, match="class folder 'bee' is in only one of pictures/train and pictures/test"):
        prepare(one_run(folder_study()))


def test_a_class_without_images_is_named(folder_study, tmp_path):
    for path in (tmp_path / "pictures/test/emu").iterdir():
        path.unlink()
    with pytest.raises(ConfigError, match="dataset 'pets': class folder pictures/test/emu holds no images"):
        prepare(one_run(folder_study()))


def test_folders_without_images_are_one_sentence(folder_study, tmp_path):
    for path in (tmp_path / "pictures/test").glob("*/*"):
        path.unlink()
    with pytest.raises(ConfigError, match="dataset 'pets': there are no images under 'pictures'"):
        prepare(one_run(folder_study()))


def test_an_unreadable_image_is_named(folder_study, tmp_path):
    (tmp_path / "pictures/train/dog/001.png").write_bytes(b"not an image")
    with pytest.raises(ConfigError, match=r"pictures/train/dog/001.png cannot be read as an image"):
        prepare(one_run(folder_study()))


def cut_in_two(png: bytes) -> bytes:
    """The first 100 bytes of the pixels as a chunk of their own, and zeros in the place of the second."""
    at = png.index(b"IDAT")
    chunk = png[at : at + 104]
    return png[: at - 4] + (100).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big") + bytes(50)


@pytest.mark.parametrize("spoil", [lambda png: png[:900], cut_in_two])
def test_a_damaged_image_is_named(folder_study, tmp_path, spoil):
    path = tmp_path / "pictures/train/dog/002.png"
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(ConfigError, match=r"pictures/train/dog/002.png cannot be read as an image"):
        prepare(one_run(folder_study()))


def test_mixed_sizes_are_refused_with_the_file(folder_study, tmp_path):
    Image.new("RGB", (32, 40)).save(tmp_path / "pictures/test/emu/zzz.png")
    with pytest.raises(ConfigError, match=r"test/emu/zzz.png is 32x40, but data.image says 32x32"):
        prepare(one_run(folder_study()))


def test_float_images_which_could_hold_nan_are_refused(folder_study, tmp_path):
    Image.fromarray(np.full((32, 32), np.nan, dtype=np.float32)).save(tmp_path / "pictures/train/cat/nan.tiff")
    with pytest.raises(ConfigError, match=r"nan.tiff is not of 8 bits a channel"):
        prepare(one_run(folder_study()))


def test_labels_outside_the_classes_are_refused():
    images = Images(torch.zeros(3, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 5]))
    with pytest.raises(ConfigError, match=r"labels lie in 0..5, outside 0..4"):
        _checked(Data(source="digits", image=(1, 8, 8), classes=5), images)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_is_read_in_its_own_format(name, write_study, tmp_path, monkeypatch):
    from torchvision import datasets

    cls = datasets.CIFAR100 if name == "cifar100" else datasets.CIFAR10
    for names in ("train_list", "test_list"):  # without the published files' checksums
        monkeypatch.setattr(cls, names, [[file, None] for file, _ in getattr(cls, names)])
    monkeypatch.setattr(cls, "meta", cls.meta | {"md5": None})
    base = write_cifar(tmp_path / "data", name == "cifar100", train=1000, test=1000)
    run = one_run(study_of(write_study, name))
    (test,) = load(run, "test")
    raw = pickle.loads((base / ("test" if name == "cifar100" else "test_batch")).read_bytes())
    assert torch.equal(test.pixels[3].flatten(), torch.from_numpy(raw["data"][3]))
    assert test.labels[3] == 3 and test.pixels.shape[1:] == (3, 32, 32)


def test_imagenette_is_read_in_its_own_format(write_study, tmp_path):
    write_imagenette(tmp_path / "data", 12)
    run = one_run(study_of(write_study, "imagenette"))
    train, validation, test = load(run, "train", "validation", "test")
    assert (len(train), len(validation), len(test)) == (108, 12, 120)
    assert test.pixels.shape[1:] == (3, 160, 160)
    centres = test.pixels[:, :, 80, 80].int()
    assert centres[:, 0].sort().values.tolist() == pytest.approx([10 * (i // 10) for i in range(120)], abs=4)
    assert (centres[:, 1:] - torch.tensor([0, 255])).abs().max() <= 4


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # where a process may use one core
def test_streamed_batches_equal_those_in_memory(tiny):
    run = tiny.run(MADRY)
    (train,) = load(run, "train")
    order = torch.randperm(len(train))
    kept = list(train.batches(order, 100))
    for one, other in zip(kept, train.streamed(list(order.split(100))), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_streaming_survives_a_signal_to_all_processes_of_a_job(tiny):
    """So that the training can save before it ends."""
    (train,) = load(tiny.run(MADRY), "train")
    parts = list(torch.arange(len(train)).split(20))
    batches = train.streamed(parts)
    next(batches), next(batches)  # one of each worker, if there are two: they are up
    workers = multiprocessing.active_children()
    for worker in workers:
        worker.terminate()
    assert workers and len(list(batches)) == len(parts) - 2


def test_what_lies_on_the_device_is_not_streamed(tiny, monkeypatch):
    (train,) = load(tiny.run(MADRY), "train")
    monkeypatch.setattr(images, "DataLoader", None)
    device = torch.device("cpu", 0)  # tensors there say "cpu", as those moved to "cuda" say "cuda:0"
    assert train.to(device).pixels.device != device
    assert len(list(train.to(device).batches(torch.arange(250), 100))) == 3


def test_what_does_not_fit_streams_and_the_log_says_so(tiny, monkeypatch, caplog):
    (train,) = load(tiny.run(MADRY), "train")
    with caplog.at_level("INFO"):
        train.to(torch.device("cpu"))
        assert "are kept on cpu" in caplog.text
        monkeypatch.setattr(images.psutil, "virtual_memory", lambda: type("Memory", (), {"available": 1000})())
        assert train.to(torch.device("cpu")).pixels is train.pixels
    assert "do not fit on cpu: they stream from disk" in caplog.text


def test_splits_are_stratified_disjoint_and_fixed(tiny):
    run = tiny.run(PSAT)
    train, validation, test = load(run, "train", "validation", "test")
    shutil.rmtree("results")
    (again,) = load(run, "train")
    assert (len(train), len(validation), len(test)) == (1293, 144, 360)
    assert torch.equal(train.pixels, again.pixels)
    assert validation.labels.bincount().max() - validation.labels.bincount().min() <= 1
    keys = [
        {(p.numpy().tobytes(), int(label)) for p, label in zip(s.pixels, s.labels, strict=True)}
        for s in (train, validation, test)
    ]
    assert not keys[0] & keys[1] and not keys[0] & keys[2] and not keys[1] & keys[2]
    x, _ = train.batch(slice(None))
    assert x.dtype == torch.float32 and x.min() == 0 and x.max() == 1


def test_missing_data_without_a_network_is_one_sentence(write_study, capsys, monkeypatch):
    table = TINY["tables"]["digits"] | {"dataset": "mnist"}
    study = {"tables": {"mnist": table}, "overrides": [{"set": {"data": {"root": "nowhere"}}}]}

    def no_network(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    assert main(["data", "--study", str(write_study(study)), "--dataset", "mnist"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: dataset 'mnist': it is not under 'nowhere' and could not be downloaded")
    study["overrides"][0]["set"]["data"]["root"] = "mistyped/mnist"
    assert main(["data", "--study", str(write_study(study, "slip")), "--dataset", "mnist"]) == 2
    assert "there is no folder that 'mistyped/mnist' could be made in" in capsys.readouterr().err
    assert not Path("mistyped").exists()
