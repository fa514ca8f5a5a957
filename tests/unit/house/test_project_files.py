"""What hosts and tools read about the project: CI, pre-commit, Dependabot, templates, the citation."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[3]
RUNNERS = re.compile(r"(ubuntu-2\d\.04|ubuntu-2\d\.04-arm|macos-1[4-9])")


def load(path):
    return yaml.safe_load((ROOT / path).read_text())


def targets():
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_hosted_ci_calls_what_one_calls_at_home_on_all_three_kinds_of_machine():
    jobs = load(".github/workflows/ci.yml")["jobs"]
    runners = jobs["checks"]["strategy"]["matrix"]["runner"]
    assert all(RUNNERS.fullmatch(runner) for runner in [*runners, jobs["release"]["runs-on"]])
    assert {("macos" in runner, "arm" in runner) for runner in runners} == {
        (False, False),
        (False, True),
        (True, False),
    }
    commands = {name: [step["run"] for step in job["steps"] if "run" in step] for name, job in jobs.items()}
    assert commands == {"checks": [".ci/run"], "release": ["make release-check"]}
    assert all("timeout-minutes" in job for job in jobs.values())


def test_ci_run_is_for_any_bash_and_calls_targets_that_exist():
    script = ROOT / ".ci/run"
    text = script.read_text()
    assert script.stat().st_mode & 0o111
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    called = re.findall(r"^make ([a-z-]+)$", text, re.MULTILINE)
    assert {"install", "lint", "docs", "test"} <= set(called) <= targets()
    # The bash of macOS is 3.2: no associative arrays, mapfile, case changes, or |& in it.
    assert not re.search(r"declare -A|mapfile|readarray|\$\{\w+(\^|,,)|\|&|&>>|\btimeout\b|readlink -f|sed -i", text)
    for line in text.splitlines():
        assert "apt-get" not in line or "command -v apt-get" in text


def test_pre_commit_has_the_checks_of_make_lint():
    hooks = [hook for repo in load(".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]]
    assert all(repo["repo"] == "local" for repo in load(".pre-commit-config.yaml")["repos"])
    assert "make lint" in {hook["entry"] for hook in hooks}


@pytest.mark.parametrize("path", ["bug.yml", "idea.yml"])
def test_issue_forms_have_what_the_host_asks_for(path):
    form = load(f".github/ISSUE_TEMPLATE/{path}")
    assert {"name", "description", "body"} <= set(form)
    assert any(part["type"] != "markdown" for part in form["body"])
    ids = [part["id"] for part in form["body"] if part["type"] != "markdown"]
    assert len(set(ids)) == len(ids)


def test_dependabot_looks_where_there_is_something():
    config = load(".github/dependabot.yml")
    assert config["version"] == 2
    looked = {(each["package-ecosystem"], each["directory"]) for each in config["updates"]}
    assert {("pip", "/"), ("pip", "/deploy"), ("github-actions", "/"), ("docker", "/deploy")} <= looked
    assert all((ROOT / folder.strip("/")).is_dir() for _, folder in looked)


def test_the_citation_is_of_this_version_and_names_the_paper():
    citation = load("CITATION.cff")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == project["version"]
    assert citation["license"] == project["license"]
    assert [author["name"] for author in citation["authors"]] == [author["name"] for author in project["authors"]]
    assert citation["references"][0]["identifiers"][0]["value"] == "arXiv:2602.21492"


def test_reports_of_vulnerabilities_go_nowhere_made_up():
    assert not re.search(r"[\w.]+@[\w.]+", (ROOT / "SECURITY.md").read_text())
