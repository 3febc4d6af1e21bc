"""Search over settings: a grid of values, or some of it at random, with a simulated run for each.

    python scripts/tune.py sound_events --data stores/fsd50k --out runs/grid --config vgg.yaml --workers 4
        --over fraction=0.1,0.3,0.5,0.7 --over local_epochs=1,3,5

Leaves results.csv, curves.png, heatmap.png (of two axes) and each trial's run in `--out`. The same command goes on with
a search that was killed.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

# `python scripts/tune.py` has scripts/ in its path and not the repository.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.arguments import whole_number

if TYPE_CHECKING:
    from openfl_audio.experiments.search import Search


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workload", help="as for train.py")
    parser.add_argument("--data", required=True, type=Path, help="the corpus, as for train.py")
    parser.add_argument("--out", required=True, type=Path, help="a new folder, or that of a search to go on with")
    parser.add_argument("--config", default="small.yaml", help="in the workload's configs/, or a path (%(default)s)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="the same in all trials")
    parser.add_argument("--over", action="append", required=True, metavar="KEY=V1,V2,...", help="an axis of the grid")
    parser.add_argument(
        "--samples", type=whole_number, help="so many of the grid's points, drawn at random, in place of all"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the drawn points (%(default)s)")
    parser.add_argument("--early-stopping", action="store_true", help="end trials that fall behind (ASHA)")
    parser.add_argument("--workers", type=whole_number, default=1, help="trials that run side by side (%(default)s)")
    parser.add_argument("--ray-address", help="of a Ray cluster")
    parser.add_argument("--gpus-per-trial", type=float, default=0.0, help="such as 0.25")
    return parser.parse_args()


def parse_axis(text: str) -> tuple[str, list[Any]]:
    """ "key=value,value,..." with values as in YAML.

    >>> parse_axis("fraction=0.1,0.3")
    ('fraction', [0.1, 0.3])
    """
    from openfl_audio.errors import SettingsError
    from openfl_audio.training.run_settings import parse_change

    key, _, values = text.partition("=")
    pairs = [parse_change(f"{key}={value}") for value in values.split(",") if value.strip()]
    if not pairs:
        raise SettingsError(f"{text!r} should be key=value,value,..., such as fraction=0.1,0.3")
    return pairs[0][0], [value for _, value in pairs]


def create_search(options: argparse.Namespace) -> "Search":
    """Raises SettingsError for a key that is unknown, wrong, or given twice."""
    from openfl_audio.errors import SettingsError
    from openfl_audio.experiments.search import Search, combinations
    from openfl_audio.experiments.workloads import find_file, find_workload
    from openfl_audio.training.run_settings import parse_change

    axes, changes = dict(map(parse_axis, options.over)), dict(map(parse_change, options.set))
    twice = [key for key in axes if key in changes]
    if twice or len(axes) < len(options.over):
        raise SettingsError(f"{', '.join(twice) or 'a key'} is given twice: in one --over, or in --set")
    choices = combinations(axes, options.samples, options.seed)
    workload = find_workload(options.workload)
    config = find_file(workload, options.config)
    return Search(workload, config, changes, choices, options.data.resolve(), options.out.resolve())


def tune(options: argparse.Namespace) -> None:
    from openfl_audio.training.plots import plot_curves, plot_heat_map

    search = create_search(options)
    search.run(
        early_stopping=options.early_stopping,
        workers=options.workers,
        ray_address=options.ray_address,
        gpus_per_trial=options.gpus_per_trial,
    )
    trials, metric = search.summary(), search.best[0]
    trials.to_csv(options.out / "results.csv", index=False)
    histories = {name: search.history(trial) for trial, name in enumerate(search.names)}
    plot_curves(histories, metric, options.out / "curves.png")
    axes = list(search.choices[0])
    if len(axes) == 2:
        plot_heat_map(trials, axes[0], axes[1], metric, options.out / "heatmap.png")
    search.workload.plot_search(trials, options.out)
    print(trials.to_string(index=False))
    print(f"{options.out} has results.csv, trials/ and plots")


def main() -> int:
    options = parse_arguments()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from openfl_audio.errors import SearchError
    from openfl_audio.experiments.run import EXPECTED_ERRORS

    try:
        tune(options)
    except (*EXPECTED_ERRORS, SearchError) as error:
        print(f"tune: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"tune: interrupted; the same command goes on with {options.out}", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
