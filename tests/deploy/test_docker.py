"""The commands of docs/how-to/docker.md in a real engine. Skipped where `docker info` fails."""

import errno
import getpass
import http.client
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.architecture.source import ROOT
from tests.docs.pages import read_page
from tests.system.processes import digest_in
from tests.test_compose import copied

pytestmark = pytest.mark.slow

#: Seconds for one command: a build downloads some hundred megabytes.
PATIENCE_S = 900

#: Beside what the image is built from: what builds it, and what compose mounts.
NEEDED = ("examples", "docker-compose.yml", "Dockerfile", ".dockerignore")

#: A job that lasts until its server has been lost.
LONG = 'model = "mlp"\nsteps = 1000\nnumerics = "portable"\ncheckpoint_every_steps = 20\n'

#: A job of some seconds with four workers, with the same bits in the image and in this process.
JOB = 'model = "mlp"\nsteps = 60\nnumerics = "portable"\n'

NAME = f"lockstep-test-{os.getpid()}"
PYTHON = re.compile(r"^FROM (python:\S+)", re.MULTILINE)
LINK = re.compile(r"http://([^/\s]+)(/\S*)")


def said(*words: str, timeout: float = PATIENCE_S) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(words, capture_output=True, text=True, timeout=timeout, check=False)


@pytest.fixture(scope="module")
def python_image() -> Iterator[str]:
    """The image that the Dockerfile names, or one with Debian's Python that stands for it."""
    if shutil.which("docker") is None or said("docker", "info").returncode:
        pytest.skip("no Docker engine: `docker info` fails")
    wanted = _wanted()
    if not said("docker", "image", "inspect", wanted).returncode or not said("docker", "pull", wanted).returncode:
        yield wanted
        return
    if shutil.which("debootstrap") is None or os.geteuid() != 0:
        pytest.skip(f"the image {wanted} cannot be pulled, and there is no debootstrap, or no root, to make another")
    stand_in = f"{NAME}-python"
    _bootstrap(stand_in)
    yield stand_in
    said("docker", "image", "rm", "--force", stand_in)


