"""`openfl-audio data prepare fsd50k`; preparation has tests of its own."""

import pytest

from openfl_audio.cli.main import main
from tests.unit.shard_descriptors.fsd50k_corpus import make_corpus

pytestmark = pytest.mark.process


@pytest.fixture
def corpus(tmp_path):
    clips = make_corpus(tmp_path / "FSD50K", [("ann", "train", (1.0, 0.4)), ("eve", "eval", (1.2,))])
    (tmp_path / "FSD50K" / clips[1].file).unlink()
    return [
        "data",
        "prepare",
        "fsd50k",
        "--data",
        str(tmp_path / "FSD50K"),
        "--out",
        str(tmp_path / "store"),
        "--workers",
        "1",
    ]


def test_a_first_run_tells_what_it_made_a_second_does_nothing_and_a_check_passes(corpus, capsys, tmp_path):
    assert main(corpus) == 0
    made = capsys.readouterr().out
    assert made.startswith(
        f"{tmp_path}/store: 2 clips of 2 uploaders, 0.00 h of audio in 0.000 GB; 1 left out, 0 averaged"
    )
    assert made.endswith(f"named in {tmp_path}/store/report.json\n")
    assert main(corpus) == 0
    assert capsys.readouterr().out == f"{tmp_path}/store is complete; nothing to do.\n"
    assert main([*corpus, "--check"]) == 0
    assert capsys.readouterr().out == f"{tmp_path}/store is complete and right.\n"


def test_a_check_that_fails_exits_with_1(corpus, capsys):
    assert main(corpus) == 0
    assert main([*corpus, "--check", "--features", "power"]) == 1
    assert "was made with {'features': 'log_mel'" in capsys.readouterr().out


def test_a_folder_that_is_no_fsd50k_and_workers_that_are_none_are_refused(corpus, capsys, tmp_path):
    assert main(["data", "prepare", "fsd50k", "--data", str(tmp_path), "--out", str(tmp_path / "store")]) == 1
    assert "is not an FSD50K folder: it lacks FSD50K.ground_truth" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*corpus, "--workers", "0"])
    assert "'--workers' is '0': input should be greater than or equal to 1" in capsys.readouterr().err
