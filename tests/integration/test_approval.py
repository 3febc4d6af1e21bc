"""Sites that approve what runs: asked in a folder, listed by hash or author, and past a director that swaps code."""

import contextlib
import io
import os
import signal
import zipfile
from functools import partial

import pytest
import yaml

from openfl_audio.cli.main import main
from openfl_audio.envoy.approval import Approvals
from openfl_audio.errors import ExperimentFailedError
from openfl_audio.experiments.local_federation import LocalFederation
from openfl_audio.protocol.plan import ARCHIVE
from tests.integration.conftest import READY_SECONDS, USER, points, status_of, wait_for

PERSON = "patient-4711-meier"
pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def sites(tmp_path_factory, certificates):
    """A director, envoy 'b' whose site is asked, and 'c' with a list of one author."""
    folder = tmp_path_factory.mktemp("sites")
    (folder / "settings").mkdir()
    (folder / "settings" / "approved.yaml").write_text(yaml.safe_dump({"authors": ["colleague"]}))
    with LocalFederation(folder, certificates, USER) as processes:
        processes.start_director()
        processes.start_envoy("b", points(3), approval="ask")
        policy = {"metrics": ["accuracy", "slope", "loss"], "counts": "none", "max_day_mb": 1.0}
        shard = {"template": "toy.shard.NamedPointsShardDescriptor", "params": {"n_points": 2, "person": PERSON}}
        processes.start_envoy("c", shard, approval="listed", approved="approved.yaml", policy=policy)
        processes.wait_until_ready("bc", READY_SECONDS)
        yield processes


@pytest.fixture(scope="module")
def make(sites, connect):
    import toy
    from toy.experiment import PointsData, model_interface, task_interface

    from openfl_audio.notebook.interactive_api import FLExperiment, TaskInterface

    def make(name, user=USER, weight=0.0, rounds=2, envoys=("b",), train=None, **changes):
        experiment = FLExperiment(connect(sites, user), name, workspace=toy)
        tasks = train if isinstance(train, TaskInterface) else task_interface(train) if train else task_interface()
        arguments = {"model_provider": model_interface(weight), "task_keeper": tasks, "data_loader": PointsData()}
        return experiment, partial(experiment.start, rounds_to_train=rounds, envoys=envoys, **arguments, **changes)

    return make


@pytest.fixture
def site(sites):
    """Run a command at the site of envoy 'b', and return its exit code."""
    options = ["-n", "b", "-c", str(sites.folder / "settings" / "b.yaml")]
    return lambda *words: main([words[0], *words[1:], *options])


def waits_of(sites, name):
    return next(each["waits"] for each in status_of(sites)["experiments"] if each["name"] == name)


def test_a_site_is_asked_and_asked_again_after_any_change(sites, make, site, capsys):
    experiment, start = make("asked")
    start()
    wait_for(lambda: waits_of(sites, "asked") == "approval by b")
    assert experiment.federation.dir_client.get_experiment("asked").waits == "approval by b"
    with contextlib.closing(experiment.federation.dir_client.stream_history("asked")) as messages:
        assert str(next(messages)) == "waits='approval by b'"
        live = next(message for message in messages if getattr(message, "live", None) == 0)
    assert {envoy.name: envoy.state for envoy in live.envoys}["b"] == "waits for approval"
    capsys.readouterr()
    assert site("review") == 0
    assert "asked" in capsys.readouterr().out
    assert site("review", "asked") == 0
    shown = capsys.readouterr().out
    assert "experiment 'asked' of 'scientist', signed with that certificate: waits for a decision" in shown
    assert "after training, in each of 2 rounds: 2 tensors, 8 bytes" in shown
    assert "def add_points(model, points, device, optimizer):" in shown
    assert "model=partial(toy.experiment.create_model, 0.0)" in shown
    assert site("approve", "asked") == 0
    history = experiment.watch()
    assert history.slope.tolist() == [0.0, 3.0, 6.0], "every weight grows by the number of points"

    # Another name and seed, and fewer rounds: nobody is asked.
    from openfl_audio.protocol.participation import Participation

    again, start = make("asked-again", rounds=1, participation=Participation(seed=7))
    start()
    assert len(again.watch()) == 2

    more, start = make("asked-more", rounds=3)
    start()
    wait_for(lambda: waits_of(sites, "asked-more") == "approval by b")
    more.stop()

    changed, start = make("asked-other", weight=1.0)
    start()
    wait_for(lambda: waits_of(sites, "asked-other") == "approval by b")
    capsys.readouterr()
    assert site("review", "asked-other") == 0
    shown = capsys.readouterr().out
    assert "== Differences to 'asked-again'" in shown or "== Differences to 'asked'" in shown
    assert site("reject", "asked-other", "--reason", "no consent for this purpose") == 0
    with pytest.raises(ExperimentFailedError, match="site of envoy 'b' has rejected this experiment: no consent"):
        changed.watch()


