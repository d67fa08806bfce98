"""gemlite's kernels without a GPU: run by test_gemlite.py as a process of its own, as Triton reads
its environment, and asks for a driver, when it is imported. Prints what it has seen as JSON.

Triton's interpreter (TRITON_INTERPRET=1) runs the kernels' own code in numpy; the driver that
gemlite asks about the GPU is a stand-in. The tuner runs each of its configurations once and keeps
the first. What the interpreter cannot do: bfloat16 (nonsense), and gemlite's kernel for 64 rows or
more (it asks a plain loop variable for its `.to`).
"""

import json
import os
import sys
import types
from copy import deepcopy

os.environ["TRITON_INTERPRET"] = "1"

import torch
import triton
from triton.runtime.errors import AutotunerError


class Target:
    backend, arch, warp_size = "cuda", 80, 32


class Driver:
    """Says that it is an A100-like GPU; its tensors are on the CPU."""

    utils = types.SimpleNamespace(get_device_properties=lambda device: {"max_shared_mem": 100_000})

    def get_current_target(self):
        return Target

    def get_current_device(self):
        return 0

    def get_active_torch_device(self):
        return torch.device("cpu")

    def get_benchmarker(self):
        def once(run, *args, **options):
            run()
            return [1.0, 1.0, 1.0]

        return once


def stand_in():
    properties = types.SimpleNamespace(multi_processor_count=1, name="stand-in")
    torch.cuda.get_device_properties = lambda *args: properties
    torch.cuda.get_device_capability = lambda *args: (8, 0)
    torch.cuda.empty_cache = lambda: None
    triton.runtime.driver.set_active(Driver())


stand_in()

from hqq.core.quantize import BaseQuantizeConfig, HQQLinear
from hqq.utils.patching import prepare_for_inference

from bitgate import kernels
from bitgate.catalog import Execution
from bitgate.kernels import gemlite
from bitgate.kernels.affine import Affine, Grouping
from bitgate.kernels.served import tensor_bytes
from bitgate.quantize import method, shapes_of
from bitgate.quantize.hqq_files import LAYERS
from bitgate.sources.models import LoadedModel


def weight(grouping):
    """Random codes; scales of which neighbours differ much."""
    torch.manual_seed(0)
    rows, groups = grouping.out_features, grouping.in_features // grouping.group_size
    return Affine(
        grouping,
        torch.randint(0, 2**grouping.bits, (rows, grouping.in_features), dtype=torch.uint8),
        (torch.rand(rows, groups) + 0.5).half(),
        (torch.rand(rows, groups) * (2**grouping.bits - 1)).half(),
    )


def dequantized(affine):
    size = affine.grouping.group_size
    scale, zero = (t.double().repeat_interleave(size, 1) for t in (affine.scale, affine.zero))
    return (affine.codes.double() - zero) * scale


def errors(affine, batches=(1, 3, 7)):
    """Of the product, relative, by the number of rows: vector kernels, then the split one.

    Each configuration that the tuner may choose, on its own: the worst. What it says if it fails.
    """
    from gemlite.core import GEMLITE_TRITON_MAPPING, get_matmul_type

    layer = gemlite.pack(affine, None)
    true_weight = dequantized(affine)
    found = {}
    for batch in batches:
        kind = get_matmul_type(batch, affine.grouping.bits)
        tuner = GEMLITE_TRITON_MAPPING[kind].kernel[0]
        x = torch.randn(batch, affine.grouping.in_features).to(affine.scale.dtype)
        true = x.double() @ true_weight.T
        configs = tuner.configs
        off = []
        # those that differ in what is computed, not in how a GPU schedules it
        distinct = {str(sorted(config.kwargs.items())): config for config in configs}
        failed = None
        for config in distinct.values():
            tuner.configs = [config, config]  # one alone would not be fitted to the shape
            tuner.cache.clear()
            try:
                off.append(float((layer(x).double() - true).norm() / true.norm()))
            except AutotunerError as error:  # it fits nowhere in this shape
                failed = str(error)
        tuner.configs = configs
        # a NaN is the worst; and none at all must not look like a good one
        worst = float(torch.tensor(off).max()) if off else failed
        found[f"{kind} {batch}"] = worst
    return found


def numerics():
    """Of groupings given as [rows, columns, bits, group size]."""
    return [errors(weight(Grouping(*shape, 1))) for shape in json.load(sys.stdin)]


def state(layer):
    return [
        [key, str(t.dtype), list(t.shape), t.float().flatten().tolist()]
        for key, t in layer.state_dict().items()
    ] + [layer.get_meta_args(), type(layer).__name__]


