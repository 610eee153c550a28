"""cuBLAS is told to be deterministic before it starts, as tests ask torch for deterministic kernels."""

from __future__ import annotations

import os

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
