"""The doctor: a healthy installation is found well, and what it says of it is for people and for programs alike."""

from __future__ import annotations

import asyncio
import datetime
import os
import re
import secrets
import socket
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

import asyncpg
import pytest

from config.findings import CLOCK_WEAK, CLOCK_WRONG, Examination, Finding, StopExamination, clock, good
from config.settings import environment
from models.postgres import migrations
from scripts import doctor
from scripts.checks import machine, nginx, run_examination
from tests import canaries
from tests.deploy.relay import SHIPPED, folder, relaying
from tests.providers.certificates import certified
from tests.providers.http2 import Reply
from tests.providers.providers import Google, providers
from tests.running import ROOT, Place, Services, place, program, serving
from tests.scripts.examining import examine
from tests.scripts.program import script
from tests.scripts.proxy import Proxy, proxying
from tests.scripts.valkey import valkey
from tests.waiting import SLACK

MONTHS = datetime.timedelta(days=90)
MACHINE = {"machine"}  # what this one is like is not for tests to say
STATES = {"good", "weak", "wrong", "skipped"}


def planted(shared: Place, data: Path) -> dict[str, str]:
    """The settings of an installation, whose secrets are watched for."""
    made = {"JWT_SECRET": secrets.token_hex(32), "TURN_SECRET": secrets.token_hex(32), "MIMU_DATA_DIR": str(data)}
    canaries.plant(made["JWT_SECRET"], made["TURN_SECRET"])
    return {**shared.environment, **made}


@pytest.mark.gen_test
async def test_a_healthy_installation_is_found_well(services: Services, tmp_path: Path) -> None:
    with folder() as open_to_turn:
        authority, context = certified(open_to_turn, ends=MONTHS, alpn="http/1.1")
        (open_to_turn / "server.pem").chmod(0o644)
        pem = f"cert={open_to_turn}/server.pem\npkey={open_to_turn}/server.pem\n"
        async with (
            place(services) as shared,
            relaying(more=pem) as relay,
            providers(tmp_path) as world,
        ):
            world.apple.always = Reply(400, {"reason": "BadDeviceToken"})
            world.google.always = Google.error(404, "UNREGISTERED")
            given = {
                **planted(shared, tmp_path),
                **world.settings,
                "TURN_SECRET": relay.secret,
                "TURN_HOST": relay.host,
                "TURN_PORT": str(relay.port),
                "TURN_TLS_PORT": str(relay.tls_port),
                "TRUSTED_PROXIES": "127.0.0.9/32",
                "METRICS_ALLOW": "203.0.113.0/24",
                "VAPID_SUBJECT": "mailto:ops@mimu.test",
                "SSL_CERT_FILE": str(authority),
            }
            for name in ("apns.p8", "fcm.json", "vapid.pem"):
                (tmp_path / name).chmod(0o600)
            canaries.plant(relay.secret)
            async with serving(shared, **given) as running, proxying(running.port, context, Proxy()) as proxy:
                ended = await script(None, "doctor", "--url", proxy.url, "--json", **given)
                shown = await script(None, "doctor", "--url", proxy.url, **given)
    rows = {(row["examination"], row["part"]): row for row in ended.json["findings"]}
    bad = {key: row["says"] for key, row in rows.items() if row["state"] in ("weak", "wrong")}
    assert {key: says for key, says in bad.items() if key[0] not in MACHINE} == {
        # The tests' installation is of development, on databases that somebody else started.
        ("settings", "secrets"): bad.get(("settings", "secrets")),
    }
    skipped = {key for key, row in rows.items() if row["state"] == "skipped" and key[0] not in MACHINE}
    assert skipped == {
        ("settings", "names"),
        ("database", "room"),
        ("database", "instances"),
        *(("nginx", part) for part in nginx.PARTS),
        ("turn", "peers of IPv6"),
        ("turn", "relays"),  # we stand where it relays nothing
        ("payments", "stripe"),
        ("payments", "btcpay"),
        ("public", "redirect"),
        ("public", "socket"),
    }
    well = not any(row["state"] == "wrong" for row in rows.values())
    assert (ended.code, ended.json["well"]) == (0 if well else 1, well)
    assert {key[0] for key in rows} == {
        "settings", "machine", "database", "redis", "storage", "payments", "push", "turn", "nginx", "public",
    }  # fmt: skip
    assert all(row.keys() == {"examination", "part", "state", "says", "do"} for row in ended.json["findings"])
    assert sum(ended.json["counts"].values()) == len(ended.json["findings"])
    assert set(ended.json["counts"]) == STATES
    for (_, part), row in rows.items():
        if row["state"] == "skipped":  # several of them may be one line
            continue
        mark = doctor.MARKS[row["state"]]
        assert re.search(rf"(?m)^  {re.escape(mark)} {re.escape(part)} ", shown.out), part