def test_a_director_that_swaps_the_code_is_found(sites, make, site):
    """The experiment that the test before approved is submitted once more, and changed before the envoy gets it."""
    experiment, start = make("swapped")
    pid = sites.pid("b")
    os.kill(pid, signal.SIGSTOP)
    try:
        start()
        archive = sites.folder / "director" / "swapped" / ARCHIVE
        archive.write_bytes(with_other_code(archive.read_bytes()))
    finally:
        os.kill(pid, signal.SIGCONT)
    wait_for(lambda: waits_of(sites, "swapped") == "approval by b")
    approvals = Approvals(sites.folder / "envoys" / "b")
    approved = approvals.find("asked")
    assert approved.decision == "approved"
    assert approvals.find("swapped").sha256 != approved.sha256
    experiment.stop()


def with_other_code(archive: bytes) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as before, zipfile.ZipFile(made, "w") as after:
        for name in before.namelist():
            content = before.read(name)
            if name == "toy/experiment.py":
                content = content.replace(b"add_(len(points))", b"add_(len(points) + 1)")
            after.writestr(name, content)
    return made.getvalue()


def test_a_listed_author_needs_no_approval_and_others_are_refused(make):
    experiment, start = make("by-colleague", user="colleague", envoys=("c",))
    start()
    assert experiment.watch().slope.tolist() == [0.0, 2.0, 4.0]
    experiment, start = make("by-scientist", envoys=("c",))
    start()
    with pytest.raises(ExperimentFailedError, match=r"signed by 'scientist'\) is not on the list"):
        experiment.watch()


def test_code_that_cannot_be_shown_is_refused(make):
    def train(model, points, device, optimizer):
        return {"loss": 0.0}

    experiment, start = make("inside", train=train)
    start()
    with pytest.raises(ExperimentFailedError, match="pickled code objects, which cannot be shown: task 'train'"):
        experiment.watch()


def test_a_policy_refuses_in_one_sentence_before_anything_is_trained(sites, make):
    experiment, start = make("too-choosy", user="colleague", envoys=("c",), best=("wer", "min"))
    start()
    sentence = (
        "the policy of envoy 'c' refuses the experiment: its best model is chosen by 'wer', and what may leave is"
    )
    with pytest.raises(ExperimentFailedError, match=sentence):
        experiment.watch()
    assert not (sites.folder / "envoys" / "c" / "too-choosy" / "worker.log").exists()


def test_no_name_of_a_person_reaches_director_or_notebook(sites, make, capsys):
    from toy.experiment import name_telling_tasks

    experiment, start = make("names", user="colleague", envoys=("c",), train=name_telling_tasks())
    start()
    reached = []
    with (
        pytest.raises(ExperimentFailedError) as caught,
        contextlib.closing(experiment.federation.dir_client.stream_history("names")) as messages,
    ):
        reached += map(str, messages)
    assert 'raise RuntimeError(f"no number: {points.files}")' in str(caught.value), "lines of code are told"
    assert "builtins.ValueError" in str(caught.value)
    assert PERSON in (sites.folder / "envoys" / "c" / "names" / "worker.log").read_text(), "the site itself has it"
    shown = [str(experiment.federation.get_shard_registry()), str(status_of(sites)), experiment.logs("c"), *reached]
    shown += [str(experiment.history), str(experiment.per_envoy()), str(caught.value), capsys.readouterr().out]
    kept = [path for path in (sites.folder / "director").rglob("*") if path.is_file()]
    assert any(path.name == "history.jsonl" for path in kept)
    assert any("loss" in text for text in shown)
    for text in (*shown, *(path.read_bytes().decode(errors="replace") for path in (*kept, sites.log("director")))):
        assert PERSON not in text
