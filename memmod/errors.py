"""Errors that a user can cause. Each message names the thing, its value, and what to do."""

from __future__ import annotations


class MemmodError(Exception):
    """Base of every error memmod raises on purpose; the CLI prints its message and exits with 1."""

    # Whether every process of a group raises it, so that one of them says it for all.
    everywhere = False


class SelectionError(MemmodError, ValueError):
    """A selection (`forget`, `index`) that cannot be applied."""


class ModelError(MemmodError, ValueError):
    """A model, layer or example input that cannot be modulated, verified or baked."""


class MemoryFileError(MemmodError, ValueError):
    """A memory file that is damaged, or belongs to another base or configuration."""


class DataError(MemmodError, ValueError):
    """A data set that is missing, damaged, or does not match the model."""


class RunError(MemmodError, RuntimeError):
    """A run that cannot start, resume or go on."""


class BackendError(MemmodError, RuntimeError):
    """A forced backend that is unavailable or cannot run a call."""


class ExportError(MemmodError, RuntimeError):
    """A model that cannot be exported as asked, or a package that exporting needs and that is missing."""