def without_figures(text: str) -> str:
    return re.sub(r"\d[\d.,]*", "0", text).strip()


@pytest.mark.gen_test
async def test_the_sample_in_the_manual_is_what_it_says(services: Services, tmp_path: Path) -> None:
    manual = (ROOT / "docs/operations.md").read_text()
    sample = re.search(r"<!-- sample of scripts.doctor -->\n```\n(.*?)```\n", manual, re.DOTALL)
    assert sample
    secret = secrets.token_hex(32)
    conf = re.sub(r"(?m)^denied-peer-ip=(10|169|172)\..*\n", "", SHIPPED.read_text())
    conf = re.sub(r"(?m)^#static-auth-secret=.*$", f"static-auth-secret={secret}", conf)
    async with (
        place(services) as shared,
        valkey(tmp_path, "appendonly no") as (redis_url, _),
        relaying(conf=conf) as relay,
    ):
        connection = await asyncpg.connect(shared.dsn)
        await connection.execute("DELETE FROM schema_migrations WHERE version = $1", migrations.versions()[-1])
        await connection.close()
        given = {**planted(shared, tmp_path), "REDIS_URL": redis_url, "TURN_HOST": relay.host, "TURN_SECRET": secret}
        given |= {"TURN_PORT": str(relay.port), "TURN_TLS_PORT": "0"}
        ended = await script(None, "doctor", "--only", "database,redis,turn", **given)
    assert ended.code == 1
    assert without_figures(sample[1]) == without_figures(ended.out), ended.out


def test_the_manual_names_all_that_is_looked_at() -> None:
    manual = (ROOT / "docs/operations.md").read_text()
    table = re.search(r"\| `--only` \|.*?\n\n", manual, re.DOTALL)
    assert table
    found = doctor.examinations(doctor.parse([]), environment(Path(os.devnull), {}))
    assert sorted(re.findall(r"(?m)^\| `(\w+)` \|", table[0])) == sorted(one.name for one in found)


@pytest.mark.gen_test
async def test_exit_codes(services: Services, tmp_path: Path) -> None:
    async with place(services) as shared:
        given = planted(shared, tmp_path)
        # That there is no room for an upgrade is weak, not wrong; whether that counts is asked.
        weak = {**given, "DATABASE_MAX_CONNECTIONS": "40"}
        ended = await script(None, "doctor", "--only", "database", "--json", **weak)
        assert (ended.code, ended.json["well"], ended.json["counts"]["weak"]) == (0, True, 1)
        ended = await script(None, "doctor", "--only", "database", "--strict", "--json", **weak)
        assert (ended.code, ended.json["well"]) == (1, False)
        away = {**given, "REDIS_URL": "redis://:let-me-in-please@127.0.0.1:1/0"}
        ill = await script(None, "doctor", "--only", "redis,database", "--json", **away)
        assert (ill.code, ill.json["well"]) == (1, False)
        assert {row["examination"] for row in ill.json["findings"] if row["state"] == "wrong"} == {"redis"}
        unusable = await script(None, "doctor", "--json", **{**given, "PORT": "many", "LOG_LEVEL": "loud"})
        assert (unusable.code, unusable.json["well"]) == (78, False)
        said = [row["says"].partition(":")[0] for row in unusable.json["findings"] if row["state"] == "wrong"]
        assert said == ["PORT", "LOG_LEVEL"]
        unknown = await script(None, "doctor", "--only", "databse", **given)
        assert unknown.code == 2
        assert unknown.err.startswith("--only: there is no databse; there are settings, machine, database, redis")


