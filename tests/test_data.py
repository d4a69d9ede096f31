from __future__ import annotations

import gzip
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from memmod.data import IDX_FILES, FileSplit, TensorSplit, check_class_names, load_data, stratified
from memmod.errors import DataError


def write_idx(path: Path, array: np.ndarray, zipped: bool = False) -> None:
    content = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    if zipped:
        path = path.with_name(path.name + ".gz")
        content = gzip.compress(content)
    path.write_bytes(content)


def write_mnist(folder: Path, zipped: bool = False) -> dict[str, np.ndarray]:
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    arrays = {}
    for kind, count in (("train", 20), ("test", 10)):
        images, labels = IDX_FILES[kind]
        arrays[kind] = random.integers(0, 256, (count, 28, 28)).astype(np.uint8)
        write_idx(folder / images, arrays[kind], zipped)
        write_idx(folder / labels, (np.arange(count) % 10).astype(np.uint8), zipped)
    return arrays


def write_images(folder: Path, classes: tuple[str, ...], count: int) -> None:
    random = np.random.default_rng(1)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = random.integers(0, 256, (20, 30, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")


def test_digits_are_split_in_stratified_halves() -> None:
    digits = load_data()
    assert digits.input_shape == (1, 8, 8) and digits.num_classes == 10
    assert len(digits.train) + len(digits.test) == 1797
    difference = digits.train.labels.bincount() - digits.test.labels.bincount()
    assert difference.abs().max() <= 1
    x = digits.train.batch(torch.arange(len(digits.train)))
    assert x.dtype == torch.float32 and abs(x.mean().item()) < 0.05 and abs(x.std().item() - 1) < 0.05
    black = TensorSplit(torch.zeros(1, 1, 8, 8, dtype=torch.uint8), torch.zeros(1), 16.0, (0.3053,), (0.3761,))
    torch.testing.assert_close(digits.test.black.expand(1, 1, 8, 8), black.batch(torch.tensor([0])))
    white = TensorSplit(torch.full((1, 1, 8, 8), 16, dtype=torch.uint8), torch.zeros(1), 16.0, (0.3053,), (0.3761,))
    torch.testing.assert_close(digits.test.white.expand(1, 1, 8, 8), white.batch(torch.tensor([0])))
    again = load_data("digits")
    assert torch.equal(again.test.labels, digits.test.labels)


def test_holdout_is_stratified_disjoint_and_deterministic() -> None:
    digits = load_data()
    rest, held = digits.train.holdout(0.2, seed=1)
    assert len(rest) + len(held) == len(digits.train)
    assert (held.labels.bincount() - digits.train.labels.bincount() * 0.2).abs().max() <= 1
    assert torch.equal(held.batch(torch.arange(9)), digits.train.holdout(0.2, seed=1)[1].batch(torch.arange(9)))
    assert not torch.equal(held.batch(torch.arange(9)), digits.train.holdout(0.2, seed=2)[1].batch(torch.arange(9)))
    indices = torch.cat(stratified(digits.train.labels, 0.2, 1))
    assert torch.equal(indices.sort().values, torch.arange(len(digits.train)))


@pytest.mark.parametrize("fraction", [0.0, 1.0, -1.0])
def test_holdout_refuses(fraction: float) -> None:
    with pytest.raises(DataError, match="must lie between 0 and 1"):
        load_data().train.holdout(fraction)


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("inner", ["", "FOLDER/raw"])
def test_idx_folders(tmp_path: Path, name: str, zipped: bool, inner: str) -> None:
    inner = inner.replace("FOLDER", {"mnist": "MNIST", "fashion-mnist": "FashionMNIST"}[name])
    arrays = write_mnist(tmp_path / inner, zipped)
    data = load_data(name, root=tmp_path)
    x = data.train.batch(torch.tensor([3, 0]))
    assert x.shape == (2, 1, 28, 28)
    pixels = torch.from_numpy(arrays["train"][[3, 0]]).float()
    torch.testing.assert_close(torch.corrcoef(torch.stack([x.flatten(), pixels.flatten()]))[0, 1], torch.tensor(1.0))
    assert len(data.test) == 10 and data.test.labels.tolist() == list(range(10))


def test_missing_idx_says_where_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="dataset-fashion-mnist"):
        load_data("fashion-mnist", root=tmp_path)
    with pytest.raises(DataError, match="--download"):
        load_data("mnist", root=tmp_path)
    write_mnist(tmp_path)
    (tmp_path / IDX_FILES["test"][1]).unlink()
    with pytest.raises(DataError, match="has no t10k-labels-idx1-ubyte"):
        load_data("mnist", root=tmp_path)


def test_damaged_idx_is_named(tmp_path: Path) -> None:
    path = tmp_path / IDX_FILES["train"][0]
    for damage, text in (
        (lambda c: c[:-5], "its header says 15680"),
        (lambda c: c[:6], "is not an IDX file"),
        (lambda c: b"\x00\x00\x0d\x03" + c[4:], "is not an IDX file"),
        (lambda c: b"", "is not an IDX file"),
    ):
        write_mnist(tmp_path)
        path.write_bytes(damage(path.read_bytes()))
        with pytest.raises(DataError) as caught:
            load_data("mnist", root=tmp_path)
        assert text in str(caught.value) and str(path) in str(caught.value)
    path.unlink()
    zipped = path.with_name(path.name + ".gz")
    write_mnist(tmp_path, zipped=True)
    path.unlink(missing_ok=True)
    zipped.write_bytes(zipped.read_bytes()[:-20])
    with pytest.raises(DataError, match="damaged or cut short"):
        load_data("mnist", root=tmp_path)


def test_counts_and_sizes_that_disagree(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    write_idx(tmp_path / IDX_FILES["train"][1], np.zeros(19, np.uint8))
    with pytest.raises(DataError, match="20 train images but 19 labels"):
        load_data("mnist", root=tmp_path)
    write_idx(tmp_path / IDX_FILES["train"][1], np.full(20, 11, np.uint8))
    with pytest.raises(DataError, match="labels up to 11"):
        load_data("mnist", root=tmp_path)


def write_cifar10(root: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    from torchvision.datasets import CIFAR10

    folder = root / CIFAR10.base_folder
    folder.mkdir(parents=True)
    random = np.random.default_rng(2)
    pixels = random.integers(0, 256, (4, 3 * 32 * 32)).astype(np.uint8)
    for name, _ in CIFAR10.train_list + CIFAR10.test_list:
        (folder / name).write_bytes(pickle.dumps({"data": pixels, "labels": [0, 1, 2, 9]}))
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    # The digests are those of the published files; these are made here.
    for attribute in ("train_list", "test_list"):
        monkeypatch.setattr(CIFAR10, attribute, [[name, None] for name, _ in getattr(CIFAR10, attribute)])
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": None})
    return pixels


def test_cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = write_cifar10(tmp_path, monkeypatch)
    data = load_data("cifar10", root=tmp_path)
    assert (len(data.train), len(data.test)) == (20, 4) and data.class_names[9] == "truck"
    x = data.test.batch(torch.tensor([1]))
    expected = torch.from_numpy(pixels[1]).view(3, 32, 32).float() / 255
    torch.testing.assert_close(x[0, 2], (expected[2] - 0.4465) / 0.2616)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "imagenet"])
def test_missing_torchvision_data(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError) as caught:
        load_data(name, root=tmp_path / "nowhere")
    assert ("image-net.org" if name == "imagenet" else "--download") in str(caught.value)


def test_folder_with_train_and_test(tmp_path: Path) -> None:
    write_images(tmp_path / "train", ("cat", "dog", "fox"), 4)
    write_images(tmp_path / "val", ("cat", "dog", "fox"), 2)
    data = load_data(f"folder:{tmp_path}", image_size=16)
    assert data.class_names == ("cat", "dog", "fox") and data.input_shape == (3, 16, 16)
    assert (len(data.train), len(data.test)) == (12, 6)
    x = data.train.batch(torch.tensor([0, 11]))
    assert x.shape == (2, 3, 16, 16) and x.std() > 0.1
    assert data.train.labels[[0, 11]].tolist() == [0, 2]


def test_folder_with_classes_alone_is_split(tmp_path: Path) -> None:
    write_images(tmp_path, ("cat", "dog"), 10)
    data = load_data(f"folder:{tmp_path}", image_size=16)
    assert (len(data.train), len(data.test)) == (16, 4)
    assert not set(data.train.paths) & set(data.test.paths)


def test_folder_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no data folder"):
        load_data(f"folder:{tmp_path}/nowhere")
    with pytest.raises(DataError, match="holds 0 class folders"):
        load_data(f"folder:{tmp_path}")
    write_images(tmp_path / "train", ("cat", "dog"), 2)
    with pytest.raises(DataError, match="only one of train/ and test/"):
        load_data(f"folder:{tmp_path}")
    write_images(tmp_path / "test", ("cat", "cow"), 2)
    with pytest.raises(DataError, match="'cow', 'dog'"):
        load_data(f"folder:{tmp_path}")
    (tmp_path / "test" / "cow").rename(tmp_path / "test" / "dog")
    for image in (tmp_path / "test" / "dog").iterdir():
        image.unlink()
    with pytest.raises(DataError, match="dog holds no images"):
        load_data(f"folder:{tmp_path}")


def test_damaged_image_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    Image.new("RGB", (8, 8)).save(path)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DataError, match=r"x\.png is damaged"):
        FileSplit([str(path)], torch.tensor([0]), 16).batch(torch.tensor([0]))


def test_unknown_name_and_other_classes() -> None:
    with pytest.raises(DataError, match="unknown data set 'digit'"):
        load_data("digit")
    digits = load_data()
    check_class_names(digits, digits.class_names)
    with pytest.raises(DataError, match="it lacks 'ten'; the model does not know '9'"):
        check_class_names(digits, [*digits.class_names[:9], "ten"])
    with pytest.raises(DataError, match="their order differs"):
        check_class_names(digits, digits.class_names[::-1])
