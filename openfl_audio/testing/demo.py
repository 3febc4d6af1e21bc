"""The main job, small: a director and three envoys on this machine train a model that no recording was sent for.

The demo makes a synthetic corpus (unless it gets a folder with the real one) and certificates, starts the director and
the envoys, and executes the workload's notebook against them, with TLS.
"""

import contextlib
import itertools
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import papermill

from openfl_audio.errors import StartError
from openfl_audio.experiments.local_federation import LocalFederation, stop_left_over
from openfl_audio.files import read_json_lines, write_result
from openfl_audio.notebook.director_calls import DirectorCalls
from openfl_audio.protocol.authority import write_certificates
from openfl_audio.protocol.certificates import load_credentials
from openfl_audio.testing.corpora.fsd50k import make_fsd50k
from openfl_audio.testing.corpora.librispeech import make_librispeech
from openfl_audio.testing.corpora.own_data import make_own_data
from openfl_audio.testing.corpora.speech_commands import make_speech_commands
from openfl_audio.testing.encoder import train_encoder
from shard_descriptors.fsd50k import Fsd50kShardDescriptor
from shard_descriptors.fsd50k.layout import read_layout
from shard_descriptors.fsd50k.preparation import prepare_store
from shard_descriptors.librifsd50k.preparation import prepare_librifsd50k
from shard_descriptors.librispeech.preparation import prepare_librispeech
from workspaces.hubert_codebooks.features import Mfcc
from workspaces.hubert_codebooks.targets import make_targets

NOTEBOOKS = Path(__file__).with_name("notebooks")
ENVOYS = ("envoy_1", "envoy_2", "envoy_3")
EVALUATOR = "evaluation"
USER, OPERATOR = "scientist", "operator"
READY_SECONDS = 120
SECURE_WORKLOADS = ("wav2vec2",)
# The demo of differential privacy fails with more epsilon, or less accuracy: chance is 1/12.
PRIVATE, MOST_EPSILON, LEAST_ACCURACY = "private", 10.0, 0.5
# Of the encoder that its head is trained on. The sites' corpus has another seed, and so other speakers.
PUBLIC_SPEAKERS, PUBLIC_ROUNDS, PUBLIC_SEED = 32, 14, 1
TARGETS, CLUSTERS = "federated-mfcc39-50", 50
SMALL_SUDORMRF = {
    "out_channels": 64,
    "in_channels": 128,
    "num_blocks": 2,
    "upsampling_depth": 4,
    "num_bases": 128,
    "num_groups": 4,
}


@dataclass(frozen=True)
class Corpus:
    """A corpus of the demo, and what each envoy serves of it.

    `prepare` takes a folder for what it makes, and the corpus that the user gave, to the `data_path` of the envoys.
    `shards` are the other parameters of each envoy's shard descriptor, by its name; a "template" among them is another
    shard descriptor.
    """

    name: str
    shard_descriptor: str
    prepare: Callable[[Path, Path | None], Path]
    shards: Callable[[Path], dict[str, dict[str, object]]]
    # What the notebook tests on, below what was prepared.
    test_data: str = "."


@dataclass(frozen=True)
class Workload:
    """A notebook, and its parameters for a small model that starts at random and learns in minutes on two cores.

    `score` is the entry of result.json that is reported, and what that is. A `budget`, `privacy` in the settings of
    envoys, goes with a notebook that trains with differential privacy.
    """

    corpus: Corpus
    notebook: str
    model: str
    parameters: dict[str, object]
    score: tuple[str, str]
    budget: dict[str, object] | None = None


def prepare_speech_commands(folder: Path, data: Path | None) -> Path:
    """Return the corpus of the user, or else make one in `folder`."""
    if data is not None:
        return data
    say(f"a corpus of synthetic speech in {folder}")
    make_speech_commands(folder)
    return folder


def prepare_own_data(folder: Path, data: Path | None) -> Path:
    """Make recordings of three sites, unless there are such folders in `data`."""
    if data is not None:
        return data
    say(f"recordings of three sites, with their tables and slips, in {folder}")
    make_own_data(folder)
    return folder


def prepare_fsd50k(folder: Path, data: Path | None) -> Path:
    """Prepare a store of mel frames, of the corpus of the user or of one that is made in `folder`."""
    if data is None:
        say(f"a corpus of synthetic sounds in {folder}")
        make_fsd50k(folder)
    store = folder.with_name(f"{folder.name}-store")
    say(f"mel frames of {data or folder} in {store}")
    prepare_store(read_layout(data or folder), store, workers=os.cpu_count() or 1)
    return store


