"""Refusals of the command line."""

__all__ = ["UsageError"]


class UsageError(ValueError):
    """The command cannot be carried out as given; nothing was done."""
