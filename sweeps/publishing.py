"""A directory as a repository on the Hugging Face Hub. Needs an account there: a token of `hf auth login`, or in HF_TOKEN."""

from pathlib import Path

from sae_core.activations.files import is_hub_name
from sae_core.errors import ConfigError, border

PREFIX = "hub:"
"""Before names of repositories, where a directory could be named too."""
_OF_EVERY_REPOSITORY = {".gitattributes"}


def repository_of(to: str) -> str | None:
    """The repository that `hub:user/repo` names; None for a directory.

    Raises:
        ConfigError: it is no such name.
    """
    if not to.startswith(PREFIX):
        return None
    repo = to.removeprefix(PREFIX)
    if repo.count("/") != 1 or not is_hub_name(repo):
        raise ConfigError(f"a repository must be named as `hub:user/repo`, but got {to!r}. Correct `--to`.")
    return repo


def check_repository(repo: str) -> None:
    """Make sure that a repository is new or empty, and that somebody is logged in.

    Raises:
        ConfigError: it holds files, nobody is logged in, or the Hub cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    api = HfApi()
    with border(
        f"somebody must be logged in to write to {PREFIX}{repo}, but nobody is",
        "Run `hf auth login`, or set HF_TOKEN to a token that may write.",
    ):
        api.whoami()
    with border(
        f"a repository must be one that can be read and written, but got '{PREFIX}{repo}'", "Correct its name, or log in as its owner."
    ):
        try:
            files = set(api.list_repo_files(repo)) - _OF_EVERY_REPOSITORY
        except RepositoryNotFoundError:
            return  # made when all is written
    if files:
        raise ConfigError(
            f"a repository must be new or empty to be written to, but got '{PREFIX}{repo}', which holds {len(files)} files, among them "
            f"{min(files)!r}. Choose another name, or delete them."
        )


def publish(directory: Path, repo: str) -> None:
    """Upload a directory as one commit; the repository is made where there is none, public unless its owner's settings say otherwise.

    Raises:
        ConfigError: it cannot be written to.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    with border(
        f"a repository must be one that can be written to, but got '{PREFIX}{repo}'", "Log in as its owner, and repeat the command."
    ):
        api.create_repo(repo, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=directory, commit_message="SAEs exported by sae-sweep")
