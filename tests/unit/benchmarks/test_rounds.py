"""Options of benchmarks/rounds.py."""

import pytest

from benchmarks.rounds import parse_arguments


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--envoys", "2"), "--secure takes 3 envoys at least, and not 2"),
        (("--envoys", "3", "--float16"), "--secure is for this project's engine, without --float16"),
        (("--envoys", "3", "--floor"), "--secure is for this project's engine, without --float16, --floor"),
        (("--envoys", "3", "--engine", "stock"), "--secure is for this project's engine"),
        (("--envoys", "3", "--peer", "flower"), "--secure is for this project's engine"),
    ],
)
def test_secure_run_is_refused_where_it_cannot_be(
    options: tuple[str, ...], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse_arguments(["--workload", "head", "--secure", *options])
    assert sentence in capsys.readouterr().err


def test_secure_run_of_three_envoys_is_taken() -> None:
    assert parse_arguments(["--workload", "head", "--envoys", "3", "--secure"]).secure
