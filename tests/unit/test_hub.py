"""Names of SAEs, and what is downloaded for them, from a stand-in for the Hub."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_stand_in import HubStandIn, hub_stand_in
from saelens_folders import V6, weights, write

from sae_core.errors import ConfigError
from sae_core.sae.base import SparseAutoencoder
from sae_core.sae.hub import HubName, located, origin_of


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubStandIn]:
    with hub_stand_in(tmp_path / "cache") as hub:
        yield hub


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "sae", V6 | {"architecture": "standard"}, weights("standard"))


@pytest.mark.parametrize("name", ["hub:user/repo", "hub:user/repo/a/b", "hub:user/repo@main", "hub:u-1/r.x/blocks.1.hook@refs/pr/1"])
def test_names_are_what_they_were_parsed_from(name: str) -> None:
    assert str(HubName.of(name)) == name


@pytest.mark.parametrize(
    "name",
    ["hub:", "hub:repo", "hub:user/repo@", "hub:user/repo/../other", "hub:user/repo//a", "hub:/user/repo", "hub:a b/c", "hub:a/b@c@d"],
)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(repr(name))):
        located(name)


def test_a_directory_is_itself(tmp_path: Path) -> None:
    assert located(str(tmp_path)) == tmp_path
    assert origin_of(str(tmp_path), tmp_path) == str(tmp_path)
    with pytest.raises(ConfigError, match="'no/such'"):
        located("no/such")


@pytest.mark.parametrize("inside", ["", "layer_3/width_1[k]"])
def test_only_the_files_of_the_folder_are_downloaded(hub: HubStandIn, folder: Path, inside: str) -> None:
    commit = hub.add("user/repo", folder, inside)
    hub.commit("user/repo", {f"{inside}/deeper/big.safetensors".strip("/"): b"big", "other/big.safetensors": b"big"})
    name = f"hub:user/repo/{inside}".rstrip("/")
    directory = located(name)
    assert {path.name for path in directory.rglob("*") if path.is_file()} == {"cfg.json", "sae_weights.safetensors"}
    assert SparseAutoencoder.from_pretrained(directory).d_in == 12
    assert origin_of(name, directory) == f"{name}@{hub.commits['user/repo'][-1][0]}"
    assert origin_of(f"{name}@{commit}", located(f"{name}@{commit}")) == f"{name}@{commit}"


def test_what_was_downloaded_is_read_without_the_hub(hub: HubStandIn, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("user/repo", folder, "a")
    hub.add("user/repo", folder, "b")
    first = located("hub:user/repo/a")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert located("hub:user/repo/a") == first
    for name in ("hub:user/repo/b", "hub:user/other"):
        with pytest.raises(ConfigError, match=f"{name}.*cannot be reached"):
            located(name)


def test_what_there_is_not_is_named(hub: HubStandIn, folder: Path) -> None:
    hub.add("user/repo", folder, "layer_3")
    hub.commit("user/repo", {"README.md": b"what `export` writes beside folders"})
    hub.add("user/gated", folder)
    hub.gated.add("user/gated")
    expected = {
        "hub:user/other": "no such repository",
        "hub:user/repo@v2": "no such revision",
        "hub:user/repo/layer_4": "Did you mean 'hub:user/repo/layer_3'",
        "hub:user/repo/layer_3/cfg.json": "hub:user/repo/layer_3'",
        "hub:user/repo": "hub:user/repo/layer_3'",
        "hub:user/gated": "hf auth login",
    }
    for name, said in expected.items():
        with pytest.raises(ConfigError, match=re.escape(said)) as caught:
            located(name)
        assert name in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1


def test_folders_in_a_folder_are_named(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "saes" / "layer_3")
    with pytest.raises(
        ConfigError, match=r"a folder must have one SAE, but '.*saes' has 1 folders of SAEs: \['layer_3'\]\. Name one of them"
    ):
        SparseAutoencoder.from_pretrained(tmp_path / "saes")


@pytest.mark.slow
def test_the_environment_says_where_the_hub_is(hub: HubStandIn, folder: Path, tmp_path: Path) -> None:
    hub.add("user/repo", folder)
    program = "from sae_core.sae.hub import located; print(located('hub:user/repo'))"
    environment = hub.environment(tmp_path / "home")
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.startswith(str(tmp_path / "home")), done.stderr


def test_uploads_come_back(hub: HubStandIn, folder: Path) -> None:
    from huggingface_hub import HfApi

    api = HfApi()
    api.create_repo("user/new", exist_ok=True)
    api.create_repo("user/new", exist_ok=True)
    api.upload_folder(repo_id="user/new", folder_path=folder, path_in_repo="x")
    for path in folder.iterdir():
        assert (located("hub:user/new/x") / path.name).read_bytes() == path.read_bytes()
