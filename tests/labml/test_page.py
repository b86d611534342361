"""The dashboard's page: its npm packages, and that it calls no other server."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import hashlib
import http.server
import io
import json
import re
import shutil
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import labml_app
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from atari_dqn.labml import page
from atari_dqn.labml.guard import check_values
from atari_dqn.labml.page import PACKAGES, Package, Packages, PageError, localise
from tests.dashboard_fixtures import NOBODY

STATIC = Path(labml_app.__file__).parent / "static"


def tarball(contents: dict[str, bytes], links: dict[str, str] | None = None) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for name, target in (links or {}).items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            archive.addfile(member)
    return packed.getvalue()


def sha512(content: bytes) -> str:
    return base64.b64encode(hashlib.sha512(content).digest()).decode()


class Registry:
    """Stands in for npm's registry: serves small packages of the right names and keeps the requested paths."""

    def __init__(self) -> None:
        self.tarballs: dict[str, bytes] = {}
        self.requested: list[str] = []
        known = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                known.requested.append(self.path)
                content = known.tarballs.get(self.path)
                self.send_response(200 if content else 404)
                self.end_headers()
                self.wfile.write(content or b"")

            def log_message(self, *_: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/npm/"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def path_of(package: Package) -> str:
    return f"/npm/{package.name}/-/{package.directory}.tgz"


@pytest.fixture
def npm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Registry]:
    found = Registry()
    stand_ins = []
    for package in PACKAGES:
        content = tarball(
            {f"package/{member}": f"{package.name} {member}".encode() for member in package.members}
            | {"package/README.md": b"unwanted", "../../climbed": b"unwanted"}
        )
        stand_ins.append(dataclasses.replace(package, sha512=sha512(content)))
        found.tarballs[path_of(package)] = content
    monkeypatch.setattr(page, "PACKAGES", tuple(stand_ins))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", found.url)
    yield found
    found.close()


def test_the_local_page_links_to_no_other_host(npm: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packages = Packages(tmp_path / "cache")
    packages.download()
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", NOBODY)
    packages.download()  # from the cache
    assert npm.requested == [path_of(package) for package in PACKAGES]
    local = tmp_path / "page"
    policy = localise(STATIC, local, packages)
    html = (local / "index.html").read_text()
    for text in (html, policy):
        assert not re.search(r"//|sentry|mixpanel|integrity|crossorigin", text)
    links = re.findall(r'(?:href|src)="/([^"]+)"', html)
    assert len(links) == 13
    assert all((local / link).is_file() for link in links)
    assert html.index("/page.js") < html.index("/js/bundle.min.js")
    bundle = (local / "js" / "bundle.min.js").read_text()
    assert not re.search(r"src:[^,]*https?://", bundle)
    assert "raw.githubusercontent.com" not in bundle
    vendored = {str(file.relative_to(local / "vendor")) for file in (local / "vendor").rglob("*") if file.is_file()}
    assert vendored == {f"{package.directory}/{member}" for package in PACKAGES for member in package.members}
    assert not list(tmp_path.parent.rglob("climbed"))


def test_without_packages_only_their_cdns_are_allowed(tmp_path: Path) -> None:
    policy = localise(STATIC, tmp_path / "page", None)
    html = (tmp_path / "page" / "index.html").read_text()
    hosts = {"d3js.org", "cdn.jsdelivr.net", "cdnjs.cloudflare.com"}
    assert set(re.findall(r"//([\w.-]+)", html)) == hosts
    assert set(re.findall(r"//([\w.-]+)", policy)) == hosts
    assert len(re.findall("integrity=", html)) == 1


def test_an_unknown_version_of_the_page_is_refused(npm: Registry, tmp_path: Path) -> None:
    packages = Packages(tmp_path / "cache")
    packages.download()
    for name, old, new in (
        ("index.html", "d3.v6.min.js", "d3.v7.min.js"),
        ("index.html", "<body", '<script src="//elsewhere.example/x.js"></script><body'),
        ("index.html", "<script src", "<script defer src"),
        ("js/bundle.min.js", "user.jpg", "someone.jpg"),
    ):
        static = tmp_path / "static"
        shutil.copytree(STATIC, static)
        (static / name).write_text((static / name).read_text().replace(old, new))
        with pytest.raises(PageError):
            localise(static, tmp_path / "page", packages)
        shutil.rmtree(static)


def test_a_tarball_with_another_checksum_is_refused(npm: Registry, tmp_path: Path) -> None:
    packages = Packages(tmp_path / "cache")
    first = PACKAGES[0]
    genuine = npm.tarballs[path_of(first)]
    npm.tarballs[path_of(first)] = b"<html>please log in</html>"
    with pytest.raises(PageError, match=r"sent something other than d3 6\.7\.0"):
        packages.download()
    assert not (tmp_path / "cache").exists()

    npm.tarballs[path_of(first)] = genuine
    packages.download()
    (tmp_path / "cache" / "d3-6.7.0.tgz").write_bytes(b"spoiled")
    assert [package.name for package in packages.missing()] == ["d3"]
    packages.download()
    assert packages.missing() == []


def test_a_link_in_a_package_is_not_followed(npm: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret").write_text("secret")
    content = tarball({"package/dist/d3.min.js": b"d3"}, {"package/LICENSE": str(tmp_path / "secret")})
    npm.tarballs[path_of(PACKAGES[0])] = content
    package = dataclasses.replace(PACKAGES[0], sha512=sha512(content))
    monkeypatch.setattr(page, "PACKAGES", (package,))
    packages = Packages(tmp_path / "cache")
    packages.download()
    with pytest.raises(PageError, match="LICENSE"):
        packages.unpack(package, tmp_path / "out")


def test_the_password_of_a_registry_that_cannot_be_reached_is_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    password = "user:hunter2@localhost"
    for source in (
        f"http://{password}:9/npm",
        f"http://{password}/npm",
        "file:///etc",
        "hello",
        "http://[",
        "http://:",
    ):
        monkeypatch.setenv("npm_config_registry", source)
        with pytest.raises(PageError) as refusal:
            Packages(tmp_path / "cache").download()
        assert "hunter2" not in str(refusal.value)
        assert "\n" not in str(refusal.value)


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists)


@example(float("nan"))
@example(float("inf"))
@example(10**400)
@given(JSON)
def test_only_finite_numbers_pass_as_values(value: Any) -> None:
    number = type(value) in (int, float) and value == value and abs(value) <= sys.float_info.max
    with contextlib.nullcontext() if number else pytest.raises(ValueError, match="must be a finite number"):
        check_values(json.dumps({"learning_rate": value}).encode())
