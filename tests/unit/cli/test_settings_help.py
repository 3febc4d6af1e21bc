"""Every setting says what it is, in one place, and --help-settings shows it."""

from collections.abc import Iterator
from importlib.metadata import entry_points

import pytest
from pydantic import BaseModel

from openfl_audio.cli.main import main
from openfl_audio.config import groups_in
from openfl_audio.director.server import DirectorFile
from openfl_audio.envoy.settings import EnvoyFile
from openfl_audio.experiments.workloads import GROUP
from openfl_audio.protocol.aggregation import Aggregation
from openfl_audio.protocol.participation import Participation

WORKLOADS = entry_points(group=GROUP)


def models(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    yield model
    for field in model.model_fields.values():
        for group in groups_in(field.annotation):
            yield from models(group)


def shown(arguments: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        main([*arguments.split(), "--help-settings"])
    assert ended.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("root", [DirectorFile, EnvoyFile, Participation, Aggregation])
def test_every_setting_says_what_it_is(root):
    for model in models(root):
        for name, field in model.model_fields.items():
            assert field.description, f"{model.__qualname__}.{name} has no description"


@pytest.mark.parametrize("name", sorted(WORKLOADS.names))
def test_every_setting_of_a_workload_says_what_it_is(name, capsys):
    root = WORKLOADS[name].load().config_class
    test_every_setting_says_what_it_is(root)
    text = " ".join(shown(f"train {name}", capsys).split())
    for model in models(root):
        for field in model.model_fields.values():
            assert field.description in text


def test_settings_are_listed_with_their_values_and_defaults(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    text = shown("envoy", capsys)
    assert "\nparams.director_port\n    port of the director (50051)\n" in text
    assert "\n    name or address of the director, which is in its certificate; required\n" in text
    reports = text.partition("\nparams.reports\n")[2].partition("\nparams.")[0]
    assert " ".join(reports.split()).endswith(": nothing, steps, losses, logs (losses)")
    assert "PydanticUndefined" not in text
    assert "\nsettings.retention.days\n    days that an ended experiment is kept; without it for ever\n" in shown(
        "director", capsys
    )
    rules = shown("tune sound_events", capsys)
    median, _, others = rules.partition("aggregation.rule.rule: trimmed_mean\n")[2].partition("aggregation.rule.rule:")
    assert median.endswith(
        "aggregation.rule.share\n    share of the updates that is cut off at each end, rounded down; required\n"
    )
    assert others.startswith(" geometric_median\n")
    assert max(map(len, rules.splitlines())) < 100


def test_which_workload_has_to_be_said(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help-settings"])
    assert "openfl-audio train: name the workload before --help-settings" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["train", "nowhere", "--help-settings"])
    assert "there is no workload 'nowhere'" in capsys.readouterr().err
