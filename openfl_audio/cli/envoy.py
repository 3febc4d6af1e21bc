"""`openfl-audio envoy` and `openfl-audio check envoy`: the envoy of a federation."""

import logging
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, NoReturn

from pydantic import BaseModel

from openfl_audio.cli.options import Command, changes_option, option
from openfl_audio.config import load_settings, parse_change
from openfl_audio.errors import OpenFLAudioError, SettingsError
from openfl_audio.process import prepare_process


class Envoy(Command):
    """Start an envoy, which trains on recordings here.

    The settings, such as envoys/superb.yaml, name the director and the shard descriptor that reads the recordings.
    Paths in them are relative to their file. CUDA_VISIBLE_DEVICES is passed on as it is: experiments see those GPUs
    and no others.
    """

    example: ClassVar[str] = (
        "openfl-audio envoy -n envoy_1 -c envoys/superb.yaml --set params.director_host=fl.example.org"
    )

    reads_settings: ClassVar[bool] = True

    name: str = option("name of the envoy, the one in its certificate", short="-n")
    config: Path = option("YAML file of the settings", short="-c", metavar="FILE")
    set_: list[str] = changes_option("params.director_port=50052")
    disable_tls: bool = option("no encryption, and no proof of who is who", False)

    @classmethod
    def settings_class(cls, given: Mapping[str, Any]) -> type[BaseModel]:
        from openfl_audio.envoy.settings import EnvoyFile

        return EnvoyFile

    def run(self) -> None:
        from openfl_audio.envoy.envoy import Envoy as EnvoyProcess
        from openfl_audio.envoy.settings import EnvoyFile, build_shard_descriptor
        from openfl_audio.protocol.plan import NAME

        if not NAME.fullmatch(self.name):
            raise SettingsError(f"envoy name {self.name!r}: use letters, digits, '.', '_' and '-'")
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
        prepare_process()
        for signal_number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signal_number, stop)
        config = self.config.resolve()
        settings = load_settings(config, EnvoyFile, dict(map(parse_change, self.set_)))
        try:
            shard_descriptor = build_shard_descriptor(settings.shard_descriptor, config.parent)
            EnvoyProcess(self.name, settings, shard_descriptor, config, not self.disable_tls).run()
        except OpenFLAudioError:
            raise
        except ValueError as error:  # of somebody else's shard descriptor
            raise SettingsError(str(error)) from error


def stop(signal_number: int, _frame: object) -> NoReturn:
    """End the envoy without an error."""
    logging.getLogger("envoy").info("envoy stops (%s)", signal.Signals(signal_number).name)
    raise SystemExit(0)


class CheckEnvoy(Command):
    """Check the shard of an envoy's settings, without a director.

    The shard is built as the envoy would build it, and ten items of each split are read. What they are is printed:
    shapes, classes, durations; then each thing that is wrong, with exit code 1.
    """

    example: ClassVar[str] = "openfl-audio check envoy -c envoys/superb.yaml"

    config: Path = option("YAML file of the settings", short="-c", metavar="FILE")

    def run(self) -> int:
        from openfl_audio.envoy.check import check_envoy

        check = check_envoy(self.config)
        print("\n".join(check.lines))
        for fault in check.faults:
            print(f"fault: {fault}")
        return int(bool(check.faults))