@pytest.mark.parametrize(
    "words",
    [
        ["--timeout", "0"],
        ["--url", "chat.example.org"],
        ["--url", "https://a@b"],
        ["--token-file", "nothing"],
        ["--loud"],
    ],
)
def test_invalid_arguments_are_refused(words: list[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        doctor.parse(words)
    assert refused.value.code == 2


@pytest.mark.gen_test
async def test_the_embedded_default_is_looked_at_while_it_runs_and_not_missed_before() -> None:
    with tempfile.TemporaryDirectory(prefix="mimu-doctor-") as name:
        place_ = Path(name)
        place_.chmod(0o755)  # for the user that PostgreSQL runs as when we are root
        await _embedded(place_)


async def _embedded(folder_: Path) -> None:
    own = {"MIMU_DATA_DIR": str(folder_ / "var"), "HOST": "127.0.0.1", "PORT": "0"}
    own["METRICS_ALLOW"] = "203.0.113.0/24"  # so that we are strangers
    found = await examine(own, "settings,database,redis,turn,public")
    assert found.bad() == {}
    assert set(found.states("database").values()) == set(found.states("redis").values()) == {"skipped"}
    async with program(None, folder_, **own) as running:
        port = running.url.rpartition(":")[2]
        found = await examine({**own, "PORT": port}, "settings,database,redis,public")
    assert found.bad() == {}
    assert found["database", "room"].state == "good"  # its disk is this machine's
    assert found["public", "upgrade"].state == "good"  # by the secret that the server made for itself
    assert found["public", "forwarded"].says == "The server does not trust X-Forwarded-For of strangers."


@pytest.mark.gen_test
async def test_a_service_that_does_not_answer_times_out_and_hides_no_other(services: Services, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # the kernel accepts connections, the program does not
        await _given_up(services, tmp_path, silent.getsockname()[1])


async def _given_up(services: Services, tmp_path: Path, port: int) -> None:
    async with place(services) as shared:
        given = {**planted(shared, tmp_path), "DATABASE_URL": f"postgres://mimu:hush-hush-hush@127.0.0.1:{port}/mimu"}
        begun = asyncio.get_running_loop().time()
        found = await examine(given, "database,redis", seconds=2)
        assert asyncio.get_running_loop().time() - begun < 2 + SLACK
    assert found["database", "reachable"].says == "No answer within 2 s."
    assert found["database", "migrations"].says == "Not checked, because it took too long."
    assert found["redis", "reachable"].state == "good"


@pytest.mark.gen_test
async def test_an_examination_ends_well_whatever_happens_in_it() -> None:
    async def half() -> doctor.AsyncIterator[Finding]:
        yield good("one", "It is.")
        raise StopExamination("two is away")

    async def broken() -> doctor.AsyncIterator[Finding]:
        yield good("one", "It is.")
        raise RuntimeError("postgres://user:password@host")

    said = await run_examination(Examination("x", "X", ("one", "two", "three"), half), 1)
    assert [(finding.part, finding.state) for finding in said] == [
        ("one", "good"),
        ("two", "skipped"),
        ("three", "skipped"),
    ]
    assert said[2].says == "Not checked, because two is away."
    said = await run_examination(Examination("x", "X", ("one", "two", "three"), broken), 1)
    assert [(finding.part, finding.state) for finding in said] == [
        ("one", "good"),
        ("two", "wrong"),
        ("three", "skipped"),
    ]
    assert "password" not in "".join(finding.says for finding in said)


def test_clocks() -> None:
    judged = [clock("clock", off, "S3").state for off in (0.0, -CLOCK_WEAK + 0.1, CLOCK_WEAK + 1, -CLOCK_WRONG - 1)]
    assert judged == ["good", "good", "weak", "wrong"]
    assert "60 s behind" in clock("clock", -60, "S3").says


# Settings ------------------------------------------------------------------------------------------------------------

PRODUCTION = {
    "MIMU_ENV": "production",
    "DATABASE_URL": f"postgres://mimu:{secrets.token_hex(16)}@db.mimu.test/mimu",
    "REDIS_URL": f"redis://:{secrets.token_hex(16)}@db.mimu.test/0",
    "JWT_SECRET": secrets.token_hex(32),
    "TURN_SECRET": secrets.token_hex(32),
    "TURN_HOST": "turn.mimu.test",
    "TRUSTED_PROXIES": "172.30.77.1/32",
}
S3 = {
    "S3_ENDPOINT": "http://minio:9000",
    "S3_PUBLIC_ENDPOINT": "https://files.mimu.test",
    "S3_ACCESS_KEY": "mimu",
    "S3_SECRET_KEY": secrets.token_hex(16),
}


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("changed", "part", "state"),
    [
        ({}, None, "good"),
        (S3, None, "good"),
        ({"MIMU_ENV": "development"}, "secrets", "weak"),
        ({"MIMU_ENV": "development", "JWT_SECRET": "change_me_to_32_random_characters_or_more"}, "secrets", "wrong"),
        ({"REDIS_URL": f"redis://:{PRODUCTION['JWT_SECRET']}@db.mimu.test/0"}, "secrets", "weak"),
        ({"DATABASE_URL": "postgres://mimu:postgres@db.mimu.test/mimu"}, "secrets", "wrong"),
        ({"DATABASE_URL": "postgres://mimu:k3mB9xQ2@db.mimu.test/mimu"}, "secrets", "weak"),
        ({"REDIS_URL": "redis://db.mimu.test/0"}, "secrets", "weak"),
        ({"REDIS_URL": "redis://127.0.0.1/0"}, None, "good"),
        ({**S3, "S3_SECRET_KEY": "minioadmin"}, "secrets", "wrong"),
        ({"TRUSTED_PROXIES": ""}, "proxies", "weak"),
        ({"TRUSTED_PROXIES": "0.0.0.0/0"}, "proxies", "wrong"),
        ({"TRUSTED_PROXIES": "::/0"}, "proxies", "wrong"),
        ({"TRUSTED_PROXIES": "5.6.0.0/16"}, "proxies", "weak"),
        ({"METRICS_ALLOW": "0.0.0.0/0"}, "metrics", "wrong"),
        ({"TURN_HOST": "localhost"}, "addresses", "wrong"),
        ({**S3, "S3_PUBLIC_ENDPOINT": ""}, "addresses", "wrong"),
        ({**S3, "S3_PUBLIC_ENDPOINT": "http://files.mimu.test"}, "addresses", "wrong"),
        ({**S3, "S3_PUBLIC_ENDPOINT": "https://10.0.0.7"}, "addresses", "wrong"),
        ({"FILES_PUBLIC_URL": "http://mimu.test"}, "addresses", "wrong"),
        ({"PUSH_ALLOW_PRIVATE": "true"}, "addresses", "wrong"),
        ({"STRIPE_BASE_URL": "https://stripe.mimu.test"}, "addresses", "weak"),
    ],
)
async def test_weak_settings_that_the_server_accepts_are_found(
    changed: dict[str, str], part: str | None, state: str
) -> None:
    given = {name: value for name, value in {**PRODUCTION, **changed}.items() if value}
    canaries.plant(PRODUCTION["JWT_SECRET"], PRODUCTION["TURN_SECRET"], S3["S3_SECRET_KEY"], "k3mB9xQ2", "minioadmin")
    found = await examine(given, "settings")
    if part is None:
        assert found.bad() == {}
    else:
        assert {key[1] for key in found.bad()} == {part}
        assert found["settings", part].state == state


@pytest.mark.gen_test
async def test_the_env_file_is_closed_to_others_and_names_what_there_is(tmp_path: Path) -> None:
    env_file = tmp_path / ".env"
    env_file.write_text(
        "".join(f"{name}={value}\n" for name, value in PRODUCTION.items()) + "TRUSTED_PROXY=10.0.0.1/32\n"
    )
    env_file.chmod(0o600)
    found = await examine({}, "settings", env_file=env_file)
    assert found["settings", "files"].state == "good"
    assert found.bad().keys() == {("settings", "names")}
    assert found["settings", "names"].do == "Is it TRUSTED_PROXIES?"
    env_file.chmod(0o644)
    found = await examine({}, "settings", env_file=env_file)
    assert found["settings", "files"].state == "wrong"
    assert f"chmod 600 {env_file}" in found["settings", "files"].do
    if os.geteuid() == 0:  # by its group the server's user reads it, which must stay
        os.chown(env_file, 0, 65534)
        found = await examine({}, "settings", env_file=env_file)
        assert f"chmod g-w,o= {env_file}" in found["settings", "files"].do
        os.chown(env_file, 0, 0)
    env_file.chmod(0o600)
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "keyring.lock").touch(0o644)  # has nothing in it
    found = await examine({"MIMU_DATA_DIR": str(tmp_path)}, "settings", env_file=env_file)
    assert found["settings", "files"].state == "good"
    key = tmp_path / "vapid.pem"
    subprocess.run([sys.executable, "-m", "scripts.vapid_keys", key], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    key.chmod(0o640)
    env_file.chmod(0o640)  # a group's reading is how systemd and Docker hand secrets over
    given = {"VAPID_PRIVATE_KEY_FILE": str(key), "VAPID_SUBJECT": "mailto:ops@mimu.test"}
    assert (await examine(given, "settings", env_file=env_file))["settings", "files"].state == "good"
    key.chmod(0o644)
    assert str(key) in (await examine(given, "settings", env_file=env_file))["settings", "files"].says


@pytest.mark.gen_test
async def test_an_unreadable_keyring_is_reported_and_hides_no_other_fault(tmp_path: Path) -> None:
    keyring = tmp_path / "keyring.json"
    keyring.write_text("{")
    found = await examine({**PRODUCTION, "KEYRING_FILE": str(keyring)}, "settings,keyring")
    assert found["keyring", "keyring"].state == "wrong"
    assert found["settings", "values"].state == "good"


# The machine ---------------------------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_the_machine_is_looked_at(tmp_path: Path) -> None:
    found = await examine({"MIMU_DATA_DIR": str(tmp_path / "not" / "yet")}, "machine")
    assert found.states("machine").keys() == {
        *("python", "packages", "user", "open files", "memory", "disk", "clock"),
        *("backup", "backup access", "backup keys", "coturn's file", "coturn's start"),
    }
    assert found["machine", "python"].state == "good"
    assert found["machine", "user"].state == ("weak" if os.geteuid() == 0 else "good")


@pytest.mark.parametrize(("limit", "state"), [(512, "wrong"), (4096, "weak"), (20_000, "good")])
def test_open_files_are_counted(limit: int, state: str) -> None:
    code = "from pathlib import Path; from scripts.checks import machine; "
    code += "print(machine._open_files(Path('/nowhere')).state)"
    command = ["sh", "-c", f'ulimit -n {limit} && exec "$@"', "sh", sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert done.stdout.strip() == state, done.stderr


def test_the_limit_of_a_running_server_counts(tmp_path: Path) -> None:
    (tmp_path / "server.py").write_text("import time; print('up', flush=True); time.sleep(60)")
    command = ["sh", "-c", 'ulimit -n 600 && exec "$@"', "sh", sys.executable, "server.py"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"up\n"
        [found] = machine.servers(tmp_path)
        assert (found.pid, found.limit, 3 <= found.open <= 10) == (process.pid, 600, True)
        finding = machine._open_files(tmp_path)
        assert finding.state == "wrong"
        assert finding.says.startswith(f"The server (process {process.pid}) has ")
        process.kill()


def test_packages_that_drifted_are_named(tmp_path: Path) -> None:
    real = dict(machine.locked((ROOT / "requirements" / "server.txt").read_text()))
    assert real["tornado"]
    assert "async-timeout" not in real  # for Python 3.11.0 to 3.11.2 only
    lock = tmp_path / "server.txt"
    installed = {name: metadata.version(name) for name in real}
    lock.write_text("".join(f"{name}=={version} \\\n    --hash=sha256:00\n" for name, version in installed.items()))
    assert machine._packages(lock) == good("packages", f"All {len(real)} packages are the locked versions.")
    lock.write_text("tornado==1.0\nnot-of-this-world==2.0\npydantic==" + installed["pydantic"])
    says = f"2 of 3 packages are not the tested versions: tornado {installed['tornado']} for 1.0"
    assert machine._packages(lock).says == f"{says}, not-of-this-world missing for 2.0."
    assert machine._packages(tmp_path / "none").state == "skipped"
