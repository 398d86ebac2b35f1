"""That these names are still Ray's is found here; that Ray runs without what is left out, in tests/ray."""

import sys

import pytest
from ray._private import node, parameter, ray_constants, services, state
from ray.air._internal import usage
from ray.air.execution._internal.actor_manager import RayActorManager

from sweeps.execution import lean_ray
from sweeps.execution.lean_ray import EVENT_SECONDS, lean_start, lean_tune

REPLACED = {
    lean_start: [(ray_constants, "ENABLE_RAY_CLUSTER"), (parameter, "RayParams"), (node.Node, "start_api_server"), (services, "get_node")],
    lean_tune: [(usage, "tag_callbacks"), (RayActorManager, "next")],
}


@pytest.mark.parametrize("lean", REPLACED)
def test_ray_is_itself_again_afterwards(lean):
    before = [getattr(owner, name) for owner, name in REPLACED[lean]]
    with pytest.raises(KeyboardInterrupt), lean():
        assert not any(getattr(owner, name) is ours for (owner, name), ours in zip(REPLACED[lean], before, strict=True))
        raise KeyboardInterrupt
    assert [getattr(owner, name) for owner, name in REPLACED[lean]] == before


def test_no_monitors():
    with lean_start():
        params = parameter.RayParams(num_cpus=2)
    assert (params.num_cpus, params.no_monitor, params.include_log_monitor) == (2, True, False)


def test_only_this_machine_reaches_the_node():
    with lean_start():
        assert services.resolve_ip_for_localhost("127.0.0.1") == "127.0.0.1"


def test_tune_waits_for_events(monkeypatch):
    waits = []
    monkeypatch.setattr(RayActorManager, "next", lambda manager, timeout: waits.append(timeout) or True)
    with lean_tune():
        assert RayActorManager.next(object(), timeout=0.1)
    assert waits == [EVENT_SECONDS]


def test_tune_does_not_import_wandb_to_count_callbacks(monkeypatch):
    monkeypatch.delitem(sys.modules, "ray.air.integrations.wandb", raising=False)
    with lean_tune():
        assert not usage.tag_callbacks([object()])
    assert "ray.air.integrations.wandb" not in sys.modules


@pytest.mark.parametrize(("looks", "asked_after"), [([[], ["other"], ["other", "ours"]], 2), ([["ours"]], 0)])
def test_a_node_is_asked_for_when_it_is_there(monkeypatch, looks, asked_after):
    """Ray's own look would wait a whole second for one that is not."""
    tables, slept = iter(looks), []
    monkeypatch.setattr(state.GlobalState, "_initialize_global_state", lambda *_: None)
    monkeypatch.setattr(state.GlobalState, "node_table", lambda _: [{"NodeID": name} for name in next(tables)])
    monkeypatch.setattr(services, "_get_gcs_client_options", lambda address: address)
    monkeypatch.setattr(services, "get_node", lambda address, name: (address, name, len(slept)))
    monkeypatch.setattr(lean_ray.time, "sleep", slept.append)
    with lean_start():
        assert services.get_node("there", "ours") == ("there", "ours", asked_after)


def test_a_node_that_never_comes_is_rays_to_tell_of(monkeypatch):
    monkeypatch.setattr(state.GlobalState, "_initialize_global_state", lambda *_: None)
    monkeypatch.setattr(state.GlobalState, "node_table", lambda _: [])
    monkeypatch.setattr(services, "_get_gcs_client_options", lambda address: address)
    monkeypatch.setattr(lean_ray, "NODE_SECONDS", 0.0)

    def no_node(*_):
        raise RuntimeError("not there")

    monkeypatch.setattr(services, "get_node", no_node)
    with lean_start(), pytest.raises(RuntimeError, match="not there"):
        services.get_node("there", "ours")