def prepare_speech_and_noise(folder: Path, data: Path | None) -> Path:
    """Prepare LibriFSD50K of made corpora, or of the folders LibriSpeech and FSD50K in `data`."""
    source = data or folder
    if data is None:
        say(f"corpora of synthetic speech and sounds in {folder}")
        make_librispeech(folder / "LibriSpeech")
        # Noises as long as the chunks of 4 s; a clip of FSD50K has 7.6 s on average.
        make_fsd50k(folder / "FSD50K", median_seconds=5.0)
    chunks = folder.with_name(f"{folder.name}-chunks")
    say(f"speech and noise in pairs in {chunks}")
    prepare_librifsd50k(source / "LibriSpeech", source / "FSD50K", chunks, workers=os.cpu_count() or 1)
    return chunks


def prepare_sentences(folder: Path, data: Path | None) -> Path:
    """Prepare LibriSpeech for three clients, with targets of a federated codebook."""
    if data is None:
        say(f"a corpus of synthetic sentences in {folder}")
        make_librispeech(folder)
    clients = folder.with_name(f"{folder.name}-clients")
    say(f"{data or folder} divided among {len(ENVOYS)} clients in {clients}, with {CLUSTERS} clusters of sounds")
    prepare_librispeech(data or folder, clients, len(ENVOYS))
    make_targets(clients, "federated", CLUSTERS, Mfcc(), name=TARGETS)
    return clients


def three_parts(data: Path) -> dict[str, dict[str, object]]:
    """Return the settings of three envoys, each with a third of the speakers."""
    return {name: {"rank_worldsize": f"{rank},{len(ENVOYS)}"} for rank, name in enumerate(ENVOYS, start=1)}


def three_uploaders(data: Path) -> dict[str, dict[str, object]]:
    """Return the settings of the three uploaders with the most clips, and of one more that has all validation clips."""
    uploaders = Fsd50kShardDescriptor.uploader_sizes(data)
    train: dict[str, dict[str, object]] = {
        name: {"uploader": uploader} for name, uploader in zip(ENVOYS, uploaders, strict=False)
    }
    return train | {EVALUATOR: {}}


def three_parts_one_with_clean_speech(data: Path) -> dict[str, dict[str, object]]:
    """Return the settings of three that train, the first on speech without noise, and of an evaluator."""
    half = {"available_speech_percentage": 0.5}
    parts = {name: part | half | {"supervised": name == ENVOYS[0]} for name, part in three_parts(data).items()}
    return parts | {EVALUATOR: {}}


def three_parts_with_targets(data: Path) -> dict[str, dict[str, object]]:
    """Return the settings of three that train, and of one more that has all validation clips."""
    parts = three_parts(data) | {EVALUATOR: {}}
    return {name: part | {"targets": TARGETS} for name, part in parts.items()}


def three_sites(data: Path) -> dict[str, dict[str, object]]:
    """Return the settings of three sites, each of which has recordings in a form of its own."""
    table = "shard_descriptors.table.TableShardDescriptor"
    return {
        ENVOYS[0]: {
            "template": table,
            "data_path": str(data / "clinic" / "Aufnahmen.csv"),
            "columns": {"path": "Datei", "label": "Wort", "group": "Patient"},
        },
        ENVOYS[1]: {
            "template": table,
            "data_path": str(data / "school" / "clips.csv"),
            "columns": {"path": "path", "label": "label", "group": "speaker", "split": "split"},
        },
        ENVOYS[2]: {"data_path": str(data / "archive"), "group_pattern": r"(voice\d+)_"},
    }


def prepare_numbers(folder: Path, data: Path | None) -> Path:
    """Prepare LibriSpeech for three clients, or spoken numbers in its layout."""
    if data is None:
        say(f"a corpus of synthetic numbers in {folder}")
        make_librispeech(folder, n_train_speakers=30, n_utterances=16, numbers=True)
    clients = folder.with_name(f"{folder.name}-clients")
    say(f"{data or folder} divided among {len(ENVOYS)} clients in {clients}")
    prepare_librispeech(data or folder, clients, len(ENVOYS))
    return clients


def three_parts_and_an_evaluator(data: Path) -> dict[str, dict[str, object]]:
    """Return the settings of three that train, and of one more that has all validation clips."""
    return three_parts(data) | {EVALUATOR: {}}


