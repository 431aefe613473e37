"""Runs that give the same numbers each time."""

from __future__ import annotations

import os
import random

__all__ = ["enable_reproducibility"]


def enable_reproducibility(seed: int = 0) -> None:
    """Seeds Python, NumPy and PyTorch, and lets PyTorch take only deterministic algorithms. Slower on GPUs.

    Call it first in the training function; give each rank another seed if their random numbers are to differ.
    """
    import torch

    random.seed(seed)
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    # cuBLAS refuses to be deterministic without it.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    try:
        import numpy as np
    except ImportError:
        return
    np.random.seed(seed)
