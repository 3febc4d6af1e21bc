"""The benchmark's workloads for Flower: every client adds a step to every weight, FedAvg takes the mean.

Weights are NumPy arrays, which is what Flower makes of a PyTorch model before it sends it. It runs in Flower's own
environment, which has neither torch nor this project.
"""

import json
import time
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict  # type: ignore[import-not-found]
from flwr.clientapp import ClientApp  # type: ignore[import-not-found]
from flwr.serverapp import Grid, ServerApp  # type: ignore[import-not-found]
from flwr.serverapp.strategy import FedAvg  # type: ignore[import-not-found]

client = ClientApp()
server = ServerApp()


@client.train()
def train(message: Message, context: Context) -> Message:
    """Answer with the weights of the message, each plus a step."""
    step = np.float32(context.run_config["step"])
    arrays = [array + step for array in message.content["arrays"].to_numpy_ndarrays()]
    content = RecordDict({"arrays": ArrayRecord(arrays), "metrics": MetricRecord({"num-examples": 4})})
    return Message(content=content, reply_to=message)


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Run the rounds, and note the time after each and how far the last weights are off."""
    config = context.run_config
    random = np.random.default_rng(0)
    shapes = json.loads(Path(config["shapes"]).read_text())
    start = [0.02 * random.standard_normal(shape, dtype=np.float32) for shape in shapes]

    def report(number: int, arrays: ArrayRecord) -> None:
        """Called before the first round, and after each as soon as it is aggregated."""
        line = {"time": time.time(), "bytes": arrays.count_bytes()}
        if number == config["rounds"]:
            goal = number * config["step"]
            line["off"] = max(
                float(np.abs(end - begin - goal).max())
                for begin, end in zip(start, arrays.to_numpy_ndarrays(), strict=True)
            )
        with Path(config["report"]).open("a") as file:
            file.write(json.dumps(line) + "\n")

    nodes = config["nodes"]
    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=nodes, min_available_nodes=nodes)
    strategy.start(grid, ArrayRecord(start), num_rounds=config["rounds"], evaluate_fn=report)
