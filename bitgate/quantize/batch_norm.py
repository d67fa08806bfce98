"""Batch norms that follow a convolution, and the convolution that does both at once.

In evaluation mode a batch norm is y = (x - mean) / sqrt(var + eps) * gamma + beta, one number of
each per channel: a convolution with other weights and another bias gives the same. It has to be
done before quantizing, since the grid is to span what is multiplied (Jacob et al., 2018,
section 3.2, eq. 14).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def followers(module: nn.Module) -> dict[str, str]:
    """The batch norm that can be folded into a convolution, by the names of both: the only one
    that sees what the convolution gives.

    A model whose forward pass cannot be traced has none: its batch norms go on in floating point.
    """
    from torch import fx, nn

    if not any(isinstance(part, nn.BatchNorm2d) for part in module.modules()):
        return {}  # most language models: nothing to trace
    try:
        # `symbolic_trace` makes a module of it, which holds the layers until it is collected
        nodes = fx.Tracer().trace(module).nodes
    except (fx.proxy.TraceError, TypeError, NotImplementedError):
        return {}
    calls = [node for node in nodes if node.op == "call_module"]
    once = {node.target for node in calls if sum(n.target == node.target for n in calls) == 1}
    found = {}
    for norm in calls:
        before = norm.args[0]
        if (
            isinstance(module.get_submodule(norm.target), nn.BatchNorm2d)
            and module.get_submodule(norm.target).running_var is not None
            and before.op == "call_module"
            and isinstance(module.get_submodule(before.target), nn.Conv2d)
            and len(before.users) == 1
            and {before.target, norm.target} <= once  # a module called twice computes two things
        ):
            found[before.target] = norm.target
    return found


def folded(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """A convolution that does what both do, one after the other."""
    from copy import copy

    import torch
    from torch import nn

    with torch.no_grad():
        gain = (norm.running_var + norm.eps).rsqrt()
        shift = -norm.running_mean * gain
        if convolution.bias is not None:
            shift = shift + convolution.bias * gain
        if norm.affine:
            gain, shift = gain * norm.weight, shift * norm.weight + norm.bias
        weight = convolution.weight * gain.reshape(-1, 1, 1, 1)
    made = copy(convolution)
    made._parameters = {
        "weight": nn.Parameter(weight, requires_grad=False),
        "bias": nn.Parameter(shift, requires_grad=False),
    }
    return made
