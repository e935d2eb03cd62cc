"""The numbers of docs/certificates.md: its worked example is run, and its table names what exists."""

import doctest
import re
from pathlib import Path

import patchcert.certificates

PAGE = Path(__file__).parents[2] / "docs" / "certificates.md"


def test_worked_example_gives_the_printed_numbers():
    result = doctest.testfile(str(PAGE), module_relative=False)
    assert result.attempted > 20
    assert result.failed == 0


def test_the_table_names_functions_that_exist():
    named = re.findall(r"^\|[^|]*\| `(\w+)`", PAGE.read_text(), flags=re.MULTILINE)
    assert len(named) == 7
    assert set(named) <= set(patchcert.certificates.__all__)