SUPERB = Corpus("superb", "shard_descriptors.superb.SuperbShardDescriptor", prepare_speech_commands, three_parts)
FSD50K = Corpus("fsd50k", "shard_descriptors.fsd50k.Fsd50kShardDescriptor", prepare_fsd50k, three_uploaders)
LIBRIFSD50K = Corpus(
    "librifsd50k",
    "shard_descriptors.librifsd50k.LibriFsd50kShardDescriptor",
    prepare_speech_and_noise,
    three_parts_one_with_clean_speech,
)
LIBRISPEECH = Corpus(
    "librispeech",
    "shard_descriptors.librispeech.LibriSpeechShardDescriptor",
    prepare_sentences,
    three_parts_with_targets,
)
OWN_DATA = Corpus(
    "own-data",
    "shard_descriptors.folder.FolderShardDescriptor",
    prepare_own_data,
    three_sites,
    test_data="unseen",
)
NUMBERS = Corpus(
    "numbers",
    "shard_descriptors.librispeech.LibriSpeechShardDescriptor",
    prepare_numbers,
    three_parts_and_an_evaluator,
)
KEYWORD_ACCURACY = "accuracy", "test accuracy on speakers that no envoy has (chance is 1/12 = 0.083)"

WORKLOADS = {
    "wav2vec2": Workload(
        SUPERB,
        "superb_wav2vec2.ipynb",
        "a small Wav2Vec2",
        {
            "PRETRAINED": None,
            "CONFIG": "wav2vec2_small.json",
            "ROUNDS": 18,
            "BATCH_SIZE": 16,
            "LEARNING_RATE": 1.5e-3,
        },
        KEYWORD_ACCURACY,
    ),
    "whisper": Workload(
        SUPERB,
        "superb_whisper.ipynb",
        "a small Whisper encoder and its head",
        {
            "PRETRAINED": None,
            "CONFIG": "whisper_small.json",
            "FORM": "short",
            "FROZEN": False,
            "ROUNDS": 18,
            "BATCH_SIZE": 16,
            "LEARNING_RATE": 1.5e-3,
        },
        KEYWORD_ACCURACY,
    ),
    PRIVATE: Workload(
        SUPERB,
        "superb_private.ipynb",
        "a head on a frozen encoder, with differential privacy of each recording,",
        {},
        KEYWORD_ACCURACY,
        {"corpus": "superb", "unit": "record", "epsilon": MOST_EPSILON, "delta": 1e-4},
    ),
    "fsd50k": Workload(
        FSD50K,
        "fsd50k_sound_events.ipynb",
        "a VGG-like tagger of quarter width",
        {"EVALUATOR": EVALUATOR, "WIDTH": 0.25, "ROUNDS": 15, "BATCH_SIZE": 16, "LEARNING_RATE": 3e-3},
        ("pr_auc", "PR-AUC on the evaluation clips, of uploaders that no envoy has"),
    ),
    "librifsd50k": Workload(
        LIBRIFSD50K,
        "librifsd50k_mixit.ipynb",
        "a small SuDoRM-RF",
        {
            "EVALUATOR": EVALUATOR,
            "MODEL": SMALL_SUDORMRF,
            "AUDIO_SECONDS": 2.0,
            "ROUNDS": 40,
            "BATCH_SIZE": 2,
            "LEARNING_RATE": 2e-3,
        },
        ("si_sdri", "SI-SDR improvement in dB on speakers that no envoy has, with one noise"),
    ),
    "librispeech": Workload(
        LIBRISPEECH,
        "librispeech_hubert.ipynb",
        "a small HuBERT",
        {
            "EVALUATOR": EVALUATOR,
            "CONFIG": "hubert_small.json",
            "TARGETS": TARGETS,
            "CLUSTERS": CLUSTERS,
            "ROUNDS": 12,
            "LOCAL_EPOCHS": 4,
            "LEARNING_RATE": 3e-3,
            "SERVER_LEARNING_RATE": None,
            "MAX_SAMPLES_PER_BATCH": 160_000,
            "MAX_CLIP_SAMPLES": 80_000,
            "FEATURE_GRAD_MULT": 1.0,
            "UNMASKED_WEIGHT": 1.0,
            "FEATURE_PENALTY": 0.1,
        },
        ("masked_accuracy", f"accuracy on masked frames, {CLUSTERS} clusters, of speakers that no envoy has"),
    ),
    "recognition": Workload(
        NUMBERS,
        "librispeech_ctc.ipynb",
        "a small W2V-BERT",
        {"EVALUATOR": EVALUATOR, "SETTINGS": "numbers.yaml", "ROUNDS": 16, "ALONE": ENVOYS[0]},
        ("wer", "word error rate on speakers that no envoy has (lower is better)"),
    ),
    "own_data": Workload(
        OWN_DATA,
        "your_own_data.ipynb",
        "a small Wav2Vec2",
        {"SETTINGS": "small.yaml", "CHANGES": {"rounds": 40}, "MAPPING": {"Yes": "yes", "GO": "go"}},
        ("accuracy", "accuracy on speakers that no site has (chance is 1/4 = 0.25)"),
    ),
}


