"""Numbers for Prometheus, and the dashboard that draws them."""

import json
import os
import re
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from openfl_audio.page.metrics import exposition
from openfl_audio.protocol.page import FederationTotals

DASHBOARD = Path(__file__).resolve().parents[3] / "deploy" / "grafana-dashboard.json"
TOTALS = FederationTotals(
    envoys={"online": 3, "offline": 1},
    experiments={"in_progress": 1, "failed": 2},
    waiting=1,
    rounds=7,
    seconds=12.5,
    updates={"counted": 20, "refused": 1, "missing": 0},
    bytes_up=10,
    bytes_down=30,
    certificate_expires=2e9,
)


def samples() -> dict[str, float]:
    text = exposition(TOTALS, os.getpid()).decode()
    families = text_string_to_metric_families(text)
    return {f"{s.name}{sorted(s.labels.values())}": s.value for family in families for s in family.samples}


def test_numbers_are_those_of_the_director_and_labels_are_states():
    found = samples()
    assert found["openfl_audio_envoys['offline']"] == 1
    assert found["openfl_audio_rounds_total[]"] == 7
    assert found["openfl_audio_round_seconds_total[]"] == 12.5
    assert found["openfl_audio_updates_total['refused']"] == 1
    assert found["openfl_audio_transferred_bytes_total['received']"] == 30
    assert found["openfl_audio_director_process_cpu_seconds_total[]"] > 0


def test_the_dashboard_asks_for_numbers_that_there_are():
    names = {sample.partition("[")[0] for sample in samples()}
    queries = [target["expr"] for panel in json.loads(DASHBOARD.read_text())["panels"] for target in panel["targets"]]
    asked = {name for query in queries for name in re.findall(r"openfl_audio_\w+", query)}
    assert len(asked) > 8
    assert asked <= names
