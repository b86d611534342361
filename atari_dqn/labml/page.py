"""A copy of the dashboard's page that calls no other server.

labml-app's page loads d3, bootstrap and font-awesome from CDNs and reports to Sentry and Mixpanel. `localise` copies
its folder, removes the reporters and points the links at files of three npm packages. `Packages` downloads these from
the npm registry once, and accepts only tarballs with the sha512 given here. Without them the copy keeps the CDN links.
"""

import base64
import dataclasses
import hashlib
import io
import os
import re
import shutil
import ssl
import tarfile
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from atari_dqn.system.files import replace


class PageError(Exception):
    """The page cannot be prepared; the message is one line that says why."""


@dataclasses.dataclass(frozen=True)
class Package:
    """One npm package of the page: what to download, and which of its files stand in for which link."""

    name: str
    version: str
    sha512: str
    """Checksum of the tarball in base64, as in the registry's metadata."""
    cdn: str
    """Link in labml-app's page that `members[0]` replaces."""
    members: tuple[str, ...]
    """Files to take from the tarball, with their paths, since style sheets name their fonts; the licence is last."""

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
DOWNLOAD_SECONDS, CONNECT_SECONDS = 60.0, 10.0
"""Longest time without a byte of a tarball, and to reach the registry."""

PATCHES = (
    # The picture for a user who has none is on another server.
    (
        "https://raw.githubusercontent.com/azouaoui-med/pro-sidebar-template/gh-pages/src/img/user.jpg",
        "/images/favicon.png",
    ),
    # A slider stands in the middle of its range, not at its value, and has up to ten steps.
    ("(e=((t=this.range[0])+(s=this.range[1]))/2),(t+s)/20)", "(t=this.range[0],s=this.range[1]),(s-t)/200)"),
    # Zero and all negative numbers are written as 0.0000e+0.
    ("if(1e4<=e||e<.001)return", "if(e&&(1e4<=Math.abs(e)||Math.abs(e)<.001))return"),
    # A number that the page wrote itself, with commas or a typographic minus, is "not a number".
    ("Number(this.inputValueElem.value)", 'Number(this.inputValueElem.value.replace(/,/g,"").replace("\\u2212","-"))'),
    # A refresh shows what was read up to 5 s ago.
    ("return 5e3<(new Date)", "return 0<=(new Date)"),
    # What was saved once is sent again with every later edit.
    (
        "get(!0)).series),this.renderLineChart())}onHyper",
        "get(!0)).series),this.renderSparkLines(),this.renderLineChart())}onHyper",
    ),
)
"""Texts of the page's script, and what we put in their place."""


class Packages:
    """The tarballs of `PACKAGES`, kept in `cache` and verified at each reading."""

    def __init__(self, cache: Path) -> None:
        self._cache = cache

    def missing(self) -> list[Package]:
        """Packages that are not in the cache, or corrupt there."""
        return [package for package in PACKAGES if self._kept(package) is None]

    def download(self) -> None:
        """Download what is missing. Raises `PageError` if the registry fails or sends something else."""
        for package in self.missing():
            tarball = _download(package)
            if not _verified(package, tarball):
                raise PageError(f"the npm registry sent something other than {package.name} {package.version}")
            try:
                self._cache.mkdir(parents=True, exist_ok=True)
                replace(self._file(package), tarball)
            except OSError as error:
                raise PageError(f"{self._cache}: {error.strerror}") from None

    def unpack(self, package: Package, directory: Path) -> None:
        """Write the package's `members`, and nothing else, to `directory`. Raises `PageError` if one is missing."""
        tarball = self._kept(package)
        if tarball is None:
            raise PageError(f"{package.name} {package.version} is not in {self._cache}")
        with tarfile.open(fileobj=io.BytesIO(tarball), mode="r:gz") as archive:
            for member in package.members:
                # Written by us: paths, links and modes in the archive are ignored.
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
        return tarball if _verified(package, tarball) else None


def _verified(package: Package, tarball: bytes) -> bool:
    return base64.b64encode(hashlib.sha512(tarball).digest()).decode() == package.sha512


def _download(package: Package) -> bytes:
    """The package's tarball from the npm registry that the environment names, else from npm's own."""
    environment = {name.lower(): value for name, value in os.environ.items()}  # npm accepts either case
    registry = (environment.get("npm_config_registry") or NPM).rstrip("/")
    try:
        reply = httpx.get(
            f"{registry}/{package.name}/-/{package.directory}.tgz",
            headers={"Accept-Encoding": "identity"},
            timeout=httpx.Timeout(DOWNLOAD_SECONDS, connect=CONNECT_SECONDS),
            follow_redirects=True,
            verify=ssl.create_default_context(),  # the system's certificates, as npm has them
        )
        if reply.status_code != 200:
            raise PageError(f"the npm registry answers with status {reply.status_code} for {package.name}")
        return reply.content
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError, ImportError) as error:
        # Without the error's own text: a registry's URL may contain a password.
        raise PageError(f"cannot download {package.name} from the npm registry ({type(error).__name__})") from None


def localise(static: Path, page: Path, packages: Packages | None) -> str:
    """Copy labml-app's page without its reporters and, given `packages`, without links to other servers.

    `static` is labml-app's folder of static files; what was in the folder `page` is removed. Without `packages` the
    links to CDNs stay. Returns the Content-Security-Policy to send with the page; raises `PageError` for the page of
    another version of labml-app.
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
    ours = '<link rel="stylesheet" href="/page.css"><script src="/page.js"></script>'
    bundle_tag = '<script src="/js/bundle.min.js">'
    html = _replaced(html, bundle_tag, ours + bundle_tag)
    for name in ("page.css", "page.js"):
        shutil.copyfile(Path(__file__).with_name(name), page / name)
    bundle = page / "js" / "bundle.min.js"
    script = bundle.read_text()
    for old, new in PATCHES:
        script = _replaced(script, old, new)
    bundle.write_text(script)
    cdns = ""
    if packages is None:
        cdns = " " + " ".join(f"https://{urlsplit(package.cdn).hostname}" for package in PACKAGES)
    else:
        for package in PACKAGES:
            packages.unpack(package, page / "vendor" / package.directory)
            html = _replaced(html, package.cdn, f"/vendor/{package.directory}/{package.members[0]}")
        html = re.sub(r'\s(?:integrity|crossorigin)="[^"]*"', "", html)
        if re.search(r"""["'(=]\s*(?:https?:)?//""", html):
            raise PageError("labml-app's page links to unknown hosts")
    index.write_text(html)
    return (
        f"default-src 'self'; script-src 'self'{cdns}; style-src 'self' 'unsafe-inline'{cdns};"
        f" font-src 'self'{cdns}; img-src 'self' data:; object-src 'none'; base-uri 'none'; form-action 'self';"
        " frame-ancestors 'none'"
    )


def _replaced(text: str, old: str, new: str) -> str:
    if old not in text:
        raise PageError("labml-app's page is not the one of version 0.0.102")
    return text.replace(old, new)
