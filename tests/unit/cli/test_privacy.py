import numpy as np
import pytest
import yaml

from openfl_audio.cli.main import main
from openfl_audio.config import load_settings
from openfl_audio.envoy.budget import SiteBudget
from openfl_audio.envoy.settings import EnvoyFile, folder_of
from openfl_audio.privacy.accounting import Release, epsilon
from openfl_audio.protocol.privacy import RecordLevel
from openfl_audio.protocol.tensors import describe
from tests.unit.protocol.test_bundle import plan

PRIVACY = {"corpus": "wards", "unit": "record", "epsilon": 8.0, "delta": 1e-5, "ledger": "wards.jsonl"}


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "envoy.yaml"
    params = {"director_host": "a", "work_dir": "work", "privacy": PRIVACY}
    path.write_text(yaml.safe_dump({"params": params, "shard_descriptor": {"template": "t"}}))
    return path


def test_a_site_sees_what_is_spent_and_left_and_by_whom(config, capsys):
    settings = load_settings(config, EnvoyFile).params
    site = SiteBudget(settings.privacy, "b", folder_of(settings, "b"))
    level = RecordLevel(noise_multiplier=1.0, clip=1.0, delta=1e-5, probability=0.01, steps=100)
    for name, rounds in (("first", 2), ("second", 1)):
        for number in range(rounds):
            header = describe({"weight": np.zeros(3, np.float32)}, {})
            site.charge(plan(name=name, federation_uuid=name, privacy=level), number, header, bytes(12))
    assert main(["privacy", "-n", "b", "-c", str(config)]) == 0
    shown = capsys.readouterr().out
    spent = {steps: epsilon([Release(1.0, 0.01, steps)], 1e-5) for steps in (100, 200, 300)}
    assert f"epsilon {spent[300]:.4g}" in shown
    assert f"epsilon {8 - spent[300]:.4g} of 8" in shown
    assert [line.split() for line in shown.splitlines() if "first" in line] == [["first", f"{spent[200]:.4g}"]]
    assert [line.split() for line in shown.splitlines() if "second" in line] == [["second", f"{spent[100]:.4g}"]]


def test_an_envoy_without_a_budget_says_so(config, capsys):
    assert main(["privacy", "-n", "b", "-c", str(config), "--set", "params.privacy=null"]) != 0
    assert "has no params.privacy: envoy 'b' has no budget" in capsys.readouterr().err
