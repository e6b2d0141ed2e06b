"""Many images on one machine or a cluster: each restored exactly once, whatever is killed on the way."""

from .driver import Summary, restore, run

__all__ = ["Summary", "restore", "run"]
