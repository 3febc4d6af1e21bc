#!/usr/bin/env python3
"""Prepare FSD50K: from its published folders to a store of mel frames that shards are read from.

    python scripts/prepare_fsd50k.py --data data/FSD50K --out data/fsd50k_store --workers 8
    python scripts/prepare_fsd50k.py --data data/FSD50K --out data/fsd50k_store --check

A run that was stopped goes on where it was, and one that is complete does nothing. What was left out, averaged to mono
or resampled is named in OUT/report.json. `--check` reads the whole store and looks at every recording; it changes
nothing and exits with 1 if the store is not what preparing again would give.
"""

import argparse
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `scripts` is no installed package

from scripts.arguments import whole_number
from scripts.preparation import run_preparation
from shard_descriptors.fsd50k.layout import read_layout
from shard_descriptors.fsd50k.preparation import REPORT, check_store, prepare_store
from shard_descriptors.fsd50k.store import FEATURES


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds FSD50K.dev_audio")
    parser.add_argument("--out", type=Path, required=True, help="folder of the store")
    parser.add_argument("--workers", type=whole_number, default=os.cpu_count(), help="processes (one per core)")
    parser.add_argument("--features", choices=FEATURES, default="log_mel", help="%(default)s by default")
    parser.add_argument("--check", action="store_true", help="look whether the store is complete and right")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    faults: list[str] = []

    def prepare() -> list[str]:
        layout = read_layout(options.data)
        if options.check:
            faults.extend(check_store(layout, options.out, options.features))
            return faults or [f"{options.out} is complete and right."]
        made = prepare_store(layout, options.out, options.features, options.workers)
        return [f"{options.out}: {describe(options.out)}" if made else f"{options.out} is complete; nothing to do."]

    return run_preparation(prepare) or bool(faults)


def describe(out: Path) -> str:
    report = json.loads((out / REPORT).read_text(encoding="utf-8"))
    return (
        f"{report['clips']:,} clips of {report['uploaders']:,} uploaders, {report['audio_hours']:.2f} h of audio in "
        f"{report['frames_bytes'] / 1e9:.3f} GB; {len(report['left_out']):,} left out, "
        f"{len(report['averaged_to_mono']):,} averaged to mono, {len(report['other_sample_rate']):,} of another sample "
        f"rate than 44.1 kHz, named in {out / REPORT}"
    )


if __name__ == "__main__":
    sys.exit(main())
