"""What must be set before anything is imported, and what several files share."""

import os
from collections.abc import Callable, Iterator

import pytest

# Triton kernels are interpreted in this process, on the CPU; how they compile is seen in another (triton_code.py).
os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """``torch.set_num_threads``; what was set before is set again."""
    import torch

    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
