"""The demo and its notebook, made small: real processes, TLS, the real notebook, two rounds."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partialmethod
from pathlib import Path

import dp_accounting
import nbformat
import numpy as np
import pytest

pytest.importorskip("espeakng_loader")

from openfl_audio.cli.main import main
from openfl_audio.errors import StartError
from openfl_audio.experiments.local_federation import LocalFederation, stop_left_over
from openfl_audio.files import read_json_lines
from openfl_audio.testing.corpora.speech_commands import make_speech_commands
from openfl_audio.testing.demo import (
    ENVOYS,
    LIBRISPEECH,
    PRIVATE,
    WORKLOADS,
    Workload,
    check_private,
    run_demo,
    set_earlier_run_aside,
)
from tests.integration.conftest import REPOSITORY, USER, points, wait_for

pytestmark = pytest.mark.integration

DEADLINE_SECONDS = 200


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "corpus"
    make_speech_commands(folder, n_speakers=9)
    return folder


@pytest.fixture(scope="module")
def run(corpus, tmp_path_factory) -> Iterator[tuple[dict, Path]]:
    out = tmp_path_factory.mktemp("demo") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        try:
            yield run_demo("wav2vec2", corpus, out, keep=True, ROUNDS=2), out
        finally:
            stop_left_over(out)


def test_the_demo_leaves_what_it_promises(run):
    result, out = run
    names = {path.name for path in out.iterdir()}
    assert {"superb_wav2vec2.ipynb", "metrics.png", "shards.png", "model", "result.json", "logs"} <= names
    assert result == json.loads((out / "result.json").read_text())
    assert set(result["accuracy"]) == {"initial", "last", "best", "alone"}
    assert all(0 <= value <= 1 for value in result["accuracy"].values())
    assert {"seconds", "versions", "seed"} <= set(result)
    assert {path.stem for path in (out / "logs").iterdir()} == {"director", "notebook", *ENVOYS}


def test_a_demo_that_is_kept_can_be_looked_at_until_it_is_stopped(run, capsys):
    _, out = run
    port = re.search(r"listen_port: (\d+)", (out / "settings" / "director.yaml").read_text())[1]
    where = ["--director", f"127.0.0.1:{port}", "--certificates", str(out / "certificates"), "--user", "operator"]
    assert main(["envoys", *where]) == 0
    assert capsys.readouterr().out.count(" yes since ") == len(ENVOYS)
    assert main(["show", "demo", *where]) == 0
    assert re.search(r"status +finished since", capsys.readouterr().out)
    assert main(["demo", "--stop", "--out", str(out)]) == 0
    # Each envoy may have a spare worker.
    ended = re.fullmatch(rf"ended (\d+) processes of {out}\n", capsys.readouterr().out)
    assert int(ended[1]) >= 1 + len(ENVOYS)
    wait_for(lambda: processes_of(out) == [], 30)


def test_the_executed_notebook_shows_a_row_a_round(run):
    notebook = nbformat.read(run[1] / "superb_wav2vec2.ipynb", as_version=4)
    printed = [
        "".join(output["text"] for output in cell.get("outputs", ()) if output.output_type == "stream")
        for cell in notebook.cells
    ]
    federated, alone = [text.splitlines() for text in printed if text.lstrip().startswith("round")]
    # Of nine speakers one validates. The envoys that do not have it are named below each row.
    named = "envoy_2, envoy_3: no clips for task 'aggregated_model_validate': its metrics are those of the others"
    assert [line.strip() for line in federated[2::2]] == [named] * 3
    for rows in (federated[:1] + federated[1::2], alone):
        assert [row.split()[0] for row in rows] == ["round", "0", "1", "2"]
    assert any("from a random start" in text for text in printed)


def test_the_model_loads_in_a_pipeline_and_is_the_directors_best(run):
    from safetensors.numpy import load_file
    from transformers import pipeline

    model = run[1] / "model"
    scores = pipeline("audio-classification", model=str(model))(np.zeros(16_000, np.float32), top_k=12)
    assert len({score["label"] for score in scores}) == 12
    best, saved = load_file(run[1] / "director" / "demo" / "best.safetensors"), load_file(model / "model.safetensors")
    assert best.keys() == saved.keys()
    for name, tensor in best.items():
        np.testing.assert_array_equal(tensor, saved[name])


def test_training_changes_the_model_and_only_weights_and_metrics_are_kept(run):
    from safetensors.numpy import load_file

    folder = run[1] / "director" / "demo"
    initial, last = load_file(folder / "initial.safetensors"), load_file(folder / "last.safetensors")
    assert any(not np.array_equal(initial[name], last[name]) for name in initial)
    assert {path.name for path in folder.iterdir()} == {
        "experiment.json", "state.json", "history.jsonl", "models", "updates", "tensorboard",
        "initial.safetensors", "last.safetensors", "best.safetensors",
    }  # fmt: skip
    assert not any((folder / "updates").iterdir()), "no envoy's update outlives the experiment"
    records = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    assert [set(record["envoys"]) for record in records] == [set(ENVOYS)] * 3


def test_nothing_is_left_running(run):
    assert processes_of(run[1]) == []


@pytest.mark.slow
def epsilon_of_ledger(path: Path) -> float:
    """Return what a site's ledger has spent, by dp-accounting and without our code."""
    _, *entries = map(json.loads, path.read_text().splitlines())
    accountant = dp_accounting.rdp.RdpAccountant()
    for entry in entries:
        release = entry["release"]
        noise = dp_accounting.GaussianDpEvent(release["noise_multiplier"])
        accountant.compose(dp_accounting.PoissonSampledDpEvent(release["probability"], noise), release["steps"])
    return accountant.get_epsilon(1e-4)


