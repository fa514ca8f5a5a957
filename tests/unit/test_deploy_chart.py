"""The Helm chart: its values, what it renders, and Kubernetes' own schemas; `helm` itself where it is on PATH."""

import copy
import json
import os
import shutil
import subprocess
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

from gradalign_scorer.gate import OPEN_PATHS
from gradalign_scorer.settings import Settings

HELM = Path(__file__).parents[2] / "deploy/helm"
CHART = HELM / "gradalign"
EXAMPLES = sorted(path.stem for path in (HELM / "examples").glob("*.yaml"))
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
SCHEMA = json.loads((CHART / "values.schema.json").read_text())
needs_helm = pytest.mark.skipif(shutil.which("helm") is None, reason="no helm on PATH; install Helm 3.14 or newer")


def helm(*arguments, home):
    environment = {**os.environ, "HOME": str(home), "HELM_CACHE_HOME": str(home), "HELM_CONFIG_HOME": str(home)}
    return subprocess.run(
        ["helm", *arguments], check=False, capture_output=True, text=True, env=environment, timeout=120
    )


def rendering(example, home):
    done = helm("template", "gradalign", str(CHART), "-f", str(HELM / f"examples/{example}.yaml"), home=home)
    assert done.returncode == 0, done.stderr
    return done.stdout


def committed(example):
    return [doc for doc in yaml.safe_load_all((HELM / f"rendered/{example}.yaml").read_text()) if doc]


def check(documents):
    for document in documents:
        if document["kind"] != "ServiceMonitor":  # not Kubernetes' own
            kubernetes_validate.validate(document, "1.30", strict=True)


def scorer(documents):
    (pod,) = [doc["spec"]["template"]["spec"] for doc in documents if doc["kind"] == "Deployment"]
    return pod, {entry["name"]: entry.get("value") for entry in pod["containers"][0]["env"]}


@pytest.mark.parametrize("example", EXAMPLES)
def test_manifests_meet_kubernetes_schemas(example):
    check(committed(example))


def test_a_broken_manifest_is_refused():
    broken = copy.deepcopy(committed("defaults"))
    next(doc for doc in broken if doc["kind"] == "Deployment")["spec"]["replicas"] = "two"
    with pytest.raises(kubernetes_validate.ValidationError, match="replicas"):
        check(broken)


@pytest.mark.parametrize("example", EXAMPLES)
def test_scorer_can_start_and_drain(example):
    pod, environment = scorer(committed(example))
    container = pod["containers"][0]
    assert {container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "liveness", "readiness")} <= OPEN_PATHS
    known = {f"GRADALIGN_{name.upper()}" for name in Settings.model_fields}
    assert {name for name in environment if name.startswith("GRADALIGN_")} <= known
    waits = float(environment["GRADALIGN_DRAIN_SECONDS"]) + float(environment["GRADALIGN_GRACE_SECONDS"])
    assert pod["terminationGracePeriodSeconds"] > waits + 1 + int(
        container["lifecycle"]["preStop"]["exec"]["command"][1]
    )
    assert pod["enableServiceLinks"] is False
    assert container["securityContext"]["readOnlyRootFilesystem"] is True


def test_values_meet_their_schema():
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    jsonschema.validate(VALUES, SCHEMA)


WRONG = {
    "device=gpu": "cuda",
    "replicas=two": "integer",
    "redis.bundled=false": "external",
    "logLevel=loud": "warning",
    "replicaCount=2": "replicaCount",
    "env.GRADALIGN_PORT=9000": "GRADALIGN_PORT",
}


@needs_helm
@pytest.mark.parametrize("setting", WRONG)
def test_wrong_values_are_refused(setting, tmp_path):
    done = helm("template", "gradalign", str(CHART), "--set", setting, home=tmp_path)
    assert done.returncode != 0
    assert WRONG[setting] in done.stderr


@needs_helm
def test_lint_is_clean(tmp_path):
    done = helm("lint", "--strict", str(CHART), home=tmp_path)
    assert done.returncode == 0, done.stdout


@needs_helm
@pytest.mark.parametrize("example", EXAMPLES)
def test_committed_manifests_are_what_helm_renders(example, tmp_path):
    rendered = [doc for doc in yaml.safe_load_all(rendering(example, tmp_path)) if doc]
    assert rendered == committed(example), f"stale: make deploy/helm/rendered/{example}.yaml again with `helm template`"
