"""Objects as text: written in a notebook, built on a node that approved what it was shown."""

import json
import linecache
import math
import sys
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from openfl.interface.interactive_api.experiment import TaskInterface

from openfl_audio.errors import ArchiveError, DefinitionError
from openfl_audio.node.model_interface import ModelInterface
from openfl_audio.node.objects import Builder, build_objects
from openfl_audio.node.shard_data import ShardData
from openfl_audio.notebook.source_form import Writer, write_objects
from openfl_audio.protocol.plan import NOTEBOOK_MODULE, OBJECTS_FILE
from workspaces.keyword_spotting.tasks import TrainingSettings

CELL = """
import math as m
import torch
from functools import partial
from openfl_audio.node.model_interface import ModelInterface
from openfl_audio.node.shard_data import ShardData
from openfl_audio.notebook.interactive_api import TaskInterface
from workspaces.keyword_spotting.tasks import TrainingSettings

FACTOR = 3
SETTINGS = TrainingSettings(rounds=5)
TI = TaskInterface()
experiment = open

class Clips(ShardData):
    limit = FACTOR

def helper(experiment):
    return experiment * FACTOR + m.floor(SETTINGS.rounds)

@TI.add_kwargs(settings=SETTINGS)
@TI.register_fl_task(model="model", data_loader="clips", device="device", optimizer="optimizer")
def train(model, clips, device, optimizer, settings):
    return {"loss": helper(2.0), "rounds": settings.rounds}

@TI.register_fl_task(model="model", data_loader="clips", device="device")
@torch.no_grad()
def validate(model, clips, device):
    return {"accuracy": 1.0, "grad": float(torch.is_grad_enabled()), "limit": clips.limit}

model = ModelInterface(partial(torch.nn.Linear, 2, 1), partial(torch.optim.SGD, lr=0.1), local_tensors=["bias"])
data = Clips()
"""


def run_cell(source: str, monkeypatch) -> dict:
    """Run a cell as a notebook does: in the module `__main__`, with its source where tracebacks look for it."""
    name = f"<cell {hash(source)}>"
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    main = ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)
    exec(compile(source, name, "exec"), vars(main))
    return vars(main)


def test_what_a_notebook_defines_in_its_cells_is_sent_as_source_and_does_the_same(tmp_path, monkeypatch):
    cell = run_cell(CELL, monkeypatch)
    objects, source = write_objects(cell["model"], cell["TI"], cell["data"])
    assert "register_fl_task" not in source, "the objects register the tasks"
    assert "experiment" not in source.replace("def helper(experiment)", "").replace("return experiment", "")
    (tmp_path / OBJECTS_FILE).write_text(objects)
    (tmp_path / f"{NOTEBOOK_MODULE}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    model, tasks, data = build_objects(tmp_path)
    assert tasks.task_contract == cell["TI"].task_contract
    settings = tasks.task_settings["train"]
    assert settings == {"settings": TrainingSettings(rounds=5)}
    arguments = {"model": None, "clips": data, "device": "cpu"}
    assert tasks.task_registry["train"](**arguments, optimizer=None, **settings) == {"loss": 11.0, "rounds": 5}
    assert tasks.task_registry["validate"](**arguments) == {"accuracy": 1.0, "grad": 0.0, "limit": 3}
    assert isinstance(model, ModelInterface)
    assert model.local_tensors == ("bias",)
    assert model.model().weight.shape == (1, 2)
    assert model.optimizer.keywords == {"lr": 0.1}


def rebuilt(value):
    return Builder().build(json.loads(json.dumps(Writer().write(value, "a value"))))


@pytest.mark.parametrize(
    "value",
    [None, True, 3, 0.1, "é\n", [1, (2, {3})], {"a": 1, 2: frozenset({"b"})}, Path("a/b"), TrainingSettings(rounds=2)],
)
def test_values_are_rebuilt_as_they_were(value):
    assert rebuilt(value) == value
    assert type(rebuilt(value)) is type(value)


def test_arrays_tensors_and_shared_objects_are_rebuilt_bit_for_bit():
    array = np.random.default_rng(0).standard_normal((3, 2)).astype(np.float32)
    layer = torch.nn.Linear(2, 1)
    copies = rebuilt(
        {"array": array, "tensor": torch.from_numpy(array), "scalar": array[0, 0], "layers": [layer, layer]}
    )
    assert copies["array"].tobytes() == copies["tensor"].numpy().tobytes() == array.tobytes()
    assert copies["scalar"] == array[0, 0]
    assert type(copies["scalar"]) is np.float32
    assert copies["layers"][0] is copies["layers"][1]
    assert torch.equal(copies["layers"][0].weight, layer.weight)
    assert math.isnan(rebuilt(float("nan")))
    assert rebuilt(partial(int, "11", base=2))() == 3


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (lambda: 0, "which is defined inside of a function, or a lambda"),
        (b"code", "has bytes, which nobody can read|cannot be read"),
        (compile("0", "x", "eval"), "has a code, which cannot be sent"),
        ((each for each in ()), "has a generator, which cannot be sent"),
    ],
)
def test_what_has_no_text_is_named(value, sentence):
    with pytest.raises(DefinitionError, match=sentence):
        Writer().write([value], "task 'train'")


def test_a_notebook_learns_later_why_its_objects_have_no_text():
    tasks = TaskInterface()
    tasks.register_fl_task(model="m", data_loader="d", device="device")(lambda m, d, device: {})
    objects, source = write_objects(ModelInterface(dict, dict), tasks, ShardData())
    assert json.loads(objects)["missing"].startswith("task '<lambda>' uses ")
    assert source == ""


@pytest.mark.parametrize(
    "described",
    [
        {"call": "builtins:eval", "args": ["1"]},
        {"call": "os:system", "args": ["true"]},
        {"call": "posix:system", "args": ["true"]},
        {"call": "pickle:loads", "args": []},
        {"call": "marshal:loads", "args": []},
        {"call": "types:CodeType", "args": []},
        {"call": "types:FunctionType", "args": []},
        {"call": "functools:types.FunctionType"},
        {"call": "torch.serialization:pickle.loads"},
        {"call": "openfl_audio.files:os.system", "args": ["true"]},
        {"partial": {"name": "builtins:exec"}, "args": ["1"]},
        {"call": "operator:attrgetter", "args": ["__globals__"]},
        {"call": "importlib:import_module", "args": ["os"]},
        {"call": "builtins:getattr", "args": []},
        {"call": "no_such_module:f"},
        {"array": "|O8", "shape": [1], "base64": "AAAAAAAAAAA="},
        {"unknown": 1},
    ],
)
def test_a_text_that_makes_code_or_reaches_the_system_is_refused(described):
    with pytest.raises(ArchiveError):
        Builder().build(described)
