"""deploy/jobset.yaml: by the published schema, by what its parts owe one another, and as processes of this machine."""

import copy
import re
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lockstep.cli.main import run
from lockstep.launch.remote.launcher import PORT
from tests.architecture.source import ROOT
from tests.deploy.published import DOCUMENTS, faults
from tests.deploy.stand_in import Machine, digest
from tests.system.processes import PATIENCE_S


def documents() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((ROOT / "deploy" / "jobset.yaml").read_text(encoding="utf-8")))


def job_set() -> dict[str, Any]:
    return documents()[1]


def pod(name: str) -> dict[str, Any]:
    """Return what a replicated job's pods are to be."""
    (job,) = (job for job in job_set()["spec"]["replicatedJobs"] if job["name"] == name)
    spec: dict[str, Any] = job["template"]["spec"]["template"]["spec"]
    return spec


def container(name: str) -> dict[str, Any]:
    (found,) = pod(name)["containers"]
    assert isinstance(found, dict)
    return found


def problems(loaded: list[dict[str, Any]]) -> list[str]:
    return [fault for it in loaded for fault in faults(it, DOCUMENTS[it["apiVersion"], it["kind"]], it["kind"])]


def test_it_is_what_the_api_publishes() -> None:
    assert [document["kind"] for document in documents()] == ["PersistentVolumeClaim", "JobSet"]
    assert problems(documents()) == []


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        ("spec.network.enableDNSHostname", True, "no such field"),
        ("spec.network.enableDNSHostnames", "yes", "another type"),
        ("spec.failurePolicy.maxRestarts", "3", "another type"),
        ("spec.failurePolicy.rules", {"action": "FailJobSet"}, "no list"),
        ("spec.successPolicy.operator", "Most", "none of"),
        ("spec.replicatedJobs.0.replicas", True, "another type"),
        ("spec.replicatedJobs.0.template.spec.template.spec.restartPolicy", "Always", "none of"),
        ("spec.replicatedJobs.0.template.spec.template.spec.containers.0.args", "node", "no list"),
        ("spec.replicatedJobs.0.template.spec.template.spec.containers", None, "no list"),
    ],
)
def test_the_schema_finds_what_is_wrong(path: str, value: object, told: str) -> None:
    loaded = copy.deepcopy(documents())
    *above, last = path.split(".")
    place: Any = loaded[1]
    for name in above:
        place = place[int(name)] if name.isdigit() else place[name]
    place[last] = value
    (fault,) = problems(loaded)
    assert told in fault


def test_the_schema_misses_what_has_to_be_there() -> None:
    loaded = copy.deepcopy(documents())
    del loaded[1]["spec"]["replicatedJobs"]
    assert problems(loaded) == ["JobSet.spec.replicatedJobs: missing"]


def test_workers_dial_the_name_that_the_headless_service_gives_to_the_server() -> None:
    spec, name = job_set()["spec"], job_set()["metadata"]["name"]
    network = spec["network"]
    assert network["enableDNSHostnames"]
    assert network["publishNotReadyAddresses"]  # workers may ask before it is ready
    # <jobset>-<replicated job>-<job>-<pod>.<subdomain, by default the jobset's name>
    assert f"tcp://{name}-server-0-0.{network.get('subdomain', name)}:{PORT}" in container("worker")["args"]
    assert [port["containerPort"] for port in container("server")["ports"]] == [PORT]


