#!/usr/bin/env python3
"""The demo of own recordings beside the same task written for Flower: lines, files on sites, seconds, accuracy.

    python benchmarks/own_data.py --rounds 40 --save own-data

Both train one model on the same recordings of three sites, in real processes on this machine, and score it on speakers
of no site. Ours runs `notebooks/your_own_data.ipynb` over TLS with each worker in its sandbox; Flower runs the app in
`benchmarks/own_data_flower` in its deployment runtime, without TLS. Lines are those of code that is written for the
task: of the notebook, of the app, and of the settings at the sites, without blank lines, comments and docstrings. The
seconds of a round are the median of all but the first, with training, validation and everything between.
"""

import argparse
import ast
import io
import json
import os
import statistics
import sys
import tokenize
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `benchmarks` is no installed package

import yaml

from benchmarks.arguments import REPOSITORY, add_save, save, whole_number
from benchmarks.rounds_peers.flower import environment_at, run_app, start
from benchmarks.rounds_peers.measure import Processes, follow_lines, make_environment
from openfl_audio.files import read_json_lines
from openfl_audio.testing.corpora.own_data import SITES
from openfl_audio.testing.demo import NOTEBOOKS, run_demo

APP = REPOSITORY / "benchmarks" / "own_data_flower"
ENVIRONMENT = REPOSITORY / "runs" / "peers" / "flower-audio"
REQUIREMENT = "flwr==1.42.*"
MODEL = REPOSITORY / "workspaces" / "audio_classification" / "configs" / "wav2vec2_small.json"
NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}


def lines_of_code(source: str) -> int:
    """Return the lines of Python that hold more than a comment or a docstring."""
    statements = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Expr)]
    texts = [node for node in statements if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)]
    docstrings = {line for node in texts for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)}
    tokens = [token for token in tokenize.generate_tokens(io.StringIO(source).readline) if token.type not in NO_CODE]
    return len({line for token in tokens for line in range(token.start[0], token.end[0] + 1)} - docstrings)


def settings_lines(text: str) -> int:
    """Return the lines of a settings file that are neither blank nor comments."""
    return sum(bool(line.strip()) and not line.lstrip().startswith("#") for line in text.splitlines())


def notebook_code(path: Path) -> str:
    """Return the code cells of a notebook."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


def measure_ours(rounds: int, folder: Path) -> dict:
    """Run the demo, and return what is reported of it."""
    result = run_demo("own_data", None, folder / "ours", CHANGES={"rounds": rounds})
    records = read_json_lines(folder / "ours" / "director" / "demo" / "history.jsonl")
    settings = sorted((folder / "ours" / "settings").glob("envoy_*.yaml"))
    shards = [yaml.safe_dump(yaml.safe_load(path.read_text())["shard_descriptor"]) for path in settings]
    return {
        "lines": lines_of_code(notebook_code(NOTEBOOKS / "your_own_data.ipynb")),
        "lines_of_sites": sum(map(settings_lines, shards)),
        "files_on_a_site": 1,
        "seconds_per_round": round(statistics.median(record["seconds"] for record in records[1:]), 3),
        "accuracy": {name: round(value, 3) for name, value in result["accuracy"].items()},
    }


def measure_flower(rounds: int, data: Path, folder: Path) -> dict:
    """Run the Flower App on the same recordings, and return what is reported of it. Raises BenchmarkError."""
    make_environment(ENVIRONMENT, "flower-superlink", REQUIREMENT)
    _lend_libraries()
    report = folder / "report.jsonl"
    nodes = {site: ("--node-config", f"data={json.dumps(str(data / site))}") for site in SITES[:3]}
    with Processes(folder, None, "") as processes:
        env = environment_at(ENVIRONMENT, folder, processes.port) | {"OMP_NUM_THREADS": "1"}
        start(ENVIRONMENT, nodes, processes, env)
        config = {"rounds": rounds, "model": str(MODEL), "unseen": str(data / SITES[3]), "report": str(report)}
        run_app(ENVIRONMENT, APP, config, processes, env)
        reports = follow_lines(report, rounds, "the app", processes)
    seconds = [after["time"] - before["time"] for before, after in pairwise(reports)]
    return {
        "lines": lines_of_code((APP / "app.py").read_text()),
        "lines_of_sites": settings_lines((APP / "pyproject.toml").read_text()),
        "files_on_a_site": 0,
        "seconds_per_round": round(statistics.median(seconds[1:]), 3),
        "accuracy": {"last": round(reports[-1]["accuracy"], 3)},
    }


def _lend_libraries() -> None:
    """Let Flower's environment see this one's torch and Transformers behind its own packages."""
    [packages] = (ENVIRONMENT / "lib").glob("python*/site-packages")
    ours = next(path for path in sys.path if path.endswith("site-packages"))
    (packages / "zz_lent.pth").write_text(f"{ours}\n")


def main() -> int:
    """Run the command, and return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=whole_number, default=40, help="%(default)s by default")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "runs" / "own_data_beside", help="a new folder")
    add_save(parser)
    options = parser.parse_args()
    folder = options.out.resolve()
    (folder / "flower").mkdir(parents=True)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    ours = measure_ours(options.rounds, folder)
    flower = measure_flower(options.rounds, folder / "ours-own-data", folder / "flower")
    result = {"rounds": options.rounds, "ours": ours, "flower": flower}
    save(options, result)
    print(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
