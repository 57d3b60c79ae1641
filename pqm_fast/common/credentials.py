"""The key or password for a server: read from the environment and the URL, sent with requests, hidden in messages."""

import json
import os
from base64 import b64encode
from typing import NamedTuple
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from pqm_fast.common.names import redacted
from pqm_fast.errors import PQMError


class Credentials(NamedTuple):
    """`authorization`: the value of the header, or an empty text. `secrets`: every form a server may repeat."""

    authorization: str
    secrets: tuple[str, ...]

    def hide(self, text: str) -> str:
        """`text`, which a server wrote, without secrets: servers repeat keys that they do not know."""
        for secret in self.secrets:
            text = text.replace(secret, "***")
        return text


def split_credentials(url: str, variable: str = "OPENAI_API_KEY") -> tuple[str, Credentials]:
    """(the URL without name and password, the credentials from it and from the environment `variable`).

    A key takes precedence over a name and password. Raises PQMError for a URL that is none, and for a key that no
    header can hold.
    """
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise PQMError(f"{redacted(url)}: {error}; correct the URL") from error
    user, _, host = parts.netloc.rpartition("@")
    authorization, secrets = "", []
    if user:
        name, _, password = map(unquote, user.partition(":"))
        basic = b64encode(f"{name}:{password}".encode()).decode()
        authorization, secrets = f"Basic {basic}", [basic, user, password]
    if key := os.environ.get(variable, "").strip():
        if not (key.isascii() and key.isprintable()):
            raise PQMError(f"{variable}: holds characters that no key can have, such as a line break; set it again")
        authorization, secrets = f"Bearer {key}", [*secrets, key]
    forms = [form for secret in secrets if secret for form in _written_forms(secret)]
    # the longest first: a shorter one may be part of it
    return urlunsplit(parts._replace(netloc=host)), Credentials(
        authorization, tuple(sorted(forms, key=len, reverse=True))
    )


def _written_forms(secret: str) -> set[str]:
    """The forms in which servers may write a secret: unchanged, in JSON, in a URL."""
    in_json = json.dumps(secret)[1:-1]
    return {secret, in_json, in_json.replace("/", "\\/"), quote(secret), quote(secret, safe="")}
