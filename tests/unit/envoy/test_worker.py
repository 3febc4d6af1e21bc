import subprocess
import sys

import pytest

pytestmark = pytest.mark.process

# Two steps of an optimizer, as an experiment's tasks make them, after all that a worker does before it gets its job.
CODE = """
import sys
import torch
from openfl_audio.envoy.worker import load_libraries

load_libraries(job_comes={job_comes})
loaded = set(sys.modules)
layer = torch.nn.Linear(2, 1)
optimizer = torch.optim.{optimizer}(layer.parameters(), lr=0.1)
for _ in range(2):
    optimizer.zero_grad()
    layer(torch.ones(3, 2)).sum().backward()
    optimizer.step()
print(*sorted(set(sys.modules) - loaded))
"""


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
def test_a_worker_that_waits_for_its_job_has_loaded_what_training_needs(optimizer):
    command = [sys.executable, "-c", CODE.format(optimizer=optimizer, job_comes=True)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.split() == []


@pytest.mark.parametrize("job_comes", [False, True], ids=["no job yet", "its job is there"])
def test_a_worker_loads_transformers_only_while_it_has_nothing_else_to_do(job_comes):
    code = (
        f"import sys; from openfl_audio.envoy.worker import load_libraries; load_libraries({job_comes}); "
        "print('transformers.modeling_utils' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert found == [str(not job_comes)]