def run_demo(
    workload: str, data: Path | None, out: Path, keep: bool = False, secure: bool = False, **parameters: object
) -> dict:
    """Run the demo into the folder `out` and return what its result.json holds. `parameters` are the notebook's.

    With `keep` director and envoys run on, until `stop_left_over(out)` or the next demo in this folder ends them.
    With `secure` updates are summed in secret. Raises StartError for a workload whose demo cannot do that.
    """
    began = time.monotonic()
    if secure and workload not in SECURE_WORKLOADS:
        raise StartError(f"the demo of {workload} sees single updates or has an evaluator: use {SECURE_WORKLOADS[0]}")
    parameters = parameters | ({"SECURE": True} if secure else {})
    chosen = WORKLOADS[workload]
    out = out.resolve()
    stop_left_over(out)
    set_earlier_run_aside(out)
    # What is prepared of other recordings has a folder of its own.
    corpus = chosen.corpus.name if data is None else f"{chosen.corpus.name}-{data.resolve().name}"
    data = chosen.corpus.prepare(out.with_name(f"{out.name}-{corpus}"), data and data.resolve())
    shards = chosen.corpus.shards(data)
    readable = []
    if chosen.budget and "UPSTREAM" not in parameters:
        encoder = out.with_name(f"{out.name}-encoder")
        say(f"an encoder that is trained in the open, on other speakers, in {encoder}")
        train_encoder(encoder, PUBLIC_SPEAKERS, PUBLIC_ROUNDS, PUBLIC_SEED)
        parameters, readable = parameters | {"UPSTREAM": str(encoder)}, [str(encoder)]
    certificates = out / "certificates"
    write_certificates(
        certificates, director_hosts=["127.0.0.1"], envoys=list(shards), users=[USER], operators=[OPERATOR]
    )

    with LocalFederation(out, certificates, USER, page=keep) as federation:
        logs = out / "logs"
        say(f"a director on port {federation.port} and {len(shards)} envoys, with TLS; their logs are in {logs}")
        federation.start_director()
        for name, part in shards.items():
            params = {"data_path": str(data), **part}
            template = params.pop("template", chosen.corpus.shard_descriptor)
            federation.start_envoy(
                name, {"template": template, "params": params}, readable=readable, **_budget(chosen, out, name)
            )
        federation.wait_until_ready(shards, READY_SECONDS)
        if keep:
            say(f"the page, for one login: {page_address(federation.port, certificates)}")
        say(f"{chosen.notebook}: {chosen.model} from a random start")
        parameters = {
            **chosen.parameters,
            "DIRECTOR_HOST": "127.0.0.1",
            "DIRECTOR_PORT": federation.port,
            "USER": USER,
            "CERTIFICATES": str(certificates),
            "TEST_DATA": str(data / chosen.corpus.test_data),
            "OUT": str(out),
            "NAME": "demo",
            **parameters,
        }
        execute_notebook(NOTEBOOKS / chosen.notebook, out, parameters, log=logs / "notebook.log")
        if keep:
            federation.leave()
            say_how_to_play(federation.port, certificates, out)

    if chosen.budget:
        check_private(json.loads((out / "result.json").read_text()))
    told = {"secure": True, "participants": summed_in(out / "director" / "demo")} if secure else {}
    result = json.loads((out / "result.json").read_text()) | told | {"seconds": round(time.monotonic() - began, 1)}
    write_result(out / "result.json", **result)
    return result


def _budget(workload: Workload, out: Path, envoy: str) -> dict[str, object]:
    """Return settings of an envoy, besides the usual ones, where its workload has a budget: a ledger of its own."""
    if workload.budget is None:
        return {}
    ledger = str(out / "ledgers" / f"{envoy}.jsonl")
    privacy = workload.budget | {"corpus": f"{workload.budget['corpus']} of {envoy}", "ledger": ledger}
    return {"privacy": privacy, "policy": {"tracebacks": "code"}}


