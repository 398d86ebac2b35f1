"""What Ray and Tune do that nobody asks for: left out, or done seldom, for seconds of every launch and a share of its cores.

Where there is no option, a change stands in for a private name of Ray as long as one call lasts. The bounds in pyproject.toml hold Ray to
one minor release, and a name that is gone is an error at once. What each one takes: docs/decisions/0017-waiting.md.
"""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

NODE_SECONDS = 30.0
"""As long as Ray itself waits for a node."""
LOOK_SECONDS = 0.05
"""Between two looks whether the node is there."""
EVENT_SECONDS = 1.0
"""Most that Tune waits for an event before it looks at its trials anyway."""
SELDOM = {
    "raylet_check_gc_period_milliseconds": 10_000,  # whether the object store is full, and all processes should collect garbage; 100
    "object_manager_timer_freq_ms": 1_000,  # objects asked of other nodes; 100
    "local_fs_monitor_interval_ms": 10_000,  # whether the disk is full that objects could go to; 100
    "gcs_pull_resource_loads_period_milliseconds": 10_000,  # for the autoscaler; 1,000
    "io_context_monitor_probe_interval_ms": 10_000,  # how late Ray's own loops are; 1,000
    "task_events_report_interval_ms": 0,  # never: for the dashboard; 1,000
    "event_stats": False,  # of Ray's own loops, for its logs; True
}
"""Settings of a Ray on this machine alone: what it looks for again and again, and finds nothing or tells nobody. Behind each, Ray's own.

Not among them: how often free slots are told (100 ms), which trials wait for after a harvest on GPUs.
"""


@contextmanager
def lean_start() -> Iterator[None]:
    """Ray started without what nobody asks anything of: the autoscaler, the process that carries logs to a driver which is told not to
    print them, and the server of the dashboard, which is off, and of usage statistics. The node is used as soon as it is there, and is
    reached from this machine only, as on macOS and Windows: for `ray.init`, "127.0.0.1" means the address that other machines see."""
    from ray._private import node, parameter, ray_constants, services

    with ExitStack() as replaced:
        params: Any = parameter.RayParams
        replaced.enter_context(_replaced(parameter, "RayParams", partial(params, no_monitor=True, include_log_monitor=False)))
        replaced.enter_context(_replaced(node.Node, "start_api_server", lambda *_, **__: None))
        replaced.enter_context(_replaced(services, "get_node", partial(_node, services.get_node)))
        replaced.enter_context(_replaced(ray_constants, "ENABLE_RAY_CLUSTER", False))
        yield


@contextmanager
def lean_tune() -> Iterator[None]:
    """Tune without counting which callbacks are those of W&B, MLflow and Comet, for which it imports wandb, and waiting for events:
    it looks at its trials ten times a second else, for 0.6 % of a core."""
    from ray.air._internal import usage
    from ray.air.execution._internal.actor_manager import RayActorManager

    next_event = RayActorManager.next

    def patient(manager: RayActorManager, timeout: float | None = None) -> bool:
        return next_event(manager, timeout=EVENT_SECONDS)

    with _replaced(usage, "tag_callbacks", lambda _: False), _replaced(RayActorManager, "next", patient):
        yield


def _node(get_node: Any, gcs_address: str, node_id: str) -> Any:
    """`get_node` of Ray, which looks once a second whether the node is there, asked when it is."""
    from ray._private import services, state

    nodes = state.GlobalState()
    nodes._initialize_global_state(services._get_gcs_client_options(gcs_address))
    end = time.monotonic() + NODE_SECONDS
    while time.monotonic() < end and not any(node["NodeID"] == node_id for node in nodes.node_table()):
        time.sleep(LOOK_SECONDS)
    return get_node(gcs_address, node_id)


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
