# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Progress: lines where there is no terminal, a bar where there is, silence when asked."""

from __future__ import annotations

import sys

import pytest

from reidfast.engine.progress import progress


def test_lines(capsys):
    with progress(10, "work", unit="things", done=4, every=0.0) as advance:
        advance(1)
        advance(5)
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(",")[0] for line in lines] == ["work: 5 of 10 things", "work: 10 of 10 things"]
    with progress(10, "work") as advance:
        advance(10)
    assert capsys.readouterr().err.startswith("work: 10 of 10 images, ")


def test_silence_and_errors(capsys):
    with progress(3, "work", show=False) as advance:
        advance(3)
    with pytest.raises(KeyError), progress(3, "work") as advance:
        raise KeyError
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("installed", [True, False])
def test_terminal(capsys, monkeypatch, installed):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    if installed:
        pytest.importorskip("rich", reason="needs rich")
    else:
        monkeypatch.setitem(sys.modules, "rich.progress", None)
    with progress(2, "work") as advance:
        advance(2)
    assert "work" in capsys.readouterr().err
