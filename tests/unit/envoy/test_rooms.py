from pathlib import Path

from openfl_audio.envoy.downloads import remove_download
from openfl_audio.envoy.rooms import enter, make_room


def test_a_room_becomes_that_of_an_experiment_whose_state_stays_when_it_ends(tmp_path: Path):
    experiment = tmp_path / "toy"
    for run in (1, 2):
        (experiment / "workspace").mkdir(parents=True)
        (experiment / "workspace/code.py").write_text("code")
        room = make_room(tmp_path, None)
        entered = enter(room, experiment, None)
        assert not room.exists()
        assert sorted(path.name for path in entered.iterdir()) == [
            "home",
            *(["state"] if run == 2 else []),
            "tmp",
            "workspace",
        ]
        if run == 1:
            (entered / "state").mkdir()
            (entered / "state/a.pt").write_text("of round 1")
        assert (entered / "state/a.pt").read_text() == "of round 1"
        remove_download(experiment)
        assert [path.name for path in experiment.rglob("*")] == ["state", "a.pt"]


def test_what_a_killed_worker_left_in_its_room_is_kept_when_the_experiment_goes_on(tmp_path: Path):
    experiment = tmp_path / "toy"
    (experiment / "room/state").mkdir(parents=True)
    (experiment / "room/state/a.pt").write_text("of round 1")
    (experiment / "room/tmp").mkdir()
    (experiment / "workspace").mkdir()
    entered = enter(make_room(tmp_path, None), experiment, None)
    assert (entered / "state/a.pt").read_text() == "of round 1"


def test_a_link_in_the_place_of_the_state_is_removed_and_never_followed(tmp_path: Path):
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/key").touch()
    (tmp_path / "toy/room").mkdir(parents=True)
    (tmp_path / "toy/room/state").symlink_to(tmp_path / "secret")
    remove_download(tmp_path / "toy")
    assert (tmp_path / "secret/key").exists()
    assert [*(tmp_path / "toy").iterdir()] == []
