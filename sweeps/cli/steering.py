"""Commands that steer a launch from another terminal, on any node that sees its directory: through its file of orders."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from sae_core.errors import ConfigError, UnknownNameError
from sweeps.cli.app import Answer, SweepDirectory, command

RunIds = Annotated[list[str] | None, typer.Argument(metavar="[RUN_ID]...", help="Runs of the sweep. Default: all of it.")]


@command()
def stop(results: SweepDirectory, run_ids: RunIds = None) -> Answer:
    """Stop a running sweep, or some of its runs: each saves a checkpoint, and the next launch resumes it."""
    if run_ids:
        return _order(results, None, run_ids, f"{len(run_ids)} runs stop within seconds. The next launch resumes them.")
    return _order(results, "stop", [], "The launch stops within seconds. The same command resumes.")


@command()
def pause(results: SweepDirectory) -> Answer:
    """Let a running sweep wait, after a checkpoint: its processes keep their memory and do nothing until `resume`."""
    return _order(results, "pause", [], f"The launch waits. Next: sae-sweep resume {results}")


@command()
def resume(results: SweepDirectory) -> Answer:
    """Let a paused sweep continue, with all of its runs but those that have stopped already: the next launch resumes them."""
    return _order(results, "go", [], "The launch continues.")


def _order(results: Path, sweep: Literal["go", "pause", "stop"] | None, run_ids: list[str], said: str) -> Answer:
    """Write an order: what the sweep is to do, where it is not None, and which runs are to stop."""
    from sae_core.orders import Orders
    from sweeps.storage.lock import may_be_held
    from sweeps.storage.store import Store

    store = Store(results)
    store.check_is_sweep()
    known = [run.run_id for run in store.status()]
    for run_id in run_ids:
        if run_id not in known:
            raise UnknownNameError.of("run id", run_id, known)
    if may_be_held(store.directory) is None:
        raise ConfigError(
            f"a launch must be running to be steered, but none is in {str(store.directory)!r}. Start one with `sae-sweep run`."
        )
    orders = Orders.read(store.paths.orders)
    if sweep != "stop" and orders.sweep == "stop":
        raise ConfigError(f"a launch that stops cannot be steered, but that in {str(store.directory)!r} does. Start another one.")
    kept = {} if sweep == "go" else orders.runs
    orders = Orders(sweep or orders.sweep, {**kept, **dict.fromkeys(run_ids, "stop")})
    orders.write(store.paths.orders)
    return Answer({"directory": str(store.directory), "sweep": orders.sweep, "stopped_runs": sorted(orders.runs)}, [said])
