"""The main job, small: a director and three envoys on this machine train a model that no recording was sent for.

    python -m scripts.demo [--workload wav2vec2] [--data FOLDER] [--out runs/demo]

Makes a corpus of synthetic speech (unless --data names a Speech Commands folder) and certificates, starts the director
and three envoys by the scripts that a user runs, and executes the workload's notebook against them, with TLS.
"""

import argparse
import json
import os
import shutil
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import papermill

from federation.certificates import CertificateError, write_certificates
from federation.results import write_result
from scripts.local_federation import REPOSITORY, LocalFederation, StartError
from scripts.make_demo_corpus import DemoCorpusError, make_demo_corpus

ENVOYS = ("envoy_1", "envoy_2", "envoy_3")
USER = "scientist"
READY_SECONDS = 120


@dataclass(frozen=True)
class Workload:
    """A notebook, and its parameters for a small model that starts at random and learns in minutes on two cores."""

    notebook: Path
    model: str
    parameters: dict[str, object]


WORKLOADS = {
    "wav2vec2": Workload(
        REPOSITORY / "notebooks" / "superb_wav2vec2.ipynb",
        "a small Wav2Vec2",
        {"CONFIG": "wav2vec2_small.json", "ROUNDS": 18, "BATCH_SIZE": 16, "LEARNING_RATE": 1.5e-3},
    ),
    "whisper": Workload(
        REPOSITORY / "notebooks" / "superb_whisper.ipynb",
        "a small Whisper encoder and its head",
        {
            "CONFIG": "whisper_small.json",
            "FORM": "short",
            "FROZEN": False,
            "ROUNDS": 18,
            "BATCH_SIZE": 16,
            "LEARNING_RATE": 1.5e-3,
        },
    ),
}


def run_demo(workload: str, data: Path | None, out: Path, **parameters: object) -> dict:
    """Run the demo into the folder `out` and return what its result.json holds. `parameters` are the notebook's."""
    began = time.monotonic()
    chosen = WORKLOADS[workload]
    out = out.resolve()
    remove_earlier_run(out)
    if data is None:
        data = out.with_name(f"{out.name}-corpus")
        say(f"a corpus of synthetic speech in {data}")
        make_demo_corpus(data)
    certificates = out / "certificates"
    write_certificates(certificates, director_hosts=["127.0.0.1"], envoys=ENVOYS, users=[USER])

    with LocalFederation(out, certificates, USER) as federation:
        say(
            f"a director on port {federation.port} and {len(ENVOYS)} envoys, with TLS; their logs are in {out / 'logs'}"
        )
        federation.start_director()
        for rank, name in enumerate(ENVOYS, start=1):
            params = {"data_path": str(data.resolve()), "rank_worldsize": f"{rank},{len(ENVOYS)}"}
            descriptor = {"template": "shard_descriptors.superb.SuperbShardDescriptor", "params": params}
            federation.start_envoy(name, descriptor)
        federation.wait_until_ready(ENVOYS, READY_SECONDS)
        say(f"{chosen.notebook.name}: {chosen.model} from a random start")
        parameters = {
            "PRETRAINED": None,
            **chosen.parameters,
            "DIRECTOR_HOST": "127.0.0.1",
            "DIRECTOR_PORT": federation.port,
            "USER": USER,
            "CERTIFICATES": str(certificates),
            "TEST_DATA": str(data.resolve()),
            "OUT": str(out),
            "NAME": "demo",
            **parameters,
        }
        execute_notebook(chosen.notebook, out, parameters, log=out / "logs" / "notebook.log")

    result = json.loads((out / "result.json").read_text()) | {"seconds": round(time.monotonic() - began, 1)}
    write_result(out / "result.json", **result)
    return result


def remove_earlier_run(out: Path) -> None:
    """Raises StartError for a folder that no demo has made: nobody's files are deleted."""
    if not out.exists() or not any(out.iterdir()):
        return
    if not (out / "settings" / "director.yaml").exists():
        raise StartError(f"{out} is not empty and no earlier run of the demo: choose another --out")
    shutil.rmtree(out)


def execute_notebook(notebook: Path, out: Path, parameters: dict, log: Path) -> None:
    """Run the notebook, printing what it prints; the executed copy is kept in `out`, also of a run that failed."""
    with log.open("w") as errors:
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


def report(result: dict, out: Path) -> None:
    accuracy = result["accuracy"]
    say(f"done in {result['seconds']:.0f} s; test accuracy on speakers that no envoy has (chance is 1/12 = 0.083):")
    for name, what in (
        ("initial", "global model before training"),
        ("last", "global model after the last round"),
        ("best", "best global model (by the envoys' validation clips)"),
        ("alone", f"{ENVOYS[0]} trained alone"),
    ):
        if name in accuracy:
            print(f"    {accuracy[name]:.3f}  {what}")
    say(f"{out} has {', '.join(sorted(path.name for path in out.iterdir()))}")


def say(sentence: str) -> None:
    print(f"==> {sentence}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="Federate keyword spotting over one director and three envoys.")
    parser.add_argument("--workload", choices=sorted(WORKLOADS), default="wav2vec2")
    parser.add_argument("--data", type=Path, help="a Speech Commands folder, in place of the corpus that is made")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "runs" / "demo")
    arguments = parser.parse_args()
    # A terminated demo must stop what it started, as one that is interrupted does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("demo: terminated"))
    # Three envoys on a small machine: threads beyond the cores would only wait for each other.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    try:
        report(run_demo(arguments.workload, arguments.data, arguments.out), arguments.out)
    except (CertificateError, DemoCorpusError, StartError, papermill.PapermillExecutionError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("demo: interrupted; everything it started is stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
