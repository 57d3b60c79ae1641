"""The name of a policy on the command line, and what identifies the policy in a resumed run."""

from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit

from pqm_fast.common.names import check_model_name, redacted
from pqm_fast.errors import PQMError
from pqm_fast.model.identity import model_key


class PolicyName(NamedTuple):
    """A parsed name. `url` is a server's URL, otherwise empty; `model` is the policy's name in the results."""

    kind: Literal["server", "arithmetic", "hub"]  # hub: a model folder or hub id, run on this machine
    url: str
    model: str


def parse_policy(text: str) -> PolicyName:
    """Parses `http://HOST:PORT/v1#MODEL`, `arithmetic:NAME`, or a model folder or hub id.

    Raises PQMError for anything else.
    """
    if "://" in text:
        url, _, model = text.partition("#")
        try:
            parts = urlsplit(url)
            usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and "?" not in url
        except ValueError:  # the port is not a number
            usable = False
        if not usable or not model:
            raise PQMError(
                f"policy {redacted(text)}: name a server and its model as http://localhost:8000/v1#MODEL, without a "
                "query; a key goes into the variable OPENAI_API_KEY"
            )
        return PolicyName("server", url.rstrip("/"), model)
    if text.startswith("arithmetic:"):
        return PolicyName("arithmetic", "", text.removeprefix("arithmetic:"))
    if not text:
        raise PQMError("policy: empty; name a model folder, a hub id, http://HOST:PORT/v1#MODEL or arithmetic:NAME")
    check_model_name(text)
    return PolicyName("hub", "", text)


def policy_identity(text: str) -> list[Any]:
    """What distinguishes one policy from another: the model of a server, wherever it runs; the weights of a folder."""
    name = parse_policy(text)
    return [name.kind, name.model, *(model_key(Path(name.model)) if name.kind == "hub" else [])]
