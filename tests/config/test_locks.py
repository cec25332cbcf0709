"""The files of pins: pins have hashes, promises of pyproject.toml are pinned, and the oldest promised are tested."""

from __future__ import annotations

import re

import pytest
from helpers import ROOT, project
from packaging.requirements import Requirement
from packaging.version import Version

LOCKS = ("requirements.lock", "requirements-docs.lock", "requirements-oldest.lock")
PYTHONS = ("3.10.0", "3.11.7", "3.12.1", "3.13.0")
SYSTEMS = {
    "linux": {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64"},
    "mac": {"sys_platform": "darwin", "platform_system": "Darwin", "platform_machine": "arm64"},
    "windows": {"sys_platform": "win32", "platform_system": "Windows", "platform_machine": "AMD64"},
}


def pins(name: str) -> list[tuple[Requirement, list[str]]]:
    """(pin, its SHA-256 hashes) of every entry of a lock."""
    text = (ROOT / name).read_text(encoding="utf-8").replace("\\\n", " ")
    entries = [re.split(r"\s+--hash=sha256:", line.strip()) for line in text.splitlines() if line[0] != "#"]
    return [(Requirement(requirement), hashes) for requirement, *hashes in entries]


def promises(*, docs: bool) -> list[Requirement]:
    """What pyproject.toml asks for: the extra of the pages, or everything else."""
    extras = project()["optional-dependencies"]
    groups = [extras["docs"]] if docs else [project()["dependencies"], *(extras[e] for e in extras if e != "docs")]
    return [Requirement(line) for group in groups for line in group]


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("name", LOCKS)
def test_every_pin_is_one_version_with_hashes(name):
    entries = pins(name)
    assert len(entries) > 20
    for pin, hashes in entries:
        assert [spec.operator for spec in pin.specifier] == ["=="] and not pin.url, pin
        assert hashes and all(re.fullmatch(r"[0-9a-f]{64}", value) for value in hashes), pin
    names = [pin.name for pin, _ in entries]
    assert names == sorted(names)


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_is_installed_with_its_hashes_required(name):
    commands = re.findall(rf"^\t.*pip install .*-r {re.escape(name)}$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert commands and all("--require-hashes" in command for command in commands)


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("system", SYSTEMS)
def test_every_promise_is_pinned_once_on_every_system(system, python):
    environment = {**SYSTEMS[system], "python_full_version": python, "python_version": python.rpartition(".")[0]}
    environment |= {"implementation_name": "cpython", "platform_python_implementation": "CPython"}
    for name, docs in (("requirements.lock", False), ("requirements-docs.lock", True)):
        chosen = [pin for pin, _ in pins(name) if pin.marker is None or pin.marker.evaluate(environment)]
        versions = {pin.name: next(iter(pin.specifier)).version for pin in chosen}
        assert len(versions) == len(chosen), name
        for promise in promises(docs=docs):
            assert promise.specifier.contains(versions[plain(promise.name)], prereleases=True), promise


def test_the_oldest_releases_that_are_promised_are_those_that_are_tested():
    """A lower bound below what `make test-oldest` installs would be a promise that nobody tried."""
    oldest = {pin.name: next(iter(pin.specifier)).version for pin, _ in pins("requirements-oldest.lock")}
    for promise in promises(docs=False):
        (bound,) = promise.specifier
        promised, tested = Version(bound.version).release, Version(oldest[plain(promise.name)]).release
        assert bound.operator == ">=" and tested[: len(promised)] == promised, promise  # 4.9 began with 4.9.0.80