def _bootstrap(image: str) -> None:
    """Import an image with Debian's Python, and with the certificates that this machine trusts."""
    packages = "python3,python3-venv,python3-pip,python-is-python3,ca-certificates"
    folder = Path("/var/tmp") / NAME
    certificates = Path("etc/ssl/certs/ca-certificates.crt")
    try:
        made = said("debootstrap", "--variant=minbase", f"--include={packages}", "trixie", str(folder))
        if made.returncode:
            pytest.skip(f"debootstrap cannot make an image: {made.stdout.strip().splitlines()[-1:]}")
        if (Path("/") / certificates).exists():
            shutil.copy(Path("/") / certificates, folder / certificates)
        subprocess.run(f"tar -C {folder} -c . | docker import - {image}", shell=True, check=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@dataclass
class Engine:
    """A copy of the checkout, in which commands of the page run under names of their own."""

    folder: Path
    environment: dict[str, str]

    def do(self, command: str, **variables: str) -> "subprocess.CompletedProcess[str]":
        """Run a command line as pasted."""
        environment = {**self.environment, **variables}
        return subprocess.run(
            ["bash", "-c", command],
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )


def commands(first: str) -> list[str]:
    """Return the lines of the block of the page that begins with a text."""
    blocks = [block.text for block in read_page(ROOT / "docs" / "how-to" / "docker.md").blocks]
    (found,) = [text.splitlines() for text in blocks if text.startswith(first)]
    return found


@pytest.fixture(scope="module")
def engine(python_image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """The image, built, and the folder of keys, by the first commands of the page."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in (*copied(), *NEEDED):
        subprocess.run(["cp", "-R", str(ROOT / name), str(folder / name)], check=True)
    (folder / "job.toml").write_text(JOB, encoding="utf-8")
    (folder / "override.yml").write_text(_override(python_image), encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if name not in ("LOCKSTEP_USER", "SERVERS")}
    environment |= {
        "COMPOSE_PROJECT_NAME": NAME,
        "COMPOSE_FILE": "docker-compose.yml:override.yml",
        "JOB": "job.toml",
    }
    made = Engine(folder, environment)
    *first, _ = commands('echo "LOCKSTEP_USER')
    try:
        for command in first:
            done = made.do(command)
            assert done.returncode == 0, f"{command}: {done.stdout}"
        yield made
    finally:
        removed = made.do(f"{commands('docker compose --profile watch down')[0]} --remove-orphans")
        said("docker", "image", "rm", "--force", NAME)
    assert removed.returncode == 0, removed.stdout


def _override(python_image: str) -> str:
    """Return what differs from docker-compose.yml: names, the image of Python, and a port that is free."""
    base = f"additional_contexts: {{ '{_wanted()}': 'docker-image://{python_image}' }}"
    build = f"build: {{ context: ., {base} }}" if python_image != _wanted() else "build: ."
    services = [f"  {name}: {{ image: {NAME}, {build} }}" for name in ("server", "worker", "shard", "keys")]
    watch = f'  watch: {{ image: {NAME}, {build}, ports: !override ["127.0.0.1::8000"] }}'
    return "\n".join(["services:", *services, watch, ""])


def _wanted() -> str:
    (found, *_) = PYTHON.finditer((ROOT / "Dockerfile").read_text(encoding="utf-8"))
    return found[1]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest that one process gives, without containers."""
    return digest_alone(tmp_path_factory.mktemp("alone"), JOB)


def digest_alone(folder: Path, job: str) -> str:
    (folder / "job.toml").write_text(job, encoding="utf-8")
    words = ["train", "--job", "job.toml", "--workers", "0", "--run-dir", "run"]
    subprocess.run([sys.executable, "-P", "-m", "lockstep", *words], cwd=folder, check=True)
    return digest_in(folder / "run")


def runs(engine: Engine) -> list[Path]:
    """Copy the runs out of their volume by the page's command, and return their folders, oldest first."""
    shutil.rmtree(engine.folder / "runs", ignore_errors=True)
    (command,) = commands("docker compose cp")
    done = engine.do(command)
    assert done.returncode == 0, done.stdout
    return sorted(path.parent for path in (engine.folder / "runs").glob("*/result.json"))


def test_the_keys_belong_to_the_user(engine: Engine) -> None:
    assert (engine.folder / "keys" / "server.key").stat().st_uid == os.geteuid()


def test_another_user_is_refused_the_keys(engine: Engine) -> None:
    if getpass.getuser() == "nobody":
        pytest.skip("this is the user that stands for another one")
    done = engine.do("docker compose run --rm --no-deps server", LOCKSTEP_USER="65534")
    assert done.returncode == 2
    assert os.strerror(errno.EACCES) in done.stdout


@pytest.fixture(scope="module")
def trained(engine: Engine) -> tuple[str, Path]:
    """The output of a run with four workers, by the page's command, and its folder."""
    *_, up = commands('echo "LOCKSTEP_USER')
    assert up == "docker compose up --scale worker=4"
    done = engine.do(up)
    assert done.returncode == 0, done.stdout
    return done.stdout, runs(engine)[-1]


def test_four_workers_give_the_bits_of_one_process(trained: tuple[str, Path], alone: str) -> None:
    output, folder = trained
    assert "4 workers in 4 teams over tcp" in output
    assert digest_in(folder) == alone


def test_three_servers_give_the_bits_of_one_process(engine: Engine, alone: str) -> None:
    (up,) = commands("SERVERS=3")
    done = engine.do(up)
    assert done.returncode == 0, done.stdout
    folder = runs(engine)[-1]
    assert json.loads((folder / "result.json").read_text(encoding="utf-8"))["servers"] == 3
    assert digest_in(folder) == alone


def test_the_page_shows_the_runs(engine: Engine, trained: tuple[str, Path]) -> None:
    (up,) = commands("docker compose up watch")
    watching = subprocess.Popen(
        up.split(),
        cwd=engine.folder,
        env=engine.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert watching.stdout is not None
        link = next(found for line in watching.stdout if (found := LINK.search(line)))
        port = int(engine.do("docker compose port watch 8000").stdout.rpartition(":")[2])
        page, listed = (_asked(port, link[1], link[2] + path) for path in ("", "api/runs"))
        assert b"<title>Lockstep" in page
        assert trained[1].name.encode() in listed
        assert engine.do("docker compose stop watch").returncode == 0
        watching.communicate(timeout=PATIENCE_S)
    finally:
        watching.kill()
        watching.communicate()


def _asked(port: int, host: str, path: str) -> bytes:
    """Get a page as a browser does that follows the link; the port is the one that was free."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)) as connection:
        connection.request("GET", path, headers={"Host": host})
        answer = connection.getresponse()
        assert answer.status == 200, path
        return answer.read()


def test_one_container_shares_memory(engine: Engine) -> None:
    (command,) = commands("docker run --rm --shm-size")
    command = command.replace(" lockstep train", f" {NAME} train").replace("--epochs 1", "--steps 20 --workers 2")
    done = engine.do(command)
    assert done.returncode == 0, done.stdout
    assert "over shm" in done.stdout


def test_one_container_without_room_reports_it(engine: Engine) -> None:
    done = engine.do(f"docker run --rm --shm-size=1m {NAME} train --model mlp --steps 20 --workers 2")
    assert done.returncode == 0, done.stdout
    assert "has no room" in done.stdout
