"""A site's own model: an exported one, with the tensors that stayed at the site."""

import shutil
import tempfile
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

from openfl_audio.envoy.rooms import STATE
from openfl_audio.errors import TensorFormatError
from openfl_audio.node.local_state import last_round, read_local
from openfl_audio.protocol.tensors import Tensors
from openfl_audio.training.export import CARD

WEIGHTS = "model.safetensors"


def write_personal(model: Path, envoy_folder: Path, experiment: str, out: Path) -> list[str]:
    """Copy an exported model to the folder `out`, with the tensors that stayed at an envoy, and return their names.

    They are those after the last round that the envoy trained in: `model` should be the last one of the experiment.

    Args:
        model: folder of an exported model with a model.safetensors.
        envoy_folder: the folder of the envoy, which has one for each experiment.
        experiment: name of the experiment.
        out: a folder that is not there yet.

    Raises:
        FileNotFoundError: the envoy kept nothing of the experiment, or `model` is no such folder.
        FileExistsError: `out` is there.
        TensorFormatError: a tensor that stayed here is none of the model's.
    """
    state = envoy_folder / experiment / STATE / envoy_folder.name
    own = read_local(state)
    if not own:
        kept = sorted(path.parents[2].name for path in envoy_folder.glob(f"*/{STATE}/{envoy_folder.name}/*.pt"))
        raise FileNotFoundError(
            f"no tensor of experiment '{experiment}' stayed at envoy '{envoy_folder.name}' ({state}); "
            f"of these experiments there is something: {sorted(set(kept))}"
        )
    if not (model / WEIGHTS).is_file():
        raise FileNotFoundError(f"{model} has no {WEIGHTS}: give the folder of an exported model")
    if out.exists():
        raise FileExistsError(f"{out} exists already: give another folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as temporary:
        copy = Path(shutil.copytree(model, Path(temporary, out.name)))
        _replace(copy / WEIGHTS, own)
        _note(copy / CARD, envoy_folder.name, experiment, last_round(state), sorted(own))
        copy.rename(out)
    return sorted(own)


def _replace(path: Path, own: Tensors) -> None:
    """Write `own` over the tensors of the same names in a safetensors file. Raises TensorFormatError."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no dictionary
        metadata = file.metadata()
    for name, values in own.items():
        if name not in tensors:
            raise TensorFormatError(f"{path} has no tensor '{name}', which stayed here: is it of this experiment?")
        if tensors[name].shape != values.shape:
            raise TensorFormatError(
                f"{path}: tensor '{name}' has the shape {tuple(tensors[name].shape)}, and {values.shape} stayed here"
            )
        tensors[name].copy_(tensors[name].new_tensor(values))
    save_file(tensors, path, metadata)


def _note(card: Path, envoy: str, experiment: str, round_number: int, names: list[str]) -> None:
    """Say on the model's card what is this site's own, as the scores on it are of the common model."""
    text = card.read_text(encoding="utf-8") if card.exists() else ""
    listed = "\n".join(f"- `{name}`" for name in names)
    note = (
        f"\n## Parts of envoy '{envoy}'\n\nThese tensors are as the envoy trained them in round {round_number} of "
        f"experiment '{experiment}'. The scores above are of the model without them.\n\n{listed}\n"
    )
    card.write_text(text + note, encoding="utf-8")
