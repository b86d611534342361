"""The dashboard's page, made to call nobody: labml-app's static folder and three npm packages in, a local copy out.

labml-app's page takes d3, bootstrap and font-awesome from CDNs and reports to Sentry and Mixpanel. `localise` copies
its folder, points the links at files of the packages and drops the reporters; `Packages` takes the packages from the
npm registry by name and version, once, and believes only what matches the sha512 written here. Without them the
copy keeps the CDN links, but never the reporters.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import http.client
import io
import os
import re
import shutil
import tarfile
import time
import urllib.parse
import urllib.request
from pathlib import Path


class PageError(Exception):
    """The page cannot be prepared as it should; the message is one line that says why."""


@dataclasses.dataclass(frozen=True)
class Package:
    """One npm package of the page: what to fetch, and what of it goes where."""

    name: str
    version: str
    sha512: str
    """Of the tarball, base64, as the registry's metadata has it."""
    cdn: str
    """The link of labml-app's page that `members[0]` stands in for."""
    members: tuple[str, ...]
    """Files taken from the tarball, the licence last; they keep their paths, since style sheets name their fonts."""

    @property
    def directory(self) -> str:
        return f"{self.name.rpartition('/')[2]}-{self.version}"


PACKAGES = (
    Package(
        "d3",
        "6.7.0",
        "hNHRhe+yCDLUG6Q2LwvR/WdNFPOJQ5VWqsJcwIYVeI401+d2/rrCjxSXkiAdIlpx7/73eApFB4Olsmh3YN7a6g==",
        "https://d3js.org/d3.v6.min.js",
        ("dist/d3.min.js", "LICENSE"),
    ),
    Package(
        "bootstrap",
        "5.0.0-beta2",
        "e+uPbPHqTQWKyCX435uVlOmgH9tUt0xtjvyOC7knhKgOS643BrQKuTo+KecGpPV7qlmOyZgCfaM4xxPWtDEN/g==",
        "https://cdn.jsdelivr.net/npm/bootstrap@5.0.0-beta2/dist/css/bootstrap.min.css",
        ("dist/css/bootstrap.min.css", "LICENSE"),
    ),
    Package(
        "@fortawesome/fontawesome-free",
        "5.9.0",
        "g795BBEzM/Hq2SYNPm/NQTIp3IWd4eXSH0ds87Na2jnrAUFX3wkyZAI4Gwj9DOaWMuz2/01i8oWI7P7T/XLkhg==",
        "https://cdnjs.cloudflare.com/ajax/libs/font-awesome/5.9.0/css/all.css",
        (
            "css/all.min.css",
            "webfonts/fa-brands-400.woff2",
            "webfonts/fa-regular-400.woff2",
            "webfonts/fa-solid-900.woff2",
            "LICENSE.txt",
        ),
    ),
)

NPM = "https://registry.npmjs.org"
MOST_BYTES = 16 * 2**20
"""Of a tarball; the largest of the three has 3.9 MB."""
FETCH_SECONDS = 60.0
"""For one tarball."""
SILENCE_SECONDS = 10.0
"""Without a byte from the registry."""

PORTRAIT = "https://raw.githubusercontent.com/azouaoui-med/pro-sidebar-template/gh-pages/src/img/user.jpg"
"""The picture that the page's script shows for a user without one."""

DEAF = """\
// Stands in for the reporters: takes any call, property or `new`, and does nothing.
(() => {
    const deaf = new Proxy(function () {}, {
        get: (_, name) => name === "then" ? undefined : name === Symbol.toPrimitive ? () => "" : deaf,
        apply: () => deaf,
        construct: () => deaf,
    })
    window.Sentry = window.mixpanel = deaf
})()
"""


def registry() -> str:
    """The user's npm registry: from the environment, else `~/.npmrc`, else npm's own."""
    environment = {name.lower(): value for name, value in os.environ.items()}  # npm takes it in either case
    return (environment.get("npm_config_registry") or _from_npmrc() or NPM).rstrip("/")


def _from_npmrc() -> str | None:
    try:
        text = (Path.home() / ".npmrc").read_text(errors="replace")
    except OSError:
        return None
    values = re.findall(r"^\s*registry\s*=\s*(\S+)", text, flags=re.MULTILINE)
    return values[-1].strip("\"'") if values else None


