"""Both ends of the pipe between a benchmark and the processes whose work it times. Standard library only: SAELens' Python runs it too.

A worker is a script that ends with `serve({name: function})`. The benchmark calls these functions one at a time, so that only one process
works at any time; arguments and results are JSON, a line each.
"""

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

HERE = Path(__file__).parent
DEFAULT_PEERS_PYTHON = HERE / ".peers" / "bin" / "python"


def serve(commands: Mapping[str, Callable[..., Any]]) -> None:
    """Do what the lines on standard input ask for until it ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not come between the answers
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = {"result": commands[request["command"]](**request["arguments"])}
        except Exception:
            answer = {"error": traceback.format_exc()}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def load_parameters(module: Any, state: Mapping[str, Any]) -> None:
    """Set every parameter of a torch module; buffers stay as they are.

    Raises:
        ValueError: `state` has others than the module.
    """
    missing, unknown = module.load_state_dict(state, strict=False)
    missing = set(missing) & {name for name, _ in module.named_parameters()}
    if missing or unknown:
        raise ValueError(
            f"the weights must be those of the module, but got missing={sorted(missing)} and {unknown=}. Correct step_inputs.py."
        )


class Worker:
    """A worker process, for the benchmark that calls it.

    Args:
        python: the interpreter to run it with.
        script: relative to this directory.
        threads: cores that its libraries may use.
        settings: further environment variables.
    """

    def __init__(self, python: Path | str, script: str, *, threads: int, settings: Mapping[str, str] | None = None) -> None:
        limits = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "BENCHMARK_THREADS")}
        quiet = {
            "WANDB_MODE": "disabled",
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONWARNINGS": "ignore",
            "TQDM_DISABLE": "1",
        }
        environment = os.environ | limits | quiet | dict(settings or {}) | {"PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)])}
        self.script = script
        self._process = subprocess.Popen(
            [str(python), str(HERE / script)],
            env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def call(self, command: str, **arguments: Any) -> Any:
        """The function's result.

        Raises:
            RuntimeError: it raised, or the process ended.
        """
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps({"command": command, "arguments": arguments}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        answer = json.loads(line) if line else {"error": f"the process ended with exit code {self._process.wait()}"}
        if "error" in answer:
            raise RuntimeError(f"a benchmark's worker must answer, but got from {self.script}: {answer['error']}")
        return answer["result"]

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def peers_python() -> Path | None:
    """The Python that has SAELens: `PEERS_PYTHON`, or the one `make bench-peers` installs; None where there is none."""
    python = Path(os.environ.get("PEERS_PYTHON") or DEFAULT_PEERS_PYTHON)
    return python if python.exists() else None


MISSING_PEER = (
    "SAELens is missing, so only our own side runs. Install it with `make bench-peers`, or name a Python that has it in PEERS_PYTHON."
)
