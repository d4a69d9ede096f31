"""Folders of one class each: their names, and the images below them at any depth."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from memmod.data.image_files import IMAGE_SUFFIXES, shown
from memmod.errors import DataError

# What desktops and archives leave behind, beside names that start with a dot.
_HIDDEN = frozenset(("__macosx", "thumbs.db", "desktop.ini"))


@dataclass(frozen=True)
class Contents:
    """What lies in a folder: whether images lie in it directly, and which of its sub-folders hold images below."""

    path: Path
    images: bool
    subfolders: frozenset[str]


def contents(folder: Path) -> Contents:
    """What a folder holds. Raises DataError where it cannot be read."""
    folders, files = listing(folder)
    holding = frozenset(path.name for path in folders if any(find_images(path)))
    return Contents(folder, any(map(_is_image, files)), holding)


def listing(folder: Path, unread: Counter[str] | None = None) -> tuple[list[Path], list[Path]]:
    """(folders, files) in a folder, each sorted by name, links followed; without what is hidden.

    Args:
        unread: counts what is left out, by kind.

    Raises:
        DataError: the folder cannot be read.
    """
    folders, files = [], []
    unread = Counter() if unread is None else unread
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith(".") or entry.name.lower() in _HIDDEN:
                    unread["hidden"] += 1
                elif entry.is_dir():
                    folders.append(folder / entry.name)
                # a link to nothing is kept: as an image it is refused by name
                elif entry.is_file() or (entry.is_symlink() and not os.path.exists(entry)):
                    files.append(folder / entry.name)
                else:
                    unread["that are no ordinary file"] += 1
    except OSError as error:
        raise DataError(f"the folder {shown(folder)} cannot be read ({error.strerror}): let it be read") from error
    return sorted(folders), sorted(files)


def find_images(folder: Path, unread: Counter[str] | None = None) -> Iterator[str]:
    """Paths of the images below a folder at any depth, each folder once, however many links lead to it or in circles.

    Args:
        unread: counts what is left out, by kind.
    """
    unread = Counter() if unread is None else unread
    seen = {_identity(above) for start in (folder.absolute(), folder.resolve()) for above in start.parents}
    left = [folder]
    while left:
        current = left.pop()
        identity = _identity(current)
        if identity in seen:
            unread["links to a folder already read or above"] += 1
            continue
        seen.add(identity)
        folders, files = listing(current, unread)
        left += reversed(folders)
        for file in files:
            if _is_image(file):
                yield os.fspath(file)
            else:
                count_unread(file, unread)


def count_unread(file: Path, unread: Counter[str]) -> None:
    """Count a file that is not read, by its suffix."""
    unread[file.suffix.lower() if file.suffix else "without a suffix"] += 1


class ClassFolders:
    """The class folders in a folder: `names`, sorted; `files`, their images; `labels`, int64 ``[N]``.

    Args:
        path: the folder that holds them.
        unread: counts what is not read, by kind.

    Raises:
        DataError: fewer than 2 class folders, one without images, names that cannot be kept, or folders that look
            like splits rather than classes.
    """

    def __init__(self, path: Path, unread: Counter[str]) -> None:
        folders, strays = listing(path, unread)
        for file in strays:
            count_unread(file, unread)
        if len(folders) < 2:
            raise DataError(f"{path} holds {len(folders)} class folders; at least 2 are needed, each with its images")
        for folder in folders:
            _check_name(folder)
        _check_not_splits(path, [contents(folder) for folder in folders])
        self.names = tuple(folder.name for folder in folders)
        self.files: list[str] = []
        labels: list[int] = []
        for number, folder in enumerate(folders):
            found = sorted(find_images(folder, unread))
            if not found:
                raise DataError(
                    f"{folder} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))}): add some, or take the folder away"
                )
            self.files += found
            labels += [number] * len(found)
        self.labels: Tensor = torch.tensor(labels)


def _check_name(folder: Path) -> None:
    wrong = {unicodedata.category(character) for character in folder.name} & {"Cs", "Cc"}
    if wrong:
        what = "bytes that are not UTF-8" if "Cs" in wrong else "control characters"
        raise DataError(
            f"the class folder {ascii(folder.name)} in {folder.parent} has {what} in its name, which no file of memmod "
            "can keep: rename it"
        )


def _check_not_splits(path: Path, folders: Sequence[Contents]) -> None:
    common = frozenset.intersection(*(folder.subfolders for folder in folders))
    if not common or all(folder.images for folder in folders):
        return
    names = ", ".join(repr(folder.path.name) for folder in folders[:4])
    raise DataError(
        f"the folders of {path} ({names}) all hold the folders {', '.join(map(repr, sorted(common)[:4]))}, so the "
        "classes could be either: call two folders train/ and test/ where they are splits, or put the images of each "
        "class directly into its folder"
    )


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES


def _identity(path: Path) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino
