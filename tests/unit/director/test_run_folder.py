import io
import json
import os
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from openfl_audio.director.run_folder import STATE, STATE_FORMAT, UNFINISHED, RunFolder, State, Status, owner_of
from openfl_audio.errors import RunFolderError, SubmissionError, WireError
from openfl_audio.formats import written_by
from openfl_audio.protocol.plan import ARCHIVE, EXPERIMENT_PLAN, INITIAL_MODEL, BestModel, ExperimentPlan, Task
from openfl_audio.protocol.rounds import Progress, Rounds
from openfl_audio.protocol.tensors import TensorFile, Tensors, write_tensors

MODEL = {"weight": np.array([1.0, 2.0], np.float32), "steps": np.array(0)}
TRAIN = Task(name="train", function_name="fit", task_type="train")


def make_plan(**changes: Any) -> ExperimentPlan:
    best = BestModel(metric="score", direction="max")
    content = {"name": "toy", "federation_uuid": "uuid", "rounds": 9, "tasks": [TRAIN], "best": best}
    return ExperimentPlan(**(content | changes))


def make_zip(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as zipped:
        for name in names:
            zipped.writestr(name, "content")
    return buffer.getvalue()


WORKSPACE = make_zip("plan/plan.yaml")


def model_bytes(tensors: Tensors) -> bytes:
    return safetensors.numpy.save(tensors)


def write_submission(path: Path, plan: ExperimentPlan | None = None, **changes: bytes | None) -> Path:
    content = {
        EXPERIMENT_PLAN: (plan or make_plan()).model_dump_json().encode(),
        ARCHIVE: WORKSPACE,
        INITIAL_MODEL: model_bytes(MODEL),
    } | {name.replace("__", "."): data for name, data in changes.items()}
    with zipfile.ZipFile(path, "w") as zipped:
        for name, data in content.items():
            if data is not None:
                zipped.writestr(name, data)
    return path


@pytest.fixture
def runs(tmp_path) -> Path:
    (tmp_path / "runs").mkdir()
    return tmp_path / "runs"


@pytest.fixture
def folder(runs, tmp_path) -> RunFolder:
    folder = RunFolder.create(runs, write_submission(tmp_path / "submission", make_plan(keep=2)), "me")
    folder.accept(["a", "b"], {})
    return folder


def weight(path: Path) -> float:
    with TensorFile(path) as file:
        return float(file.read("weight")[0])


def write_model(folder: RunFolder, aggregations: int) -> None:
    """A model whose weight tells after how many aggregations it came."""
    path = folder.model_after(aggregations)
    write_tensors(path, MODEL | {"weight": np.full(2, aggregations, np.float32)}, {"aggregations": aggregations})


def close_round(folder: RunFolder) -> None:
    """The steps in which a round is made to count, as the director takes them."""
    round_number, aggregations = folder.state.progress.round_number, folder.state.progress.aggregations + 1
    write_model(folder, aggregations)
    folder.history.append({"round": round_number}, durable=True)
    folder.state.progress = Progress(round_number=round_number + 1, aggregations=aggregations)
    folder.save_state()
    folder.link_model("last")
    folder.keep_round(round_number)
    folder.delete_updates()
    folder.delete_old_models()


def names_in(path: Path) -> set[str]:
    return {entry.name for entry in path.iterdir()}


def test_a_submission_becomes_a_folder_with_all_that_an_experiment_needs(runs, folder):
    assert folder.path == runs / "toy"
    assert names_in(runs) == {"toy"}
    assert names_in(folder.path) == {
        "experiment.json", "state.json", "workspace.zip", "models", "updates",
        "initial.safetensors", "last.safetensors",
    }  # fmt: skip
    assert folder.archive.read_bytes() == WORKSPACE
    with TensorFile(folder.model) as model:
        np.testing.assert_array_equal(model.load()["weight"], MODEL["weight"])
    loaded = RunFolder.load(folder.path)
    assert (loaded.plan, loaded.state, list(loaded.history)) == (make_plan(keep=2), folder.state, [])
    assert loaded.state.status is Status.PENDING
    assert loaded.state.owner == "me"


NAN = model_bytes({"weight": np.array([1, np.nan], np.float32)})
BAD_SUBMISSIONS: dict[str, tuple[dict[str, bytes | None], str]] = {
    "no plan": ({"experiment__json": None}, "'experiment.json' is missing"),
    "no archive": ({"workspace__zip": None}, "'workspace.zip' is missing"),
    "no model": ({"initial__safetensors": None}, "'initial.safetensors' is missing"),
    "a plan that is no JSON": ({"experiment__json": b"{"}, "content is"),
    "a plan with a name that leads out": (
        {"experiment__json": make_plan().model_dump_json().replace('"toy"', '"../toy"').encode()},
        "name is '../toy'",
    ),
    "a plan without rounds": (
        {"experiment__json": make_plan().model_dump_json().replace('"rounds":9', '"rounds":0').encode()},
        "rounds is 0",
    ),
    "an archive that is none": ({"workspace__zip": b"hello"}, "workspace.zip is no zip archive"),
    "an archive that leads out": ({"workspace__zip": make_zip("../evil")}, r"'\.\./evil' leads out"),
    "a model that is none": ({"initial__safetensors": b"hello"}, "the first global model is .*not a safetensors"),
    "a model cut short": ({"initial__safetensors": model_bytes(MODEL)[:-1]}, "the first global model is .*bytes"),
    "a model with NaN": ({"initial__safetensors": NAN}, "the first global model: tensor 'weight' holds NaN"),
    "a model of no tensor": ({"initial__safetensors": model_bytes({})}, "has no trained tensor"),
}


@pytest.mark.parametrize("fault", BAD_SUBMISSIONS)
def test_a_bad_submission_is_refused_and_leaves_nothing_behind(tmp_path, runs, fault):
    changes, sentence = BAD_SUBMISSIONS[fault]
    with pytest.raises(SubmissionError, match=sentence):
        RunFolder.create(runs, write_submission(tmp_path / "submission", **changes), "me")
    assert names_in(runs) == set()


def test_a_model_that_unpacks_to_more_than_was_sent_is_not_unpacked(tmp_path, runs):
    path = write_submission(tmp_path / "submission", initial__safetensors=None)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as zipped:
        zipped.writestr(INITIAL_MODEL, model_bytes({"weight": np.zeros(100_000, np.float32)}))
    sentence = f"'initial.safetensors' has 400080 bytes, more than {path.stat().st_size}"
    with pytest.raises(SubmissionError, match=sentence):
        RunFolder.create(runs, path, "me")
    assert names_in(runs) == set()


def with_flags(path: Path, offset: int, data: bytes) -> None:
    """Change two bytes of the first entry's header, and of its copy in the archive's directory."""
    content = bytearray(path.read_bytes())
    directory = int.from_bytes(content[-6:-2], "little")  # where it begins is written at the end
    content[offset : offset + 2] = content[directory + offset + 2 : directory + offset + 4] = data
    path.write_bytes(content)


UNREADABLE = {
    "no zip file": lambda path: path.write_bytes(b"hello"),
    "an encrypted entry": lambda path: with_flags(path, 6, b"\x01\x00"),
    "a compression that nobody knows": lambda path: with_flags(path, 8, b"\x63\x00"),
    # What was stored is taken for deflated data.
    "data that nobody can inflate": lambda path: with_flags(path, 8, b"\x08\x00"),
}


@pytest.mark.parametrize("fault", UNREADABLE)
def test_a_submission_that_cannot_be_unpacked_is_refused_too(tmp_path, runs, fault):
    submission = write_submission(tmp_path / "submission")
    UNREADABLE[fault](submission)
    with pytest.raises(SubmissionError, match="not an experiment of this project's notebooks"):
        RunFolder.create(runs, submission, "me")
    assert names_in(runs) == set()


def test_a_name_is_used_once_and_the_first_experiment_stays_as_it_was(tmp_path, runs, folder):
    before = {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}
    other = write_submission(tmp_path / "other", initial__safetensors=model_bytes({"weight": np.zeros(7)}))
    second = RunFolder.create(runs, other, "me")
    with pytest.raises(SubmissionError, match="an experiment named 'toy' exists already: choose another name"):
        second.accept(["a"], {})
    second.discard()
    assert {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()} == before
    assert names_in(runs) == {"toy"}


def test_an_experiment_has_its_name_no_earlier_than_its_members(tmp_path, runs):
    folder = RunFolder.create(runs, write_submission(tmp_path / "submission"), "me")
    (unfinished,) = names_in(runs)
    assert unfinished.startswith(UNFINISHED)
    folder.accept(["a", "b"], {})
    assert names_in(runs) == {"toy"}
    assert RunFolder.load(runs / "toy").state.members == ["a", "b"]


def test_an_experiment_comes_back_as_it_was(folder):
    for _ in range(3):
        close_round(folder)
    folder.state.status, folder.state.members = Status.IN_PROGRESS, ["a", "b"]
    folder.state.departed = {"c": "no memory"}
    folder.state.participants = ["a"]
    folder.save_state()
    loaded = RunFolder.load(folder.path)
    assert loaded.state == folder.state
    assert list(loaded.history) == [{"round": 0}, {"round": 1}, {"round": 2}]
    assert weight(loaded.model) == 3


def test_a_state_with_the_names_of_the_first_version_is_read(folder):
    folder.state.departed, folder.state.participants = {"c": "no memory"}, ["a"]
    folder.save_state()
    path = folder.path / "state.json"
    state = json.loads(path.read_text())
    old = {{"departed": "left", "participants": "asked"}.get(key, key): value for key, value in state.items()}
    assert {"left", "asked"} < old.keys()
    path.write_text(json.dumps(old))
    assert RunFolder.load(folder.path).state == folder.state


def test_after_a_restart_updates_are_there_and_what_was_half_written_of_the_rest_is_gone(folder):
    write_tensors(folder.take_update_file(), MODEL, {})
    folder.save_state()
    for name in (".state.json.partial", ".last.partial", ".history.jsonl.partial", "models/.4.safetensors.partial"):
        (folder.path / name).write_bytes(b"half")
    loaded = RunFolder.load(folder.path)
    assert len(loaded.updates()) == 1
    assert not list(loaded.path.rglob(".*"))


def test_updates_from_before_the_machine_went_down_do_not_count(folder):
    write_tensors(folder.take_update_file(), MODEL, {})
    folder.save_state()
    state = json.loads((folder.path / "state.json").read_text())
    (folder.path / "state.json").write_text(json.dumps(state | {"boot": "another one"}))
    assert RunFolder.load(folder.path).updates() == []


def test_each_update_on_its_way_has_a_file_of_its_own_until_that_is_free(folder):
    first, second = folder.take_update_file(), folder.take_update_file()
    assert first != second
    folder.free_update_file(first)
    assert folder.take_update_file() == first


def test_no_more_files_are_kept_for_updates_than_the_experiment_has_envoys(folder):
    folder.state.members = ["a", "b"]
    for path in [folder.take_update_file() for _ in range(9)]:
        folder.free_update_file(path)
    assert len(names_in(folder.path / "updates")) == 2


def test_a_line_of_history_whose_round_does_not_count_is_done_again(folder):
    close_round(folder)
    # Killed between the line and the state.
    write_model(folder, 2)
    folder.history.append({"round": 1, "lost": True}, durable=True)
    loaded = RunFolder.load(folder.path)
    assert list(loaded.history) == [{"round": 0}]
    assert weight(loaded.model) == 1
    close_round(loaded)
    assert list(RunFolder.load(folder.path).history) == [{"round": 0}, {"round": 1}]
    lines = (folder.path / "history.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"round": 0}, {"round": 1}]


@pytest.mark.parametrize("rest", ['{"round": 1, "met', '{"round": 1}', "{"])
def test_half_a_line_of_a_round_that_does_not_count_is_removed(folder, rest):
    close_round(folder)
    with (folder.path / "history.jsonl").open("a") as file:
        file.write(rest)
    loaded = RunFolder.load(folder.path)
    assert list(loaded.history) == [{"round": 0}]
    close_round(loaded)
    assert list(RunFolder.load(folder.path).history) == [{"round": 0}, {"round": 1}]


@pytest.mark.parametrize("rest", [b"", b'{"rou', bytes(13)])
def test_half_a_last_line_of_a_round_that_counts_does_not_keep_the_experiment_from_going_on(folder, rest):
    # The state is on disk for certain when it is replaced, the history is not: after a power cut it may end earlier.
    for _ in range(2):
        close_round(folder)
    history = folder.path / "history.jsonl"
    history.write_bytes(history.read_bytes().splitlines(keepends=True)[0] + rest)
    loaded = RunFolder.load(folder.path)
    assert list(loaded.history) == [{"round": 0}]
    assert loaded.state.progress.round_number == 2
    close_round(loaded)
    again = RunFolder.load(folder.path)
    assert list(again.history) == [{"round": 0}, {"round": 2}]


def test_the_state_of_the_round_before_finds_its_model_although_a_newer_one_is_there(folder):
    close_round(folder)
    before = (folder.path / "state.json").read_bytes()
    close_round(folder)
    (folder.path / "state.json").write_bytes(before)  # what a power cut may leave
    loaded = RunFolder.load(folder.path)
    assert loaded.state.progress == Progress(round_number=1, aggregations=1)
    assert weight(loaded.model) == 1
    assert list(loaded.history) == [{"round": 0}]
    close_round(loaded)
    assert weight(loaded.model) == weight(loaded.named_model("last")) == 2


def test_after_a_crash_between_the_state_and_the_links_the_last_model_is_the_new_one(folder):
    close_round(folder)
    write_model(folder, 2)
    folder.history.append({"round": 1}, durable=True)
    folder.state.progress = Progress(round_number=2, aggregations=2)
    folder.save_state()
    loaded = RunFolder.load(folder.path)
    assert weight(loaded.model) == 2
    assert weight(loaded.named_model("last")) == 2


def test_a_crash_between_a_link_and_its_name_is_no_obstacle(folder):
    os.link(folder.model, folder.path / ".last.partial")
    folder.link_model("last")
    assert ".last.partial" not in names_in(folder.path)


def add_to_plan(path: Path) -> None:
    # It may change what the rounds do.
    plan = json.loads((path / "experiment.json").read_text())
    (path / "experiment.json").write_text(json.dumps(plan | {"robust": True}))


BAD_FOLDERS = {
    "no plan": (lambda path: (path / "experiment.json").unlink(), "toy/experiment.json cannot be read: No such file"),
    "no state": (lambda path: (path / "state.json").unlink(), "toy/state.json cannot be read: No such file"),
    "half a state": (
        lambda path: (path / "state.json").write_text('{"owner": "m'),
        "toy/state.json cannot be used by openfl-audio ",
    ),
    "a plan of a newer version": (
        add_to_plan,
        "toy/experiment.json cannot be used by openfl-audio .*: robust is True: Extra",
    ),
    "a folder in place of the history": (
        lambda path: (path / "history.jsonl").mkdir(),
        "toy cannot be read: .*history",
    ),
    "a state of another time": (lambda path: (path / "state.json").write_text('{"owner": "m"}'), "submitted"),
}


@pytest.mark.parametrize("fault", BAD_FOLDERS)
def test_a_folder_that_holds_no_experiment_raises_and_is_named(folder, fault):
    spoil, sentence = BAD_FOLDERS[fault]
    spoil(folder.path)
    with pytest.raises(RunFolderError, match=sentence):
        RunFolder.load(folder.path)


def replace_by_the_first(path: Path) -> None:
    (path / "models/2.safetensors").write_bytes((path / "models/1.safetensors").read_bytes())


BAD_MODELS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no model": (lambda path: (path / "models/2.safetensors").unlink(), "No such file"),
    "an empty model": (
        lambda path: os.truncate(path / "models/2.safetensors", 0),
        "not a safetensors header: 0 bytes",
    ),
    "half a model": (lambda path: os.truncate(path / "models/2.safetensors", 150), "bytes"),
    "the model of another round": (replace_by_the_first, "it is the one after 1 aggregations, not after 2"),
}


@pytest.mark.parametrize("fault", BAD_MODELS)
def test_an_experiment_without_the_model_of_its_round_has_failed_until_that_is_back(folder, fault):
    spoil, sentence = BAD_MODELS[fault]
    for _ in range(2):
        close_round(folder)
    folder.state.status = Status.IN_PROGRESS
    folder.save_state()
    model = folder.model.read_bytes()
    spoil(folder.path)
    loaded = RunFolder.load(folder.path)
    assert loaded.state.status is Status.FAILED
    assert loaded.state.error.startswith(f"{folder.model} cannot be used: ")
    assert sentence in loaded.state.error
    folder.model.write_bytes(model)
    assert RunFolder.load(folder.path).state.status is Status.IN_PROGRESS


def test_with_a_server_optimizer_its_state_must_be_that_of_the_round_too(runs, tmp_path):
    plan = make_plan(aggregation={"server_optimizer": {"optimizer": "adam"}})
    folder = RunFolder.create(runs, write_submission(tmp_path / "submission", plan), "me")
    folder.accept(["a"], {})
    assert RunFolder.load(folder.path).state.status is Status.PENDING
    close_round(folder)
    moments = folder.optimizer_after(1)
    for wrong, sentence in ((None, "No such file"), (0, "it is the one after 0 aggregations, not after 1")):
        if wrong is not None:
            write_tensors(moments, {"moment": np.zeros(1, np.float32)}, {"aggregations": wrong})
        loaded = RunFolder.load(folder.path)
        assert loaded.state.status is Status.FAILED
        assert f"{moments} cannot be used: " in loaded.state.error
        assert sentence in loaded.state.error
    write_tensors(moments, {"moment": np.zeros(1, np.float32)}, {"aggregations": 1})
    assert RunFolder.load(folder.path).state.status is Status.PENDING


def test_keys_of_another_version_in_the_state_are_kept_and_named(folder, caplog):
    path = folder.path / "state.json"
    state = json.loads(path.read_text())
    path.write_text(json.dumps(state | {"color": "blue", "progress": state["progress"] | {"taste": "sweet"}}))
    loaded = RunFolder.load(folder.path)
    assert "unknown keys ['color'] are kept" in caplog.text
    assert "unknown keys ['taste'] are kept" in caplog.text
    loaded.state.progress = Rounds(loaded.plan, loaded.state.progress).next_progress()
    loaded.save_state()
    kept = json.loads(path.read_text())
    assert (kept["color"], kept["progress"]["taste"], kept["progress"]["round_number"]) == ("blue", "sweet", 1)


def test_a_state_of_a_later_format_is_refused_with_both_versions_and_left_as_it_is(folder):
    path = folder.path / STATE
    state = json.loads(path.read_text())
    assert (state["format"], state["version"]) == (STATE_FORMAT, written_by())
    later = json.dumps({"format": STATE_FORMAT + 1, "version": "9.1", "owner": "me", "state": "of another form"})
    path.write_text(later)
    with pytest.raises(RunFolderError) as caught:
        RunFolder.load(folder.path)
    assert str(caught.value) == (
        f"{path} has format 2, written by openfl-audio 9.1: this is openfl-audio {written_by()}, which knows format 1; "
        "run the version that wrote it, or a later one"
    )
    assert path.read_text() == later
    assert owner_of(folder.path) == "me"
    del state["format"], state["version"]
    path.write_text(json.dumps(state))  # as before there were formats
    assert RunFolder.load(folder.path).state.status is Status.PENDING


def test_a_plan_with_settings_of_another_version_is_refused_with_that_version(folder):
    path = folder.path / "experiment.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"color": "blue"}))
    with pytest.raises(RunFolderError, match=r"cannot be used by openfl-audio .* \(openfl-audio .* wrote it\): "):
        RunFolder.load(folder.path)


def test_what_other_users_of_the_machine_could_read_is_kept_from_them(folder):
    folder.path.chmod(0o755)
    RunFolder.load(folder.path)
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700


def test_an_experiment_has_its_name_only_when_all_of_it_is_on_the_disk(tmp_path, runs, monkeypatch):
    synced, sync, rename = set(), os.fsync, Path.rename

    def note_and_sync(descriptor: int) -> None:
        synced.add(os.fstat(descriptor).st_ino)
        sync(descriptor)

    def look_and_rename(path: Path, target: Path) -> Path:
        if target == runs / "toy":
            whole = [path, path / "models", *(file for file in path.rglob("*") if file.is_file())]
            assert [file.name for file in whole if file.stat().st_ino not in synced] == []
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", note_and_sync)
    monkeypatch.setattr(Path, "rename", look_and_rename)
    RunFolder.create(runs, write_submission(tmp_path / "submission"), "me").accept(["a"], {})
    assert names_in(runs) == {"toy"}
    assert runs.stat().st_ino in synced


def test_links_cost_nothing_and_outlive_the_models_they_were_made_of(folder):
    folder.link_model("best")
    assert folder.named_model("best").stat().st_ino == folder.model.stat().st_ino
    for _ in range(4):
        close_round(folder)
    assert weight(folder.named_model("initial")) == weight(folder.named_model("best")) == 1.0
    assert weight(folder.named_model("last")) == 4


def test_the_models_of_the_last_rounds_are_kept(folder):
    for _ in range(4):
        close_round(folder)
    kept = {name for name in names_in(folder.path) if name.startswith("round-")}
    assert kept == {"round-2.safetensors", "round-3.safetensors"}
    # Round r ends with the model of r + 1 aggregations.
    assert weight(folder.path / "round-2.safetensors") == 3


def test_without_keep_no_round_is_kept(runs, tmp_path):
    folder = RunFolder.create(runs, write_submission(tmp_path / "submission"), "me")
    close_round(folder)
    assert not [name for name in names_in(folder.path) if name.startswith("round-")]


def test_old_models_and_moments_go_but_the_current_ones_and_those_before(folder):
    for number in range(4):
        write_model(folder, number)
        write_tensors(folder.optimizer_after(number), {"moment": np.zeros(1, np.float32)}, {})
    folder.state.progress = Progress(round_number=7, aggregations=3)
    folder.delete_old_models()
    assert names_in(folder.path / "models") == {
        "2.safetensors", "3.safetensors", "2.optimizer.safetensors", "3.optimizer.safetensors",
    }  # fmt: skip


def test_an_ended_experiment_keeps_no_update_also_not_one_that_was_on_its_way(folder):
    folder.take_update_file()
    folder.free_update_file(folder.take_update_file())
    folder.state.status = Status.FINISHED
    folder.delete_updates()
    assert folder.updates() == []
    folder.free_update_file(folder.take_update_file())
    assert folder.updates() == []


def test_the_archive_of_an_experiment_is_removed_when_it_is_loaded_and_has_finished(folder):
    for status in (Status.PENDING, Status.IN_PROGRESS, Status.FAILED, Status.STOPPED):
        folder.state.status = status
        folder.save_state()
        assert RunFolder.load(folder.path).archive.exists()
    folder.state.status = Status.FINISHED
    folder.save_state()
    assert not RunFolder.load(folder.path).archive.exists()


def test_a_model_that_is_not_there_or_not_for_users_is_refused(folder):
    with pytest.raises(WireError, match="experiment 'toy' has no best model yet"):
        folder.named_model("best")
    for which in ("models/0", "../toy/initial", "round-1"):
        with pytest.raises(WireError, match=r"ask for one of \('initial', 'last', 'best'\)"):
            folder.named_model(which)


def test_the_state_on_disk_is_never_half_written(folder):
    before = (folder.path / "state.json").stat().st_ino
    folder.state.status = Status.FAILED
    folder.save_state()
    assert (folder.path / "state.json").stat().st_ino != before, "it is replaced, not written over"
    assert State.model_validate_json((folder.path / "state.json").read_bytes()).status is Status.FAILED
    assert ".state.json.partial" not in names_in(folder.path)


def test_a_model_that_somebody_reads_under_any_of_its_names_is_not_written_over(folder):
    folder.state.progress = folder.state.progress.model_copy(update={"aggregations": 0})
    folder.link_model("best")
    folder.state.progress = folder.state.progress.model_copy(update={"aggregations": 1})
    before = folder.model_after(0)
    assert folder.outdated_model() == before
    with folder.open_model(folder.named_model("best")):
        assert folder.outdated_model() is None
    assert folder.outdated_model() == before


def test_to_free_the_file_of_an_update_is_as_much_work_however_many_are_free(folder, monkeypatch):
    folder.state.members = [f"envoy-{number}" for number in range(50)]
    files = [folder.take_update_file() for _ in range(50)]
    compared = []
    equals = PurePath.__eq__
    monkeypatch.setattr(PurePath, "__eq__", lambda path, other: compared.append(path) or equals(path, other))
    for file in files:
        folder.free_update_file(file)
        folder.free_update_file(file)
    assert len(compared) <= 50
    assert {folder.take_update_file() for _ in files} == set(files)
