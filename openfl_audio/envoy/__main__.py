"""Command line of an envoy: `start_envoy.sh` ends up here."""

import argparse
import logging
import signal
import sys
from pathlib import Path
from typing import NoReturn

from openfl_audio.config import load_settings
from openfl_audio.envoy.envoy import Envoy
from openfl_audio.envoy.settings import EnvoyFile, build_shard_descriptor
from openfl_audio.errors import CertificateError, ConnectionRefusedByDirectorError, SettingsError
from openfl_audio.process import prepare_process
from openfl_audio.protocol.plan import NAME


def stop(signal_number: int, _frame: object) -> NoReturn:
    logging.getLogger("envoy").info("envoy stops (%s)", signal.Signals(signal_number).name)
    raise SystemExit(0)


def main() -> int:
    parser = argparse.ArgumentParser(prog="start_envoy.sh", description="Start an envoy of a federation.")
    parser.add_argument("-n", "--name", required=True, help="the envoy's name, the one in its certificate")
    parser.add_argument(
        "-c", "--config", required=True, type=Path, help="settings of the envoy, e.g. envoys/superb.yaml"
    )
    parser.add_argument("--disable-tls", action="store_true", help="no encryption, and no proof of who is who")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    prepare_process()
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signal_number, stop)
    config = arguments.config.resolve()
    try:
        if not NAME.fullmatch(arguments.name):
            raise SettingsError(f"envoy name {arguments.name!r}: use letters, digits, '.', '_' and '-'")
        settings = load_settings(config, EnvoyFile)
        shard_descriptor = build_shard_descriptor(settings.shard_descriptor, config.parent)
        Envoy(arguments.name, settings.params, shard_descriptor, config, tls=not arguments.disable_tls).run()
    except (SettingsError, CertificateError, ConnectionRefusedByDirectorError, ValueError, OSError) as error:
        print(f"envoy '{arguments.name}': {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
