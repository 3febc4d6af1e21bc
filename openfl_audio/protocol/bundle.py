"""Submissions as a site approves them: the files of a submission, their SHA-256, and who signed it.

The hash covers all that decides what happens on a node: sources, objects, plan, versions and the initial model. Name,
seed, addresses and the number of rounds may differ; the rounds are compared by themselves. Pickles of the interactive
API are no part of it: a node that approves builds the objects from what it showed, and never reads them.
"""

import hashlib
import json
import math
from collections.abc import Callable, Container, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from openfl_audio.errors import ArchiveError, CertificateError
from openfl_audio.protocol.certificates import USER, Credentials, check_issued, role_of
from openfl_audio.protocol.codec import describe_faults
from openfl_audio.protocol.plan import (
    AUTHOR_FILE,
    MODEL_FILE,
    OBJECTS_FILE,
    PICKLES,
    PLAN_FILE,
    PUBLIC_PLAN_FILE,
    ExperimentPlan,
)
from openfl_audio.protocol.signatures import has_signed, sign
from openfl_audio.protocol.tensors import Tensors, bytes_of

Buffer = bytes | memoryview
# A file that is no part of what is approved: it says who sent it.
UNHASHED = frozenset({*PICKLES, AUTHOR_FILE})
# Compiled code cannot be shown.
COMPILED = (".pyc", ".pyo", ".pyd", ".so", ".dll", ".dylib", ".pth")
# Characters that change the order in which text is shown, by which sources can look like others (CVE-2021-42574).
REORDERING = frozenset(chr(code) for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A)))


class Author(BaseModel):
    """The sender of a submission; with a certificate its word is signed.

    Attributes:
        user: the name.
        certificate: the certificate as PEM, "" without TLS.
        signature: the signature of the bundle's hash and its rounds, in base64.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    user: str = Field(max_length=64)
    certificate: str = Field(default="", max_length=64 << 10)
    signature: str = Field(default="", max_length=1024)


class ModelDescription(BaseModel):
    """The tensors of the initial model: type and shape by name, and the SHA-256 of their values as transmitted."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    sha256: str
    tensors: dict[str, tuple[str, tuple[int, ...]]]

    @property
    def n_bytes(self) -> int:
        """Return the bytes of all tensors as they are transmitted."""
        return sum(_size_of(dtype, shape) for dtype, shape in self.tensors.values())


class Bundle(BaseModel):
    """A submission as a site sees it.

    Attributes:
        sha256: the hash that is approved.
        plan: the plan of the experiment.
        model: the initial model.
        author: the sender.
    """

    model_config = ConfigDict(frozen=True)

    sha256: str
    plan: ExperimentPlan
    model: ModelDescription
    author: Author

    def statement(self) -> bytes:
        """Return what an author signs."""
        return _statement(self.sha256, self.plan.rounds)


def describe_model(tensors: Tensors, precision: str) -> ModelDescription:
    """Describe the tensors of a model as they are transmitted with this precision."""
    sent = {name: as_sent(tensor, precision) for name, tensor in sorted(tensors.items())}
    described = {name: (tensor.dtype.str, tuple(tensor.shape)) for name, tensor in sent.items()}
    return ModelDescription(sha256=sha256_of_model(described, lambda name: [bytes_of(sent[name])]), tensors=described)


def sha256_of_model(
    described: Mapping[str, tuple[str, tuple[int, ...]]], chunks: Callable[[str], Iterable[Buffer]]
) -> str:
    """Return the SHA-256 of a model: types and shapes by name, and the bytes of each tensor, which come in `chunks`."""
    digest = hashlib.sha256()
    for name in sorted(described):
        dtype, shape = described[name]
        digest.update(f"{name}\0{dtype}\0{shape}\0".encode())
        for chunk in chunks(name):
            digest.update(chunk)
    return digest.hexdigest()


def as_sent(tensor: Any, precision: str) -> Any:
    """Return a tensor as it is transmitted: with "float16" floats have two bytes."""
    return tensor.astype("<f2") if precision == "float16" and tensor.dtype.kind == "f" else tensor


