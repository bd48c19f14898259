"""The image and compose: their structure, and the very commands that they run, as processes on this machine."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack, chdir
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from lockstep.cli.main import run
from tests.architecture.source import ROOT

#: Seconds that no process of these tests comes near.
PATIENCE_S = 60

LISTENING = re.compile(r"listening on (tcp://[^\s;]+)")


def compose(**variables: str) -> dict[str, Any]:
    """Return docker-compose.yml with `${NAME:-default}` filled in."""
    text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    filled = re.sub(r"\$\{(\w+):-([^}]*)\}", lambda found: variables.get(found[1], found[2]), text)
    loaded = yaml.safe_load(filled)
    assert isinstance(loaded, dict)
    return loaded


def dockerfile() -> list[list[tuple[str, str]]]:
    """Return the stages of the Dockerfile, each a list of (instruction, arguments)."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line and not line.startswith("#")]
    stages: list[list[tuple[str, str]]] = []
    for instruction, arguments in lines:
        if instruction == "FROM":
            stages.append([])
        stages[-1].append((instruction, " ".join(arguments.split())))
    return stages


def arguments_of(stage: list[tuple[str, str]], instruction: str) -> list[str]:
    """Return the arguments of all such instructions of a stage."""
    return [arguments for name, arguments in stage if name == instruction]


# The structure.


def test_there_is_a_server_and_workers_of_one_image() -> None:
    services = compose()["services"]
    assert set(services) == {"server", "worker", "shard", "watch", "keys"}
    assert len({service["image"] for service in services.values()}) == 1
    assert {service["build"] for service in services.values()} == {"."}


def test_workers_can_be_scaled() -> None:
    worker = compose()["services"]["worker"]
    assert not {"container_name", "ports", "expose", "hostname", "ipc", "network_mode"} & set(worker)
    assert not [word for word in worker["command"] if "rank" in word]


def test_a_container_is_one_worker_unless_more_are_asked_for() -> None:
    assert compose()["services"]["worker"]["command"][-2:] == ["--workers", "1"]
    assert compose(WORKERS="8")["services"]["worker"]["command"][-2:] == ["--workers", "8"]


def test_any_start_order_is_right() -> None:
    for service in ("worker", "shard"):
        assert compose()["services"][service]["depends_on"] == {"server": {"condition": "service_started"}}


def test_there_is_one_server_unless_more_are_asked_for() -> None:
    services = compose()["services"]
    assert services["shard"]["scale"] == 0
    assert services["server"]["command"][-2:] == ["--servers", "1"]
    assert compose(SERVERS="3")["services"]["server"]["command"][-2:] == ["--servers", "3"]
    assert services["shard"]["networks"] == services["server"]["networks"]


def test_the_server_is_asked_for_its_health_at_the_port_it_listens_on() -> None:
    services = compose()["services"]
    server, worker = services["server"], services["worker"]
    assert server["healthcheck"]["test"][:4] == ["CMD", "lockstep", "status", "tcp://127.0.0.1:5555"]
    assert "tcp://0.0.0.0:5555" in server["command"]
    assert "tcp://server:5555" in worker["command"]


def test_each_has_the_keys_that_it_needs_and_no_more() -> None:
    loaded = compose()
    given = {
        name: {secret["source"]: f"/run/secrets/{secret['target']}" for secret in service.get("secrets", [])}
        for name, service in loaded["services"].items()
    }
    servers = {"server": "/run/secrets/server.key", "allowed": "/run/secrets/allowed"}
    workers = {"worker": "/run/secrets/worker.key"}
    everywhere = {"server": servers, "shard": servers}
    assert given == everywhere | {"worker": workers, "watch": {}, "keys": {}}
    assert set(loaded["secrets"]) == {"server", "allowed", "worker"}
    assert not [word for service in loaded["services"].values() for word in service["command"] if "insecure" in word]


def test_the_server_is_reached_by_its_workers_only() -> None:
    loaded = compose()
    server, worker = loaded["services"]["server"], loaded["services"]["worker"]
    assert "ports" not in server
    assert server["networks"] == worker["networks"]
    assert [loaded["networks"][name] for name in server["networks"]] == [{"internal": True}]


def test_the_page_is_reached_from_this_machine_only_and_changes_nothing() -> None:
    services = compose()["services"]
    assert services["watch"]["ports"] == ["127.0.0.1:8000:8000"]
    assert [name for name, service in services.items() if "ports" in service] == ["watch"]
    assert all(volume["read_only"] for volume in services["watch"]["volumes"])


def test_processes_get_signals_and_time_to_end() -> None:
    for service in compose()["services"].values():
        assert service["init"] is True
        assert int(service["stop_grace_period"].removesuffix("s")) >= 5


def test_a_run_that_ended_is_not_begun_again() -> None:
    services = compose()["services"]
    assert services["server"]["restart"] == "no"
    assert services["shard"]["restart"] == services["worker"]["restart"]
    assert services["worker"]["restart"].startswith("on-failure:")


