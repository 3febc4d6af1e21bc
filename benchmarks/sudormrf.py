#!/usr/bin/env python3
"""Comparison of a training step of our SuDoRM-RF with one of FedEnhance's published code, with equal results.

    git clone https://github.com/etzinis/fedenhance
    OMP_NUM_THREADS=2 python benchmarks/sudormrf.py --published fedenhance

Both models get the same random weights and the same batch. A step is forward, loss, backward, clipping and Adam; ours
is that of `workspaces/speech_enhancement/tasks.py`, the other is written as their training loop is, on their model.
Steps alternate, so that a busy machine slows down both, and the first pair does not count; `times_faster` has the ratio
of the fastest steps, and the median of those of neighbours. First outputs are compared, in float32, and gradients, in
float64: in float32 either's are off by some thousandths where an activation is near its kink. `max_error` is the
largest difference within a tensor, as a share of its largest value.
"""

import argparse
import copy
import json
import statistics
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `benchmarks` is no installed package

from benchmarks.arguments import add_save, save
from workspaces.speech_enhancement.loss import supervised_loss
from workspaces.speech_enhancement.model import SudoRmRf, create_sudormrf, make_consistent
from workspaces.speech_enhancement.settings import SudoRmRfSettings
from workspaces.speech_enhancement.tasks import accumulate_gradients


def load_published(folder: Path, settings: SudoRmRfSettings) -> torch.nn.Module:
    """The published model, out of a checkout of etzinis/fedenhance."""
    sys.path.insert(0, str(folder))
    module = import_module("fedenhance.models.groupcomm_sudormrf_v2")
    return module.GroupCommSudoRmRf(
        in_audio_channels=1,
        out_channels=settings.out_channels,
        in_channels=settings.in_channels,
        num_blocks=settings.num_blocks,
        upsampling_depth=settings.upsampling_depth,
        enc_kernel_size=settings.kernel_size,
        enc_num_basis=settings.num_bases,
        num_sources=settings.num_sources,
        group_size=settings.num_groups,
    )


def loss_of(estimate: torch.Tensor, sources: torch.Tensor) -> torch.Tensor:
    """Return the supervised loss of an estimate. Lower is better."""
    return supervised_loss(estimate=estimate, reference=sources)


def published_gradients(model: torch.nn.Module, sources: torch.Tensor) -> None:
    """Compute gradients as the published loop does: mixtures of variance 1, the whole batch at once."""
    mixture = sources.sum(dim=1, keepdim=True)
    mixture = (mixture - mixture.mean(-1, keepdim=True)) / (mixture.std(-1, keepdim=True) + 1e-9)
    estimate = make_consistent(model(mixture), mixture[:, 0])
    loss_of(estimate, sources).mean().backward()


def step_of(model: torch.nn.Module, gradients: Callable[[], Any]) -> Callable[[], float]:
    """A training step that returns the seconds it takes."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.001)

    def step() -> float:
        start = time.perf_counter()
        optimizer.zero_grad()
        gradients()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        return time.perf_counter() - start

    return step


def compare(ours: SudoRmRf, published: torch.nn.Module, sources: torch.Tensor) -> dict[str, float]:
    """`max_error`; on one second, as float64 takes its time."""
    sources = sources[:2, :, :16_000]
    waveform = sources.sum(dim=1)
    with torch.no_grad():
        output = _error(ours(waveform), published(waveform.unsqueeze(1)))
    exact, expected = copy.deepcopy(ours).double(), copy.deepcopy(published).double()
    accumulate_gradients(exact, sources.double(), loss_of)
    published_gradients(expected, sources.double())
    theirs = ours.read_published(_gradients(expected))
    gradients = {name: _error(gradient, theirs[name]) for name, gradient in _gradients(exact).items()}
    return {"outputs": output, "gradients": max(gradients.values())}


def _gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def _error(value: torch.Tensor, expected: torch.Tensor) -> float:
    return ((value - expected).abs().max() / expected.abs().max()).item()


def benchmark(folder: Path, batch_size: int, num_samples: int, pairs: int) -> dict[str, Any]:
    """Return the seconds of a training step of the published code in `folder` and of ours, and how far they differ."""
    settings = SudoRmRfSettings()
    torch.manual_seed(0)
    published, ours = load_published(folder, settings), create_sudormrf(settings)
    ours.load_state_dict(ours.read_published(published.state_dict()))
    sources = 0.1 * torch.randn(batch_size, 3, num_samples)
    max_error = compare(ours, published, sources)
    ours_step = step_of(ours, lambda: accumulate_gradients(ours, sources, loss_of))
    published_step = step_of(published, lambda: published_gradients(published, sources))
    times = [(published_step(), ours_step()) for _ in range(1 + pairs)][1:]
    fastest = [min(steps) for steps in zip(*times, strict=True)]
    return {
        "parameters": sum(parameter.numel() for parameter in ours.parameters()),
        "batch": [batch_size, num_samples],
        "threads": torch.get_num_threads(),
        "max_error": max_error,
        "published_step_s": [round(theirs, 3) for theirs, _ in times],
        "our_step_s": [round(mine, 3) for _, mine in times],
        "times_faster": {
            "fastest_steps": round(fastest[0] / fastest[1], 2),
            "median_of_neighbours": round(statistics.median(theirs / mine for theirs, mine in times), 2),
        },
    }


def parse_arguments() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--published", required=True, type=Path, help="a checkout of github.com/etzinis/fedenhance")
    parser.add_argument("--batch-size", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=4.0, help="of audio at 16 kHz")
    parser.add_argument("--pairs", type=int, default=3, help="steps of each that count")
    add_save(parser)
    return parser.parse_args()


def main() -> int:
    """Run the command, and return its exit status."""
    arguments = parse_arguments()
    if not (arguments.published / "fedenhance" / "models" / "groupcomm_sudormrf_v2.py").is_file():
        print(f"--published {arguments.published} is no checkout of etzinis/fedenhance", file=sys.stderr)
        return 1
    num_samples = round(arguments.seconds * 16_000)
    result = benchmark(arguments.published, arguments.batch_size, num_samples, arguments.pairs)
    save(arguments, result)
    print(json.dumps(result, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
