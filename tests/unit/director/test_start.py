"""The end of a director that could not start."""

import gc
import socket

import yaml
from grpc import aio

from openfl_audio.cli.main import main
from openfl_audio.protocol.privacy import TEST_NOISE


def test_no_server_is_left_to_the_end_of_the_interpreter(tmp_path, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        settings = {
            "listen_host": "127.0.0.1",
            "listen_port": port,
            "certificates": str(tmp_path),
            "runs": str(tmp_path / "runs"),
        }
        (tmp_path / "director.yaml").write_text(yaml.safe_dump({"settings": settings}))
        assert main(["director", "-c", str(tmp_path / "director.yaml"), "--disable-tls"]) == 1
    assert f"cannot listen on 127.0.0.1:{port}" in capsys.readouterr().err
    assert not [thing for thing in gc.get_objects() if issubclass(type(thing), aio.Server)]


def test_a_director_that_other_machines_can_reach_does_not_start_with_noise_that_repeats(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(TEST_NOISE, "0")
    with socket.create_server(("127.0.0.1", 0)) as taken:  # one that starts would end at once
        settings = {"listen_host": "0.0.0.0", "listen_port": taken.getsockname()[1], "runs": str(tmp_path / "runs")}
        (tmp_path / "director.yaml").write_text(yaml.safe_dump({"settings": settings}))
        assert main(["director", "-c", str(tmp_path / "director.yaml"), "--disable-tls"]) == 1
    assert (
        f"{TEST_NOISE} makes noise repeat, which protects nobody, and the director listens on 0.0.0.0, for other "
        "machines: start it without" in capsys.readouterr().err
    )
    assert not (tmp_path / "runs").exists()
