"""What commands tell of time: how long, and how long to go."""

from __future__ import annotations

from daskgmm.cli.work import report
from daskgmm.cli.work.report import Report


def test_a_line_now_and_then_where_no_bar_can_be_drawn(capsys, monkeypatch):
    """Each ten seconds and at the end; the time to go is that of what this run did."""
    now = 100.0
    monkeypatch.setattr(report, "perf_counter", lambda: now)
    told = Report(as_json=False)
    with told.counting("parts") as observe:
        for done in range(61, 101):  # 60 were done before, by a run that broke off
            now += 4.0
            observe(done, 100)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [
        "63 of 100 parts, 2 min 28 s to go",
        "66 of 100 parts, 2 min 16 s to go",
    ]
    assert lines[-1] == "100 of 100 parts"
    assert len(lines) == 14
