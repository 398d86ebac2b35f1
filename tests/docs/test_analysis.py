"""The examples of docs/analysis.md give what it says they give."""

import doctest

import pytest
from documents import ROOT


@pytest.mark.slow
def test_the_examples_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    found = doctest.testfile(str(ROOT / "docs" / "analysis.md"), module_relative=False, optionflags=doctest.ELLIPSIS)
    assert found.attempted > 20 and found.failed == 0
