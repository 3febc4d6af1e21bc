"""Targets of a model: its classes, or a number, and how the labels of the sites become classes."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import yaml

from openfl_audio.errors import SettingsError

# The kinds of targets that a shard of recordings has and a classifier learns, and what Transformers calls each.
PROBLEM_TYPES = {
    "label": "single_label_classification",
    "labels": "multi_label_classification",
    "number": "regression",
}
MOST_NAMED = 5
# Counts by class, by split, by site.
Counts = Mapping[str, Mapping[str, Mapping[str, int]]]


@dataclass(frozen=True)
class Targets:
    """The outputs of a model.

    Attributes:
        kind: "label" (one of the classes), "labels" (any of them) or "number".
        classes: their names, in the order of the model's outputs; a number has none.
        mapping: the class of a site's label that is written differently; None leaves its recordings out.
    """

    kind: str
    classes: tuple[str, ...] = ()
    mapping: tuple[tuple[str, str | None], ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in PROBLEM_TYPES:
            raise SettingsError(f"targets are {', '.join(PROBLEM_TYPES)}, and not {self.kind!r}: a text has no classes")
        if self.kind != "number" and len(self.classes) < (2 if self.kind == "label" else 1):
            raise SettingsError(f"classes are {list(self.classes)}: one label needs two of them, several need one")
        if len(set(self.classes)) < len(self.classes):
            raise SettingsError(f"classes are {list(self.classes)}: each of them once")
        if unknown := sorted({name for _, name in self.mapping if name is not None} - set(self.classes)):
            raise SettingsError(f"mapping: {', '.join(unknown)} is none of the classes {', '.join(self.classes)}")

    @property
    def num_outputs(self) -> int:
        """Number of the model's outputs."""
        return len(self.classes) or 1

    @property
    def class_of(self) -> dict[str, str | None]:
        """The class of each label that is known, or None for one that is left out."""
        return {**{name: name for name in self.classes}, **dict(self.mapping)}

    @property
    def problem_type(self) -> str:
        """The name of the kind in a configuration of Transformers."""
        return PROBLEM_TYPES[self.kind]

    def encode(self, target: Any) -> int | float | np.ndarray | None:
        """Return what the loss takes for a shard's target, or None for a recording that is left out.

        That is the position of a class, 0/1 as float32 (classes,), or the number. Several labels of which some are left
        out keep the others.

        Raises:
            KeyError: a label that is no class.
        """
        if self.kind == "number":
            return float(target)
        mapping = self.class_of
        if self.kind == "label":
            name = mapping[target]
            return None if name is None else self.classes.index(name)
        names = [mapping[label] for label in target]
        return np.array([name in names for name in self.classes], dtype=np.float32)

    def encode_all(self, targets: Iterable[Any]) -> list[int | float | np.ndarray | None]:
        """Encode the targets of a split. Raises SettingsError with all labels that are no class, and their counts."""
        encoded: list[int | float | np.ndarray | None] = []
        unknown: Counter[str] = Counter()
        known = {*self.classes, *(label for label, _ in self.mapping)}
        for target in targets:
            if self.kind == "number" and not isinstance(target, int | float):
                raise SettingsError(f"the model learns a number, and a recording has {target!r}")
            if self.kind != "number":
                labels = (target,) if isinstance(target, str) else target
                if isinstance(labels, int | float) or (self.kind == "label" and not isinstance(target, str)):
                    raise SettingsError(f"the model learns a {self.kind}, and a recording has {target!r}")
                if wrong := [label for label in labels if label not in known]:
                    unknown.update(wrong)
                    continue
            encoded.append(self.encode(target))
        if unknown:
            raise SettingsError(f"labels that are no class: {_counted(unknown)}; the classes are {self.classes}")
        return encoded


@dataclass(frozen=True)
class Agreement:
    """Agreement of sites and experiment: the targets, and notes on the sites, a sentence each."""

    targets: Targets
    remarks: tuple[str, ...]


