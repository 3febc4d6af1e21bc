"""The process that runs one experiment on a node, started by the envoy: `python -m envoys.worker`."""

import argparse
import faulthandler
import json
import logging
import os
import sys
import threading
import traceback
from pathlib import Path

import torch
from openfl.federated import Plan

from envoys.settings import EnvoyFile, build_shard_descriptor, connect
from envoys.transport import RoundsClient
from federation.environment import check_environment
from federation.plan import ENVIRONMENT_FILE, PLAN_FILE
from federation.settings import load_settings


def run_experiment(name: str, config: Path, experiment: str, folder: Path, tls: bool) -> None:
    settings = load_settings(config, EnvoyFile)
    channel = connect(settings.params, name, tls)
    shard_descriptor = build_shard_descriptor(settings.shard_descriptor, config.parent)

    # From here on the experiment's own code is in reach, before anything of that name that is installed.
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    check_environment(json.loads(Path(ENVIRONMENT_FILE).read_text()), f"envoy '{name}'")

    plan = Plan.parse(Path(PLAN_FILE))
    # A stock envoy reads OpenFL's own collaborator in the plan; ours knows how to fetch a model in one call.
    plan.config["collaborator"]["template"] = "envoys.collaborator.RoundCollaborator"
    client = RoundsClient(channel, name, experiment, plan.aggregator_uuid, plan.federation_uuid)
    collaborator = plan.get_collaborator(name, client=client, shard_descriptor=shard_descriptor)
    collaborator.set_available_devices(cuda=tuple(range(torch.cuda.device_count())))
    collaborator.run()


def end_with_envoy() -> None:
    """The envoy holds the other end of standard input; when it is gone there is nobody to work for."""
    while os.read(sys.stdin.fileno(), 1):
        continue
    os._exit(1)


def main() -> int:
    parser = argparse.ArgumentParser(prog="envoys.worker")
    parser.add_argument("-n", "--name", required=True)
    parser.add_argument("-c", "--config", required=True, type=Path)
    parser.add_argument("--experiment", required=True)
    parser.add_argument("--folder", required=True, type=Path)
    parser.add_argument("--disable-tls", action="store_true")
    arguments = parser.parse_args()
    faulthandler.enable()
    threading.Thread(target=end_with_envoy, daemon=True).start()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("openfl").setLevel(logging.WARNING)
    try:
        run_experiment(
            arguments.name, arguments.config, arguments.experiment, arguments.folder, tls=not arguments.disable_tls
        )
    except Exception:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
