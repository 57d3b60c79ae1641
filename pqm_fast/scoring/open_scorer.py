"""Opens the scorer that a name refers to: a model on this machine, or a running `pqm-fast serve`."""

from typing import TYPE_CHECKING, Any

from pqm_fast.scoring.remote import RemoteScorer

if TYPE_CHECKING:
    from pqm_fast.scoring.scorer import Scorer


def open_scorer(model: str, **options: Any) -> "Scorer | RemoteScorer":
    """A RemoteScorer for http://HOST:PORT, otherwise `Scorer.from_pretrained(model, **options)`.

    Raises PQMError for a model that cannot be loaded; a server is contacted when it is asked for scores.
    """
    if is_server(model):
        return RemoteScorer(model)
    # not for a server: the environment of an RL trainer may have a transformers that cannot load our models
    from pqm_fast.scoring.scorer import Scorer

    return Scorer.from_pretrained(model, **options)


def is_server(model: str) -> bool:
    """Whether the name is the URL of a server."""
    return model.startswith(("http://", "https://"))
