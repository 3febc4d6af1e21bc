"""`openfl-audio data`: corpora are downloaded, made, prepared and checked."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import field_validator, model_validator

from openfl_audio.cli.connected import Connected
from openfl_audio.cli.options import Command, argument, option
from openfl_audio.errors import SettingsError
from shard_descriptors.download import CORPORA, download

CORES = os.cpu_count() or 1


class Check(Command):
    """Check recordings of a site's own: a table, or a folder, that an envoy's settings name.

    Every recording is decoded; nothing is changed, and nothing leaves the machine. Printed are counts by class, group
    and split, durations, and notes on what is clipped, silent, there twice, or looks like names of people. Faults are
    recordings that are left out, broken, or whose group is in several splits; with one the exit code is 1.
    """

    example: ClassVar[str] = "openfl-audio data check -c envoys/table.yaml"

    config: Path = option("YAML file of the envoy's settings", short="-c", metavar="FILE")

    def run(self) -> int:
        from openfl_audio.config import load_settings
        from openfl_audio.envoy.settings import EnvoyFile, build_shard_descriptor
        from shard_descriptors.common.audit import audit
        from shard_descriptors.common.recordings_shard import RecordingsShardDescriptor

        config = self.config.resolve()
        settings = load_settings(config, EnvoyFile).shard_descriptor
        shard = build_shard_descriptor(settings, config.parent)
        if not isinstance(shard, RecordingsShardDescriptor):
            raise SettingsError(
                f"{config}: {settings.template} reads no table or folder: openfl-audio check envoy will do"
            )
        found = audit(shard)
        print("\n".join([*found.lines, *(f"note: {note}" for note in found.notes)]))
        for fault in found.faults:
            print(f"fault: {fault}")
        return int(bool(found.faults))


class Download(Command):
    """Download published corpora, check them and unpack them.

    A download that broke off is resumed, also by the same command later. Room for an archive and its content is needed
    at a time: 62 GB for FSD50K, whose parts Info-ZIP's zip joins (it must be installed), 23 GB for LibriSpeech's
    train-clean-360, 18 GB for the noise of WHAM.
    """

    example: ClassVar[str] = "openfl-audio data download train-clean-100 dev-clean test-clean --out data"
    resumes: ClassVar[bool] = True

    names: list[str] = argument("corpora and subsets", "NAME", choices=tuple(CORPORA))
    out: Path = option("folder of all corpora: FSD50K goes to PATH/FSD50K")

    def run(self) -> None:
        for archive in (archive for name in self.names for archive in CORPORA[name]):
            made = download(archive, self.out)
            print(f"{self.out / archive.folder}: {'downloaded' if made else 'is there already'}")


class MakeSpeechCommands(Command):
    """Make a small corpus of spoken words in the layout of Speech Commands.

    espeak-ng says the words in many voices. The same seed gives the same bytes.
    """

    example: ClassVar[str] = "openfl-audio data make speech-commands --out data/speech_commands --speakers 20"

    out: Path = option("folder to make")
    speakers: int | None = option("number of voices (52)", None)
    seed: int = option("seed of every random choice", 0)

    def run(self) -> None:
        from openfl_audio.testing.corpora.speech_commands import make_speech_commands

        _make(make_speech_commands, self.out, self.seed, n_speakers=self.speakers)


class MakeLibrispeech(Command):
    """Make a small corpus of read sentences in the layout of LibriSpeech.

    espeak-ng reads the sentences in many voices. The same seed gives the same bytes.
    """

    example: ClassVar[str] = "openfl-audio data make librispeech --out data/LibriSpeech"

    out: Path = option("folder to make")
    seed: int = option("seed of every random choice", 0)

    def run(self) -> None:
        from openfl_audio.testing.corpora.librispeech import make_librispeech

        _make(make_librispeech, self.out, self.seed)


class MakeFsd50k(Command):
    """Make a small corpus of sound events in the layout of FSD50K.

    The sounds are synthetic. The same seed gives the same bytes.
    """

    example: ClassVar[str] = "openfl-audio data make fsd50k --out data/FSD50K"

    out: Path = option("folder to make")
    seconds: float | None = option("median length of a clip (1.4)", None)
    seed: int = option("seed of every random choice", 0)

    def run(self) -> None:
        from openfl_audio.testing.corpora.fsd50k import make_fsd50k

        _make(make_fsd50k, self.out, self.seed, median_seconds=self.seconds)


class PrepareFsd50k(Command):
    """Prepare FSD50K: write a store of mel frames that shards are read from.

    What was left out, averaged to mono or resampled is named in OUT/report.json. A store that is complete is left as it
    is. --check reads the whole store and looks at every recording; it changes nothing, and exits with 1 if the store is
    not what preparing again would give.
    """

    example: ClassVar[str] = "openfl-audio data prepare fsd50k --data data/FSD50K --out data/fsd50k_store"
    resumes: ClassVar[bool] = True

    data: Path = option("folder that holds FSD50K.dev_audio and so on")
    out: Path = option("folder of the store")
    anno_dir: Path | None = option("folder of other tables than those in FSD50K.ground_truth", None)
    features: Literal["log_mel", "power"] = option("what the frames are", "log_mel")
    workers: int = option("processes; as many as there are cores by default", CORES, ge=1)
    check: bool = option("look whether the store is complete and right", False)

    def run(self) -> int:
        from shard_descriptors.fsd50k.layout import read_layout
        from shard_descriptors.fsd50k.preparation import check_store, prepare_store

        layout = read_layout(self.data, self.anno_dir)
        if self.check:
            faults = check_store(layout, self.out, self.features)
            print("\n".join(faults) or f"{self.out} is complete and right.")
            return int(bool(faults))
        made = prepare_store(layout, self.out, self.features, self.workers)
        print(f"{self.out}: {self._describe()}" if made else f"{self.out} is complete; nothing to do.")
        return 0

    def _describe(self) -> str:
        from shard_descriptors.fsd50k.preparation import REPORT

        report = json.loads((self.out / REPORT).read_text(encoding="utf-8"))
        return (
            f"{report['clips']:,} clips of {report['uploaders']:,} uploaders, {report['audio_hours']:.2f} h of audio "
            f"in {report['frames_bytes'] / 1e9:.3f} GB; {len(report['left_out']):,} left out, "
            f"{len(report['averaged_to_mono']):,} averaged to mono, {len(report['other_sample_rate']):,} of another "
            f"sample rate than 44.1 kHz, named in {self.out / REPORT}"
        )


class PrepareLibrispeech(Command):
    """Prepare LibriSpeech: list the clips of each of N clients.

    The train subsets that are there (without any: the largest subset) are used together. The audio stays where it is;
    the lists, with durations and transcripts, are OUT/clips.csv. Every file is decoded once, and what cannot be used is
    named, also in OUT/librispeech.json.
    """

    example: ClassVar[str] = (
        "openfl-audio data prepare librispeech --data data/LibriSpeech --out data/librispeech_8 --clients 8"
    )
    resumes: ClassVar[bool] = True

    data: Path = option("the folder LibriSpeech")
    out: Path = option("folder to write")
    clients: int = option("number of clients that share it")
    subsets: list[str] = option("subsets that clients share, in place of those for training", [], metavar="SUBSET")
    partition: Literal["speaker", "iid"] = option("by speaker, or regardless of the speaker", "speaker")
    seed: int = option("seed of the partition", 0)
    workers: int = option("files decoded at a time", 1, ge=1)

    def run(self) -> None:
        from shard_descriptors.librispeech.preparation import prepare_librispeech, summarize

        report = prepare_librispeech(
            self.data, self.out, self.clients, self.partition, self.seed, self.workers, self.subsets
        )
        print("\n".join(summarize(report)))


class PrepareLibrifsd50k(Command):
    """Prepare LibriFSD50K: write utterances with sounds that are no speech.

    Each utterance of LibriSpeech goes with a sound of FSD50K, in chunks of 4 s at 16 kHz. Train speakers come from
    train-clean-100 and train-clean-360, validation from dev-clean, test from test-clean. Parts of the corpora are
    enough: what lacks is held out from train, and OUT/report.json says so, as it names every file that was left out.
    Complete, LibriFSD50K takes about 13 GB.
    """

    example: ClassVar[str] = (
        "openfl-audio data prepare librifsd50k --librispeech data/LibriSpeech --fsd50k data/FSD50K \\\n"
        "      --out data/librifsd50k"
    )
    resumes: ClassVar[bool] = True

    librispeech: Path = option("the folder LibriSpeech")
    fsd50k: Path = option("folder that holds FSD50K.dev_audio and so on")
    out: Path = option("folder to write")
    seed: int = option("seed of which clip goes with which utterance", 0)
    clips_per_utterance: int | None = option(
        "clips that each utterance goes with, for few recordings; as published, one while there are clips", None
    )
    workers: int = option("pairs written at a time", 1, ge=1)

    def run(self) -> None:
        from shard_descriptors.librifsd50k.preparation import prepare_librifsd50k

        report = prepare_librifsd50k(
            self.librispeech, self.fsd50k, self.out, self.seed, self.workers, self.clips_per_utterance
        )
        _summarize_pairs(report, self.out)


class PrepareFedwham(Command):
    """Prepare FedWHAM: write WHAM's first speakers with their noise.

    FedEnhance trains a model on it before the federation. The folder of WHAM is what its own scripts make of WSJ0
    (LDC93S6A) and its noise recordings (openfl-audio data download wham-noise), with tr, cv and tt. For cv or tt that
    are not there, speakers of tr are held out. Files are copied as they are; OUT/report.json names what was left out.
    """

    example: ClassVar[str] = "openfl-audio data prepare fedwham --wham wham/wav16k/max --out data/fedwham"
    resumes: ClassVar[bool] = True

    wham: Path = option("WHAM's folder wav16k/max")
    out: Path = option("folder to write")
    seed: int = option("seed of which speakers are held out", 0)
    workers: int = option("pairs copied at a time", 1, ge=1)

    def run(self) -> None:
        from shard_descriptors.librifsd50k.preparation import prepare_fedwham

        _summarize_pairs(prepare_fedwham(self.wham, self.out, self.seed, self.workers), self.out)


class PrepareHubertTargets(Command):
    """Prepare the targets of HuBERT: the k-means cluster of every frame.

    The frames are MFCC of a LibriSpeech that was prepared for clients or, after a first pretraining, a layer of its
    model. Targets are in DATA/targets/NAME, which a shard descriptor and openfl-audio train hubert take by its name.
    A codebook is one for each client, one for all by k-means over the federation, one from all frames in one place, or
    in a file of openfl-audio data prepare hubert-codebook, which says all but the name.
    """

    example: ClassVar[str] = (
        "openfl-audio data prepare hubert-targets --data data/librispeech_8 --codebook federated \\\n"
        "      --clusters 500 --features runs/hubert --layer 6 --share 0.1"
    )
    resumes: ClassVar[bool] = True

    data: Path = option("what openfl-audio data prepare librispeech wrote")
    codebook: str = option("who shares a codebook: client, federated or central; or FILE.npz")
    clusters: int = option("clusters of a codebook", 504)
    mfcc: Literal["39", "13"] = option("MFCC with their differences, or without", "39")
    features: Path | None = option("a run of pretraining, in place of MFCC", None)
    layer: int | None = option("layer of its Transformer, from 1", None)
    share: float = option("share of the train clips to fit on", 1.0)
    rounds: int = option("rounds of the federated codebook", 30)
    batch_size: int = option("frames of a batch of k-means; not federated", 10_000)
    max_iter: int = option("passes of k-means over the frames at most; not federated", 100)
    seed: int = option("seed of every random choice", 0)
    name: str | None = option("name of the targets, CODEBOOK-FEATURE-CLUSTERS by default", None)
    device: str = option("where the model of --features runs", "cpu")

    @model_validator(mode="after")
    def check_features(self) -> "PrepareHubertTargets":
        if (self.features is None) != (self.layer is None):
            raise ValueError("--features and --layer go together: a run, and a layer of its model")
        return self

    def run(self) -> None:
        from workspaces.hubert_codebooks.features import Features, HiddenStates, Mfcc
        from workspaces.hubert_codebooks.targets import make_targets, make_targets_of, summarize

        if self.codebook.endswith(".npz"):
            print("\n".join(summarize(make_targets_of(self.data, Path(self.codebook), self.name))))
            return
        features: Features = Mfcc(39 if self.mfcc == "39" else 13)
        if self.features is not None and self.layer is not None:
            features = HiddenStates(self.features, self.layer, self.device)
        info = make_targets(
            self.data,
            self.codebook,
            self.clusters,
            features,
            self.name,
            self.share,
            self.seed,
            self.rounds,
            self.batch_size,
            self.max_iter,
        )
        print("\n".join(summarize(info)))


class PrepareHubertCodebook(Connected):
    """Fit one codebook of MFCC over the envoys of a director, for nodes on several machines.

    An experiment runs k-means over all envoys that serve LibriSpeech; no frame leaves its envoy. The file is carried to
    each node, where openfl-audio data prepare hubert-targets --codebook FILE makes its targets.
    """

    example: ClassVar[str] = (
        "openfl-audio data prepare hubert-codebook --director fl.example.org --user ada --clusters 504 \\\n"
        "      --out codebook.npz"
    )
    resumes: ClassVar[bool] = True

    out: Path = option("file of the codebook, .npz")
    clusters: int = option("clusters of the codebook", 504, ge=1)
    mfcc: Literal["39", "13"] = option("MFCC with their differences, or without", "39")
    share: float = option("share of the train clips to fit on", 1.0, gt=0, le=1)
    rounds: int = option("rounds of k-means", 30, ge=2)
    seed: int = option("seed of every random choice", 0)
    name: str = option("name of the experiment", "hubert-codebook")

    @field_validator("out")
    @classmethod
    def check_out(cls, out: Path) -> Path:
        if out.suffix != ".npz":
            raise ValueError("the file's name should end in .npz")
        return out

    def run(self) -> None:
        from openfl_audio.experiments.codebooks import fit_over_federation
        from workspaces.hubert_codebooks.codebook_file import FitSettings

        settings = FitSettings(
            mfcc=int(self.mfcc), clusters=self.clusters, rounds=self.rounds, share=self.share, seed=self.seed
        )
        found = fit_over_federation(self.federation(), self.name, settings, self.out)
        print(f"{self.out}: {found} clusters of mfcc{self.mfcc}")


def _make(make: Callable[..., bool], out: Path, seed: int, **sizes: Any) -> None:
    """Make a corpus; sizes that are None are those of the function."""
    made = make(out, seed=seed, **{name: size for name, size in sizes.items() if size is not None})
    print(f"{out}: {'made' if made else 'is there already'}.")


def _summarize_pairs(report: dict[str, Any], out: Path) -> None:
    from shard_descriptors.librifsd50k.store import REPORT, summarize

    print("\n".join([*summarize(report), f"See {out / REPORT}"]))
