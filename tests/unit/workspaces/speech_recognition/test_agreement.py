"""Letters that sites agree on before training: those of the experiment, or of all texts."""

import json
from functools import partial
from types import SimpleNamespace

import pytest
import soundfile
import torch
import yaml
from transformers import pipeline

from openfl_audio.config import load_settings
from openfl_audio.envoy.policy import Policy
from openfl_audio.errors import SettingsError
from openfl_audio.simulation.simulation import Simulation
from shard_descriptors.table import TableShardDescriptor
from tests.unit.workspaces.speech_recognition.speech import TINY, Spoken
from workspaces.speech_recognition.letters import LETTERS, agree, agree_with
from workspaces.speech_recognition.model import CONFIGS
from workspaces.speech_recognition.workload import SpeechRecognition, SpeechRecognitionSettings

SITES = {"leeds": {"a": 9, "b": 4}, "kiel": {"a": 7, "ß": 2, "ä": 3}}
TEXTS = {"leeds": ["a cab", "bad cab", "a bad dab"], "kiel": ["das maß", "süß", "das bad"]}
WORKLOAD = SpeechRecognition()


def test_without_letters_of_its_own_an_experiment_has_those_of_all_sites():
    agreed = agree(SITES)
    assert agreed.letters == " 'abßä"
    assert agreed.remarks == (
        "leeds has no text with 'ßä'",
        "kiel has no text with 'b'",
        "leeds alone has 'b'",
        "kiel alone has 'ß'",
        "kiel alone has 'ä'",
    )


def test_a_letter_that_cannot_be_written_is_refused_with_its_sites_and_counts():
    with pytest.raises(SettingsError, match=r"does not write: 'ß' \(kiel 2\)\. Name them as well, letters=\" 'abß\""):
        agree(SITES, " 'ab")


def test_an_accent_that_the_experiment_lacks_is_left_off_and_told():
    agreed = agree(SITES, " 'abß")
    assert agreed.letters == " 'abß"
    assert agreed.remarks[0] == "'ä' (kiel 3 texts) is written 'a'"


def write_site(folder, texts) -> TableShardDescriptor:
    folder.mkdir()
    rows = ["path,text,split"]
    spoken = Spoken([text.translate(str.maketrans("ßü", "su")) for text in texts])
    for number, text in enumerate(texts):
        soundfile.write(folder / f"{number}.wav", spoken.read_waveform(number), 16_000)
        rows.append(f"{number}.wav,{text},{'validation' if number == 2 else 'train'}")
    (folder / "table.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return TableShardDescriptor(folder / "table.csv", {"path": "path", "text": "text", "split": "split"})


@pytest.fixture
def shards(tmp_path):
    return {name: write_site(tmp_path / name, texts) for name, texts in TEXTS.items()}


def registry(shards, policy: Policy) -> dict:
    described = {name: policy.describe(shard.dataset_description) for name, shard in shards.items()}
    return {name: {"shard_info": SimpleNamespace(shard_description=text)} for name, text in described.items()}


def test_sites_tell_in_how_many_texts_a_letter_is_as_far_as_their_policy_lets_them(shards, capsys):
    assert agree_with(registry(shards, Policy())).letters == " 'abcdmsßü"
    assert "kiel alone has 'ß'" in capsys.readouterr().out
    described = yaml.safe_load(shards["kiel"].dataset_description)["letters"]
    assert described == {"a": 2, "b": 1, "d": 2, "m": 1, "s": 3, "ß": 2, "ü": 1}
    # What fewer than two of a site's texts have is not told: ü, m, and b and c at one of them.
    assert agree_with(registry(shards, Policy(min_count=2))).letters == " 'abcdsß"
    assert agree_with(registry(shards, Policy(counts="rounded"))).letters == " 'abcdmsßü"
    with pytest.raises(SettingsError, match=r"'ß' \(kiel fewer than 10\)"):
        agree_with(registry(shards, Policy(counts="rounded")), LETTERS)
    silent = registry(shards, Policy(counts="none"))
    with pytest.raises(SettingsError, match="do not tell letters of their texts: kiel, leeds; name the letters"):
        agree_with(silent)
    assert agree_with(silent, LETTERS).letters == LETTERS
    assert "kiel does not tell letters" in capsys.readouterr().out


def settings(tmp_path, letters: str | None) -> SpeechRecognitionSettings:
    (tmp_path / "tiny.json").write_text(json.dumps(TINY))
    changes = {"model.config": str(tmp_path / "tiny.json"), "model.letters": letters, "local_epochs": 1}
    columns = {"corpus.columns": {"path": "path", "text": "text", "split": "split"}}
    return load_settings(CONFIGS / "small.yaml", SpeechRecognitionSettings, changes | columns)


@pytest.mark.training
def test_sites_of_which_one_has_letters_of_its_own_train_a_model_that_writes_them_all(shards, tmp_path):
    letters = agree_with(registry(shards, Policy())).letters
    config = settings(tmp_path, letters)
    simulation = Simulation(list(shards), shards.__getitem__, tmp_path / "run")
    simulation.start("letters", **WORKLOAD.start_arguments(config) | {"rounds_to_train": 2})
    history = simulation.watch()
    # Random weights write words, or none, that are not those of the texts; the loss is over each letter of all sites.
    assert history["wer"].notna().all()
    first, last = simulation.initial_model(), simulation.last_model()
    assert last.letters == letters
    assert last.lm_head.out_features == 1 + len(letters)
    row = 1 + letters.index("ß")
    assert not torch.equal(first.lm_head.weight[row], last.lm_head.weight[row])
    WORKLOAD.save(last, config, tmp_path / "model")
    recognize = pipeline("automatic-speech-recognition", model=str(tmp_path / "model"))
    assert set(letters.replace(" ", "|")) < set(recognize.tokenizer.get_vocab())


def test_a_run_in_one_process_takes_the_letters_of_its_corpus_or_refuses_some(shards, tmp_path):
    data = tmp_path / "kiel" / "table.csv"
    assert WORKLOAD.complete(settings(tmp_path, None), data).model.letters == " 'abdmsßü"
    complete = partial(WORKLOAD.complete, settings(tmp_path, LETTERS), data)
    with pytest.raises(SettingsError, match="letters that the model does not write: 'ß'"):
        complete()
    with pytest.raises(SettingsError, match=r"model\.letters is null: name the letters that `agree_with`"):
        WORKLOAD.model(settings(tmp_path, None))
