"""Script of a notebook on a host of its own: HOST PORT USER EXPERIMENT ROUNDS; the user's files are in this folder."""

import sys

import toy
from toy.experiment import PointsData, add_points_slowly, model_interface, task_interface

from openfl_audio.notebook.interactive_api import Federation, FLExperiment

host, port, user, name, rounds = sys.argv[1:]
files = {"cert_chain": f"{user}.crt", "api_cert": f"{user}.crt", "api_private_key": f"{user}.key"}
experiment = FLExperiment(Federation(user, host, int(port), tls=True, **files), name, toy)
experiment.start(
    model_provider=model_interface(),
    task_keeper=task_interface(train=add_points_slowly),
    data_loader=PointsData(),
    rounds_to_train=int(rounds),
)
experiment.watch()