class Packages:
    """The tarballs of `PACKAGES`, kept in `cache` and checked at each reading."""

    def __init__(self, cache: Path) -> None:
        self._cache = cache

    def missing(self) -> list[Package]:
        return [package for package in PACKAGES if self._kept(package) is None]

    def fetch(self) -> None:
        """Get what is missing. Raises `PageError` when the registry cannot be reached or sends something else."""
        for package in self.missing():
            tarball = _download(package)
            if not _genuine(package, tarball):
                raise PageError(f"{_host(registry())} sent something else than {package.name} {package.version}")
            try:
                self._cache.mkdir(parents=True, exist_ok=True)
                partial = self._file(package).with_suffix(f".{os.getpid()}")
                partial.write_bytes(tarball)
                partial.replace(self._file(package))
            except OSError as error:
                raise PageError(f"{self._cache}: {error.strerror}") from None

    def unpack(self, package: Package, directory: Path) -> None:
        """Write the wanted members, and nothing else, to `directory`. Raises `PageError` when they are not there."""
        tarball = self._kept(package)
        if tarball is None:
            raise PageError(f"{package.name} {package.version} is not in {self._cache}")
        with tarfile.open(fileobj=io.BytesIO(tarball), mode="r:gz") as archive:
            for member in package.members:
                # Read through the archive and written by us: no path, link or mode of the archive's own counts.
                try:
                    content = archive.extractfile(f"package/{member}")
                except KeyError:
                    content = None
                if content is None:
                    raise PageError(f"{package.name} {package.version} has no file {member}")
                file = directory / member
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content.read())

    def _file(self, package: Package) -> Path:
        return self._cache / f"{package.directory}.tgz"

    def _kept(self, package: Package) -> bytes | None:
        try:
            tarball = self._file(package).read_bytes()
        except OSError:
            return None
        return tarball if _genuine(package, tarball) else None


def _genuine(package: Package, tarball: bytes) -> bool:
    return base64.b64encode(hashlib.sha512(tarball).digest()).decode() == package.sha512


def _host(url: str) -> str:
    """What of a registry's URL may be shown: it can hold a password."""
    try:
        return urllib.parse.urlsplit(url).hostname or "the npm registry"
    except ValueError:
        return "the npm registry"


def _download(package: Package) -> bytes:
    source = registry()
    if not source.startswith(("https://", "http://")):
        raise PageError("the npm registry set is no http address")
    url = f"{source}/{package.name}/-/{package.directory}.tgz"
    until = time.monotonic() + FETCH_SECONDS
    tarball = bytearray()
    try:
        with urllib.request.urlopen(url, timeout=SILENCE_SECONDS) as reply:
            while part := reply.read1(2**16):
                tarball += part
                if len(tarball) > MOST_BYTES or time.monotonic() > until:
                    raise PageError(f"{_host(source)} was too slow or sent too much for {package.name}")
    except (ValueError, http.client.InvalidURL):  # the message would tell what stands in the address
        raise PageError("the npm registry set is no http address") from None
    except (OSError, http.client.HTTPException) as error:
        why = getattr(error, "reason", None) or error
        raise PageError(f"{_host(source)} could not be reached ({why})") from None
    return bytes(tarball)


def localise(static: Path, page: Path, packages: Packages | None) -> str:
    """Copy labml-app's folder `static` to `page`, without reporters; with `packages`, without any foreign link.

    Returns the Content-Security-Policy to send with it. Raises `PageError` when the folder is not the one known.
    """
    shutil.rmtree(page, ignore_errors=True)
    shutil.copytree(static, page)
    index = page / "index.html"
    html = re.sub(
        r"<script\b[^>]*>.*?</script>",
        lambda script: "" if re.search("sentry|mixpanel", script[0]) else script[0],
        index.read_text(),
        flags=re.DOTALL,
    )
    html = _replaced(html, '<script src="/js/bundle.min.js">', '<script src="/deaf.js"></script>\\g<0>')
    (page / "deaf.js").write_text(DEAF)
    bundle = page / "js" / "bundle.min.js"
    bundle.write_text(_replaced(bundle.read_text(), PORTRAIT, "/images/favicon.png", times=2))
    foreign = ""
    if packages is None:
        foreign = " " + " ".join("https://" + _host(package.cdn) for package in PACKAGES)
    else:
        for package in PACKAGES:
            packages.unpack(package, page / "vendor" / package.directory)
            html = _replaced(html, package.cdn, f"/vendor/{package.directory}/{package.members[0]}")
        html = re.sub(r'\s(?:integrity|crossorigin)="[^"]*"', "", html)
        if re.search(r"""["'(=]\s*(?:https?:)?//""", html):
            raise PageError("labml-app's page names hosts that are not known")
    index.write_text(html)
    return (
        f"default-src 'self'; script-src 'self'{foreign}; style-src 'self' 'unsafe-inline'{foreign};"
        f" font-src 'self'{foreign}; img-src 'self' data:; object-src 'none'; base-uri 'none'; form-action 'self';"
        " frame-ancestors 'none'"
    )


def _replaced(text: str, old: str, new: str, times: int = 1) -> str:
    changed, count = re.subn(re.escape(old), new, text)
    if count != times:
        raise PageError("labml-app's page is not the one of version 0.0.102")
    return changed
