"""Where the project is, in the metadata of what is built: links, and README's targets.

The address is the one that the checkout was cloned from, so that whoever publishes a
build writes none down, and a fork's build does not lead elsewhere. What is built from
a source distribution keeps the links of that. Where there is no address that everybody
can open, nothing leads anywhere: pictures and links to files are taken out of README.
"""

from __future__ import annotations

import re
import subprocess
from email.parser import HeaderParser
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

SOURCE = "Source"
# What each host puts between a project and `blob` or `raw`.
HOSTS = {"github.com": "", "gitlab.com": "/-"}
# Names of users, and tokens, are left out.
CLONED = re.compile(
    r"(?:(?:https|ssh)://(?:[^@/]*@)?|git@)"
    r"(?P<host>[\w.-]+)(?::\d+)?[:/](?P<project>[\w./-]+?)(?:\.git)?/?"
)
PICTURE = re.compile(r"!\[([^\]]*)\]\((?!http)([^)]*)\)")
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?!http|#)([^)]*)\)")


class Addresses(MetadataHookInterface):
    """What hatchling asks for the metadata that pyproject.toml leaves open."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Add the links, and README with what its own lead to."""
        root = Path(self.root)
        source = address(root)
        readme = (root / "README.md").read_text(encoding="utf-8")
        metadata["urls"] = urls(source) if source else {}
        metadata["readme"] = {
            "content-type": "text/markdown",
            "text": shown(readme, source),
        }


def address(root: Path) -> str | None:
    """The project's page, where it is on a host that everybody reaches."""
    info = root / "PKG-INFO"  # of a source distribution
    if info.exists():
        links = HeaderParser().parsestr(info.read_text(encoding="utf-8"))
        pairs = (one.split(", ", 1) for one in links.get_all("Project-URL", []))
        return dict(pairs).get(SOURCE)
    if not (root / ".git").exists():  # the folder above may be another project's
        return None
    return of_remote(_remote(root))


def _remote(root: Path) -> str:
    ask = ["git", "-C", str(root), "config", "--get", "remote.origin.url"]
    try:
        return subprocess.run(ask, capture_output=True, text=True).stdout.strip()
    except OSError:  # git is not installed
        return ""


def of_remote(remote: str) -> str | None:
    """The page of what is cloned from there."""
    found = CLONED.fullmatch(remote)
    if found is None or found["host"] not in HOSTS:
        return None
    return f"https://{found['host']}/{found['project']}"


def urls(source: str) -> dict[str, str]:
    """Links for the side of a package index' page."""
    return {
        SOURCE: source,
        "Documentation": _of(source, "blob", "docs/index.md"),
        "Changelog": _of(source, "blob", "CHANGELOG.md"),
        "Issues": f"{source}{_between(source)}/issues",
    }


def shown(readme: str, source: str | None) -> str:
    """README, as it is shown where none of the project's files lie beside it."""
    if source is None:
        return LINK.sub(r"\1", re.sub(PICTURE.pattern + r"\n\n", "", readme))

    def absolute(kind: str, before: str) -> Any:
        return lambda found: f"{before}[{found[1]}]({_of(source, kind, found[2])})"

    return LINK.sub(absolute("blob", ""), PICTURE.sub(absolute("raw", "!"), readme))


def _of(source: str, kind: str, path: str) -> str:
    return f"{source}{_between(source)}/{kind}/HEAD/{path}"


def _between(source: str) -> str:
    return HOSTS[source.split("/")[2]]
