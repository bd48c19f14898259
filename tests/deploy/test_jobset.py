"""deploy/jobset.yaml: by the published schema, by what its parts owe one another, and as processes of several hosts."""

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
from tests.deploy.stand_in import Machine
from tests.system.processes import PATIENCE_S, digest_in


def documents() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((ROOT / "deploy" / "jobset.yaml").read_text(encoding="utf-8")))


def job_set() -> dict[str, Any]:
    return documents()[-1]


#: Pods that hold a part of the run.
SERVERS = ("server",)


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
    assert [document["kind"] for document in documents()] == [
        "PersistentVolumeClaim",
        "JobSet",
    ]
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
        ("spec.replicatedJobs.0.template.spec.template.spec.setHostnameAsFQDN", "yes", "another type"),
    ],
)
def test_the_schema_finds_what_is_wrong(path: str, value: object, told: str) -> None:
    loaded = copy.deepcopy(documents())
    *above, last = path.split(".")
    place: Any = loaded[-1]
    for name in above:
        place = place[int(name)] if name.isdigit() else place[name]
    place[last] = value
    (fault,) = problems(loaded)
    assert told in fault


def test_the_schema_misses_what_has_to_be_there() -> None:
    loaded = copy.deepcopy(documents())
    del loaded[-1]["spec"]["replicatedJobs"]
    assert problems(loaded) == ["JobSet.spec.replicatedJobs: missing"]


def address(name: str) -> str:
    """Return where a pod is dialled."""
    # <jobset>-<replicated job>-<job>-<pod>.<subdomain, by default the jobset's name>
    jobset = job_set()["metadata"]["name"]
    return f"tcp://{jobset}-{name}-0-0.{job_set()['spec']['network'].get('subdomain', jobset)}:{PORT}"


def test_all_dial_the_name_that_the_headless_service_gives_to_the_server() -> None:
    network = job_set()["spec"]["network"]
    assert network["enableDNSHostnames"]
    assert network["publishNotReadyAddresses"]  # workers may ask before a server is ready
    assert address("server") in container("worker")["args"]
    assert f"tcp://0.0.0.0:{PORT}" in container("server")["args"]
    assert [port["containerPort"] for port in container("server")["ports"]] == [PORT]
    (claim,) = (volume["persistentVolumeClaim"] for volume in pod("server")["volumes"] if volume["name"] == "runs")
    assert claim["claimName"] == "lenet-server"


def test_a_server_that_died_comes_again_alone_and_a_wrong_job_does_not() -> None:
    jobs = [job["template"]["spec"] for job in job_set()["spec"]["replicatedJobs"]]
    for job in jobs:
        assert job["template"]["spec"]["restartPolicy"] == "Never"  # which policies of failures demand
        assert job["backoffLimit"] > 0
        first, second = job["podFailurePolicy"]["rules"]
        assert (first["action"], first["onExitCodes"]["values"]) == ("FailJob", [2])
        assert first["onExitCodes"]["containerName"] in {it["name"] for it in job["template"]["spec"]["containers"]}
        assert (second["action"], second["onPodConditions"][0]["type"]) == ("Ignore", "DisruptionTarget")
    server = jobs[0]
    assert server["completions"] == server["parallelism"] == 1
    assert server["podReplacementPolicy"] == "Failed"
    assert job_set()["spec"]["successPolicy"] == {"operator": "All", "targetReplicatedJobs": list(SERVERS)}
    (rule,) = job_set()["spec"]["failurePolicy"]["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])


def test_what_is_mounted_is_there_and_memory_is_memory() -> None:
    claims = [document["metadata"]["name"] for document in documents()[:-1]]
    for name in (*SERVERS, "worker"):
        volumes = {volume["name"]: volume for volume in pod(name)["volumes"]}
        for one in (*pod(name)["initContainers"], *pod(name)["containers"]):
            assert {mount["name"] for mount in one["volumeMounts"]} <= volumes.keys()
        assert volumes["keys"]["emptyDir"]["medium"] == "Memory"
        assert [
            it["persistentVolumeClaim"]["claimName"] for it in volumes.values() if "persistentVolumeClaim" in it
        ] == ([claims.pop(0)] if name in SERVERS else [])
    (shm,) = (mount["name"] for mount in container("worker")["volumeMounts"] if mount["mountPath"] == "/dev/shm")
    assert volumes[shm]["emptyDir"]["medium"] == "Memory"
    assert claims == []


def test_a_pod_starts_as_many_processes_as_it_has_requested_cores() -> None:
    args = container("worker")["args"]
    assert args[args.index("--workers") + 1] == container("worker")["resources"]["requests"]["cpu"]


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
    """Starts the pods of the file as processes. Their paths are folders of a test; a volume outlives its pods.

    All are on this machine, and the server has a port in place of its name.
    """

    def __init__(self, machine: Machine) -> None:
        self.machine, self.ports = machine, {name: machine.free_port() for name in SERVERS}
        self.started = 0
        assert run(["keys", "create", "made"]) == 0

    def words(self, command: list[str], folder: Path, name: str) -> list[str]:
        def local(word: str) -> str:
            for server, port in self.ports.items():
                word = word.replace(address(server), f"tcp://127.0.0.1:{port}")
            if name in self.ports:
                word = word.replace(f"0.0.0.0:{PORT}", f"127.0.0.1:{self.ports[name]}")
            return re.sub(r"(?<![\w/])/(secret|keys|runs)\b", lambda found: str(folder / found[1]), word)

        return [local(word) for word in command]

    def start(self, name: str, *more: str) -> "subprocess.Popen[bytes]":
        """Start a pod."""
        self.started += 1
        folder = self.machine.folder / f"pod-{self.started}"
        (folder / "secret").mkdir(parents=True)
        self.volume(name).mkdir(exist_ok=True)
        (folder / "runs").symlink_to(self.volume(name))
        (secret,) = (volume["secret"] for volume in pod(name)["volumes"] if "secret" in volume)
        keys = sorted(path.name for path in (self.machine.folder / "made").iterdir())
        for key in [item["key"] for item in secret["items"]] if "items" in secret else keys:
            (folder / "secret" / key).write_bytes((self.machine.folder / "made" / key).read_bytes())
            (folder / "secret" / key).chmod(secret["defaultMode"])
        (copying,) = pod(name)["initContainers"]
        self.machine.run(self.words(copying["command"], folder, name))
        args = self.words(container(name)["args"], folder, name)
        return self.machine.start(["lockstep", *args, *more], {})

    def volume(self, name: str) -> Path:
        return self.machine.folder / f"volume-{name}"


def test_its_commands_train_with_keys(machine: Machine) -> None:
    kubelet = Kubelet(machine)
    server = kubelet.start("server", *JOB, "--min-workers", "2")
    workers = [kubelet.start("worker") for _ in range(2)]
    for process in (server, *workers):
        assert process.wait(PATIENCE_S) == 0, machine.said(process)
    assert stat.S_IMODE((machine.folder / "pod-1" / "keys" / "own" / "server.key").stat().st_mode) == 0o600
    assert run(["train", "--model", "lenet", *JOB, "--workers", "0", "--run-dir", "alone"]) == 0
    for name in SERVERS:
        assert digest_in(kubelet.volume(name) / "lenet") == digest_in(machine.folder / "alone")
