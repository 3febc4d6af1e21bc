import pytest
import torch

from openfl_audio.config import load_settings, parse_change
from openfl_audio.errors import SettingsError
from openfl_audio.training.run_settings import RunSettings, weights_of

MINIMAL = "rounds: 3\nbatch_size: 8\noptimizer: {learning_rate: 0.1}\n"


def load(tmp_path, content: str = MINIMAL, **changes) -> RunSettings:
    path = tmp_path / "small.yaml"
    path.write_text(content)
    return load_settings(path, RunSettings, changes)


def test_a_file_with_changes_by_dotted_key(tmp_path):
    settings = load(tmp_path, **{"optimizer.momentum": 0.9, "rounds": 5, "aggregation.clip_norm": 2})
    assert (settings.rounds, settings.batch_size, settings.clients) == (5, 8, "natural")
    assert (settings.optimizer.learning_rate, settings.optimizer.momentum) == (0.1, 0.9)
    assert settings.aggregation.clip_norm == 2


FAULTS = {
    "an unknown key": ({"round": 5}, r"small.yaml: unknown key 'round' \(known here: rounds, clients, fraction"),
    "an unknown key in a group": ({"optimizer.lr": 5}, r"unknown key 'optimizer.lr' \(known here: name, learning_rate"),
    "an unknown group": ({"model.name": 5}, "unknown key 'model'"),
    "a key in a value": ({"rounds.x": 5}, "rounds.x: 'rounds' is a value, not a group of keys"),
    "a wrong type": ({"rounds": "many"}, "'rounds' is 'many': input should be a valid integer"),
    "out of range": ({"fraction": 0}, "'fraction' is 0: input should be greater than 0"),
    "a word where one is asked for": (
        {"clients": "some"},
        "'clients' is 'some': it should be a number from 1 on, or nat",
    ),
    "no client": ({"clients": 0}, "'clients' is 0: it should be a number from 1 on, or natural"),
    "a value without effect": (
        {"optimizer.name": "adam", "optimizer.momentum": 0.9},
        "momentum' is 0.9: only sgd has one",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_key_or_value_is_named(tmp_path, fault):
    changes, sentence = FAULTS[fault]
    with pytest.raises(SettingsError, match=sentence):
        load(tmp_path, **changes)


@pytest.mark.parametrize("content", ["", "- 1\n", "{", "rounds: 3\n"])
def test_a_file_without_settings_is_named(tmp_path, content):
    with pytest.raises(SettingsError, match=r"small.yaml"):
        load(tmp_path, content)


def test_a_file_that_is_no_text_is_named(tmp_path):
    (tmp_path / "photo.yaml").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(SettingsError, match=r"photo.yaml is not UTF-8 \(byte 0xff in line 1\)"):
        load_settings(tmp_path / "photo.yaml", RunSettings, {})


def test_changes_are_yaml_values():
    assert parse_change("a.b=0.5") == ("a.b", 0.5)
    assert parse_change("a=[x, y]") == ("a", ["x", "y"])
    assert parse_change("a=b=c") == ("a", "b=c")
    for text in ("a", "=3", " =3"):
        with pytest.raises(SettingsError, match="should be key=value"):
            parse_change(text)
    with pytest.raises(SettingsError, match="should be key=value"):
        parse_change("a=[")


@pytest.mark.parametrize(
    ("name", "kind"),
    [("sgd", torch.optim.SGD), ("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW), ("radam", torch.optim.RAdam)],
)
def test_optimizers_are_made_with_their_settings(tmp_path, name, kind):
    momentum = {"optimizer.momentum": 0.5} if name == "sgd" else {}
    settings = load(tmp_path, **{"optimizer.name": name, "optimizer.weight_decay": 0.3} | momentum)
    optimizer = settings.optimizer.recipe()([torch.nn.Parameter(torch.ones(1))])
    assert type(optimizer) is kind
    (group,) = optimizer.param_groups
    assert (group["lr"], group["weight_decay"]) == (0.1, 0.3)
    assert group.get("momentum", 0.5) == 0.5


def test_a_run_starts_from_a_run_a_model_or_a_file(tmp_path):
    exported, kept = tmp_path / "run" / "model" / "model.safetensors", tmp_path / "run" / "round-3.safetensors"
    exported.parent.mkdir(parents=True)
    for path in (exported, kept):
        path.touch()
    for init, weights in ((tmp_path / "run", exported), (exported.parent, exported), (kept, kept)):
        settings = load(tmp_path, init=str(init))
        assert settings.init is not None
        assert weights_of(settings.init) == weights
    for init in (tmp_path, tmp_path / "run" / "round-4.safetensors"):
        with pytest.raises(SettingsError, match="it has no model/model.safetensors, and is neither an exported model"):
            load(tmp_path, init=str(init))
