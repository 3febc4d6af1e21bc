"""OpenFL's interactive API, under the same names and arguments, on this project's director.

    from openfl_audio import DataInterface, Federation, FLExperiment, ModelInterface, TaskInterface

What differs from OpenFL 1.7.1: a model and its optimizer are given as recipes and built where they are used, only what
is trained is transmitted, no notebook code runs on the director, and nothing is left behind in the notebook's folder.
"""

import io
import json
import logging
import tempfile
import uuid
import warnings
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, count
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import pandas as pd
import torch
from openfl.federated import Plan
from openfl.interface.cli_helper import WORKSPACE
from openfl.interface.interactive_api import experiment as openfl_experiment
from openfl.interface.interactive_api import federation as openfl_federation
from openfl.interface.interactive_api.experiment import DataInterface, TaskInterface

from openfl_audio.address import DEFAULT_PORT, bracket, check_host, join_address
from openfl_audio.errors import DefinitionError, DirectorError, ExperimentExistsError, ExperimentFailedError
from openfl_audio.node.compatibility import REQUIREMENTS, Requirements, describe_environment
from openfl_audio.node.model_interface import ModelInterface
from openfl_audio.notebook.director_client import DirectorClient
from openfl_audio.notebook.experiment import Definition, define
from openfl_audio.notebook.live_view import show_progress, without_envoys
from openfl_audio.notebook.source_form import write_objects
from openfl_audio.notebook.workspace import files_to_send
from openfl_audio.protocol.aggregation import Aggregation
from openfl_audio.protocol.archive import stream_archive
from openfl_audio.protocol.bundle import describe_model, fingerprint, sign_bundle
from openfl_audio.protocol.certificates import Credentials, describe_end, read_credentials
from openfl_audio.protocol.participation import Participation
from openfl_audio.protocol.plan import (
    ARCHIVE,
    AUTHOR_FILE,
    ENVIRONMENT_FILE,
    EXPERIMENT_PLAN,
    INITIAL_MODEL,
    MODEL_FILE,
    NOTEBOOK_MODULE,
    OBJECTS_FILE,
    PICKLES,
    PLAN_FILE,
    PUBLIC_PLAN_FILE,
    Direction,
    ExperimentPlan,
    name_of_best,
)
from openfl_audio.protocol.privacy import Level
from openfl_audio.protocol.secure_aggregation import SecureAggregation, describe
from openfl_audio.protocol.tensors import file_chunks
from openfl_audio.training.history import per_envoy, to_frame, waiting_round

__all__ = [
    "Aggregation",
    "DataInterface",
    "DirectorError",
    "ExperimentFailedError",
    "FLExperiment",
    "Federation",
    "ModelInterface",
    "Participation",
    "TaskInterface",
]

logger = logging.getLogger(__name__)

IF_EXISTS = ("attach", "new", "error")
# States of an experiment that can be continued.
RESUMABLE = ("failed", "stopped")


class Federation(openfl_federation.Federation):
    """A notebook's connection to the director, with arguments as in OpenFL."""

    def __init__(
        self,
        client_id: str | None = None,
        director_node_fqdn: str | None = None,
        director_port: int | None = None,
        tls: bool = True,
        cert_chain: str | Path | None = None,
        api_cert: str | Path | None = None,
        api_private_key: str | Path | None = None,
    ) -> None:
        """Connect to the director as user `client_id`, with the three files of that user's certificate if `tls`.

        Raises DirectorError if it cannot be reached or refuses, CertificateError for a bad certificate.
        """
        # With brackets around an IPv6 address, as OpenFL's own envoys append the port to it.
        self.director_node_fqdn = bracket(check_host(director_node_fqdn or "localhost"))
        self.director_port = director_port or DEFAULT_PORT
        self.tls = tls
        # They also sign what is submitted.
        self.credentials: Credentials | None = None
        if tls:
            if not (client_id and cert_chain and api_cert and api_private_key):
                raise DefinitionError("with tls=True, client_id, cert_chain, api_cert and api_private_key are needed")
            files = Path(cert_chain), Path(api_cert), Path(api_private_key)
            self.credentials = read_credentials(*files, client_id)
            if sentence := describe_end(self.credentials):
                warnings.warn(sentence, stacklevel=2)
        address = join_address(self.director_node_fqdn, self.director_port)
        self.dir_client = DirectorClient(client_id or "anonymous", address, self.credentials)
        with self.dir_client.translated_errors():
            self.sample_shape, self.target_shape = self.dir_client.get_dataset_info()

    def get_shard_registry(self) -> dict[str, dict[str, Any]]:
        """Return envoys by name, with their shard's description and whether they are online."""
        with self.dir_client.translated_errors():
            return super().get_shard_registry()


