"""The list of planted errors is what the tests plant."""

from __future__ import annotations

import pytest

pytest.importorskip("triton", reason="triton is not installed")

from tests.mutants import DOCUMENT, text  # noqa: E402


def test_the_document_is_up_to_date():
    assert DOCUMENT.read_text() == text(), "run `python -m tests.mutants`"
