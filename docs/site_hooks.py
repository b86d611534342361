"""Hooks of the site's build: pages keep their places in the repository, so that a link works there and on the site."""

from __future__ import annotations

import html
import logging
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from latex2mathml import converter

ROOT = Path(__file__).parents[1]
LOG = logging.getLogger("mkdocs.site_hooks")
KNOWN = {
    **{rf"\{size}{side[0]}": rf"\{side}" for size in ("big", "Big") for side in ("left", "right")},
    r"\arg": r"\mathrm{arg}\,",
}
"""What the converter does not know in formulas, and what it knows instead."""
LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)")


def on_files(files: Any, config: Any) -> Any:
    """The pages of docs/ and of the navigation, and whatever they link to in the repository."""
    from mkdocs.structure.files import File

    waiting, known = [*_paths(config.nav), *config.extra_css], set()
    for file in list(files):
        if file.src_dir == config.docs_dir:
            files.remove(file)
            waiting += [f"docs/{file.src_uri}"] if file.is_documentation_page() else []
    while waiting:
        path = waiting.pop()
        if path in known or not (ROOT / path).is_file():  # mkdocs warns of a link to what is not there
            continue
        known.add(path)
        files.append(File(path, str(ROOT), config.site_dir, config.use_directory_urls))
        if path.endswith(".md"):
            for link in LINK.findall((ROOT / path).read_text()):
                target = (ROOT / path).parent / link
                if "://" not in link and target.resolve().is_relative_to(ROOT):
                    waiting.append(str(PurePosixPath(target.resolve().relative_to(ROOT))))
    return files


def on_page_content(content: str, **_: Any) -> str:
    """Formulas as MathML, which browsers draw without a script."""
    return re.sub(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', _mathml, content, flags=re.DOTALL)


def _mathml(found: re.Match[str]) -> str:
    formula = html.unescape(found[2])
    for unknown, known in KNOWN.items():
        formula = formula.replace(unknown, known)
    made = str(converter.convert(formula, display="block" if found[1] == "div" else "inline"))
    if "\\" in made:
        LOG.warning("a formula has a command that becomes no MathML: %s", formula)
    return made


def _paths(nav: Any) -> Iterator[str]:
    for entry in nav:
        value = next(iter(entry.values())) if isinstance(entry, dict) else entry
        if isinstance(value, str):
            yield value
        else:
            yield from _paths(value)