def check_private(result: dict) -> None:
    """Raise StartError unless a demo was private, and has learned something all the same."""
    spent, accuracy = max(result["privacy"]["epsilon"].values()), result["accuracy"]["best"]
    if spent > MOST_EPSILON:
        raise StartError(f"the demo has spent an epsilon of {spent:.3g}, and may spend {MOST_EPSILON:g}")
    if accuracy < LEAST_ACCURACY:
        raise StartError(f"the accuracy is {accuracy:.3f}, and should be {LEAST_ACCURACY:g} at least: chance is 0.083")


def summed_in(experiment: Path) -> list[list[str]]:
    """Return the envoys whose updates were summed in secret in each round of an experiment in a director's folder.

    Raises StartError if there is a round that the director has seen single updates of.
    """
    records = read_json_lines(experiment / "history.jsonl")
    if not all(record.get("secure") for record in records):
        raise StartError(f"a round of {experiment.name} was not summed in secret")
    return [record["secure"]["envoys"] for record in records]


def set_earlier_run_aside(out: Path) -> None:
    """Keep an earlier run under the next free number. Raises StartError for a folder that no demo has made."""
    if not out.exists() or not any(out.iterdir()):
        return
    if not (out / "settings" / "director.yaml").exists():
        raise StartError(f"{out} is not empty and no earlier run of the demo: choose another --out")
    numbered = (out.with_name(f"{out.name}-{number}") for number in itertools.count(1))
    kept = next(path for path in numbered if not os.path.lexists(path))
    out.rename(kept)
    say(f"the earlier run of {out} is kept in {kept}")


def execute_notebook(notebook: Path, out: Path, parameters: dict, log: Path) -> None:
    """Run the notebook, printing what it prints; the executed copy is kept in `out`, also of a run that failed.

    Raises StartError if a cell fails.
    """
    # It warns of parameters that are not alone in their line, and sets them.
    logging.getLogger("papermill").setLevel(logging.ERROR)
    with log.open("w") as errors, _failing_as_start_error():
        papermill.execute_notebook(
            str(notebook),
            str(out / notebook.name),
            parameters=parameters,
            kernel_name="python3",
            cwd=str(notebook.parent),
            progress_bar=False,
            # Its warnings about the transport between notebook and kernel do not belong into the demo's table.
            extra_arguments=["--IPKernelApp.log_level=ERROR"],
            stdout_file=sys.stdout,
            stderr_file=errors,
        )


@contextlib.contextmanager
def _failing_as_start_error() -> Iterator[None]:
    try:
        yield
    except papermill.PapermillExecutionError as error:
        raise StartError(str(error)) from error


def report(workload: str, result: dict, out: Path) -> None:
    """Print how long the demo took, its scores and what it left in `out`."""
    name, description = WORKLOADS[workload].score
    scores = result[name]
    say(f"done in {result['seconds']:.0f} s; {description}:")
    for model, what in (
        ("initial", "global model before training"),
        ("last", "global model after the last round"),
        ("best", "best global model (by validation clips)"),
        ("alone", f"{ENVOYS[0]} trained alone"),
    ):
        if model in scores:
            print(f"    {scores[model]:.3f}  {what}")
    say(f"{out} has {', '.join(sorted(path.name for path in out.iterdir()))}")


def page_address(port: int, certificates: Path) -> str:
    """Return an address that logs the demo's user in to the page."""
    credentials = load_credentials(certificates, USER)
    with contextlib.closing(DirectorCalls(USER, f"127.0.0.1:{port}", credentials)) as calls:
        return calls.get_invitation().login


def say_how_to_play(port: int, certificates: Path, out: Path) -> None:
    """Print how to look at a federation that runs on, and how to end it."""
    where = f"--director 127.0.0.1:{port} --certificates {certificates}"
    say("director and envoys run on; look at them, and stop or delete experiments, as their owner or as the operator:")
    print(f"    openfl-audio envoys {where} --user {USER}")
    print(f"    openfl-audio show demo {where} --user {USER}")
    print(f"    openfl-audio delete --older-than 0h {where} --user {OPERATOR}")
    say(f"or in the browser, for one login: {page_address(port, certificates)}")
    say("or in a notebook or Python:")
    names = ", ".join(f'"{certificates / name}"' for name in ("ca.crt", f"{USER}.crt", f"{USER}.key"))
    print("    from openfl_audio import Federation, FLExperiment")
    print(f'    federation = Federation("{USER}", "127.0.0.1", {port}, True, {names})')
    print('    FLExperiment(federation).attach("demo").watch()')
    say(f"and end them by: openfl-audio demo --stop --out {out} (or make demo STOP=1)")


def say(sentence: str) -> None:
    """Print a sentence of progress at once."""
    print(f"==> {sentence}", flush=True)
