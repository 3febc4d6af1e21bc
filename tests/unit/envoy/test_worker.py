import subprocess
import sys

# Two steps of an optimizer, as an experiment's tasks make them, after all that a worker does before it gets its job.
CODE = """
import sys
import torch
from openfl_audio.envoy.worker import load_optimizers

load_optimizers()
loaded = set(sys.modules)
layer = torch.nn.Linear(2, 1)
optimizer = torch.optim.{optimizer}(layer.parameters(), lr=0.1)
for _ in range(2):
    optimizer.zero_grad()
    layer(torch.ones(3, 2)).sum().backward()
    optimizer.step()
print(*sorted(set(sys.modules) - loaded))
"""


def test_a_worker_that_waits_for_its_job_has_loaded_what_training_needs():
    for optimizer in ("SGD", "AdamW"):
        command = [sys.executable, "-c", CODE.format(optimizer=optimizer)]
        assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.split() == []
