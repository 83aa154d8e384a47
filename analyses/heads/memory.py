"""How much memory a run took."""

from __future__ import annotations

import sys


def peak_memory_bytes() -> dict[str, int]:
    """Return the largest memory used so far by this process (resident) and on each CUDA device, in bytes.

    The process is left out where Python cannot tell, as on Windows.
    """
    import torch

    peak: dict[str, int] = {}
    try:
        import resource
    except ImportError:
        pass
    else:
        scale = 1 if sys.platform == "darwin" else 1024
        peak["process"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            peak[f"cuda:{number}"] = torch.cuda.max_memory_allocated(number)
    return peak
