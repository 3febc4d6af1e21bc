"""Script of a notebook on a host of its own: HOST PORT NAME ENVOY JSON; user 'scientist' has its files in this folder.

It starts when there is a file "go". JSON has what the task does: {"start": 0.0}, {"tempt": [...]}, {"leave": [...]} or
{"tell": []}, with its arguments.
"""

import json
import sys
import time
from pathlib import Path

import toy
from toy import attacks
from toy.experiment import PointsData, model_interface, name_telling_tasks, task_interface

from openfl_audio.notebook.interactive_api import ExperimentFailedError, Federation, FLExperiment

host, port, name, envoy, job = sys.argv[1:]
files = {"cert_chain": "scientist.crt", "api_cert": "scientist.crt", "api_private_key": "scientist.key"}
experiment = FLExperiment(Federation("scientist", host, int(port), tls=True, **files), name, toy)
((kind, argument),) = json.loads(job).items()
tasks = task_interface()
if kind == "tell":
    tasks = name_telling_tasks()
elif kind != "start":
    tasks = task_interface(train=getattr(attacks, kind)(*argument))
print("connected", flush=True)
while not Path("go").exists():
    time.sleep(0.05)
experiment.start(
    model_provider=model_interface(argument if kind == "start" else 0.0),
    task_keeper=tasks,
    data_loader=PointsData(),
    rounds_to_train=2 if kind in ("start", "tell") else 1,
    envoys=[envoy],
)
try:
    print(experiment.watch().to_json(orient="records"))
except ExperimentFailedError as error:
    print("refused or failed:", error)
