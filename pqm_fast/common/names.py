"""Names of models, which are local folders or hub ids, and the messages for names that are neither."""

import re
from pathlib import Path

from pqm_fast.errors import PQMError

_PART = r"[A-Za-z0-9_](?:[\w.-]*[\w])?"
_HUB_ID = re.compile(rf"{_PART}(?:/{_PART})?", re.ASCII)


def redacted(text: str) -> str:
    """Replaces the credentials and the query of each URL in `text`, and of USER:PASSWORD@HOST, for use in messages."""
    text = re.sub(r"(?<![^\s,])(?P<scheme>[\w+.-]+:/+)?[^\s/@]*:(?!//)[^\s@]*@(?=[^\s@])", r"\g<scheme>***@", text)
    text = re.sub(r"(://)[^\s/@]*@", r"\1***@", text)
    return re.sub(r"(://[^\s?#]*\?)[^\s#]*", r"\1***", text)


def is_hub_id(name: str) -> bool:
    """Whether a model's name is a hub id: it names no folder here, and could not be a path."""
    return not Path(name).is_dir() and bool(_HUB_ID.fullmatch(name))


def check_model_name(name: str) -> None:
    """Raises PQMError for a name that is not a folder and cannot be a hub id, without asking over the network."""
    if not isinstance(name, str):
        raise PQMError(f"model: {name!r} ({type(name).__name__}) was given; name a folder or a hub id (org/name)")
    path = Path(name)
    if not name:
        raise PQMError("model: empty; name a folder or a hub id (org/name)")
    if path.is_dir():
        return
    if path.exists():
        raise PQMError(
            f"{redacted(name)}: is a file; name the folder of the model, with config.json and the tokenizer in it"
        )
    if not _HUB_ID.fullmatch(name) or len(name) > 96:
        tilde = "; ~ stands for the home folder only where the shell replaces it" if name.startswith("~") else ""
        raise PQMError(f"{redacted(name)}: no such folder; check the path{tilde} (hub ids are written org/name)")


def loading_error(name: str, part: str, reason: str) -> PQMError:
    """The error for a valid model name whose `part` ("tokenizer", "model config") cannot be loaded."""
    if Path(name).is_dir():
        return PQMError(f"{name}: no {part} could be loaded from this folder: {reason}")
    return PQMError(f"{name}: no such folder, and no {part} could be loaded for it as a hub id either: {reason}")


def digits(value: float) -> str:
    """As many digits as tell a number from every other one, for names of files: 4, 0.001, 1e-05."""
    return str(value).removesuffix(".0")
