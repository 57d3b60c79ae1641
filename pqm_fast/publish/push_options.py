"""Every option of `pqm-fast push`, with its default and the text that --help shows."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PushConfig:
    """Upload a checkpoint to the Hugging Face hub: the model, the tokenizer, the checksums and the model card."""

    checkpoint: str
    """Run folder, or a folder that `pqm-fast export` has written."""
    repo: str
    """Name of the repository, ORG/NAME. It is created if it does not exist."""
    private: bool = False
    """Create the repository as a private one. A repository that exists stays as it is."""
    revision: str = "main"
    """Branch to upload to. It is created if it does not exist."""
    dry_run: bool = False
    """Show what would be uploaded, and the card. Nothing is sent."""
