"""A mirror on a real S3 server, on loopback."""

import json
import os
import socket
import subprocess
import sys
import time

import pytest
import yaml
from small_sweep import DEFINITION, results_of

pytest.importorskip("moto")
pytest.importorskip("s3fs")
pytestmark = pytest.mark.slow

SECRET = "wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY"  # an example of AWS's own documentation


class Server:
    """An S3 server in a process of its own."""

    def __init__(self):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.environment = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        self.on_server(self.wait)

    def on_server(self, action):
        """Do something with boto3, in this environment."""
        with pytest.MonkeyPatch.context() as patch:
            for name, value in self.environment.items():
                patch.setenv(name, value)
            import boto3

            return action(boto3.client("s3"))

    def wait(self, client):
        for _ in range(300):
            try:
                return client.create_bucket(Bucket="bucket")
            except Exception:
                time.sleep(0.1)
        raise TimeoutError

    def end(self):
        self.process.kill()
        self.process.wait()


@pytest.fixture
def server():
    server = Server()
    yield server
    server.end()


def run(server, directory, *arguments):
    """`sae-sweep run` with a mirror: exit code and what it said."""
    definition = directory / "small.yaml"
    definition.write_text(yaml.safe_dump(DEFINITION))
    command = [sys.executable, "-m", "sweeps", "run", str(definition), "--executor", "inline", "--mirror", "s3://bucket/some/prefix"]
    done = subprocess.run([*command, *arguments], env={**os.environ, **server.environment}, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout + done.stderr


def test_an_empty_machine_starts_from_s3(tmp_path, server):
    code, said = run(server, tmp_path, "--results", str(tmp_path / "a"))
    assert code == 0, said
    keys = server.on_server(lambda client: {key["Key"] for key in client.list_objects_v2(Bucket="bucket")["Contents"]})
    here = tmp_path / "a" / "small"
    files = {path.relative_to(here).as_posix() for path in here.rglob("*") if path.is_file() and path.name[0] != "."} - {"progress.json"}
    assert keys == {f"some/prefix/{name}" for name in [*files, ".writable"]}

    # A damaged run and one that is not there in full are trained again; the others are fetched.
    first, second, *_ = sorted(path.name for path in (here / "runs").iterdir())
    weights = f"some/prefix/runs/{first}/sae/sae_weights.safetensors"

    def damage(client):
        data = bytearray(client.get_object(Bucket="bucket", Key=weights)["Body"].read())
        data[-5] ^= 1
        client.put_object(Bucket="bucket", Key=weights, Body=bytes(data))
        client.delete_object(Bucket="bucket", Key=f"some/prefix/runs/{second}/record.json")

    server.on_server(damage)
    code, said = run(server, tmp_path, "--results", str(tmp_path / "b"))
    assert code == 0, said
    assert f"mirror: run {first} is damaged at s3://bucket/some/prefix and not used: sae_weights.safetensors: " in said
    assert "mirror: 2 runs with a record and 0 checkpoints fetched from s3://bucket/some/prefix" in said
    assert results_of(tmp_path / "a" / "small") == results_of(tmp_path / "b" / "small")

    server.end()
    code, said = run(server, tmp_path, "--results", str(tmp_path / "c"), "--json")
    error = json.loads(said[said.index("{") :])["error"]
    assert code == error["exit_code"] == 2
    assert "`--mirror` must be readable and writable, but got 's3://bucket/some/prefix'" in error["message"]
    assert not (tmp_path / "c").exists()
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in written if SECRET.encode() in path.read_bytes()]
