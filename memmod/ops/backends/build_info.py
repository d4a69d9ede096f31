"""What the build recorded beside the package: the compiled extensions, or why there are none."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parents[2]
REBUILD = "run `pip install --no-build-isolation .` in memmod's source folder"


def build_info(package: Path = PACKAGE) -> dict[str, Any] | None:
    """What the build wrote beside the extension (its file, torch version, compiler, flags), or None if unreadable."""
    try:
        info = json.loads((package / "_build_info.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return info if _is_build_info(info) else None


def _is_build_info(info: Any) -> bool:
    """Whether the fields that memmod reads have their types; this file is read before any library that would say so."""
    if not isinstance(info, dict):
        return False
    cuda = info.get("cuda", {})
    if cuda is None:
        cuda = {}
    if not isinstance(cuda, dict):
        return False
    texts = [info.get("torch"), *(part.get(key) for part in (info, cuda) for key in ("extension", "reason"))]
    names = [part["extension"] for part in (info, cuda) if isinstance(part.get("extension"), str)]
    built_for = cuda.get("architectures", [])
    return (
        all(text is None or isinstance(text, str) for text in texts)
        and all(re.fullmatch(r"\w[^/\0]*", name) for name in names)
        and isinstance(built_for, list)
        and all(isinstance(one, str) and re.fullmatch(r"\d+\.\d+[af]?(\+PTX)?", one) for one in built_for)
        and (not cuda or bool(cuda.get("reason") if cuda.get("extension") is None else built_for))
    )
