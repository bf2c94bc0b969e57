"""Datasets on disk in their real formats, image folders, augmentation, and what can be wrong with them."""

import multiprocessing
import pickle
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from sat_core import augmentation, data
from sat_core.errors import ConfigError
from sat_core.study import Study
from sat_core.study.settings import Data
from sat_core.runs.check import check


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
    train, validation, test = data.load(run, "train", "validation", "test")
    assert (len(train), len(validation), len(test)) == (72, 8, 16)
    assert test.labels.bincount().tolist() == [4, 4, 4, 4]
    assert test.labels[:8].unique().numel() > 2  # the first so many are a fair sample, not a class
    x, y = test.batch(slice(None))
    for label, name in enumerate(("cat", "dog", "emu", "fox")):
        files = [np.array(Image.open(path)) for path in sorted((tmp_path / "pictures/test" / name).iterdir())]
        found = (x[y == label] * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        assert sorted(image.tobytes() for image in files) == sorted(image.tobytes() for image in found)


def test_the_prepared_file_is_made_once_and_again_when_damaged(folder_study, tmp_path):
    run = one_run(folder_study())
    path = data.prepare(run)
    before = path.stat().st_mtime_ns
    assert data.prepare(run).stat().st_mtime_ns == before
    path.write_bytes(path.read_bytes()[:100])
    data.prepare(run)
    assert len(data.load(run, "train")[0]) == 72


def test_a_sample_of_the_training_images_is_even_over_the_classes(folder_study):
    def train_and_validation(**settings):
        found = data.load(one_run(folder_study(**settings)), "train", "validation")
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


def test_a_folder_with_one_class_is_refused_before_work(folder_study, tmp_path):
    write_images(tmp_path / "single/train", {"cat": 2})
    study = folder_study(root="single")
    with pytest.raises(ConfigError, match="single/train must hold a folder for each of four or more classes"):
        check(study, study.runs)


def test_train_and_test_must_have_the_same_classes(folder_study, tmp_path):
    (tmp_path / "pictures/test/dog").rename(tmp_path / "pictures/test/bee")
    with pytest.raises(ConfigError, match="class folder 'bee' is in only one of pictures/train and pictures/test"):
        data.prepare(one_run(folder_study()))


def test_folders_without_images_are_one_sentence(folder_study, tmp_path):
    for path in (tmp_path / "pictures/test").glob("*/*"):
        path.unlink()
    with pytest.raises(ConfigError, match="dataset 'pets': there are no images under 'pictures'"):
        data.prepare(one_run(folder_study()))


def test_an_unreadable_image_is_named(folder_study, tmp_path):
    (tmp_path / "pictures/train/dog/001.png").write_bytes(b"not an image")
    with pytest.raises(ConfigError, match=r"pictures/train/dog/001.png cannot be read as an image"):
        data.prepare(one_run(folder_study()))


def test_a_truncated_image_is_named(folder_study, tmp_path):
    path = tmp_path / "pictures/train/dog/002.png"
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(ConfigError, match=r"pictures/train/dog/002.png cannot be read as an image"):
        data.prepare(one_run(folder_study()))


def test_mixed_sizes_are_refused_with_the_file(folder_study, tmp_path):
    Image.new("RGB", (32, 40)).save(tmp_path / "pictures/test/emu/zzz.png")
    with pytest.raises(ConfigError, match=r"test/emu/zzz.png is 32x40, but data.image says 32x32"):
        data.prepare(one_run(folder_study()))


def test_float_images_which_could_hold_nan_are_refused(folder_study, tmp_path):
    Image.fromarray(np.full((32, 32), np.nan, dtype=np.float32)).save(tmp_path / "pictures/train/cat/nan.tiff")
    with pytest.raises(ConfigError, match=r"nan.tiff is not of 8 bits a channel"):
        data.prepare(one_run(folder_study()))


def test_labels_outside_the_classes_are_refused():
    images = data.Images(torch.zeros(3, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 5]))
    with pytest.raises(ConfigError, match=r"labels lie in 0..5, outside 0..4"):
        data._checked(Data(source="digits", image=(1, 8, 8), classes=5), "d", images)


def write_cifar(root, hundred: bool, monkeypatch):
    """CIFAR in its exact on-disk format, 100 images a batch; torchvision's checksums are those of these files."""
    from torchvision import datasets

    rng = np.random.default_rng(0)
    cls = datasets.CIFAR100 if hundred else datasets.CIFAR10
    base = root / cls.base_folder
    base.mkdir(parents=True)
    key, classes = ("fine_labels", 100) if hundred else ("labels", 10)
    for names in ("train_list", "test_list"):
        entries = []
        for name, _ in getattr(cls, names):
            count = 1000 if hundred else 100
            content = {
                "data": rng.integers(0, 256, (count, 3072), dtype=np.uint8),
                key: [i % classes for i in range(count)],
            }
            (base / name).write_bytes(pickle.dumps(content))
            entries.append([name, None])
        monkeypatch.setattr(cls, names, entries)
    meta = {cls.meta["key"]: [str(i) for i in range(classes)]}
    (base / cls.meta["filename"]).write_bytes(pickle.dumps(meta))
    monkeypatch.setattr(cls, "meta", cls.meta | {"md5": None})
    return base


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_is_read_in_its_own_format(name, write_study, tmp_path, monkeypatch):
    base = write_cifar(tmp_path / "data", name == "cifar100", monkeypatch)
    run = one_run(study_of(write_study, name))
    (test,) = data.load(run, "test")
    raw = pickle.loads((base / ("test" if name == "cifar100" else "test_batch")).read_bytes())
    assert torch.equal(test.pixels[3].flatten(), torch.from_numpy(raw["data"][3]))
    assert test.labels[3] == 3 and test.pixels.shape[1:] == (3, 32, 32)


