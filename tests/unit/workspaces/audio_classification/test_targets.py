"""Labels agree before training starts: each way in which sites can differ, by its sentence."""

import numpy as np
import pytest
import yaml

from openfl_audio.errors import SettingsError
from workspaces.audio_classification.targets import Targets, agree, agree_with

EVEN = {"yes": 4, "no": 4}


def sites(**train: dict[str, int]) -> dict[str, dict[str, dict[str, int]]]:
    return {name: {"train": counts, "validation": counts} for name, counts in train.items()}


def test_overlapping_class_sets_become_their_union_and_say_who_lacks_what():
    agreed = agree(sites(a={"yes": 3, "no": 2}, b={"no": 5, "maybe": 1}), "label")
    assert agreed.targets.classes == ("maybe", "no", "yes")
    assert agreed.remarks == (
        "a has no train clip of 'maybe'",
        "b has no train clip of 'yes'",
        "b alone trains 'maybe'",
        "a alone trains 'yes'",
    )


def test_sites_that_agree_have_nothing_to_say():
    assert agree(sites(a=EVEN, b=EVEN), "label").remarks == ()


def test_a_site_with_a_single_class_takes_part():
    agreed = agree(sites(a=EVEN, b={"no": 9}), "label")
    assert agreed.targets.classes == ("no", "yes")
    assert agreed.remarks == ("b has no train clip of 'yes'", "a alone trains 'yes'")


def test_a_site_without_a_clip_of_a_split_is_named():
    counts = sites(a=EVEN, b=EVEN)
    counts["b"]["validation"] = {}
    assert agree(counts, "label").remarks == ("b has no validation clip",)


def test_labels_that_are_no_class_are_refused_with_counts_and_the_mapping_that_would_do():
    counts = {"a": {"train": {"Yes": 3, "no": 4}, "test": {"Yes": 1}}, "b": {"train": {"yes": 2, "no": 2, "cough": 7}}}
    sentence = (
        r"labels that are no class: 'Yes' \(a 4\); 'cough' \(b 7\). The classes are yes, no; map a label .* "
        r"mapping=\{'Yes': 'yes', 'cough': None\}"
    )
    with pytest.raises(SettingsError, match=sentence):
        agree(counts, "label", classes=["yes", "no"])
    agreed = agree(counts, "label", ["yes", "no"], {"Yes": "yes", "cough": None})
    assert agreed.targets.classes == ("yes", "no")
    assert agreed.remarks[:2] == ("a 4 clips of 'Yes' count as 'yes'", "b 7 clips of 'cough' are left out")


def test_a_union_in_which_classes_differ_by_case_alone_is_refused():
    with pytest.raises(
        SettingsError, match=r"'yes' \(b 8\) and 'Yes' \(a 6\); say which are one with mapping=\{'yes': 'Yes'\}"
    ):
        agree(sites(a={"Yes": 3, "no": 1}, b=EVEN), "label")
    assert agree(sites(a={"Yes": 3, "no": 1}, b=EVEN), "label", mapping={"Yes": "yes"}).targets.classes == ("no", "yes")


def test_the_registry_says_what_envoys_have():
    def envoy(**description):
        info = type("Info", (), {"shard_description": yaml.safe_dump(description)})
        return {"shard_info": info}

    split = {"validation": {}, "test": {}}
    registry = {"a": envoy(kind="label", train=EVEN, **split), "other": envoy(corpus="superb", train={"up": 3})}
    assert agree_with(registry).targets.classes == ("no", "yes")
    registry["b"] = envoy(kind="number", train={"clips": 4}, **split)
    with pytest.raises(SettingsError, match="of one kind, and they have {'a': 'label', 'b': 'number'}"):
        agree_with(registry)


def test_targets_become_positions_zeros_and_ones_or_numbers():
    single = Targets("label", ("no", "yes"), (("Yes", "yes"), ("cough", None)))
    assert single.encode_all(["yes", "no", "Yes", "cough"]) == [1, 0, 1, None]
    several = Targets("labels", ("dog", "rain"), (("Dog", "dog"), ("hum", None)))
    np.testing.assert_array_equal(several.encode_all([("rain",), ("Dog", "hum"), ()]), [[0, 1], [1, 0], [0, 0]])
    assert Targets("number").encode_all([1.5, 2]) == [1.5, 2.0]


def test_a_node_refuses_labels_that_are_no_class_with_all_counts():
    with pytest.raises(SettingsError, match="labels that are no class: cough 2, hum 1; the classes are"):
        Targets("label", ("no", "yes")).encode_all(["yes", "cough", "hum", "cough"])
    with pytest.raises(SettingsError, match="the model learns a number, and a recording has 'yes'"):
        Targets("number").encode_all(["yes"])
    with pytest.raises(SettingsError, match=r"the model learns a label, and a recording has \('yes',\)"):
        Targets("label", ("no", "yes")).encode_all([("yes",)])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("text",), "a text has no classes"),
        (("label", ("one",)), "one label needs two of them"),
        (("label", ("a", "b", "a")), "each of them once"),
        (("label", ("a", "b"), (("c", "d"),)), "mapping: d is none of the classes a, b"),
    ],
)
def test_targets_that_cannot_be_learned_are_refused(arguments, sentence):
    with pytest.raises(SettingsError, match=sentence):
        Targets(*arguments)
