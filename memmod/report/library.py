"""vl-convert: the charts' JavaScript in one piece, and charts as files, all without a network."""

from __future__ import annotations

from functools import cache
from typing import Any

from memmod.errors import RunError


def _vl_convert() -> Any:
    try:
        import vl_convert
    except ImportError as error:
        raise RunError(
            f"the charts of a report need vl-convert-python, which cannot be imported ({error}): "
            "pip install vl-convert-python"
        ) from None
    return vl_convert


@cache
def bundle() -> str:
    """Vega, Vega-Lite and vega-embed as one script that sets `vegaEmbed`. Raises RunError without the library."""
    script = _vl_convert().javascript_bundle()
    if "</script" in script or "<!--" in script:
        raise RunError("vl-convert-python's script cannot stand inside of a page: install another version of it")
    return script


def png(spec: dict[str, Any]) -> bytes:
    """A chart as a PNG of twice its size. Raises RunError without the library."""
    return _vl_convert().vegalite_to_png(spec, scale=2)


def pdf(spec: dict[str, Any]) -> bytes:
    """A chart as a PDF. Raises RunError without the library."""
    return _vl_convert().vegalite_to_pdf(spec)
