"""Data in folders of images: which folders are splits, which are classes, and what is not read."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from memmod.data.class_folders import ClassFolders, Contents, contents, count_unread, listing
from memmod.data.file_split import FileSplit
from memmod.data.image_files import is_text
from memmod.data.splits import Dataset, stratified
from memmod.errors import DataError

logger = logging.getLogger(__name__)

HELD_OUT = 0.2
TRAINING_NAMES = frozenset(("train", "training", "trn"))
# in the order in which one of them becomes the test split
TEST_NAMES = (
    frozenset(("test", "testing", "tst")),
    frozenset(("val", "valid", "validation", "validate", "dev", "eval", "evaluation", "holdout")),
)


def load_folder(path: Path, image_size: int) -> Dataset:
    """The data set in a folder: PATH/train/CLASS/* and PATH/test/CLASS/*, or PATH/CLASS/* without splits.

    A folder is a split if it is called one, in any case ("Training", "test_set", "val"), and its images lie in
    sub-folders; with images directly in it, it is a class. Without splits, a fifth of each class becomes the test
    split. Hidden files and folders are left out at every level, links to folders followed. What was not read is logged
    as one warning.

    Raises:
        DataError: no folder, no classes, other classes in the two splits, or folders that could be either.
    """
    if not is_text(str(path)):
        raise DataError(f"the path of the data folder, {ascii(str(path))}, has bytes that are not UTF-8: rename it")
    if not path.is_dir():
        raise DataError(f"there is no data folder {path}: pass folder:PATH with PATH/train/CLASS/ and PATH/test/CLASS/")
    unread: Counter[str] = Counter()
    splits = _splits(path, unread)
    if splits is None:
        whole = ClassFolders(path, unread)
        names = whole.names
        rest, held = stratified(whole.labels, HELD_OUT, seed=0, class_names=names)
        split = FileSplit(whole.files, whole.labels, image_size)
        train, test = split.subset(rest), split.subset(held)
    else:
        parts = [ClassFolders(folder, unread) for folder in splits]
        names = parts[0].names
        if names != parts[1].names:
            different = ", ".join(map(repr, sorted(set(names) ^ set(parts[1].names))[:8]))
            raise DataError(
                f"{splits[0]} and {splits[1]} differ in their classes ({different}): give both the same folders"
            )
        train, test = (FileSplit(part.files, part.labels, image_size) for part in parts)
    dataset = Dataset(f"folder:{path}", train, test, names, (3, image_size, image_size))
    if unread:
        kinds = ", ".join(f"{count} {kind}" for kind, count in unread.most_common())
        logger.warning(f"{dataset.name}: {unread.total()} files or folders were not read ({kinds})")
    return dataset


def _splits(path: Path, unread: Counter[str]) -> tuple[Path, Path] | None:
    """The folders of the training and the test images; None where the classes lie in `path` itself.

    Raises:
        DataError: folders that could be either, or one split without the other.
    """
    folders = [contents(folder) for folder in listing(path)[0]]
    named = [folder for folder in folders if _is_split_name(folder.path.name)]
    for folder in named:
        if folder.images and folder.subfolders:
            raise DataError(
                f"{folder.path} holds images beside folders of images, so it could be a split or a class: keep the "
                "folders alone where it is a split, the images alone where it is a class of that name"
            )
    splits = [folder for folder in named if folder.subfolders]
    if not splits:
        if named and len(named) == len(folders):
            raise DataError(
                f"{path} holds splits ({_names(named)}) whose images do not lie in class folders: sort them into "
                "PATH/train/CLASS/ and PATH/test/CLASS/"
            )
        return None
    train = _only([folder for folder in splits if _word(folder.path.name) in TRAINING_NAMES])
    candidates = (_only([f for f in splits if _word(f.path.name) in words]) for words in TEST_NAMES)
    test = next((folder for folder in candidates if folder is not None), None)
    if train is None or test is None:
        raise DataError(
            f"{path} has only one of train/ and test/ (or val/) with class folders: {_names(splits)}; add the other, "
            f"give {splits[0].path} as the data folder, or, where it is a class of that name, put its images directly "
            "into it"
        )
    for folder in folders:
        if folder not in (train, test):
            unread[f"folder {folder.path.name!r}"] += 1
    listed: Counter[str] = Counter()
    for file in listing(path, listed)[1]:
        count_unread(file, listed)
    unread.update(listed)
    return train.path, test.path


def _only(folders: Sequence[Contents]) -> Contents | None:
    if len(folders) > 1:
        raise DataError(
            f"{folders[0].path.parent} holds several folders for one split ({_names(folders)}): keep one of them, or "
            "rename the others"
        )
    return folders[0] if folders else None


def _word(name: str) -> str:
    """The letters of a folder's name, without case and without a "set" or "images" at its end."""
    return re.sub(r"(set|data|images|split)$", "", re.sub(r"[\W\d_]+", "", name.casefold()))


def _is_split_name(name: str) -> bool:
    return _word(name) in TRAINING_NAMES.union(*TEST_NAMES)


def _names(folders: Sequence[Contents]) -> str:
    return ", ".join(repr(folder.path.name) for folder in folders)
