"""transformers and hqq are imported without torch's compiler, and can still compile; the garbage
collector has no more to do with what they brought."""

from __future__ import annotations

import subprocess
import sys

from bitgate.sources import imports


def ran(program):
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)


def test_the_compiler_is_not_imported_and_compile_is_as_before():
    program = (
        "import gc, sys, torch\n"
        "before = torch.compile\n"
        "from bitgate.sources.imports import import_transformers\n"
        "collected = [one['collections'] for one in gc.get_stats()]\n"
        "import_transformers()\n"
        "more = [one['collections'] for one in gc.get_stats()]\n"
        "assert more[:2] == collected[:2], (collected, more)\n"
        "assert gc.isenabled() and gc.get_freeze_count() > 100_000\n"
        "import hqq.core.quantize\n"
        "from transformers import AutoModelForCausalLM\n"
        "assert torch.compile is before\n"
        "assert 'torch._inductor.compile_fx' not in sys.modules\n"
    )
    done = ran(program)
    assert done.returncode == 0, done.stderr
    assert "is an Enum subclass" not in done.stderr  # torch, of torchao


def test_who_has_switched_the_collector_off_finds_it_so():
    program = (
        "import gc\n"
        "gc.disable()\n"
        "from bitgate.sources.imports import import_transformers\n"
        "import_transformers()\n"
        "assert not gc.isenabled()\n"
    )
    done = ran(program)
    assert done.returncode == 0, done.stderr


def test_what_is_decorated_is_compiled_at_its_first_call_and_once():
    seen = []

    def compiler(function, **options):
        seen.append(options)
        return lambda *arguments: function(*arguments) + 1

    class Layer:
        @imports._at_first_call(compiler, fullgraph=True)
        def forward(self, x):
            """Its own."""
            return 10 * x

    assert seen == []
    assert Layer.forward.__doc__ == "Its own."
    assert [Layer().forward(2), Layer().forward(3)] == [21, 31]
    assert seen == [{"fullgraph": True}]
