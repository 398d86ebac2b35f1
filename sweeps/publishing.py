"""A directory as a repository on the Hugging Face Hub. Needs an account there: a token of `hf auth login`, or in HF_TOKEN."""

from contextlib import AbstractContextManager
from pathlib import Path

from sae_core.errors import ConfigError, border
from sae_core.sae.hub import PREFIX, HubName

_OF_EVERY_REPOSITORY = {".gitattributes"}


def repository_of(to: str) -> str | None:
    """The repository that `hub:user/repo` names; None for a directory.

    Raises:
        ConfigError: it is no such name.
    """
    if not to.startswith(PREFIX):
        return None
    name = HubName.of(to)
    if name.folder or name.revision:
        raise ConfigError(f"what is published must be a whole repository, hub:user/repo, but got {to!r}. Leave out what follows it.")
    return name.repo


def check_repository(repo: str) -> None:
    """Make sure that a repository is new or empty, and that somebody is logged in.

    Raises:
        ConfigError: it holds files, nobody is logged in, or the Hub cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    api = HfApi()
    with _asking(repo):
        api.whoami()
        try:
            files = set(api.list_repo_files(repo)) - _OF_EVERY_REPOSITORY
        except RepositoryNotFoundError:
            return  # made when all is written
    if files:
        raise ConfigError(
            f"a repository must be new or empty to be published to, but got '{PREFIX}{repo}', which holds {len(files)} files, among them "
            f"{min(files)!r}. Choose another name, or delete them."
        )


def publish(directory: Path, repo: str) -> None:
    """Upload a directory as one commit; the repository is made where there is none, as public as its owner's settings say.

    Raises:
        ConfigError: it cannot be written to.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    with _asking(repo):
        api.create_repo(repo, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=directory, commit_message="SAEs exported by sae-sweep")


def _asking(repo: str) -> AbstractContextManager[None]:
    return border(
        f"a repository must be one that can be written to, but got '{PREFIX}{repo}'",
        "Check the name and the network, and log in with `hf auth login` or set HF_TOKEN.",
    )
