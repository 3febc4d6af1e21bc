import pytest

from openfl_audio.director.runs_lock import sole_director


def test_a_folder_is_that_of_one_director_until_it_ends(tmp_path):
    runs = tmp_path / "not/there/yet"
    with sole_director(runs):
        with (
            pytest.raises(OSError, match=f"another director works in {runs}: stop it, or give this one 'runs' of its"),
            sole_director(runs),
        ):
            pass
        with sole_director(tmp_path / "other"):
            pass
    with sole_director(runs):
        pass
