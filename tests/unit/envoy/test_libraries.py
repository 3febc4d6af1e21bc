"""What a worker does not use it does not load, and whoever uses it finds it."""

import json
import subprocess
import sys
from typing import Any

import pytest

OPTIMIZERS = ("SGD", "Adam", "AdamW", "Adagrad", "RMSprop", "NAdam")

# Two steps with every optimizer: the sums of the trained weights.
TRAIN = f"""
import json
import sys
import torch

def trained(name):
    torch.manual_seed(0)
    layer = torch.nn.Linear(3, 1)
    optimizer = getattr(torch.optim, name)(layer.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    for _ in range(2):
        optimizer.zero_grad()
        layer(torch.ones(2, 3)).square().sum().backward()
        optimizer.step()
        scheduler.step()
    optimizer.load_state_dict(optimizer.state_dict())
    return sum(parameter.sum().item() for parameter in layer.parameters())

def train():
    return [trained(name) for name in {OPTIMIZERS}]
"""

# A step that is differentiated by its rate, and one that must not be.
DIFFERENTIATE = """
def differentiate():
    rate, start = torch.tensor(0.5, requires_grad=True), torch.tensor(2.0, requires_grad=True)
    stepped = start.clone()
    stepped.grad = torch.tensor(3.0)
    torch.optim.SGD([stepped], lr=rate, differentiable=True).step()
    stepped.backward()
    plain = torch.nn.Parameter(torch.tensor(2.0))
    plain.grad = torch.tensor(3.0)
    torch.optim.SGD([plain], lr=0.5).step()
    return stepped.item(), rate.grad.item(), start.grad.item(), plain.item(), torch.is_grad_enabled()
"""

COMPILE = """
def compiled():
    layer = torch.nn.Linear(1, 1, bias=False)
    layer.weight.data.fill_(1.0)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.25)

    @torch.compile(backend="eager")
    def step():
        optimizer.zero_grad()
        layer(torch.ones(1, 1)).sum().backward()
        optimizer.step()

    for _ in range(3):
        step()
    torch.compile(optimizer.step, backend="eager")()
    return layer.weight.item()
"""

IN_A_WORKER = f"""
import openfl_audio.envoy.worker
{TRAIN}
{DIFFERENTIATE}
{COMPILE}
found = {{"trained": train(), "differentiated": differentiate()}}
found["loaded"] = [name for name in ("sklearn", "scipy", "pip", "torch._dynamo", "sympy") if name in sys.modules]

import numpy as np
from openfl.pipelines import KCPipeline
from openfl.utilities.workspace import freeze
found["compressed"] = KCPipeline(n_clusters=2).transformers[0].forward(np.array([1, 1, 5, 5], np.float32))[0].tolist()
found["frozen"] = list(freeze.freeze())
from sklearn.metrics import accuracy_score
found["score"] = float(accuracy_score([1], [1]))

found["compiled"] = compiled()
found["trained with compiler"] = train()
found["differentiated with compiler"] = differentiate()
print(json.dumps(found))
"""


def in_new_process(code: str) -> Any:
    return json.loads(subprocess.check_output([sys.executable, "-c", code], text=True).splitlines()[-1])


@pytest.fixture(scope="module")
def worker() -> dict[str, Any]:
    return in_new_process(IN_A_WORKER)


def test_a_worker_trains_without_compression_packing_and_compiler(worker):
    assert worker["loaded"] == []


def test_optimizers_do_what_they_do_elsewhere_before_and_after_the_compiler_is_loaded(worker):
    elsewhere = in_new_process(f"{TRAIN}\nprint(json.dumps(train()))")
    assert len(set(elsewhere)) == len(OPTIMIZERS), "one could not tell"
    assert worker["trained"] == elsewhere
    assert worker["trained with compiler"] == elsewhere


def test_a_step_can_be_differentiated(worker):
    # start - rate * gradient is 2 - 0.5 * 3, its derivative by the rate -3, and by the start 1.
    assert worker["differentiated"] == [0.5, -3.0, 1.0, 0.5, True]
    assert worker["differentiated with compiler"] == worker["differentiated"]


def test_a_task_may_compile_its_step(worker):
    assert worker["compiled"] == 0.0


def test_what_is_left_out_is_there_for_openfl_and_for_an_experiment(worker):
    assert worker["compressed"] in ([0, 0, 1, 1], [1, 1, 0, 0])
    assert any("numpy" in line for line in worker["frozen"])
    assert worker["score"] == 1.0


@pytest.mark.parametrize("first", ["import sklearn.cluster", "from openfl.federated import Plan"])
def test_what_was_imported_before_stays_as_it_is(first):
    code = f"""
import json, sys
{first}
before = sys.modules["sklearn"]
import openfl_audio.envoy.worker
from openfl.pipelines import kc_pipeline
print(json.dumps([sys.modules["sklearn"] is before, kc_pipeline.cluster is sys.modules["sklearn.cluster"]]))
"""
    assert in_new_process(code) == [True, True]
