"""What is told of a file: all that changes with what is in it, and nothing else."""

from __future__ import annotations

import pytest

from daskgmm.storage.facts import facts_of_entry

FACTS = {
    **{"size": 1, "ETag": "a", "content_md5": "a", "md5Hash": "a", "generation": 1},
    **{"version_id": "a", "mtime": 1.0, "LastModified": "a", "last_modified": "a"},
    **{"last-modified": "a", "updated": "a"},
}


@pytest.mark.parametrize("name", FACTS)
def test_a_file_that_was_changed_is_told_by(name):
    """By each of them alone, however a file system writes it."""
    entry = {"name": "rows/c/0", "type": "file", **FACTS}
    assert facts_of_entry(entry) == facts_of_entry(dict(entry))
    assert facts_of_entry(entry) != facts_of_entry({**entry, name: "another"})
    alone = {"size": 1, name: FACTS[name]}
    assert facts_of_entry(alone) != facts_of_entry({**alone, name: "another"})


def test_when_a_file_was_made_counts_if_nothing_else_does():
    """On a disk it changes with the rights to a file, too."""
    for more, is_told in (({}, True), ({"mtime": 1.0}, False), ({"etag": "a"}, False)):
        entry = {"size": 1, "created": 1.0, **more}
        changed = facts_of_entry({**entry, "created": 2.0}) != facts_of_entry(entry)
        assert changed is is_told


def test_names_and_what_is_not_there_do_not_count():
    entry = {"size": 1, "etag": "a"}
    assert facts_of_entry(entry) == facts_of_entry(
        {**entry, "name": "b", "mtime": None}
    )
