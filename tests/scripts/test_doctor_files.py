"""Files that the doctor reads: nginx's configuration, modes, limits of units, and how an env file is to be closed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.checks import machine, nginx, nginx_conf
from scripts.checks.access import open_to_others
from tests.deploy.nginx import folder, here, render
from tests.running import ROOT
from tests.scripts.examining import examine

CONF = r"""
user www-data; # a comment; with { marks }
events { worker_connections 768; }
http {
    include sites/*.conf;
    log_format mimu '{"a": "$uri"}' "two;";
}
"""
SITE = r"""
upstream mimu { server 127.0.0.1:8081 max_fails=3; server [::1]:8082; server 10.0.0.9; server unix:/run/x.sock;
                server 127.0.0.1:8083 down; }
map $uri $long { default ""; "~^/a{1,3};$" "x\"y"; }
proxy_read_timeout 75s;
server {
    listen [::]:8443 ssl;
    server_name _ chat.example.org;
    location / { proxy_pass http://mimu; }
    location ~* \.PNG$ { proxy_pass http://pictures${uri}; }
    location ^~ /files { proxy_pass http://files; }
    location = /ws { proxy_pass http://mimu; }
}
"""


def test_nginx_is_read_as_nginx_reads_it(tmp_path: Path) -> None:
    (tmp_path / "sites").mkdir()
    (tmp_path / "nginx.conf").write_text(CONF)
    (tmp_path / "sites" / "mimu.conf").write_text(SITE)
    found = nginx.site(tmp_path / "nginx.conf")
    assert found is not None
    assert (found.name, found.port) == ("chat.example.org", 8443)
    assert nginx.public_url(tmp_path / "nginx.conf") == "https://chat.example.org:8443"
    assert list(nginx._addresses(found)) == ["127.0.0.1:8081", "[::1]:8082", "10.0.0.9:80"]
    for path, target in (
        ("/", "http://mimu"),
        ("/a.png", "http://pictures${uri}"),
        ("/files/a.png", "http://files"),
        ("/ws", "http://mimu"),
    ):
        assert nginx_conf.value("proxy_pass", found.around(path)) == (target,), path
    assert nginx_conf.value("proxy_read_timeout", found.around("/ws")) == ("75s",)
    assert found.http.all("log_format")[0].words == ("mimu", '{"a": "$uri"}', "two;")
    assert [one.name for one in found.http.all("map")[0].block or ()] == ["default", "~^/a{1,3};$"]


@pytest.mark.parametrize("text", ["http {", "}", "a", "{ }", "a 'b;", "include nginx.conf;"])
def test_a_malformed_nginx_file_is_reported_as_unreadable(text: str, tmp_path: Path) -> None:
    (tmp_path / "nginx.conf").write_text(text)
    with pytest.raises(nginx_conf.Malformed):
        nginx_conf.read(tmp_path / "nginx.conf")
    assert nginx.public_url(tmp_path / "nginx.conf") is None


@pytest.mark.parametrize(
    ("text", "number"), [("90", 90), ("90s", 90), ("1m30s", 90), ("1500ms", 1.5), ("1h", 3600), ("soon", None)]
)
def test_times_of_nginx(text: str, number: float | None) -> None:
    assert nginx_conf.seconds(text) == number


def test_the_shipped_files_of_nginx_are_found_good() -> None:
    with folder() as place:
        (place / "fullchain.pem").touch()
        done = render(place, NGINX_HOST="chat.example.org", NGINX_FILES_HOST="files.example.org", NGINX_TLS=str(place))
        assert done.returncode == 0
        assert nginx.public_url(place / "nginx.conf") == "https://chat.example.org"
        here(place, 8443, 8080)
        found = nginx.site(place / "nginx.conf")
        assert found is not None
        assert found.name == "chat.example.org"
        assert (nginx._sockets(found, 25).state, nginx._connections(found).state) == ("good", "good")


def test_a_file_is_open_where_the_folders_above_it_are() -> None:
    with folder() as place:
        secret = place / "inner" / "secret"
        secret.parent.mkdir()
        secret.touch()
        secret.chmod(0o644)
        secret.parent.chmod(0o755)
        assert open_to_others(secret)
        assert open_to_others(secret.parent)
        secret.parent.chmod(0o700)
        assert not open_to_others(secret)
        assert not open_to_others(secret.parent)
        secret.parent.chmod(0o755)
        secret.chmod(0o640)
        assert not open_to_others(secret)


def test_the_limit_of_a_unit_counts_where_servers_are_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unit = tmp_path / "mimu@.service"
    assert machine._unit_files(unit) is None
    shutil.copy(ROOT / "config" / "deploy" / "systemd" / "mimu@.service", unit)
    assert machine._unit_files(unit) == 65536
    monkeypatch.setattr(machine, "UNIT", unit)
    assert machine._open_files(tmp_path) == machine.good(
        "open files", "65,536 open files by mimu@.service: 65,280 sockets."
    )
    drop_in = tmp_path / "mimu@.service.d"
    drop_in.mkdir()
    (drop_in / "few.conf").write_text("[Service]\nLimitNOFILE=800\n")
    assert machine._open_files(tmp_path).state == "wrong"


def test_a_server_whose_files_are_hidden_is_found_by_its_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """As systemd starts it (PrivateUsers): the kernel shows its limits, and neither its folder nor its files."""

    def hidden(path: Path, strict: bool = False) -> Path:
        raise PermissionError(13, "Permission denied", str(path))

    with folder() as place:
        (place / "server.py").write_text("import time; print('up', flush=True); time.sleep(60)")
        (place / "python").symlink_to(sys.executable)
        command = ["sh", "-c", 'ulimit -n 700 && exec "$@"', "sh", str(place / "python"), "server.py"]
        with subprocess.Popen(command, cwd=place, stdout=subprocess.PIPE) as process:
            assert process.stdout
            assert process.stdout.readline() == b"up\n"
            monkeypatch.setattr(Path, "resolve", hidden)
            assert list(machine.servers(place)) == [machine.Server(process.pid, 700, None)]
            assert list(machine.servers(place / "other")) == []
            says = f"The server (process {process.pid}) may open 700 files: 444 sockets."
            assert machine._open_files(place).says == says
            process.kill()


@pytest.mark.gen_test
@pytest.mark.skipif(os.geteuid() != 0, reason="NOT TESTED whose env file it is: only root gives folders away")
async def test_an_env_file_stays_readable_for_the_servers_user(tmp_path: Path) -> None:
    data, env_file = tmp_path / "var", tmp_path / "mimu.env"
    data.mkdir()
    env_file.write_text(f"MIMU_DATA_DIR={data}\n")
    env_file.chmod(0o644)
    assert (await examine({}, "settings", env_file=env_file))["settings", "files"].do == f"Run: chmod 600 {env_file}"
    os.chown(data, 10001, 10001)
    do = (await examine({}, "settings", env_file=env_file))["settings", "files"].do
    assert do == f"Run: chgrp 10001 {env_file} && chmod 640 {env_file}"
    os.chown(env_file, 0, 10001)
    do = (await examine({}, "settings", env_file=env_file))["settings", "files"].do
    assert do == f"Run: chmod g-w,o= {env_file}"
