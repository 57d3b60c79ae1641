"""README.md, the model card in a checkpoint's folder: written anew as long as nobody else has changed it."""

from hashlib import sha256
from pathlib import Path

from pqm_fast.common.files import atomic_file
from pqm_fast.publish.card_text import NAME, Training, card_text
from pqm_fast.publish.serving import served

CARD_FILE = "README.md"
_MARK = "\n<!-- pqm-fast replaces this card only while it is unchanged: {} -->\n"


def write_card(folder: Path, training: Training) -> bool:
    """Writes the card of the checkpoint `folder`. Returns False, and changes nothing, if there is a README.md that is
    not as this function wrote it."""
    path = folder / CARD_FILE
    if path.exists() and not _is_unchanged(path.read_text(encoding="utf-8", errors="replace")):
        return False
    text = card_text(served(folder, NAME), training)
    with atomic_file(path) as temporary:
        temporary.write_text(text + _mark(text), encoding="utf-8")
    return True


def _is_unchanged(card: str) -> bool:
    text, _, _ = card.rpartition(_MARK.partition("{}")[0])
    return card == text + _mark(text)


def _mark(text: str) -> str:
    return _MARK.format(sha256(text.encode()).hexdigest()[:16])
