"""Task of every client: add a step to each weight."""

import sys

import numpy as np
import nvflare.client as flare  # type: ignore[import-not-found]

step = np.float32(sys.argv[1])
flare.init()
while flare.is_running():
    model = flare.receive()
    weights = {name: weight + step for name, weight in model.params.items()}
    flare.send(flare.FLModel(params=weights, meta={"NUM_STEPS_CURRENT_ROUND": 4}))
