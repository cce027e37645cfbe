"""The examples in the docstrings of the core print what they say."""

import doctest
import importlib
import pkgutil

import pytest

import internals_math

MODULES = [info.name for info in pkgutil.walk_packages(internals_math.__path__, "internals_math.")]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_work(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_there_are_examples_to_run():
    assert doctest.testmod(importlib.import_module("internals_math.rope")).attempted > 0