def test_imagenette_is_read_in_its_own_format(write_study, tmp_path):
    from torchvision.datasets import Imagenette

    root = tmp_path / "data"
    folder = root / "imagenette2-160"
    for part in ("train", "val"):
        for wnid in Imagenette._WNID_TO_CLASS:
            (folder / part / wnid).mkdir(parents=True)
            for i in range(12):
                Image.new("RGB", (200, 160), (10 * i, 0, 255)).save(folder / part / wnid / f"{i:02}.JPEG")
    with tarfile.open(root / "imagenette2-160.tgz", "w:gz"):
        pass
    run = one_run(study_of(write_study, "imagenette"))
    train, validation, test = data.load(run, "train", "validation", "test")
    assert (len(train), len(validation), len(test)) == (108, 12, 120)
    assert test.pixels.shape[1:] == (3, 160, 160)
    centres = test.pixels[:, :, 80, 80].int()
    assert centres[:, 0].sort().values.tolist() == pytest.approx([10 * (i // 10) for i in range(120)], abs=4)
    assert (centres[:, 1:] - torch.tensor([0, 255])).abs().max() <= 4


def test_streamed_batches_equal_those_in_memory(tiny):
    run = tiny.run("digits/cnn/madry/eps0.3/seed0")
    (train,) = data.load(run, "train")
    order = torch.randperm(len(train))
    kept = list(train.batches(order, 100))
    for one, other in zip(kept, train.streamed(list(order.split(100))), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_streaming_survives_a_signal_to_all_processes_of_a_job(tiny):
    """So that the training can save before it ends."""
    (train,) = data.load(tiny.run("digits/cnn/madry/eps0.3/seed0"), "train")
    parts = list(torch.arange(len(train)).split(20))
    batches = train.streamed(parts)
    next(batches), next(batches)  # one of each worker: both are up
    workers = multiprocessing.active_children()
    for worker in workers:
        worker.terminate()
    assert len(workers) == 2 and len(list(batches)) == len(parts) - 2


def test_what_lies_on_the_device_is_not_streamed(tiny, monkeypatch):
    (train,) = data.load(tiny.run("digits/cnn/madry/eps0.3/seed0"), "train")
    monkeypatch.setattr(data, "DataLoader", None)
    device = torch.device("cpu", 0)  # tensors there say "cpu", as those moved to "cuda" say "cuda:0"
    assert train.to(device).pixels.device != device
    assert len(list(train.to(device).batches(torch.arange(250), 100))) == 3


def test_what_does_not_fit_streams_and_the_log_says_so(tiny, monkeypatch, caplog):
    (train,) = data.load(tiny.run("digits/cnn/madry/eps0.3/seed0"), "train")
    with caplog.at_level("INFO"):
        train.to(torch.device("cpu"))
        assert "are kept on cpu" in caplog.text
        monkeypatch.setattr(data.psutil, "virtual_memory", lambda: type("Memory", (), {"available": 1000})())
        assert train.to(torch.device("cpu")).pixels is train.pixels
    assert "do not fit on cpu: they stream from disk" in caplog.text


@pytest.mark.parametrize("name", augmentation.AUGMENTATIONS)
def test_augmentations_keep_shape_and_range_and_repeat_with_the_seed(name):
    change = augmentation.AUGMENTATIONS[name]
    x = torch.rand(16, 3, 24, 24)
    results = []
    for _ in range(2):
        torch.manual_seed(5)
        results.append(change(x))
    assert torch.equal(*results)
    assert results[0].shape == x.shape and results[0].min() >= 0 and results[0].max() <= 1 + 1e-6
    assert not torch.equal(results[0], x)


def test_crop_is_a_shifted_copy_and_flip_a_mirror():
    torch.manual_seed(0)
    x = torch.rand(64, 3, 9, 9) + 0.1
    padded = torch.nn.functional.pad(x, (4, 4, 4, 4))
    windows = padded.unfold(2, 9, 1).unfold(3, 9, 1)  # every possible crop
    found = set()
    for i, image in enumerate(augmentation.crop(x)):
        matches = (windows[i] == image[:, None, None]).all(dim=-1).all(dim=-1).all(dim=0).nonzero()
        assert len(matches) == 1
        found.add(tuple(matches[0].tolist()))
    assert len(found) > 30  # of 81 places
    flipped = augmentation.flip(x)
    mirrored = [torch.equal(f, o.flip(2)) for f, o in zip(flipped, x, strict=True)]
    same = [torch.equal(f, o) for f, o in zip(flipped, x, strict=True)]
    assert all(m != s for m, s in zip(mirrored, same, strict=True)) and 16 < sum(mirrored) < 48


def test_resized_crop_shows_a_window_of_the_image():
    torch.manual_seed(0)
    ramp = torch.linspace(0, 1, 32).expand(256, 1, 32, 32)
    out = augmentation.resized_crop(ramp)
    spans = (out[:, 0, 16, -1] - out[:, 0, 16, 0]) / (ramp[0, 0, 0, -1] - ramp[0, 0, 0, 0])
    assert (spans > 0.15).all() and (spans <= 1.0 + 1e-6).all()
    assert spans.min() < 0.4 and spans.max() > 0.9
