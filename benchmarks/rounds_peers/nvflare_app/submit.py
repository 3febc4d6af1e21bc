"""Submits the benchmark's workload to NVIDIA FLARE as a job: every client adds a step, FedAvg takes the mean.

    python submit.py STARTUP_KIT USER CONFIG

It runs in NVIDIA FLARE's own environment, which has neither torch nor this project. CONFIG is a JSON file.
"""

import json
import sys
from pathlib import Path

from nvflare.fuel.utils.constants import FrameworkType  # type: ignore[import-not-found]
from nvflare.recipe import ProdEnv  # type: ignore[import-not-found]
from nvflare.recipe.fedavg import FedAvgRecipe  # type: ignore[import-not-found]
from weights import Weights  # type: ignore[import-not-found]

startup_kit, user, config_file = sys.argv[1:]
config = json.loads(Path(config_file).read_text())
recipe = FedAvgRecipe(
    name="benchmark",
    min_clients=config["clients"],
    num_rounds=config["rounds"],
    train_script=str(Path(__file__).with_name("client.py")),
    train_args=str(config["step"]),
    framework=FrameworkType.NUMPY,
    model_persistor=Weights(config["shapes"], config["report"], config["rounds"], config["step"]),
)
recipe.execute(ProdEnv(startup_kit_location=startup_kit, username=user))
