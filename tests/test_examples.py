"""The examples run, and show the effect that they are about."""

import runpy
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_own_loop(capsys):
    scores = runpy.run_path(str(EXAMPLES / "own_loop.py"))["main"]()
    assert list(scores) == ["cross-entropy", "progressively balanced", "LDAM-DRW", "balanced softmax"]
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in printed] == [f"{score:.1%}" for score in scores.values()]
    baseline = scores.pop("cross-entropy")
    assert baseline > 0.6
    assert min(scores.values()) > baseline + 0.03