def fingerprint(files: Mapping[str, bytes]) -> str:
    """Return the SHA-256 of a submission's files, by name, as 64 hexadecimal digits.

    Raises ArchiveError for a plan that cannot be read.
    """
    digest = hashlib.sha256()
    for name in sorted(files.keys() - UNHASHED):
        content = _CANONICAL.get(name, lambda data: data)(files[name])
        digest.update(f"{name}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def _canonical_plan(data: bytes) -> bytes:
    """Return OpenFL's plan without what may change: name, seed, addresses, and the rounds."""
    try:
        plan = yaml.safe_load(data)
        settings = plan["experiment"]["settings"]
        for key in ("name", "seed", "submission"):
            settings.pop(key, None)
        plan["aggregator"]["settings"].pop("rounds_to_train", None)
        for key in ("agg_addr", "agg_port"):
            plan["network"]["settings"].pop(key, None)
        return json.dumps(plan, sort_keys=True, default=str).encode()
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ArchiveError(f"{PLAN_FILE} is no plan of an experiment: {error!r:.200}") from None


def _canonical_public_plan(data: bytes) -> bytes:
    try:
        plan = json.loads(data)
        for key in ("name", "federation_uuid", "rounds"):
            plan.pop(key, None)
        plan["participation"].pop("seed", None)
        return json.dumps(plan, sort_keys=True).encode()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArchiveError(f"{PUBLIC_PLAN_FILE} is no plan of an experiment: {error!r:.200}") from None


_CANONICAL = {PLAN_FILE: _canonical_plan, PUBLIC_PLAN_FILE: _canonical_public_plan}


def read_files(folder: Path) -> dict[str, bytes]:
    """Return the content of all files below `folder` by their names in the archive."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in _files(folder)}


def read_bundle(folder: Path, shown: bool = True) -> Bundle:
    """Return the submission that was unpacked into `folder`, with the hash of what is there.

    Raises ArchiveError for a submission of an earlier version, and, if it has to be `shown`, for one with code that
    cannot be: pickled, compiled or not UTF-8.
    """
    files = read_files(folder)
    if shown:
        _check_shown(files)
    try:
        plan = ExperimentPlan.model_validate_json(files[PUBLIC_PLAN_FILE])
        model = ModelDescription.model_validate_json(files[MODEL_FILE])
        author = Author.model_validate_json(files.get(AUTHOR_FILE, b'{"user": ""}'))
    except KeyError as error:
        raise ArchiveError(
            f"the submission has no {error.args[0]}: it was made by an earlier version of openfl-audio"
        ) from None
    except ValidationError as error:
        raise ArchiveError(f"the submission's description cannot be read: {describe_faults(error)}") from None
    return Bundle(sha256=fingerprint(files), plan=plan, model=model, author=author)


def _check_shown(files: Mapping[str, bytes]) -> None:
    """Raise ArchiveError unless all code of a submission is text that says what it seems to say."""
    try:
        objects = json.loads(files.get(OBJECTS_FILE, b"{}"))
    except ValueError:
        raise ArchiveError(f"{OBJECTS_FILE} is not JSON") from None
    if "tasks" not in objects:
        why = objects.get("missing") or "it was made by an earlier version of openfl-audio"
        raise ArchiveError(f"the experiment is sent as pickled code objects, which cannot be shown: {why}")
    for name, content in sorted(files.items()):
        if name.endswith(COMPILED):
            raise ArchiveError(f"'{name}' is compiled code, which cannot be shown: send its source")
        if name.endswith((".py", ".pyi")):
            check_source(name, content)


def check_source(name: str, content: bytes) -> None:
    """Raise ArchiveError unless a Python source is UTF-8 text without characters that reorder it."""
    first = content.split(b"\n", 2)[:2]
    declared = [line for line in first if line.lstrip().startswith(b"#") and b"coding" in line]
    if any(b"utf-8" not in line.lower() and b"utf8" not in line.lower() for line in declared):
        raise ArchiveError(f"'{name}' declares another encoding than UTF-8: it would run otherwise than it is shown")
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise ArchiveError(f"'{name}' is not UTF-8 at byte {error.start}") from None
    if REORDERING.intersection(text):
        raise ArchiveError(f"'{name}' has characters that reorder text: it would run otherwise than it is shown")


def sign_bundle(sha256: str, rounds: int, own: Credentials | None, user: str) -> Author:
    """Return the author of a submission, signed with the user's key where there is one."""
    if own is None:
        return Author(user=user)
    try:
        signature = sign(own, _statement(sha256, rounds))
    except CertificateError:
        return Author(user=own.name)  # a key of another authority, which TLS takes
    return Author(user=own.name, certificate=own.certificate.decode(), signature=signature)


def verify_author(bundle: Bundle, root: bytes, revoked: Container[int] = ()) -> tuple[str, str]:
    """Return the name of the user who signed the bundle, and the SHA-256 of the certificate's public key.

    `root` has the certificates of the authorities (PEM), and `revoked` the serial numbers of what they have revoked.
    Raises CertificateError if the signature is none of a user of theirs.
    """
    author = bundle.author
    if not author.signature:
        raise CertificateError("the submission is not signed")
    pem = author.certificate.encode()
    name, role = role_of(pem)
    if role != USER:
        raise CertificateError(f"the submission is signed by {role} '{name}', and not by a user")
    check_issued(pem, root)
    certificate = x509.load_pem_x509_certificate(pem)
    if certificate.serial_number in revoked:
        raise CertificateError(f"the certificate of '{name}', serial {certificate.serial_number:x}, is revoked")
    if not has_signed(author.certificate, author.signature, bundle.statement()):
        raise CertificateError(f"the signature of '{name}' is not one of this submission")
    encoded = certificate.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return name, hashlib.sha256(encoded).hexdigest()


def _statement(sha256: str, rounds: int) -> bytes:
    return f"openfl-audio submission\n{sha256}\n{rounds}\n".encode()


def _files(folder: Path) -> Iterable[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def _size_of(dtype: str, shape: tuple[int, ...]) -> int:
    return np.dtype(dtype).itemsize * math.prod(shape)