class FLExperiment(openfl_experiment.FLExperiment):
    """An experiment on the federation. Arguments and methods are OpenFL's unless their descriptions say otherwise."""

    def __init__(
        self,
        federation: Federation,
        experiment_name: str | None = None,
        workspace: ModuleType | Sequence[ModuleType] | None = None,
        workspace_files: Iterable[str] = (),
    ) -> None:
        """Prepare an experiment whose tasks, model and data interface are in the imported package `workspace`.

        It may be a module as well, such as a .py file beside the notebook, which is then sent alone. If a package
        builds on others, give a list of packages: all are sent to the envoys. Of a package's folder the modules and
        settings are sent (.py, .yaml, .json, .toml, .cfg, .ini), nothing hidden, and of the first one what matches
        one of the glob patterns `workspace_files`, relative to the folder ("vocabulary.txt", "tables/*.csv"). `start`
        says what is left out.
        """
        super().__init__(federation, experiment_name)
        self.packages = [] if workspace is None else [workspace] if isinstance(workspace, ModuleType) else [*workspace]
        self.workspace_files = tuple(workspace_files)
        self.model_provider: ModelInterface | None = None
        self.requirements = Requirements()

    def start(
        self,
        *,
        model_provider: ModelInterface,
        task_keeper: TaskInterface,
        data_loader: DataInterface,
        rounds_to_train: int,
        task_assigner: None = None,
        override_config: dict[str, Any] | None = None,
        delta_updates: bool = False,
        opt_treatment: str = "RESET",
        device_assignment_policy: str = "CUDA_PREFERRED",
        pip_install_options: tuple[str, ...] = (),
        envoys: Iterable[str] | None = None,
        corpus: str | None = None,
        participation: Participation | None = None,
        aggregation: Aggregation | None = None,
        best: tuple[str, Direction] = ("accuracy", "max"),
        also_best: Mapping[str, Direction] | None = None,
        patience: int | None = None,
        halve_rate_after: int | None = None,
        keep: int = 0,
        precision: Literal["float32", "float16"] = "float32",
        metric_bounds: Mapping[str, tuple[float, float]] | None = None,
        mean_over: Mapping[str, str | None] | None = None,
        secure_aggregation: SecureAggregation | None = None,
        privacy: Level | None = None,
        requirements: Requirements | None = None,
        start_from: str | Path | torch.nn.Module | None = None,
        if_exists: Literal["attach", "new", "error"] = "error",
    ) -> None:
        """Send the experiment to the director and return; `watch` shows how it goes.

        In every round each envoy validates the global model and trains it; a last validation follows the last round.
        Who takes part: `envoys` by name, or else all that serve `corpus`, also those that come later (`corpus` may be
        left out where all envoys serve the same). `participation` says how many of them in a round, who only
        evaluates, and when a round closes; `aggregation` how updates become the next model.
        `best` is the validation metric that chooses the best model, and its direction, "max" or "min"; after `patience`
        validations without a better one the experiment ends, and whenever `halve_rate_after` more are without one, the
        learning rate of the optimizer is halved on all envoys. For each metric of `also_best` the best model is kept
        too, as are the models of the last `keep` rounds.
        `metric_bounds` gives metrics their least and largest value, such as {"snr_db": (-100, 100)}: a value outside,
        or one that is undefined (NaN or None), is left out of the mean, and `watch` says so. Unless it says otherwise
        "accuracy", "pr_auc" and their like are at most 100 (per cent), and "wer" and its like at least 0. If no envoy
        reports a metric that is to choose a model, the experiment fails in its first validation.
        `mean_over` says what validation metrics are means over, such as {"wer": "words", "pr_auc": None}. By default
        that is what the data interface's sizes count, so that the mean of several envoys is exact; a task returns
        `MeanOver(value, count)` for a metric with a unit of its own. None is a metric that is no mean, as "f1",
        "pr_auc" and their like are by default: it can choose a model only where a single envoy validates, and `watch`
        calls it a "mean of sites" elsewhere.
        With `secure_aggregation` the director learns the sum of the updates of `envoys`, which have to be named, and
        none of them, nor a site's metrics: see docs/secure-aggregation.md.
        With `privacy`, a `RecordLevel` or `SpeakerLevel`, sites train by DP-SGD, and count what it costs on their own
        disks; with a `SiteLevel` the director adds noise to the mean of their clipped updates, or with
        `secure_aggregation` each site a share of it: see docs/privacy.md.
        With `precision` "float16" half as many bytes are transmitted; the director's sums and models stay as they are.
        `requirements` is what each envoy must have, packages and memory: on one that has not the experiment ends, as it
        does with other versions of Python and its libraries.
        With `start_from` it begins with the weights of a model, or those in a file or folder: see
        `ModelInterface.start_from`.
        If there is an experiment of this name already, `if_exists` "attach" takes that one up, as a notebook that is
        run once more does, "new" starts another one under the first free name of NAME-2, NAME-3 and so on, and "error"
        refuses.
        Raises DirectorError if the director refuses, ExperimentExistsError if the experiment to attach to has other
        settings, and DefinitionError if arguments do not fit together.
        """
        _check_supported(if_exists, task_assigner, delta_updates, pip_install_options)
        if start_from is not None:
            model_provider.start_from(start_from)
        if if_exists == "new":
            self.experiment_name = self._free_name()
        definition = define(
            self.experiment_name,
            model_provider=model_provider,
            task_keeper=task_keeper,
            data_loader=data_loader,
            rounds_to_train=rounds_to_train,
            opt_treatment=opt_treatment,
            envoys=envoys,
            corpus=corpus,
            participation=participation,
            aggregation=aggregation,
            best=best,
            also_best=also_best,
            patience=patience,
            halve_rate_after=halve_rate_after,
            keep=keep,
            precision=precision,
            metric_bounds=metric_bounds,
            mean_over=mean_over,
            secure_aggregation=secure_aggregation,
            privacy=privacy,
        )
        self.model_provider, self.requirements = model_provider, requirements or Requirements()
        if if_exists == "attach" and self._attach_to_same(definition):
            return
        self._make_plan(definition, device_assignment_policy, override_config)
        self._submit(definition)

    def _free_name(self) -> str:
        """Return the first of NAME, NAME-2, NAME-3 and so on that no experiment has."""
        taken = {experiment.name for experiment in self.federation.dir_client.get_status().experiments}
        names = chain([self.experiment_name], (f"{self.experiment_name}-{number}" for number in count(2)))
        return next(name for name in names if name not in taken)

    def _attach_to_same(self, definition: Definition) -> bool:
        """Take up the experiment of this name, if there is one.

        Raises ExperimentExistsError if its settings are not those of `definition`.
        """
        client, name = self.federation.dir_client, self.experiment_name
        if name not in (experiment.name for experiment in client.get_status().experiments):
            return False
        found = client.get_experiment(name)
        for key, value in definition.plan.model_dump(mode="json").items():
            if key != "federation_uuid" and key in found.plan and found.plan[key] != value:
                raise ExperimentExistsError(
                    f"experiment '{name}' exists already, with {key} {found.plan[key]!r:.200} and not {value!r:.200}: "
                    "if_exists='new' starts another one, delete() removes the first"
                )
        self.experiment_submitted = True
        advice = ": resume() continues it" if found.status in RESUMABLE else ""
        self.logger.info("experiment '%s' exists already and is %s%s", name, found.status, advice)
        return True

    def _submit(self, definition: Definition) -> None:
        plan = definition.plan.model_copy(update={"federation_uuid": self.plan.federation_uuid})
        entries: list[tuple[str, Iterable[bytes]]] = [
            (EXPERIMENT_PLAN, [plan.model_dump_json().encode()]),
            (ARCHIVE, [self._pack_workspace(definition, plan)]),
            (INITIAL_MODEL, file_chunks(definition.tensors, {})),
        ]
        self.federation.dir_client.submit(stream_archive(entries))
        self.experiment_submitted = True
        self.logger.info("experiment '%s' was submitted", plan.name)
        if plan.secure_aggregation is not None:
            self.logger.info("%s", describe(len(plan.envoys or ())))

    def attach(self, experiment_name: str, model_provider: ModelInterface | None = None) -> "FLExperiment":
        """Take up an experiment that was started elsewhere or earlier: `watch`, `history` and the rest are about it.

        `model_provider` is the one it was started with: fetching models needs it. Raises DirectorError if this user has
        no experiment of that name.
        """
        self.federation.dir_client.get_experiment(experiment_name)
        self.experiment_name = experiment_name
        self.experiment_submitted = True
        if model_provider is not None:
            self.model_provider = model_provider
        return self

    @property
    def history(self) -> pd.DataFrame:
        """Return the rounds so far, a row for each. Its columns: see `watch`."""
        records = self.federation.dir_client.read_history(self.experiment_name)
        return to_frame([without_envoys(record) for record in records])

    def per_envoy(self) -> pd.DataFrame:
        """Return the rounds so far, a row for each envoy and round: metrics, seconds, and why an update did not count.

        Rows of the open round say what the envoys do, and those of one that has not begun for whom it waits. Its
        columns: see `training.history.per_envoy`.
        `per_envoy().pivot(index="round", columns="envoy", values="accuracy").plot()` draws a curve for each envoy.
        """
        client, name = self.federation.dir_client, self.experiment_name
        # First the open round: if it closes meanwhile, the history has it.
        details = client.get_experiment(name)
        return per_envoy(client.read_history(name), details.now or waiting_round(details))

    def logs(self, envoy: str) -> str:
        """Return what the tasks printed on `envoy` so far, where its site lets that leave (`reports: logs`).

        Of much it is the end, about a megabyte.
        """
        return "".join(self.federation.dir_client.get_log(self.experiment_name, envoy))

    def stop(self) -> None:
        """End the experiment. Its history and models stay, and `resume` continues it."""
        self.federation.dir_client.stop_experiment(self.experiment_name)

    def resume(self) -> None:
        """Continue the experiment, which failed or was stopped, after its last whole round.

        It has the same seed and the code that was sent when it was started: where tasks are deterministic it comes to
        the weights of an experiment that was not disturbed. It begins when all its envoys are online and free. Raises
        DirectorError if it has not ended, or has finished.
        """
        self.federation.dir_client.resume_experiment(self.experiment_name)

    def drop(self, envoy: str) -> None:
        """Continue without `envoy`, also when the experiment is resumed. An update that it has sent already counts.

        Raises DirectorError if the others could not be a quorum.
        """
        self.federation.dir_client.drop_envoy(self.experiment_name, envoy)

    def delete(self) -> None:
        """Remove the experiment, which has ended, with its models and its history: its name is free again.

        Raises DirectorError if it has not ended.
        """
        self.federation.dir_client.delete_experiment(self.experiment_name)

    def watch(self) -> pd.DataFrame:
        """Show how the experiment goes, from its first round until it has ended, and return its history, a row a round.

        It is shown as a growing table, and in Jupyter also as a curve of the metric that chooses the best model.

        Round r's validation is that of the model after r rounds, on the envoys' validation clips; `sent` is what all
        envoys together sent to the director; `left out` says, where there is something, what did not count, of which
        envoys and why. Raises ExperimentFailedError with an envoy's traceback. An interrupt leaves the experiment
        running.
        """
        name, client = self.experiment_name, self.federation.dir_client
        try:
            experiment = client.get_experiment(name)
            best = experiment.best
            return show_progress(client.stream_history(name), name, best.metric, best.direction, experiment.round)
        except KeyboardInterrupt:
            again = f"watch() shows it again, FLExperiment(federation).attach('{name}') takes it up in another notebook"
            print(f"\nexperiment '{name}' continues: {again}, stop() ends it", flush=True)
            raise

    def _initialize_plan(self) -> None:
        # As in OpenFL, without the folders it makes beside the notebook.
        self.plan = Plan.parse(WORKSPACE / "workspace/plan/plans/default/base_plan_interactive_api.yaml", resolve=False)
        self.plan.name = Path(PLAN_FILE).name

    def _make_plan(
        self, definition: Definition, device_assignment_policy: str, override_config: dict[str, Any] | None
    ) -> None:
        """Make OpenFL's plan, with what our worker has to know besides."""
        plan, model = definition.plan, definition.model_provider
        files = dict(zip((f"{kind}_interface_file" for kind in ("model", "tasks", "dataloader")), PICKLES, strict=True))
        self._prepare_plan(
            model,
            definition.data_loader,
            plan.rounds,
            False,  # delta_updates
            definition.opt_treatment,
            device_assignment_policy,
            override_config,
            **files,
        )
        # OpenFL cuts the address off at its first colon.
        self.plan.config["network"]["settings"]["agg_addr"] = self.federation.director_node_fqdn
        # One port serves all; the name makes the plan's hash, by which calls find their experiment, its own.
        self.plan.config["network"]["settings"]["agg_port"] = self.federation.director_port
        settings = {
            "name": self.experiment_name,
            # Two experiments of one name, the first of which was deleted, are told apart by the envoys.
            "submission": uuid.uuid4().hex,
            "precision": plan.precision,
            "local_tensors": list(model.local_tensors),
            "seed": plan.participation.seed,
        }
        self.plan.config["experiment"] = {"settings": settings}
        self.plan.resolve()

    def _pack_workspace(self, definition: Definition, plan: ExperimentPlan) -> bytes:
        """Return the archive for the envoys: plan, versions, interfaces twice, and the workspace's package.

        The interfaces are pickled for envoys that approve nothing, and written as text for those that do.
        """
        interfaces = definition.model_provider, definition.task_keeper, definition.data_loader
        buffer = io.BytesIO()
        with (
            tempfile.TemporaryDirectory() as staging,
            # A file from a reproducible build may be of 1970, which zip cannot say: it counts as of 1980.
            zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, strict_timestamps=False) as archive,
        ):
            api_layer = self.plan.config["api_layer"]
            serializer = Plan.build(api_layer["required_plugin_components"]["serializer_plugin"], {})
            for name, interface in zip(PICKLES, interfaces, strict=True):
                serializer.serialize(interface, Path(staging) / name)
                archive.write(Path(staging) / name, name)
            plan_file = Path(staging) / "plan.yaml"
            Plan.dump(plan_file, self.plan.config)
            objects, cells = write_objects(*interfaces)
            made = {
                PLAN_FILE: plan_file.read_bytes(),
                ENVIRONMENT_FILE: json.dumps(self._environment()).encode(),
                PUBLIC_PLAN_FILE: plan.model_dump_json().encode(),
                MODEL_FILE: describe_model(definition.tensors, plan.precision).model_dump_json().encode(),
                OBJECTS_FILE: objects.encode(),
                **({f"{NOTEBOOK_MODULE}.py": cells.encode()} if cells else {}),
            }
            sent = files_to_send(self.packages, self.workspace_files)
            sha256 = fingerprint({name: path.read_bytes() for name, path in sent.items()} | made)
            author = sign_bundle(sha256, plan.rounds, self.federation.credentials, self.federation.dir_client.client_id)
            for name, content in (made | {AUTHOR_FILE: author.model_dump_json().encode()}).items():
                archive.writestr(name, content)
            for name, path in sent.items():
                archive.write(path, name)
        return buffer.getvalue()

    def _environment(self) -> dict[str, Any]:
        """Return what the experiment needs: the versions of this process, and the requirements if there are any."""
        wanted = self.requirements.model_dump(exclude_defaults=True)
        return describe_environment() | ({REQUIREMENTS: wanted} if wanted else {})

    def best_model(self, metric: str | None = None) -> torch.nn.Module:
        """Return a new model with the best weights so far, by another `metric` of `also_best` too."""
        return self._model(name_of_best(metric))

    def last_model(self) -> torch.nn.Module:
        """Return a new model with the weights of the last round."""
        return self._model("last")

    def initial_model(self) -> torch.nn.Module:
        """Return a new model with the weights that the experiment began with."""
        return self._model("initial")

    # OpenFL's names.
    get_best_model = best_model
    get_last_model = last_model

    def _model(self, which: str) -> torch.nn.Module:
        if self.model_provider is None:
            raise DefinitionError(f"give attach('{self.experiment_name}', model_provider) the model that was trained")
        tensors = self.federation.dir_client.get_model(self.experiment_name, which)
        return self.model_provider.model_with(tensors)


def _check_supported(if_exists: str, task_assigner: None, delta_updates: bool, pip_options: tuple[str, ...]) -> None:
    """Raise DefinitionError for an argument of `FLExperiment.start` that OpenFL has and this project has not."""
    if if_exists not in IF_EXISTS:
        raise DefinitionError(f"if_exists is {if_exists!r}: use one of {IF_EXISTS}")
    if task_assigner is not None or delta_updates or pip_options:
        raise DefinitionError("task_assigner, delta_updates and pip_install_options are not supported: leave them out")


logging.getLogger("openfl.federated.plan.plan").setLevel(logging.WARNING)  # it prints the whole plan at every step
