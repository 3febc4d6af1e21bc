import json

from openfl_audio.files import write_result


def test_result_has_versions_and_leaves_no_temporary_file(tmp_path):
    write_result(tmp_path / "result.json", accuracy={"best": 0.5}, seed=3)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["accuracy"] == {"best": 0.5}
    assert result["seed"] == 3
    assert result["versions"]["openfl"] == "1.7.1"
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]
