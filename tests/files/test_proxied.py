"""S3 behind the shipped nginx, under a separate host name: only URLs signed by the server are accepted."""

from __future__ import annotations

import secrets

import pytest
from tornado.httpclient import HTTPRequest, HTTPResponse
from tornado.simple_httpclient import SimpleAsyncHTTPClient

from tests.client import Account
from tests.deploy.nginx import FILES_HOST, proxying
from tests.files.seaweed import Seaweed
from tests.files.transfer import MIB, announce, bearer, send, sha256
from tests.running import Services, place, serving


@pytest.mark.gen_test(timeout=90)
async def test_addresses_of_s3_pass_with_their_host(services: Services, s3: Seaweed) -> None:
    content = secrets.token_bytes(3 * MIB)
    async with place(services) as shared:
        with proxying("127.0.0.1:9", files=s3.endpoint.removeprefix("http://")) as proxy:
            public = s3.settings() | {"S3_PUBLIC_ENDPOINT": proxy.files_url}
            async with serving(shared, **public) as one:
                alice = await Account().register(one.url)
                announced = await announce(alice, content)
                upload = announced.json["upload"]
                assert upload["url"].startswith(proxy.files_url)
                assert (await from_files("PUT", upload["url"], content, upload["headers"])).code == 200
                file_id = announced.json["file_id"]
                assert (await alice.post(f"/files/{file_id}/complete", {})).status == 200
                link = (await send("GET", f"{one.url}/files/{file_id}/content", None, bearer(alice))).headers[
                    "Location"
                ]
                got_back = await from_files("GET", link)
                assert sha256(got_back.body) == sha256(content)
                assert got_back.headers["Strict-Transport-Security"]
                # The signature is for this host only; clients may only put and get.
                assert (await from_files("GET", link.replace("Signature=", "Signature=0"))).code == 403
                assert (await from_files("DELETE", link)).code == 403
                assert (await from_files("POST", link, b"x")).code == 403
                assert (await from_files("GET", f"{proxy.files_url}/minio/health/live")).code == 404
                proxy.requests(6)
                assert "ignature" not in proxy.log_text()
                assert link.partition("?")[0].rpartition("/")[2] not in proxy.log_text()


async def from_files(
    method: str, url: str, body: bytes | None = None, headers: dict[str, str] | None = None
) -> HTTPResponse:
    """One request to the name of the files, which no resolver knows."""
    client = SimpleAsyncHTTPClient(force_instance=True, hostname_mapping={FILES_HOST: "127.0.0.1"})
    try:
        request = HTTPRequest(url, method=method, body=body, headers=headers, allow_nonstandard_methods=True)
        return await client.fetch(request, raise_error=False)
    finally:
        client.close()