def test_results_go_to_a_volume_that_the_image_gives_to_its_user() -> None:
    loaded = compose()
    volumes = [mount for mount in loaded["services"]["server"]["volumes"] if mount["type"] == "volume"]
    assert [(mount["source"], mount["target"]) for mount in volumes] == [("runs", "/lockstep/runs")]
    assert "runs" in loaded["volumes"]
    (made,) = (run for run in arguments_of(dockerfile()[-1], "RUN") if "/lockstep/runs" in run)
    assert "install -d -o lockstep -g lockstep -m 1777 /lockstep/runs" in made


@pytest.mark.parametrize("job", [None, "examples/mlp.toml"])
def test_a_job_can_be_chosen(job: str | None) -> None:
    mounts = compose(**({"JOB": job} if job else {}))["services"]["server"]["volumes"]
    (source,) = (mount["source"] for mount in mounts if mount["target"] == "/lockstep/job.toml")
    assert source == (job or "examples/lenet.toml")
    assert (ROOT / source).is_file()


def test_the_image_is_slim_and_of_a_python_that_the_project_supports() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    supported = {words[-1] for words in (line.split(" :: ") for line in project["classifiers"])}
    stages = dockerfile()
    assert stages
    for stage in stages:
        version, _, variant = stage[0][1].split()[0].removeprefix("python:").partition("-")
        assert variant == "slim"
        assert version in supported


def test_the_image_runs_lockstep_as_a_user_and_has_no_tools_of_its_building() -> None:
    final = dockerfile()[-1]
    assert arguments_of(final, "USER") == ["lockstep"]
    assert arguments_of(final, "ENTRYPOINT") == ['["lockstep"]']
    assert arguments_of(final, "COPY") == ["--from=build /opt/lockstep /opt/lockstep"]
    assert not [run for run in arguments_of(final, "RUN") if re.search(r"\b(pip|apt|apt-get)\b", run)]


def test_the_kernels_are_compiled_and_tested_while_the_image_is_built() -> None:
    compiler, _, install = arguments_of(dockerfile()[0], "RUN")
    assert {"gcc", "libc6-dev"} <= set(compiler.split())
    assert install.endswith("&& /opt/lockstep/bin/python -P -m lockstep.common.numerics.kernels.library")
    assert ".so" in (ROOT / ".dockerignore").read_text(encoding="utf-8")


def test_the_image_has_the_versions_whose_bits_are_known() -> None:
    commands = [command for run in arguments_of(dockerfile()[0], "RUN") for command in run.split(" && ")]
    installing = [command for command in commands if re.search(r"\bpip\b.* (install|wheel) ", command)]
    assert len(installing) == 4
    for command in installing:  # those of the lock by their hashes; the project itself with none but these
        assert re.search(r"--require-hashes --requirement requirements/\w+\.txt$| --no-deps ", command), command


def test_the_image_is_built_from_what_the_wheel_needs_and_sent_nothing_else() -> None:
    configuration = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packages = configuration["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    needed = {
        *packages,
        "pyproject.toml",
        "hatch_build.py",
        "requirements",
        configuration["project"]["readme"],
        *configuration["project"]["license-files"],
    }
    sent = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert set(copied()) == needed == {line[1:] for line in sent if line.startswith("!")}
    assert "*" in sent


def copied() -> list[str]:
    """Return what the building stage copies out of the checkout."""
    return [source for arguments in arguments_of(dockerfile()[0], "COPY") for source in arguments.split()[:-1]]


# The commands, as processes.


@dataclass
class Containers:
    """Stands for the engine: starts what the image and a service say in a folder that stands for `/lockstep`."""

    root: Path
    loaded: dict[str, Any]
    exits: ExitStack = field(default_factory=ExitStack)

    @property
    def services(self) -> dict[str, Any]:
        services = self.loaded["services"]
        assert isinstance(services, dict)
        return services

    def make_keys(self) -> None:
        """Make the keys by the command of its service, and hand each service its secrets."""
        (self.root / "host").mkdir()
        with chdir(self.root):
            assert run(self.services["keys"]["command"]) == 0
        for name, service in self.services.items():
            folder = self.root / f"secrets-{name}"
            folder.mkdir()
            for secret in service.get("secrets", []):
                source = self.root / "host" / self.loaded["secrets"][secret["source"]]["file"]
                shutil.copy2(source, folder / secret["target"])

    def mount(self) -> None:
        """Put the server's mounts into the folder, under the names that they have in the container."""
        for mount in self.services["server"]["volumes"]:
            target = self.root / Path(mount["target"]).relative_to("/lockstep")
            if mount["type"] == "bind":
                target.symlink_to(ROOT / mount["source"])
            else:
                target.mkdir()

    def start(self, command: list[str], **addresses: str) -> "subprocess.Popen[str]":
        """Start the image's entry point with the command, one address in it replaced."""
        (entry,) = (json.loads(text) for text in arguments_of(dockerfile()[-1], "ENTRYPOINT"))
        # Each process has folders of its own in a container; here, one for the secrets of its service.
        secrets = f"secrets-{'server' if command[0] == 'status' else command[0]}"
        command = [word.replace("/run/secrets", secrets) for word in command]
        words = [str(Path(sys.executable).parent / entry[0]), *(addresses.get(_key(word), word) for word in command)]
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        process = subprocess.Popen(words, cwd=self.root, env=environment, stdout=subprocess.PIPE, text=True)
        self.exits.callback(_end, process)
        return process


