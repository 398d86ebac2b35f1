"""How a cluster is watched. What connecting to one may give: test_cluster.py."""

import time

import pytest

from sweeps.execution import running_ray
from sweeps.execution.failures import Death
from sweeps.execution.running_ray import RunningRay


@pytest.fixture
def watched(monkeypatch):
    """A connection that is watched, with the nodes `watched.there`, until `watched.answers` is False; and what it says."""
    monkeypatch.setattr(running_ray, "check_connection", lambda address: None)
    monkeypatch.setattr(running_ray, "WATCH_SECONDS", 0.01)
    monkeypatch.setattr(running_ray, "SILENT_SECONDS", 0.1)
    monkeypatch.setattr(running_ray, "_answers", lambda address: watched.answers)
    monkeypatch.setattr(running_ray, "living_nodes", lambda: [{"NodeID": name} for name in watched.there])
    seen = []
    watched = RunningRay("head:6379", seen.append)
    watched.seen, watched.answers, watched.there = seen, True, ["ours", "other"]

    def happened(death, reason):
        death.reason = reason
        death.launch_ends.set()

    monkeypatch.setattr(Death, "happened", happened)
    return watched


def test_a_head_that_is_silent_ends_a_launch(watched):
    watched.answers = False
    started = time.monotonic()
    watched._watch("head:6379", "ours")
    assert watched.death == "the head node at head:6379 has not answered for 0.1 s"
    assert 0.1 < time.monotonic() - started < 5
    assert watched.seen == []


def test_nodes_are_counted_until_our_own_is_gone(watched):
    def one_leaves(nodes):
        watched.seen.append([node["NodeID"] for node in nodes])
        watched.there = watched.there[:-1]

    watched._on_nodes = one_leaves
    watched._watch("head:6379", "ours")
    assert watched.seen[:2] == [["ours", "other"], ["ours"]]
    assert watched.death == "the node of this launch is no longer part of the cluster"
