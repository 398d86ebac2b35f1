"""Several Ray nodes on this machine, each with its own address, ports, directory and view of the file system."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil
from commands import wait_until

from sweeps.execution import guard


class Node:
    """A node that runs until `kill`."""

    def __init__(self, directory, environment, arguments, hidden):
        self.directory = directory
        directory.mkdir()
        ray = [
            sys.executable,
            "-m",
            "ray.scripts.scripts",
            "start",
            "--block",
            "--disable-usage-stats",
            f"--temp-dir={directory}",
            *arguments,
        ]
        # A file system of its own, in which a directory is another, empty one.
        ray = ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs none {hidden} && exec "$@"', "sh", *ray] if hidden else ray
        with (directory / "log").open("wb") as log:
            self.process = subprocess.Popen(ray, env={**os.environ, **environment}, stdout=log, stderr=log, start_new_session=True)
        wait_until(lambda: b"Ray runtime started" in (directory / "log").read_bytes() or self.process.poll() is not None, 120)
        assert self.process.poll() is None, (directory / "log").read_text()

    def processes(self):
        """Its processes: id -> command line."""
        lines = {}
        for pid in guard.writers(self.directory):
            with suppress(psutil.Error):
                lines[pid] = " ".join(psutil.Process(pid).cmdline())
        return lines

    def works(self, name):
        """Whether it has a worker of this kind."""
        return any(name in line for line in self.processes().values())

    def kill(self):
        """End all its processes at once, as when a machine is switched off, but not a launch that is connected to it."""

        def left():
            pids = [pid for pid, line in self.processes().items() if "--results" not in line]
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return pids

        wait_until(lambda: not left(), 20)
        self.process.wait(10)


class Nodes:
    """A Ray cluster of nodes, with a token."""

    def __init__(self, base):
        self.base, self.nodes = base, {}
        with socket.create_server(("127.0.0.2", 0)) as server:
            self.address = f"127.0.0.2:{server.getsockname()[1]}"
        self.environment = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1",  # else `ray start --address` wants no second node
            "HOME": str(base),
        }

    def add(self, name, ip, n_cpus, *arguments, hidden=None):
        """Start a node."""
        joins = (
            [f"--address={self.address}"]
            if self.nodes
            else ["--head", f"--port={self.address.rpartition(':')[2]}", "--include-dashboard=false"]
        )
        arguments = [*joins, f"--node-ip-address={ip}", f"--num-cpus={n_cpus}", *arguments]
        self.nodes[name] = Node(self.base / name, self.environment, arguments, hidden)
        return self.nodes[name]

    def end(self):
        """End all nodes."""
        for node in self.nodes.values():
            node.kill()


@contextmanager
def cluster():
    """A cluster without nodes yet; those that it is given are gone at the end."""
    with ExitStack() as at_end:
        # Not pytest's directory, whose path is too long for the sockets of Ray.
        base = Path(tempfile.mkdtemp(prefix="n", dir="/tmp"))
        at_end.callback(shutil.rmtree, base, ignore_errors=True)
        nodes = Nodes(base)
        at_end.callback(nodes.end)
        yield nodes


def can_hide():
    """Whether a node can have a view of the file system of its own."""
    return (
        sys.platform == "linux" and shutil.which("unshare") and not subprocess.run(["unshare", "--mount", "true"], check=False).returncode
    )
