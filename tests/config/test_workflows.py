"""What GitHub reads: the workflow calls nothing but make and .ci/run, and has the form that GitHub asks for."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
import yaml
from helpers import ROOT

GITHUB = ROOT / ".github"
WORKFLOW = yaml.load((GITHUB / "workflows" / "test.yml").read_text(encoding="utf-8"), yaml.BaseLoader)
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = set(re.findall(r"^([\w-]+):(?!=)", MAKEFILE, re.MULTILINE))
VARIABLES = {"PYTHON", *re.findall(r"\$\(if \$\((\w+)\)", MAKEFILE), *re.findall(r"^(\w+) \?=", MAKEFILE, re.MULTILINE)}
JOB_KEYS = {"name", "runs-on", "strategy", "steps", "defaults", "timeout-minutes", "needs", "env", "if"}
STEP_KEYS = {"name", "uses", "with", "run", "env", "if", "shell"}
FORMS = sorted(path for path in (GITHUB / "ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml")

SCHEMAS = {  # published schemas, which check-jsonschema brings along
    "github-workflows": sorted((GITHUB / "workflows").glob("*.yml")),
    "github-issue-forms": FORMS,
    "github-issue-config": [GITHUB / "ISSUE_TEMPLATE" / "config.yml"],
    "citation-file-format": [ROOT / "CITATION.cff"],
}


def schema_says(schema, *files):
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}", *map(str, files)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.returncode, result.stdout + result.stderr


@pytest.mark.parametrize("schema", SCHEMAS)
def test_a_file_is_valid_by_its_published_schema(schema):
    assert SCHEMAS[schema]
    code, said = schema_says(schema, *SCHEMAS[schema])
    assert code == 0, said


def test_the_schema_of_workflows_refuses_a_misspelt_key(tmp_path):
    text = (GITHUB / "workflows" / "test.yml").read_text(encoding="utf-8")
    (tmp_path / "test.yml").write_text(text.replace("fail-fast:", "fail-first:", 1).replace("runs-on:", "run-on:", 1))
    code, said = schema_says("github-workflows", tmp_path / "test.yml")
    assert code == 1 and "run-on" in said


@pytest.mark.parametrize("name", WORKFLOW["jobs"])
def test_a_job_has_the_form_of_a_job(name):
    job = WORKFLOW["jobs"][name]
    assert re.fullmatch(r"[A-Za-z_][\w-]*", name) and set(job) <= JOB_KEYS and job["runs-on"] and job["steps"]
    for step in job["steps"]:
        assert set(step) <= STEP_KEYS and ("uses" in step) != ("run" in step), step
        assert "uses" not in step or re.fullmatch(r"actions/[\w-]+@v\d+", step["uses"])
    matrix = job.get("strategy", {}).get("matrix", {})
    used = set(re.findall(r"\$\{\{ matrix\.(\w+) \}\}", str(job)))
    assert used == set(matrix) and "${{" not in re.sub(r"\$\{\{ matrix\.\w+ \}\}", "", str(job))


@pytest.mark.parametrize("name", WORKFLOW["jobs"])
def test_a_job_calls_only_make_and_the_entry_of_continuous_integration(name):
    lines = [line for step in WORKFLOW["jobs"][name]["steps"] for line in step.get("run", "").splitlines()]
    assert lines
    for line in lines:
        program, *words = line.split()
        assert (program == ".ci/run" and not words) or program == "make"
        assert {word for word in words if "=" not in word} <= TARGETS, line
        assert {word.split("=")[0] for word in words if "=" in word} <= VARIABLES, line


def test_every_system_and_python_is_tried():
    matrix = WORKFLOW["jobs"]["fast"]["strategy"]["matrix"]
    assert matrix["os"] == ["ubuntu-latest", "macos-latest", "windows-latest"]
    promised = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', (ROOT / "pyproject.toml").read_text())
    assert (
        matrix["python"] == promised and f'requires-python = ">={promised[0]}"' in (ROOT / "pyproject.toml").read_text()
    )
    assert set(WORKFLOW) == {"name", "on", "permissions", "jobs"}


def test_the_entry_of_continuous_integration_calls_targets_that_exist():
    text = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert set(re.findall(r"^make ([\w-]+)$", text, re.MULTILINE)) == {"test", "wheel-check", "docs"} <= TARGETS
    assert os.name == "nt" or os.access(ROOT / ".ci" / "run", os.X_OK)


@pytest.mark.parametrize("form", FORMS, ids=lambda path: path.name)
def test_a_form_for_issues_has_the_form_of_one_and_asks_for_the_environment(form):
    content = yaml.safe_load(form.read_text(encoding="utf-8"))
    assert {"name", "description", "body"} <= set(content) and "lbvq info" in form.read_text(encoding="utf-8")
    fields = content["body"]
    assert len({field["id"] for field in fields}) == len(fields)
    for field in fields:
        assert field["type"] in ("input", "textarea", "dropdown", "checkboxes") and field["attributes"]["label"]


def test_the_image_takes_its_base_as_an_argument_and_starts_our_command():
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
    steps = [line for line in lines if re.match(r"[A-Z]+ ", line)]
    assert steps[:2] == ["ARG BASE=python:3.12-slim", "FROM ${BASE}"] and 'ENTRYPOINT ["lbvq"]' in steps
    assert 'lbvq = "lbvq.__main__:main"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
