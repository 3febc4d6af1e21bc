import subprocess
import sys

import pytest

pytestmark = pytest.mark.process

# Two steps of each optimizer, as an experiment's tasks make them, after all that a worker does before it gets its job.
CODE = """
import os
import sys
import threading
import torch
from openfl_audio.envoy import worker

reader, writer = os.pipe()
if {job_comes}:
    worker.SOON_SECONDS = 600  # it does not wait for as long, as the job comes while it waits
    threading.Timer(0.1, os.write, (writer, b"job")).start()
worker.load_libraries(os.fdopen(reader, "rb"))
loaded = set(sys.modules)
for kind in (torch.optim.SGD, torch.optim.AdamW):
    layer = torch.nn.Linear(2, 1)
    optimizer = kind(layer.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        layer(torch.ones(3, 2)).sum().backward()
        optimizer.step()
print(*sorted(set(sys.modules) - loaded))
print("transformers.modeling_utils" in loaded)
"""


@pytest.mark.parametrize("job_comes", [False, True], ids=["no job yet", "its job comes soon"])
def test_a_worker_has_loaded_what_training_needs_and_transformers_only_while_it_has_nothing_else_to_do(job_comes):
    command = [sys.executable, "-c", CODE.format(job_comes=job_comes)]
    ended = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    new, has_transformers = ended.stdout.splitlines()
    assert new.split() == []
    assert has_transformers == str(not job_comes)
