"""The rounds of a run for those who watch it elsewhere: TensorBoard's files, and an experiment tracker."""

import json
from pathlib import Path
from typing import Any

from openfl_audio.director.tensorboard import TensorBoard, scalars
from openfl_audio.errors import SettingsError
from openfl_audio.files import write_json
from openfl_audio.training.history import Record
from openfl_audio.training.run_settings import RunSettings

TRACKED = "tracked.json"


class Watchers:
    """A context manager that passes the record of each round to TensorBoard's files in `out`/tensorboard.

    With `project_name` in the settings it also passes them to Trackio, whose database is on this machine
    (TRACKIO_DIR), and which `trackio show` opens. A run that is resumed sends it no round twice.

    Raises SettingsError if Trackio is wanted and not installed.
    """

    def __init__(self, settings: RunSettings, name: str, out: Path) -> None:
        self._settings, self._name, self._out = settings, name, out
        # Rounds of an earlier run are written again: TensorBoard takes those of the newest file.
        self._tensorboard = TensorBoard(out / "tensorboard", first_round=0)
        self._run: Any = None

    def __enter__(self) -> "Watchers":
        if self._settings.project_name is not None:
            self._run = _trackio().init(
                project=self._settings.project_name,
                name=self._name,
                config={**self._settings.model_dump(mode="json"), "tags": list(self._settings.tags)},
                resume="allow",
                embed=False,
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self._run is not None:
            _trackio().finish()

    def show(self, record: Record) -> None:
        """Pass on the record of a round."""
        self._tensorboard.add(record)
        if self._run is not None and record["round"] >= self._tracked():
            _trackio().log(dict(scalars(record)), step=record["round"])
            write_json(self._out / TRACKED, {"rounds": record["round"] + 1})

    def _tracked(self) -> int:
        path = self._out / TRACKED
        return json.loads(path.read_text(encoding="utf-8"))["rounds"] if path.exists() else 0


def _trackio() -> Any:
    try:
        import trackio
    except ImportError:
        raise SettingsError("project_name: the tracker needs Trackio: pip install 'openfl-audio[tracking]'") from None
    return trackio
