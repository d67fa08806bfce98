"""Methods that need a package of their own: without it their cases skip and name the extra."""

from bitgate.quantize import METHODS, Extra, kernel_names, method, own_kernels

pytest_plugins = ["pytester"]


def test_what_is_missing_is_named_with_the_remedy():
    extra = Extra("quick", ("json", "no_such_module"))
    assert extra.missing() == ("no_such_module is not installed: pip install 'bitgate[quick]'")
    assert Extra("quick", ("json",)).missing() is None


def test_every_method_offers_what_the_protocol_asks_for():
    for name in METHODS:
        how = method(name)
        assert how.RECIPE.model_fields["method"].default == name
        assert how.EXTRA is None or isinstance(how.EXTRA, Extra)
        assert set(own_kernels(name)) <= set(kernel_names())
        assert all(callable(getattr(how, part)) for part in ("quantize", "load", "kernel"))
        assert callable(how.predicted_bytes)


def test_cases_skip_without_it(pytester, free_project):
    free_project(pytester.path)
    pytester.makepyfile(
        lacking="""
from bitgate.quantize import Extra, hqq
hqq.EXTRA = Extra("quick", ("no_such_module",))
"""
    )
    done = pytester.runpytest_subprocess("bench", "-p", "lacking", "-rs", "-p", "no:cacheprovider")
    done.assert_outcomes(skipped=4)
    done.stdout.fnmatch_lines(["*no_such_module is not installed: pip install 'bitgate?quick?'*"])
    assert done.ret == 0


def test_cases_of_a_workload_skip_without_what_it_needs(pytester, free_project):
    free_project(pytester.path)
    pytester.makepyfile(
        lacking="""
from bitgate.kernels.extra import Extra
from bitgate.plugin import hooks
assert hooks.EXTRAS["finetune"].modules == ("peft", "bitsandbytes")
hooks.EXTRAS["perplexity"] = Extra("quick", ("no_such_module",))
"""
    )
    done = pytester.runpytest_subprocess("bench", "-p", "lacking", "-rs", "-p", "no:cacheprovider")
    done.assert_outcomes(passed=2, skipped=2)
    done.stdout.fnmatch_lines(["*no_such_module is not installed: pip install 'bitgate?quick?'*"])