def test_a_server_that_died_comes_again_alone_and_a_wrong_job_does_not() -> None:
    server, worker = (job["template"]["spec"] for job in job_set()["spec"]["replicatedJobs"])
    for job in (server, worker):
        assert job["template"]["spec"]["restartPolicy"] == "Never"  # which policies of failures demand
        assert job["backoffLimit"] > 0
        first, second = job["podFailurePolicy"]["rules"]
        assert (first["action"], first["onExitCodes"]["values"]) == ("FailJob", [2])
        assert first["onExitCodes"]["containerName"] in {it["name"] for it in job["template"]["spec"]["containers"]}
        assert (second["action"], second["onPodConditions"][0]["type"]) == ("Ignore", "DisruptionTarget")
    assert server["completions"] == server["parallelism"] == 1
    assert server["podReplacementPolicy"] == "Failed"
    assert job_set()["spec"]["successPolicy"] == {"operator": "All", "targetReplicatedJobs": ["server"]}
    (rule,) = job_set()["spec"]["failurePolicy"]["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])


def test_what_is_mounted_is_there_and_memory_is_memory() -> None:
    for name in ("server", "worker"):
        volumes = {volume["name"]: volume for volume in pod(name)["volumes"]}
        for one in (*pod(name)["initContainers"], *pod(name)["containers"]):
            assert {mount["name"] for mount in one["volumeMounts"]} <= volumes.keys()
        assert volumes["keys"]["emptyDir"]["medium"] == "Memory"
        (shm,) = (mount["name"] for mount in container(name)["volumeMounts"] if mount["mountPath"] == "/dev/shm")
        assert volumes[shm]["emptyDir"]["medium"] == "Memory"
    (claim,) = (volume["persistentVolumeClaim"] for volume in pod("server")["volumes"] if volume["name"] == "runs")
    assert claim["claimName"] == documents()[0]["metadata"]["name"]


def test_a_pod_starts_as_many_processes_as_it_has_requested_cores() -> None:
    for name in ("server", "worker"):
        args = container(name)["args"]
        assert args[args.index("--workers") + 1] == container(name)["resources"]["requests"]["cpu"]


def test_the_servers_secret_stays_with_the_server() -> None:
    (secret,) = (volume["secret"] for volume in pod("worker")["volumes"] if "secret" in volume)
    assert [item["key"] for item in secret["items"]] == ["worker-1.key"]
    assert secret["defaultMode"] & 0o007 == 0


#: What the server's pod is told besides: data that is trained on in a moment.
JOB = ("--data", "tiny.npz", "--global-batch", "48", "--micro-batches", "4", "--epochs", "2")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    machine = Machine(tmp_path)
    monkeypatch.chdir(tmp_path)
    with machine.exits:
        yield machine


class Kubelet:
    """Starts the pods of the file on this machine: their paths are folders of a test, their service is loopback."""

    def __init__(self, machine: Machine, port: str) -> None:
        self.machine, self.port = machine, port

    def words(self, command: list[str], folder: Path) -> list[str]:
        def local(word: str) -> str:
            word = re.sub(r"tcp://lenet-server-0-0\.lenet:\d+", f"tcp://127.0.0.1:{self.port}", word)
            return re.sub(r"(?<![\w/])/(secret|keys|runs)\b", lambda found: str(folder / found[1]), word)

        return [local(word) for word in command]

    def start(self, name: str, index: int, *more: str) -> "subprocess.Popen[bytes]":
        folder = self.machine.folder / f"{name}-{index}"
        folder.mkdir()
        (folder / "secret").mkdir()
        (folder / "runs").symlink_to(self.machine.folder)
        (secret,) = (volume["secret"] for volume in pod(name)["volumes"] if "secret" in volume)
        keys = sorted(path.name for path in (self.machine.folder / "made").iterdir())
        for key in [item["key"] for item in secret["items"]] if "items" in secret else keys:
            (folder / "secret" / key).write_bytes((self.machine.folder / "made" / key).read_bytes())
            (folder / "secret" / key).chmod(secret["defaultMode"])
        (copying,) = pod(name)["initContainers"]
        self.machine.run(self.words(copying["command"], folder))
        environ = {"JOB_COMPLETION_INDEX": str(index), "MASTER_PORT": self.port}
        return self.machine.start(["lockstep", *self.words(container(name)["args"], folder), *more], environ)


def test_its_commands_train_with_keys(machine: Machine) -> None:
    assert run(["keys", "create", "made"]) == 0
    kubelet = Kubelet(machine, machine.free_port())
    workers = [kubelet.start("worker", index) for index in (0, 1)]
    # With all of them, and its own: one that came when the run is over would wait for another.
    server = kubelet.start("server", 0, *JOB, "--min-workers", "3")
    for process in (server, *workers):
        assert process.wait(PATIENCE_S) == 0, machine.said(process)
    assert stat.S_IMODE((machine.folder / "server-0" / "keys" / "own" / "server.key").stat().st_mode) == 0o600
    assert run(["train", "--model", "lenet", *JOB, "--workers", "0", "--run-dir", "alone"]) == 0
    assert digest(machine.folder / "lenet") == digest(machine.folder / "alone")


def test_without_its_key_a_worker_is_told_why(machine: Machine) -> None:
    assert run(["keys", "create", "made"]) == 0
    kubelet = Kubelet(machine, machine.free_port())
    # It waits for a second worker, which never gets in.
    kubelet.start("server", 0, *JOB, "--min-workers", "2")
    stranger = machine.start(["lockstep", "worker", f"tcp://127.0.0.1:{kubelet.port}"], {})
    assert stranger.wait(PATIENCE_S) == 2
    assert "requires a key" in machine.said(stranger)
