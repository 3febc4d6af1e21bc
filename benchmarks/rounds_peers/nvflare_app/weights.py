"""The model on NVIDIA FLARE's server: NumPy arrays, as it sends them between server and clients by default."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from nvflare.apis.fl_context import FLContext  # type: ignore[import-not-found]
from nvflare.app_common.abstract.model import (  # type: ignore[import-not-found]
    ModelLearnable,
    ModelLearnableKey,
    make_model_learnable,
)
from nvflare.app_common.abstract.model_persistor import ModelPersistor  # type: ignore[import-not-found]
from nvflare.app_common.app_constant import AppConstants  # type: ignore[import-not-found]
from safetensors.numpy import save_file


class Weights(ModelPersistor):
    """Its own `NPModelPersistor` for several arrays instead of one; writes a line of JSON to `report` for each round.

    `shapes` is a JSON file with the shape of each array. FedAvg has the model loaded once, before the first round, and
    saved after each as soon as it is aggregated.
    """

    def __init__(self, shapes: str, report: str, rounds: int, step: float) -> None:
        super().__init__()
        self.shapes = shapes
        self.report = report
        self.rounds = rounds
        self.step = step

    def load_model(self, fl_ctx: FLContext) -> ModelLearnable:
        """Return the weights that the rounds begin with, and note the time."""
        weights = {str(number): weight for number, weight in enumerate(self._start())}
        self._write({"time": time.time()})
        return make_model_learnable(weights, {})

    def save_model(self, model: ModelLearnable, fl_ctx: FLContext) -> None:
        """Note the time after a round, and after the last one how far its weights are off."""
        line = {"time": time.time()}
        weights = model[ModelLearnableKey.WEIGHTS]
        if fl_ctx.get_prop(AppConstants.CURRENT_ROUND) == self.rounds - 1:
            line["off"] = self._largest_difference(weights)
        self._write(line)
        folder = fl_ctx.get_workspace().get_result_root(fl_ctx.get_job_id())
        save_file(weights, Path(folder) / "model.safetensors")

    def _start(self) -> Iterator[np.ndarray]:
        random = np.random.default_rng(0)
        for shape in json.loads(Path(self.shapes).read_text()):
            yield 0.02 * random.standard_normal(shape, dtype=np.float32)

    def _largest_difference(self, weights: dict[str, np.ndarray]) -> float:
        """Largest difference between the weights and what the rounds should have made of them; NaN if there is one."""
        goal = self.rounds * self.step
        pairs = zip(self._start(), weights.values(), strict=True)
        return float(np.max([np.abs(end - begin - goal).max() for begin, end in pairs]))

    def _write(self, line: dict[str, float]) -> None:
        with Path(self.report).open("a") as file:
            file.write(json.dumps(line) + "\n")
