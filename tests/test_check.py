"""Le bilan de « make test » redit les tests en échec."""

import os
import sys

import pytest

from tools.check import run

SCRIPT = """
import sys
print("FAILED tests/test_a.py::test_b - assert 0")
print("un mot")
print("ERROR tests/test_c.py", file=sys.stderr)
sys.exit({code})
"""


@pytest.mark.parametrize("code", [0, 3])
def test_failures_are_shown_and_remembered(code, capfd):
    faults = []
    assert run([sys.executable, "-c", SCRIPT.format(code=code)], dict(os.environ), faults) == bool(code)
    assert sorted(faults) == ["ERROR tests/test_c.py", "FAILED tests/test_a.py::test_b - assert 0"]
    assert "un mot" in capfd.readouterr().out
