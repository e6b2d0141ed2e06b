"""What must be set before anything is imported."""

import os

# Triton kernels are interpreted in this process, on the CPU; how they compile is seen in another (triton_code.py).
os.environ.setdefault("TRITON_INTERPRET", "1")
