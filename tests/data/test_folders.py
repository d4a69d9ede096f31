"""Folders of images: what is a split, what a class, what is left out, and what is refused as unclear."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from memmod.data import Dataset, load_data
from memmod.errors import DataError

CLASSES = ("cat", "dog")


def put(folder: Path, count: int = 4, suffix: str = ".png") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (9, 9, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}{suffix}")


def put_split(folder: Path, count: int = 4, classes: tuple[str, ...] = CLASSES) -> None:
    for name in classes:
        put(folder / name, count)


def load(folder: Path) -> Dataset:
    return load_data(f"folder:{folder}", image_size=8)


def refused(folder: Path, text: str) -> str:
    with pytest.raises(DataError, match=text) as caught:
        load(folder)
    return str(caught.value)


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train", "test"),
        ("Training", "Testing"),
        ("TRAIN", "TEST"),
        ("training_set", "test-set"),
        ("train_images", "val_images"),
        ("train2017", "val2017"),
        ("Train", "Validation"),
        ("trainset", "valid"),
        ("train", "dev"),
        ("train", "Eval"),
    ],
)
def test_splits_whatever_their_case_and_form(tmp_path: Path, train: str, test: str) -> None:
    put_split(tmp_path / train, 4)
    put_split(tmp_path / test, 2)
    data = load(tmp_path)
    assert data.class_names == CLASSES
    assert (len(data.train), len(data.test)) == (8, 4)
    assert all(f"/{train}/" in path for path in data.train.paths)
    assert all(f"/{test}/" in path for path in data.test.paths)


def test_test_is_taken_before_val_and_the_rest_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name, count in (("Val", 3), ("Test", 2), ("train", 4), ("spare", 1)):
        put_split(tmp_path / name, count)
    with caplog.at_level(logging.WARNING):
        data = load(tmp_path)
    assert len(data.test) == 4
    (record,) = caplog.records
    assert "2 files or folders were not read" in record.message
    assert "folder 'Val'" in record.message and "folder 'spare'" in record.message


def test_unlabelled_test_images_leave_val_as_the_test_split(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put_split(tmp_path / "train")
    put_split(tmp_path / "val", 2)
    put(tmp_path / "test")
    with caplog.at_level(logging.WARNING):
        assert len(load(tmp_path).test) == 4
    assert "folder 'test'" in caplog.text


@pytest.mark.parametrize("name", ["train", "Test", "validation", "training"])
def test_a_class_called_like_a_split(tmp_path: Path, name: str) -> None:
    put_split(tmp_path, 5, (name, "car", "bus"))
    data = load(tmp_path)
    assert data.class_names == tuple(sorted((name, "car", "bus")))
    assert (len(data.train), len(data.test)) == (12, 3)


def test_both_words_as_classes(tmp_path: Path) -> None:
    put_split(tmp_path, 5, ("train", "test", "car"))
    assert load(tmp_path).class_names == ("car", "test", "train")


def test_classes_called_like_splits_within_splits(tmp_path: Path) -> None:
    for split in ("train", "test"):
        put_split(tmp_path / split, 3, ("train", "car"))
    assert load(tmp_path).class_names == ("car", "train")


@pytest.mark.parametrize("names", [("Foo", "Bar"), ("fold1", "fold2", "fold3"), ("seen", "unseen")])
def test_folders_that_all_hold_the_same_folders_are_refused(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        put_split(tmp_path / name)
    message = refused(tmp_path, "all hold the folders 'cat', 'dog', so the classes could be either: call two folders")
    assert all(repr(name) in message for name in names)


def test_classes_of_splits_are_refused(tmp_path: Path) -> None:
    for name in CLASSES:
        put_split(tmp_path / name, 3, ("train", "test"))
    refused(tmp_path, "all hold the folders 'test', 'train'")


def test_splits_of_unlike_classes_are_refused_too(tmp_path: Path) -> None:
    put_split(tmp_path / "Foo", 3, ("cat", "dog", "owl"))
    put_split(tmp_path / "Bar", 3, ("cat", "dog"))
    refused(tmp_path, "all hold the folders 'cat', 'dog'")


def test_nested_folders_within_classes_are_read(tmp_path: Path) -> None:
    put(tmp_path / "cat" / "black" / "old", 5)
    put(tmp_path / "cat" / "white", 5)
    put(tmp_path / "dog" / "small", 5)
    data = load(tmp_path)
    assert data.class_names == CLASSES and len(data.train) + len(data.test) == 15


def test_same_folders_beside_images_of_their_own_are_read(tmp_path: Path) -> None:
    for name in CLASSES:
        put(tmp_path / name, 5)
        put(tmp_path / name / "more", 5)
    assert len(load(tmp_path).train) == 16


def test_what_could_be_a_split_or_a_class_is_refused(tmp_path: Path) -> None:
    put_split(tmp_path / "Training")
    refused(tmp_path, "only one of train/ and test/ .*: 'Training'; add the other, give .*Training as the data folder")
    put(tmp_path / "car")
    refused(tmp_path, "only one of train/ and test/")
    put_split(tmp_path / "Testing")
    put(tmp_path / "Training")
    refused(tmp_path, "Training holds images beside folders of images, so it could be a split or a class")


def test_two_folders_for_one_split_are_refused(tmp_path: Path) -> None:
    for name in ("train", "Training", "test"):
        put_split(tmp_path / name)
    refused(tmp_path, "several folders for one split \\('Training', 'train'\\)")


def test_splits_without_class_folders_are_refused(tmp_path: Path) -> None:
    put(tmp_path / "train")
    put(tmp_path / "Test")
    refused(tmp_path, "splits \\('Test', 'train'\\) whose images do not lie in class folders")


def test_hidden_files_and_folders_are_left_out_at_every_level(tmp_path: Path, caplog) -> None:
    for split in ("train", "test"):
        put_split(tmp_path / split)
    expected = len(load(tmp_path).train), len(load(tmp_path).test)
    for folder in (tmp_path, tmp_path / "train", tmp_path / "train" / "cat", tmp_path / "test" / "dog"):
        for hidden in (".ipynb_checkpoints", "__MACOSX", ".git"):
            put(folder / hidden / "cat", 2)
        put(folder / hidden, 1)
        (folder / "._0.png").write_bytes(b"junk")
        (folder / "Thumbs.db").write_bytes(b"junk")
    with caplog.at_level(logging.WARNING):
        data = load(tmp_path)
    assert (len(data.train), len(data.test)) == expected and data.class_names == CLASSES
    (record,) = caplog.records
    assert record.message == f"folder:{tmp_path}: 20 files or folders were not read (20 hidden)"


def test_hidden_files_do_not_make_a_class_nested(tmp_path: Path) -> None:
    put_split(tmp_path, 5, ("train", "car"))
    put(tmp_path / "train" / ".ipynb_checkpoints", 2)
    assert load(tmp_path).class_names == ("car", "train")


def test_what_is_not_read_is_counted_by_kind_in_one_line(tmp_path: Path, caplog) -> None:
    put_split(tmp_path, 5)
    for name in ("a.txt", "b.txt", "c.heic", "cat/notes", "dog/d.TXT", "0.png"):
        (tmp_path / name).write_text("text")
    os.mkfifo(tmp_path / "cat" / "pipe.png")
    with caplog.at_level(logging.WARNING):
        data = load(tmp_path)
    assert len(data.train) + len(data.test) == 10
    (record,) = caplog.records
    assert "7 files or folders were not read" in record.message
    for kind in ("3 .txt", "1 .heic", "1 without a suffix", "1 .png", "1 that are no ordinary file"):
        assert kind in record.message


def test_nothing_is_said_where_all_is_read(tmp_path: Path, caplog) -> None:
    put_split(tmp_path, 5)
    with caplog.at_level(logging.WARNING):
        load(tmp_path)
    assert not caplog.records


def test_gifs_are_images(tmp_path: Path) -> None:
    for name in CLASSES:
        put(tmp_path / name, 5, ".gif")
    assert len(load(tmp_path).train) == 8


def test_linked_folders_are_read_once_and_circles_end(tmp_path: Path, caplog) -> None:
    put_split(tmp_path / "data", 5)
    put(tmp_path / "elsewhere" / "deep", 5)
    cat = tmp_path / "data" / "cat"
    (cat / "linked").symlink_to(tmp_path / "elsewhere")
    (cat / "again").symlink_to(tmp_path / "elsewhere" / "deep")
    (cat / "circle").symlink_to(cat)
    (tmp_path / "elsewhere" / "up").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "owl").symlink_to(tmp_path / "elsewhere" / "deep")
    with caplog.at_level(logging.WARNING):
        data = load(tmp_path / "data")
    assert data.class_names == ("cat", "dog", "owl")
    counts = (data.train.labels.bincount() + data.test.labels.bincount()).tolist()
    assert counts == [10, 5, 5]
    assert "3 links to a folder already read or above" in caplog.text


def test_a_link_to_nothing_is_found_by_the_check(tmp_path: Path) -> None:
    put_split(tmp_path, 5)
    (tmp_path / "cat" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    data = load(tmp_path)
    with pytest.raises(DataError, match=r"gone\.png"):
        data.train.check()
        data.test.check()


@pytest.mark.parametrize("flat", [True, False])
def test_class_names_that_no_file_can_keep_are_refused(tmp_path: Path, flat: bool) -> None:
    folder = tmp_path if flat else tmp_path / "train"
    for name in (b"odd\xe9", b"new\nline", b"esc\x1b[31m"):
        put_split(folder)
        if not flat:
            put_split(tmp_path / "test")
        odd = Path(os.fsdecode(os.fsencode(folder) + b"/" + name))
        put(odd)
        message = refused(tmp_path, "rename it")
        assert ascii(odd.name) in message
        message.encode()
        assert message.isprintable()
        for image in odd.iterdir():
            image.unlink()
        odd.rmdir()


def test_a_path_of_other_bytes_is_refused(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/odd\xe9"))
    put_split(folder)
    assert "odd\\udce9" in refused(folder, "are not UTF-8: rename it")


def test_files_of_other_bytes_are_read(tmp_path: Path) -> None:
    put_split(tmp_path, 5)
    (tmp_path / "cat" / "0.png").rename(os.fsdecode(os.fsencode(tmp_path / "cat") + b"/odd\xe9.png"))
    data = load(tmp_path)
    data.train.check()
    data.test.check()
    assert len(data.train) + len(data.test) == 10


def test_a_class_of_one_image_is_named(tmp_path: Path) -> None:
    put(tmp_path / "cat", 5)
    put(tmp_path / "dog [old]", 1)
    assert "class 1 ('dog [old]') has 1 image" in refused(tmp_path, "at least 2: add images, or take the class away")
