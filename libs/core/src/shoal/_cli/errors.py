"""Errors of the command line: one sentence each, no traceback."""

from __future__ import annotations

import click


def as_click(error: Exception) -> click.ClickException:
    text = str(error) or type(error).__name__
    if isinstance(error, (RuntimeError, ValueError, OSError)):
        return click.ClickException(text)
    return click.ClickException(f"{type(error).__name__}: {text} (an unexpected error; SHOAL_TRACEBACK=1 shows where)")