class Two(torch.nn.Module):
    """What hqq patches has to know where it is."""

    device, dtype = torch.device("cpu"), torch.float16

    def __init__(self, *layers):
        super().__init__()
        self.first, self.second = layers


def surrounded():
    """Whether the split kernel's result is right while NaN lies behind the scales and zeros: of the
    layer that gemlite makes, then of the kernel's own, the zeros behind its end with it."""
    grouping = Grouping(32, 96, 4, 32, 1)
    affine = weight(grouping)
    x = torch.randn(7, 96).half()
    true = x.double() @ dequantized(affine).T
    right = []
    for kept in (3, 16):  # of gemlite; and what the kernel keeps
        layer = gemlite.pack(affine, None)
        for name in ("scales", "zeros"):
            parameter = layer.get_parameter(name)
            held = torch.empty(0).half().set_(parameter.untyped_storage()).view(-1, 32)
            around = torch.full((64, 32), torch.nan).half()
            around[:kept] = held[:kept]
            parameter.data = around[:3]
        off = (layer.forward_manual(x, matmul_type="GEMM_SPLITK").double() - true).norm()
        right.append(bool(off < 2e-3 * true.norm()))
    return right


def packing():
    """What hqq's own patching makes of two layers, beside what the kernel makes, and bytes."""
    out = []
    for bits, size in ((8, 64), (4, 64), (2, 32), (1, 64), (4, 128)):
        torch.manual_seed(bits)
        plain = (torch.nn.Linear(128, 48).half(), torch.nn.Linear(128, 32, bias=False).half())
        for p in plain:
            p.requires_grad_(False)
        config = BaseQuantizeConfig(nbits=bits, group_size=size, axis=1)
        made = [
            HQQLinear(p, config, compute_dtype=torch.float16, device="cpu", del_orig=False)
            for p in plain
        ]
        for layer in made:
            layer.linear_layer = None
        model = Two(*made).requires_grad_(False)
        theirs = deepcopy(model)
        prepare_for_inference(theirs, backend="gemlite")
        for name in ("first", "second"):
            layer, other = getattr(model, name), getattr(theirs, name)
            affine = LAYERS.affine(layer)
            ours = gemlite.pack(affine, layer.bias)
            other._parameters.pop("weight", None)  # of one element, for those who ask its dtype
            bias = 0 if layer.bias is None else layer.bias.nbytes
            out.append(
                {
                    "same": state(ours) == state(other),
                    "exact class": type(ours) is gemlite.layer_class() is type(other),
                    "bytes": tensor_bytes(ours) - bias,
                    "predicted": gemlite.packed_bytes(affine.grouping),
                    "intact": layer.W_q is not None and bool(layer.meta),
                }
            )
    return out


def model():
    """A small Llama, quantized and served: as a cell is, but for the device."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=64,
        tie_word_embeddings=True,
    )  # fmt: skip
    base = LlamaForCausalLM(config).half().eval().requires_grad_(False)
    how = method("hqq")
    recipe = how.RECIPE(bits=4, group_size=32)
    quantized = how.quantize(LoadedModel(base, None, "tiny", None), recipe, torch.float16)
    before = [t.clone() for _, t in quantized.weights()]
    reference, served = (
        quantized.serve(Execution("cpu", "float16", 1, kernel))
        for kernel in (kernels.REFERENCE, "gemlite")
    )
    tokens = torch.randint(0, 64, (1, 7))
    true = reference.logits(tokens).double()
    logits = served.logits(tokens).double()
    served.prefill(tokens, 3)
    decoded = [served.decode_step().tolist() for _ in range(2)]
    reference.prefill(tokens, 3)
    expected = [reference.decode_step().tolist() for _ in range(2)]
    size = how.predicted_bytes(shapes_of(base), recipe, "gemlite", 2)
    return {
        "error": float((logits - true).norm() / true.norm()),
        "packed": served.packed_layers,
        "expected": served.expected_layers,
        "reference counts": reference.packed_layers,
        "memory": served.memory_bytes(),
        "predicted": size.memory,
        "decoded": decoded,
        "decoded by the reference": expected,
        "intact": all(
            torch.equal(a, b) for a, (_, b) in zip(before, quantized.weights(), strict=True)
        ),
        "kernel on a GPU": how.kernel(shapes_of(base), recipe, "cuda"),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    run = {"numerics": numerics, "packing": packing, "surrounded": surrounded, "model": model}
    print(json.dumps(run[sys.argv[1]]()))
