"""Finished parts of long work, kept by what they were made of, so that the work resumes after a kill at any moment."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from memmod.errors import RunError
from memmod.files.atomic import write_atomically
from memmod.files.strict_json import Origin, as_json, canonical, dump, parse

logger = logging.getLogger(__name__)

FORMAT = "memmod-part-1"


@dataclass(frozen=True)
class Parts:
    """A folder of finished parts, one JSON file each.

    A part's key is everything that its value depends on, as JSON values; a part of another key, of another format or
    damaged counts as missing, and is replaced when it is made again.
    """

    folder: Path

    def get(self, key: dict[str, Any]) -> Any | None:
        """The value of a finished part, or None."""
        path = self._path(key)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        try:
            found = parse(content, Origin(str(path), RunError, "it is measured again"))
            if not isinstance(found, dict) or found.get("format") != FORMAT or found.get("key") != _plain(key):
                raise RunError(f"{path} was written by another version of memmod: it is measured again")
        except RunError as error:
            logger.warning(str(error))
            return None
        return found["value"]

    def put(self, key: dict[str, Any], value: Any) -> None:
        """Keep the value of a finished part, whole or not at all.

        Raises:
            RunError: the key or the value is not JSON.
        """
        path = self._path(key)
        try:
            content = dump({"format": FORMAT, "key": _plain(key), "value": value})
        except (ValueError, TypeError, RecursionError) as error:
            raise RunError(f"{path} cannot be written as JSON ({error})") from error
        write_atomically(path, content)

    def _path(self, key: dict[str, Any]) -> Path:
        return Path(self.folder) / f"{sha256(canonical(_plain(key))).hexdigest()[:32]}.json"


def _plain(key: dict[str, Any]) -> dict[str, Any]:
    return as_json(key, Origin("the key of a part", RunError, "describe it by numbers, texts and lists"))
