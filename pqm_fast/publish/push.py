"""`pqm-fast push`: uploads a checkpoint to the Hugging Face hub."""

from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from pqm_fast.common.checksums import SUMS_FILE, has_sums, read_sums
from pqm_fast.errors import PQMError
from pqm_fast.model.loading import short_reason
from pqm_fast.model.saving import check_files
from pqm_fast.publish.model_card import CARD_FILE
from pqm_fast.publish.push_options import PushConfig
from pqm_fast.publish.serving import served

PUBLISHED = (
    *("config.json", "generation_config.json", "model.safetensors", "model-*.safetensors"),
    *("model.safetensors.index.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "chat_template.jinja"),
)
"""The files of a model and its tokenizer, where no checksums list them. A folder may hold others, such as a token."""


def push(config: PushConfig) -> str:
    """Uploads in one commit what `files_to_push` lists, and returns what to tell the user.

    Raises PQMError for a folder that is not a whole checkpoint, a name that no repository can have, a missing token and
    an upload that fails.
    """
    try:
        validate_repo_id(config.repo)
    except HFValidationError as error:
        raise PQMError(f"repo: {error}; name it ORG/NAME") from error
    folder = Path(config.checkpoint)
    files = files_to_push(folder)
    sizes = [f"  {file.name}: {file.stat().st_size:,} bytes" for file in files]
    text = "\n".join([f"{folder} -> {config.repo}, branch {config.revision}", *sizes])
    has_card = folder / CARD_FILE in files
    if not has_card:
        text += f"\nwarning: no {CARD_FILE}, so that the hub will not say what the model is"
    if config.dry_run:
        card = (folder / CARD_FILE).read_text(encoding="utf-8", errors="replace") if has_card else ""
        return f"{text}\nnothing was sent (--dry-run)\n\n{card}".rstrip()
    return f"{text}\npushed: {_upload(files, config)}"


def files_to_push(folder: Path) -> list[Path]:
    """The files of the model and the tokenizer, their checksums and the card, in alphabetical order. The rest of a run
    folder, such as checkpoints and options, is not published.

    Raises PQMError for a folder that is not a finished checkpoint of pqm-fast or whose files have changed.
    """
    if not folder.is_dir():
        raise PQMError(f"{folder}: no such folder; name a run folder, or one that `pqm-fast export` has written")
    served(folder)  # it is a checkpoint of pqm-fast
    if not any(folder.glob("*.safetensors")):
        raise PQMError(f"{folder}: holds no weights (*.safetensors); name the folder of a finished training")
    check_files(folder)
    if has_sums(folder):
        model = [folder / name for name in read_sums(folder)]
    else:
        model = [file for pattern in PUBLISHED for file in folder.glob(pattern)]
    return sorted(file for file in {*model, folder / SUMS_FILE, folder / CARD_FILE} if file.is_file())


def _upload(files: list[Path], config: PushConfig) -> str:
    """Returns the address of the repository."""
    token = get_token()
    if token is None:
        raise PQMError("no token for the Hugging Face hub; set HF_TOKEN to one that may write, or run `hf auth login`")
    api = HfApi(token=token)
    try:
        url = api.create_repo(config.repo, private=config.private or None, exist_ok=True)
        if config.revision != "main":
            api.create_branch(url.repo_id, branch=config.revision, exist_ok=True)
        api.create_commit(
            url.repo_id,
            [CommitOperationAdd(path_in_repo=file.name, path_or_fileobj=file) for file in files],
            commit_message="Upload a checkpoint of pqm-fast",
            revision=config.revision,
        )
    except Exception as error:  # those of the hub, of its HTTP client and of the system have no common class
        raise PQMError(f"{config.repo}: not uploaded: {short_reason(error).replace(token, '***')}") from error
    return str(url)
