"""One experiment in all four modes, as one table: accuracy, seconds, bytes.

    python scripts/compare_modes.py --data data/speech_commands --out runs/modes

centralized; individual (the first of three clients); simulated with 40 clients of which a quarter train in a round;
federated with three envoys. Settings are those of `small.yaml`; other arguments go to `train.py`. A run that was
interrupted goes on.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

TRAIN = Path(__file__).with_name("train.py")
MODELS, SPLITS = ("best", "last"), ("validation", "test")
# A simulated client trains in a quarter of the rounds, and has a batch or four.
MODES = {
    "centralized": [],
    "individual": ["--clients", "3"],
    "simulated": "--clients 40 --fraction 0.25 --rounds 240 --set batch_size=8 --set validate_every=8".split(),  # noqa: SIM905
    "federated": ["--clients", "3"],
}


def run_mode(mode: str, data: Path, out: Path, changes: list[str]) -> dict:
    """Raises CalledProcessError if it fails; what it printed says why."""
    command = [sys.executable, str(TRAIN), "keyword_spotting", "--mode", mode, "--data", str(data)]
    print(f"==> {mode}", flush=True)
    subprocess.run([*command, "--out", str(out / mode), *MODES[mode], *changes], check=True)
    return json.loads((out / mode / "result.json").read_text())


def table(results: dict[str, dict]) -> str:
    """As Markdown."""
    columns = "mode", "clients", "rounds", *(f"{m}, {s}" for m in MODELS for s in SPLITS), "seconds", "MB sent"
    lines = [f"| {' | '.join(columns)} |", "| --- " * len(columns) + "|"]
    for mode, result in results.items():
        scores = [result["metrics"][m][s]["accuracy"] for m in MODELS for s in SPLITS]
        cells = [mode, str(result["clients"]), str(result["rounds"]), *(f"{score:.3f}" for score in scores)]
        cells += [f"{result['seconds']:.0f}", f"{result['bytes']['up'] / 1e6:.0f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description="Run one experiment in all four modes.")
    parser.add_argument("--data", required=True, type=Path, help="a Speech Commands folder")
    parser.add_argument("--out", required=True, type=Path)
    arguments, changes = parser.parse_known_args()
    try:
        results = {mode: run_mode(mode, arguments.data, arguments.out, changes) for mode in MODES}
    except subprocess.CalledProcessError as error:
        return error.returncode
    print(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
