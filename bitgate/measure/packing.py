"""Which kernel really serves: the layers whose class is the kernel's own."""

from __future__ import annotations

from bitgate.kernels.served import Served, TorchServed
from bitgate.metric import Metric


def packed_layers(served: Served) -> Metric:
    """Counted in the served model; every benchmark reports it, so a fallback fails anywhere."""
    by = served.layer_classes if isinstance(served, TorchServed) else ""
    return Metric("packed_layers", served.packed_layers, expected=served.expected_layers, by=by)
