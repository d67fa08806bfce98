"""What quantizing takes is measured once the libraries of its method are imported."""

import subprocess
import sys
from importlib.util import find_spec

import pytest

from bitgate.quantize import METHODS, method, warm

#: quantizes one layer of a model, and prints what was imported meanwhile of other libraries
QUANTIZE = """
import sys
import torch
from bitgate.quantize import method, warm
from bitgate.sources import LoadedModel

name, recipe = sys.argv[1:]
how = method(name)
recipe = how.RECIPE.model_validate_json(recipe)
model = torch.nn.ModuleDict({"layer": torch.nn.Linear(64, 64)})
loaded = LoadedModel(module=model, tokenizer=None, fingerprint="", directory=None)
warm(name)
before = set(sys.modules)
how.quantize(loaded, recipe, torch.float32)
print(*{m.split(".")[0] for m in set(sys.modules) - before if "." in m} - {"bitgate", "torch"})
"""


@pytest.mark.parametrize(
    ("name", "recipe"),
    [
        ("hqq", '{"method": "hqq", "bits": 4, "group_size": 64}'),
        ("bitsandbytes", '{"method": "bitsandbytes", "type": "nf4"}'),
    ],
)
def test_libraries_are_imported_before_what_quantizing_takes_is_measured(name, recipe):
    if find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    command = [sys.executable, "-c", QUANTIZE, name, recipe]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ran.stdout.strip(), ran.returncode) == ("", 0), ran.stderr


def test_methods_without_libraries_need_not_be_warmed():
    warm("linear")
    assert [name for name in METHODS if not hasattr(method(name), "warm")] == ["linear"]
