"""The benchmark of reports, without the federation that it measures."""

import pytest

from benchmarks.reports import summarise


def test_medians_of_the_rounds_are_told_and_the_share_is_of_the_cpu_time_with_reports():
    off = [{"cpu_s": cpu, "wall_s": 2 * cpu} for cpu in (1.0, 3.0, 2.0)]
    on = [{"cpu_s": cpu, "wall_s": 10.0, "sender_s": 0.03, "calls_s": 0.01} for cpu in (4.0, 90.0, 1.0)]
    result = summarise("head", 100, 3, {"off": off, "on": on})
    assert result["cpu_s"] == {"off": 2.0, "on": 4.0}
    assert result["wall_s"] == {"off": 4.0, "on": 10.0}
    assert result["share"] == pytest.approx((0.03 + 0.01) / 4)