def check_ledgers(result: dict, out: Path) -> None:
    assert (result["privacy"]["unit"], result["privacy"]["delta"]) == ("record", 1e-4)
    told = {name: epsilon_of_ledger(out / "ledgers" / f"{name}.jsonl") for name in ENVOYS}
    assert result["privacy"]["epsilon"] == pytest.approx(told)


@pytest.mark.slow
def test_a_private_demo_that_has_learned_too_little_fails_and_has_paid_for_its_rounds(corpus, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("OPENFL_AUDIO_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "run"
    with pytest.raises(StartError, match=r"the accuracy is 0\.\d+, and should be 0\.5 at least"):
        run_demo(PRIVATE, corpus, out, UPSTREAM="log_mel", ROUNDS=2, STEPS=2, LEARNING_RATE=1e-6)
    check_ledgers(json.loads((out / "result.json").read_text()), out)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_private_demo_learns_words_within_an_epsilon_of_ten(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("OPENFL_AUDIO_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "run"
    result = run_demo(PRIVATE, None, out)
    assert result["accuracy"]["best"] >= 0.5
    assert max(result["privacy"]["epsilon"].values()) <= 10
    check_ledgers(result, out)


def test_a_demo_with_too_much_epsilon_fails():
    with pytest.raises(StartError, match="the demo has spent an epsilon of 12, and may spend 10"):
        check_private({"privacy": {"epsilon": {"a": 3.0, "b": 12.0}}, "accuracy": {"best": 0.9}})


@pytest.mark.slow
def test_the_whisper_notebook_sends_the_head_alone_and_its_model_comes_back(corpus, tmp_path, monkeypatch):
    from safetensors.numpy import load_file

    from workspaces.keyword_spotting.whisper import WhisperForKeywords

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("OPENFL_AUDIO_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "run"
    result = run_demo("whisper", corpus, out, ROUNDS=2, FROZEN=True, BATCH_SIZE=8)
    assert set(result["accuracy"]) == {"initial", "last", "best"}
    assert {"superb_whisper.ipynb", "accuracy.png", "shards.png", "model"} <= {path.name for path in out.iterdir()}
    assert pictures_in(out / "superb_whisper.ipynb") == 2
    sent = load_file(out / "director" / "demo" / "last.safetensors")
    assert {name.partition(".")[0] for name in sent} == {"head"}
    # The head after each round, and the round that validates the last one.
    assert {path.name for path in (out / "director" / "demo").glob("round-*")} >= {
        "round-1.safetensors", "round-2.safetensors",
    }  # fmt: skip
    model = WhisperForKeywords.from_pretrained(out / "model")
    best = load_file(out / "director" / "demo" / "best.safetensors")
    for name, tensor in best.items():
        np.testing.assert_array_equal(model.state_dict()[name].numpy(), tensor)
    assert list((tmp_path / "cache").iterdir()), "the encoder's outputs are kept on the node"


@pytest.mark.slow
def test_three_sites_with_tables_and_folders_of_their_own_come_to_a_model_that_a_pipeline_loads(tmp_path, monkeypatch):
    from transformers import pipeline

    from openfl_audio.testing.corpora.own_data import make_own_data

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    make_own_data(tmp_path / "data", n_speakers=3)
    out = tmp_path / "run"
    result = run_demo("own_data", tmp_path / "data", out, CHANGES={"rounds": 2})
    assert set(result["accuracy"]) == {"initial", "last", "best"}
    assert set(result["sites"]["by_site"]) == set(ENVOYS)
    assert result["sites"]["worst"] == min(result["sites"]["by_site"].values())
    assert result["classes"] == ["go", "no", "stop", "yes"]
    assert pictures_in(out / "your_own_data.ipynb") == 1
    executed = nbformat.read(out / "your_own_data.ipynb", as_version=4)
    printed = "".join(
        output["text"]
        for cell in executed.cells
        for output in cell.get("outputs", ())
        if output.output_type == "stream"
    )
    assert "clips of 'GO' count as 'go'" in printed
    assert "true/0" not in printed, "shares of classes are no columns"
    logs = (out / "logs" / "envoy_2.log").read_text()
    assert "as it is AAC, which is not decoded here" in logs
    assert "is in test as well, with the same content" in logs
    heard = pipeline("audio-classification", model=str(out / "model"))(np.zeros(16_000, np.float32))
    assert {each["label"] for each in heard} == {"go", "no", "stop", "yes"}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_of_each_node_train_a_wav2vec2_together_in_their_sandbox(tmp_path, monkeypatch):
    from openfl_audio.testing.corpora.own_data import make_own_data

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(LocalFederation, "start_envoy", partialmethod(LocalFederation.start_envoy, sandbox="use"))
    make_own_data(tmp_path / "data", n_speakers=3)
    out = tmp_path / "run"
    run_demo("own_data", tmp_path / "data", out, CHANGES={"rounds": 1, "processes": 2})
    first, *_ = read_json_lines(out / "director" / "demo" / "history.jsonl")
    assert set(first["envoys"]) == set(ENVOYS)
    assert all("train" in tasks for tasks in first["envoys"].values())
    assert first["metrics"]["train"]["loss"] > 0
    if shutil.which("bwrap"):
        assert "workers run in a sandbox" in (out / "logs" / "envoy_1.log").read_text()


@pytest.mark.slow
def test_uploaders_train_a_tagger_that_one_envoy_evaluates(tmp_path, monkeypatch):
    from safetensors.numpy import load_file

    from openfl_audio.testing.corpora.fsd50k import make_fsd50k
    from workspaces.sound_events.export import load_model

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    make_fsd50k(tmp_path / "FSD50K", n_dev_clips=40, n_eval_clips=18)
    out = tmp_path / "run"
    result = run_demo("fsd50k", tmp_path / "FSD50K", out, ROUNDS=2)
    assert set(result["pr_auc"]) == {"initial", "last", "best"}
    assert {"fsd50k_sound_events.ipynb", "scores.png", "class_by_uploader.png", "model"} <= {
        p.name for p in out.iterdir()
    }
    records = [json.loads(line) for line in (out / "director" / "demo" / "history.jsonl").read_text().splitlines()]
    assert [set(record["metrics"]) for record in records[:2]] == [{"aggregated_model_validate", "train"}] * 2
    for record in records[:2]:
        tasks = {name: set(envoy) for name, envoy in record["envoys"].items()}
        assert tasks == {name: {"train"} for name in ENVOYS} | {"evaluation": {"aggregated_model_validate"}}
    model = load_model(out / "model").state_dict()
    for name, tensor in load_file(out / "director" / "demo" / "best.safetensors").items():
        np.testing.assert_array_equal(model[name].numpy(), tensor)


@pytest.mark.slow
def test_speech_is_enhanced_by_envoys_with_and_without_clean_speech(tmp_path, monkeypatch):
    from safetensors.numpy import load_file

    from openfl_audio.testing.corpora.fsd50k import make_fsd50k
    from openfl_audio.testing.corpora.librispeech import make_librispeech
    from workspaces.speech_enhancement.export import load_sudormrf

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    make_fsd50k(tmp_path / "data" / "FSD50K", n_dev_clips=60, n_eval_clips=18)
    make_librispeech(
        tmp_path / "data" / "LibriSpeech", n_train_speakers=6, n_dev_speakers=1, n_test_speakers=1, n_utterances=6
    )
    out = tmp_path / "run"
    tiny = {"out_channels": 16, "in_channels": 32, "num_blocks": 1, "num_bases": 32, "num_groups": 2}
    result = run_demo("librifsd50k", tmp_path / "data", out, ROUNDS=2, LOCAL_EPOCHS=1.0, MODEL=tiny)
    assert set(result["si_sdri"]) == {"initial", "last", "best"}
    names = {path.name for path in out.iterdir()}
    assert {"librifsd50k_mixit.ipynb", "si_sdri.png", "spectrograms.png", "model"} <= names
    assert len(list((out / "examples").glob("*_estimate.wav"))) >= 2
    records = [json.loads(line) for line in (out / "director" / "demo" / "history.jsonl").read_text().splitlines()]
    losses = {name: records[0]["envoys"][name]["train"].keys() - {"size"} for name in ENVOYS}
    assert losses == {"envoy_1": {"supervised_loss"}, "envoy_2": {"mixit_loss"}, "envoy_3": {"mixit_loss"}}
    model = load_sudormrf(out / "model").state_dict()
    for name, tensor in load_file(out / "director" / "demo" / "best.safetensors").items():
        np.testing.assert_array_equal(model[name].numpy(), tensor)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_hubert_is_pretrained_and_a_student_learns_from_it(tmp_path, monkeypatch):
    from transformers import HubertModel

    from openfl_audio.testing.corpora.librispeech import make_librispeech

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    data = tmp_path / "LibriSpeech"
    make_librispeech(data, n_train_speakers=6, n_dev_speakers=1, n_test_speakers=1, n_utterances=4)
    out = tmp_path / "run"
    result = run_demo("librispeech", data, out, ROUNDS=1, LOCAL_EPOCHS=1)
    assert set(result["masked_accuracy"]) == {"initial", "last", "best"}
    assert {"librispeech_hubert.ipynb", "progress.png", "model"} <= {path.name for path in out.iterdir()}
    teacher = HubertModel.from_pretrained(out / "model")

    student = Workload(
        LIBRISPEECH,
        "librispeech_distillation.ipynb",
        "a small student",
        {
            "TEACHER": str(out / "model"),
            "LAYERS": [1, 2],
            "CONFIG": "student_small.json",
            "ALPHA": 0.5,
            "MAX_SAMPLES_PER_BATCH": 160_000,
            "MAX_CLIP_SAMPLES": 80_000,
        },
        ("loss", "distillation loss"),
    )
    monkeypatch.setitem(WORKLOADS, "distillation", student)
    result = run_demo("distillation", data, tmp_path / "student", ROUNDS=1)
    assert result["size_and_speed"]["teacher_parameters"] > result["size_and_speed"]["student_parameters"]
    assert result["loss"]["last"] < result["loss"]["initial"]
    smaller = HubertModel.from_pretrained(tmp_path / "student" / "model")
    assert smaller.config.hidden_size < teacher.config.hidden_size


def test_a_folder_that_is_no_corpus_ends_the_demo_with_a_sentence(tmp_path, capsys):
    (tmp_path / "data").mkdir()
    assert main(["demo", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "run")]) == 1
    errors = capsys.readouterr().err
    assert errors.startswith("openfl-audio demo: ")
    assert "Traceback" not in errors
    assert str(tmp_path / "data") in errors
    assert processes_of(tmp_path / "run") == []


def test_a_folder_that_no_demo_made_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(StartError, match=f"{tmp_path} is not empty and no earlier run of the demo"):
        run_demo("wav2vec2", None, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_an_earlier_run_is_kept_under_the_next_free_number_and_told(tmp_path, capsys):
    out = tmp_path / "demo"
    for number in (1, 2):
        (out / "settings").mkdir(parents=True)
        (out / "settings" / "director.yaml").write_text("")
        (out / "result.json").write_text(f"{number}")
        set_earlier_run_aside(out)
        assert not out.exists()
        assert (tmp_path / f"demo-{number}" / "result.json").read_text() == f"{number}"
        assert f"the earlier run of {out} is kept in {out}-{number}" in capsys.readouterr().out


def test_an_interrupt_ends_what_a_local_federation_has_started(certificates, tmp_path):
    def start_and_be_interrupted() -> None:
        with LocalFederation(tmp_path, certificates, USER) as processes:
            processes.start_director()
            processes.start_envoy("a", points(1))
            wait_for(lambda: len(processes_of(tmp_path)) == 2)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        start_and_be_interrupted()
    assert processes_of(tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize(("signal_number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_demo_stops_what_it_started(corpus, tmp_path, signal_number, code):
    demo = start_demo(corpus, tmp_path / "run")
    try:
        experiment = tmp_path / "run" / "director" / "demo"
        wait_for(lambda: experiment.exists() or demo.poll() is not None, DEADLINE_SECONDS)
        assert demo.poll() is None, demo.communicate()
        assert len(processes_of(tmp_path / "run")) >= 4
        demo.send_signal(signal_number)
        assert demo.wait(DEADLINE_SECONDS) == code
    finally:
        demo.kill()
    # A worker that is loading its libraries looks only then whether its envoy is still there.
    wait_for(lambda: not processes_of(tmp_path / "run"))


def start_demo(data: Path, out: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "openfl_audio.cli", "demo", "--data", str(data), "--out", str(out)],
        cwd=REPOSITORY,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def pictures_in(notebook: Path) -> int:
    """Count the cells of the executed `notebook` that show a PNG."""
    cells = json.loads(notebook.read_text())["cells"]
    return sum(any("image/png" in output.get("data", {}) for output in cell.get("outputs", ())) for cell in cells)


def processes_of(out: Path) -> list[str]:
    """Command lines of processes that were started with something in `out`, the demo's own left out."""
    lines = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            line = (process / "cmdline").read_text().replace("\0", " ")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if f"{out}/" in line:
            lines.append(line)
    return lines


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_numbers_of_unseen_voices_are_recognized_and_better_than_by_one_envoy_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    out = tmp_path / "run"
    wer = run_demo("recognition", None, out)["wer"]
    assert wer == json.loads((out / "result.json").read_text())["wer"]
    assert wer["best"] <= wer["initial"] / 2
    assert wer["best"] < 0.9
    assert wer["best"] < wer["alone"]