def _key(word: str) -> str:
    """Return the keyword that replaces an address in a command."""
    return "bind" if word.startswith("tcp://0.0.0.0:") else "server" if re.match(r"tcp://\w", word) else ""


def _end(process: "subprocess.Popen[str]") -> None:
    process.kill()
    process.communicate()


@pytest.fixture
def containers(tmp_path: Path) -> Iterator[Containers]:
    engine = Containers(tmp_path, compose(JOB="examples/linear.toml"))
    engine.mount()
    with engine.exits:
        engine.make_keys()
        yield engine


def listening(server: "subprocess.Popen[str]") -> str:
    """Return the address that the server says it listens on."""
    assert server.stdout is not None
    said = []
    for line in server.stdout:
        said.append(line)
        if found := LISTENING.search(line):
            return found[1]
    pytest.fail(f"the server ended without listening: {said}")


def test_a_server_and_two_workers_train_and_leave_a_result(containers: Containers) -> None:
    services = containers.services
    small = ["--steps", "5", "--min-workers", "2"]
    server = containers.start([*services["server"]["command"], *small], bind="tcp://127.0.0.1:0")
    address = listening(server)
    health = containers.start(services["server"]["healthcheck"]["test"][2:], server=address)
    assert health.wait(PATIENCE_S) == 0
    workers = [containers.start(services["worker"]["command"], server=address) for _ in range(2)]
    for process in (server, *workers):
        process.communicate(timeout=PATIENCE_S)
    assert [process.returncode for process in (server, *workers)] == [0, 0, 0]
    (result,) = (containers.root / "runs").glob("*/result.json")
    figures = json.loads(result.read_text(encoding="utf-8"))
    assert [figures[name] for name in ("model", "workers", "steps", "transport")] == ["linear", 2, 5, "tcp"]


def test_a_server_with_a_shard_trains(containers: Containers) -> None:
    services = containers.services
    *command, _ = services["server"]["command"]
    server = containers.start([*command, "2", "--steps", "5"], bind="tcp://127.0.0.1:0")
    address = listening(server)
    shard = containers.start(services["shard"]["command"], bind="tcp://127.0.0.1:0", server=address)
    worker = containers.start(services["worker"]["command"], server=address)
    for process in (server, shard, worker):
        process.communicate(timeout=PATIENCE_S)
    assert [process.returncode for process in (server, shard, worker)] == [0, 0, 0]
    (result,) = (containers.root / "runs").glob("*/result.json")
    assert json.loads(result.read_text(encoding="utf-8"))["servers"] == 2


def test_without_keys_the_server_refuses_that_address(containers: Containers) -> None:
    command = [word for word in containers.services["server"]["command"] if word not in ("--keys", "/run/secrets")]
    server = containers.start(command, bind="tcp://0.0.0.0:0")
    assert server.wait(PATIENCE_S) == 2
    assert not list((containers.root / "runs").iterdir())


def test_the_health_check_fails_where_no_server_is(containers: Containers) -> None:
    command = containers.services["server"]["healthcheck"]["test"][2:]
    with socket.socket() as bound:
        # Bound and not listening: the port is ours, and connections are refused.
        bound.bind(("127.0.0.1", 0))
        nowhere = f"tcp://127.0.0.1:{bound.getsockname()[1]}"
        health = containers.start([*command, "--timeout", "0.2"], server=nowhere)
        assert health.wait(PATIENCE_S) == 1


def test_stopping_ends_a_waiting_server_as_an_interrupt_does(containers: Containers) -> None:
    server = containers.start(containers.services["server"]["command"], bind="tcp://127.0.0.1:0")
    listening(server)
    server.terminate()
    server.communicate(timeout=PATIENCE_S)
    assert server.returncode == 130


@pytest.mark.slow
def test_the_image_can_be_built_as_written(tmp_path: Path) -> None:
    """Needs a package index. Runs the building stage in a folder of its own, with this Python for the image's."""
    context, target = tmp_path / "context", tmp_path / "opt"
    context.mkdir()
    for name in copied():
        subprocess.run(["cp", "-R", str(ROOT / name), str(context / name)], check=True)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for command in arguments_of(dockerfile()[0], "RUN"):
        command = command.replace("/opt/lockstep", str(target))
        subprocess.run(["sh", "-ec", command], cwd=context, env=environment, check=True)
    version = subprocess.run(
        [str(target / "bin" / "lockstep"), "--version"], capture_output=True, text=True, check=True
    )
    assert "lockstep" in version.stdout
    assert not (target / "bin" / "pip").exists()