def agree(
    counts: Counts,
    kind: str,
    classes: Sequence[str] | None = None,
    mapping: Mapping[str, str | None] | None = None,
) -> Agreement:
    """Settle the classes of an experiment before it starts, from the numbers of clips by site, split and label.

    Args:
        counts: of each site.
        kind: of the targets, as `Targets` has it.
        classes: of the experiment, in the order of the model's outputs; None: those that any site has, sorted.
        mapping: the class of a label that a site writes differently, or None to leave its clips out.

    Raises:
        SettingsError: a label that is no class, or classes that differ in case or white space only, with the sites that
            have them, how often, and the mapping that would do.
    """
    mapping = dict(mapping or {})
    if kind == "number":
        return Agreement(Targets(kind), tuple(_remark_empty(counts)))
    by_label: dict[str, Counter[str]] = {}
    for site, splits in counts.items():
        for of_split in splits.values():
            for label, count in of_split.items():
                by_label.setdefault(label, Counter())[site] += count
    union = sorted({mapping.get(label, label) or "" for label in by_label} - {""})
    if classes is None:
        _refuse_near_duplicates(union, by_label)
    targets = Targets(kind, tuple(union if classes is None else classes), tuple(sorted(mapping.items())))
    known = {*targets.classes, *mapping}
    unknown = {label: sites for label, sites in by_label.items() if label not in known}
    if unknown:
        alike = {_plain(name): name for name in targets.classes}
        proposal = {label: alike.get(_plain(label)) for label in unknown}
        said = "; ".join(f"{label!r} ({_counted(sites)})" for label, sites in sorted(unknown.items()))
        raise SettingsError(
            f"labels that are no class: {said}. The classes are {', '.join(targets.classes)}; "
            f"map a label to a class, or to None to leave its clips out: mapping={proposal}"
        )
    remarks = [
        f"{_counted(by_label[label])} clips of {label!r} {'are left out' if name is None else f'count as {name!r}'}"
        for label, name in targets.mapping
        if label in by_label
    ]
    return Agreement(targets, (*remarks, *_remark_missing(counts, targets), *_remark_empty(counts)))


def agree_with(
    registry: Mapping[str, Mapping[str, Any]],
    classes: Sequence[str] | None = None,
    mapping: Mapping[str, str | None] | None = None,
) -> Agreement:
    """Settle the classes from `Federation.get_shard_registry()`: see `agree`. Prints the remarks.

    Raises:
        SettingsError: as `agree`, or no envoy serves recordings, or their targets are of several kinds.
    """
    described = {name: yaml.safe_load(envoy["shard_info"].shard_description) for name, envoy in registry.items()}
    sites = {name: each for name, each in described.items() if isinstance(each, dict) and "kind" in each}
    kinds = {name: each["kind"] for name, each in sites.items()}
    if len(set(kinds.values())) != 1:
        raise SettingsError(f"the envoys should serve recordings with targets of one kind, and they have {kinds}")
    counts = {name: {split: each[split] for split in ("train", "validation", "test")} for name, each in sites.items()}
    agreement = agree(counts, next(iter(kinds.values())), classes, mapping)
    print("\n".join(agreement.remarks))
    return agreement


def _refuse_near_duplicates(classes: Sequence[str], by_label: Mapping[str, Counter[str]]) -> None:
    first: dict[str, str] = {}
    twins = {}
    for name in classes:
        if first.setdefault(_plain(name), name) != name:
            twins[name] = first[_plain(name)]
    if twins:
        named = {name: f"{name!r} ({_counted(by_label.get(name, {}))})" for name in classes}
        said = "; ".join(f"{named[name]} and {named[twin]}" for name, twin in twins.items())
        raise SettingsError(
            f"labels that differ in case or white space only: {said}; say which are one with mapping={twins}, "
            "or name the classes"
        )


def _remark_missing(counts: Counts, targets: Targets) -> Iterable[str]:
    """Yield the classes that a site does not train on, and those that one site has alone."""
    have = {
        site: {targets.class_of.get(label) for label, count in splits.get("train", {}).items() if count}
        for site, splits in counts.items()
    }
    for site, classes in have.items():
        if lacks := [name for name in targets.classes if name not in classes]:
            yield f"{site} has no train clip of {_listed(lacks)}"
    for name in targets.classes:
        owners = [site for site, classes in have.items() if name in classes]
        if len(owners) == 1 and len(have) > 1:
            yield f"{owners[0]} alone trains {name!r}"


def _remark_empty(counts: Counts) -> Iterable[str]:
    for site, splits in counts.items():
        for split in ("train", "validation"):
            if not sum(splits.get(split, {}).values()):
                yield f"{site} has no {split} clip"


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items()))


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(map(repr, names[:MOST_NAMED])) + more


def _plain(name: str) -> str:
    return " ".join(name.casefold().split())
