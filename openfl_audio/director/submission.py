"""Submission of an experiment, as a notebook sends it: a zip file that is taken apart and checked."""

from pathlib import Path

from pydantic import ValidationError

from openfl_audio.director.aggregate import check_finite
from openfl_audio.errors import ArchiveError, PrivacyError, SubmissionError, TensorFormatError, UpdateRefusedError
from openfl_audio.privacy.noisy_sum import NoisySum
from openfl_audio.protocol.archive import check_archive, extract_file, open_archive
from openfl_audio.protocol.codec import describe_faults
from openfl_audio.protocol.plan import ARCHIVE, EXPERIMENT_PLAN, INITIAL_MODEL, ExperimentPlan
from openfl_audio.protocol.tensors import TensorFile

# A fault in it is described in hundreds of bytes.
MAX_PLAN_BYTES = 256 << 10
MAX_ARCHIVE_BYTES = 1 << 30


def extract_submission(submission: Path, folder: Path) -> ExperimentPlan:
    """Take a submitted zip file apart into `folder`. Raises SubmissionError."""
    model = folder / "models" / "0.safetensors"
    try:
        with open_archive(submission) as zipped:
            extract_file(zipped, EXPERIMENT_PLAN, folder / EXPERIMENT_PLAN, MAX_PLAN_BYTES)
            extract_file(zipped, ARCHIVE, folder / ARCHIVE, MAX_ARCHIVE_BYTES)
            # Notebooks do not compress it: one larger than all that came would only fill the disk.
            extract_file(zipped, INITIAL_MODEL, model, submission.stat().st_size)
        plan = ExperimentPlan.model_validate_json((folder / EXPERIMENT_PLAN).read_bytes())
        check_archive(folder / ARCHIVE)
        _check_model(model, plan)
    except ValidationError as error:
        raise SubmissionError(describe_faults(error)) from None
    except ArchiveError as error:
        raise SubmissionError(f"not an experiment of this project's notebooks: {error}") from None
    return plan


def _check_model(path: Path, plan: ExperimentPlan) -> None:
    try:
        with TensorFile(path) as model:
            entries = model.header.entries
        check_finite(path, "the first global model")
        plan.aggregation.check_names(entries)
        if plan.honest_survivors is not None:
            NoisySum.of(plan, model.header)
    except TensorFormatError as error:
        raise SubmissionError(f"the first global model is {error}") from None
    except (PrivacyError, UpdateRefusedError, ValueError) as error:
        raise SubmissionError(str(error)) from None
    if not entries:
        raise SubmissionError("the first global model has no trained tensor: does any parameter require a gradient?")
