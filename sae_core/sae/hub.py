"""Names of SAEs: a local directory, or `hub:user/repo[/folder][@revision]`, a folder of a repository on the Hugging Face Hub.

The environment of huggingface_hub decides where the Hub is, who asks and where copies lie: HF_ENDPOINT, HF_TOKEN, HF_HOME, HF_HUB_OFFLINE.
"""

import glob
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sae_core.errors import ConfigError, UnknownNameError, border

PREFIX = "hub:"
_WEIGHTS = (".safetensors", ".npz", ".pt")
"""Ends of the names of files with weights, in every format that is read."""
_NAME = re.compile(r"hub:(?P<repo>[\w-][\w.-]*/[\w-][\w.-]*)(?P<folder>(/[^/@]+)*)/?(@(?P<revision>[^@]+))?")


@dataclass(frozen=True, slots=True)
class HubName:
    """A folder of a repository on the Hub."""

    repo: str
    """`user/repo`."""
    folder: str
    """Relative to the repository; empty for its root."""
    revision: str | None
    """Branch, tag or commit; None for the main branch."""

    @classmethod
    def of(cls, name: str) -> "HubName":
        """Parse `hub:user/repo[/folder][@revision]`.

        Raises:
            ConfigError: it is no such name.
        """
        match = _NAME.fullmatch(name)
        folders = match["folder"].split("/")[1:] if match else []
        if match is None or {".", ".."} & set(folders):
            rule = "the name of an SAE on the Hugging Face Hub must be hub:user/repo[/folder][@revision]"
            raise ConfigError(f"{rule}, but got {name!r}. Correct it.")
        return cls(match["repo"], "/".join(folders), match["revision"])

    def __str__(self) -> str:
        folder = f"/{self.folder}" if self.folder else ""
        revision = f"@{self.revision}" if self.revision else ""
        return f"{PREFIX}{self.repo}{folder}{revision}"


def located(name: str) -> Path:
    """The local directory of an SAE: the one named, or a copy of a folder on the Hub, of which only the files in it are downloaded.

    Args:
        name: a directory, or `hub:user/repo[/folder][@revision]`.

    Raises:
        ConfigError: there is no such directory, repository, folder or revision, or the Hub cannot be reached and there is no copy.
    """
    if name.startswith(PREFIX):
        return _downloaded(HubName.of(name))
    path = Path(name).expanduser()
    if not path.is_dir():
        rule = "an SAE must be an existing directory, or hub:user/repo[/folder][@revision] on the Hugging Face Hub"
        raise ConfigError(f"{rule}, but got {name!r}. Correct the path.")
    return path.resolve()


def origin_of(name: str, directory: Path) -> str:
    """Where an SAE came from, for records: the absolute path of a directory, or the name on the Hub with its commit.

    Args:
        directory: what `located(name)` returns.
    """
    if not name.startswith(PREFIX):
        return str(directory)
    hub = HubName.of(name)
    depth = len(hub.folder.split("/")) if hub.folder else 0
    return str(HubName(hub.repo, hub.folder, (directory.parents[depth - 1] if depth else directory).name))


def _downloaded(hub: HubName) -> Path:
    from huggingface_hub import snapshot_download

    inside = f"{glob.escape(hub.folder)}/" if hub.folder else ""
    with _asking(hub):
        snapshot = snapshot_download(hub.repo, revision=hub.revision, allow_patterns=[f"{inside}*"], ignore_patterns=[f"{inside}*/*"])
    directory = Path(snapshot) / hub.folder
    if not directory.is_dir() or not any(path.name.endswith(_WEIGHTS) for path in directory.iterdir()):
        raise UnknownNameError.of("the folder of an SAE on the Hub", str(hub), _folders(hub), "Correct the name.")
    return directory


def _folders(hub: HubName) -> list[str]:
    """Names of the folders of a repository that have files with weights."""
    from huggingface_hub import HfApi

    with _asking(hub):
        files = HfApi().list_repo_files(hub.repo, revision=hub.revision)
    folders = {file.rpartition("/")[0] for file in files if file.endswith(_WEIGHTS)}
    return [str(HubName(hub.repo, folder, hub.revision)) for folder in folders]


@contextmanager
def _asking(hub: HubName) -> Iterator[None]:
    """Whatever huggingface_hub raises becomes one message; its own begin with the number of an HTTP status."""
    from huggingface_hub import errors

    rule = f"an SAE on the Hugging Face Hub must be one that can be read, but got {str(hub)!r}"
    try:
        with border(rule, "Check the name and the network, or download it and give its directory."):
            yield
    except ConfigError as error:
        match error.__cause__:
            case errors.GatedRepoError():
                raise ConfigError(
                    f"{rule}: its repository asks for an agreement. Accept it there, then log in with `hf auth login`."
                ) from error
            case errors.RevisionNotFoundError():
                raise ConfigError(f"{rule}: there is no such revision. Correct what follows the @.") from error
            case errors.RepositoryNotFoundError():
                reason = "there is no such repository, or it is private"
                raise ConfigError(f"{rule}: {reason}. Correct the name, or log in with `hf auth login`.") from error
            case errors.LocalEntryNotFoundError():
                reason = "the Hub cannot be reached, and there is no copy of all of it here"
                raise ConfigError(
                    f"{rule}: {reason}. Check the network and HF_HUB_OFFLINE, or download it and give its directory."
                ) from error
        raise
