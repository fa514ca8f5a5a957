"""The Helm chart: its values, what it renders, and Kubernetes' own schemas; `helm` itself where it is on PATH."""

import copy
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

from gradalign_scorer.access.authentication import OPEN_PATHS
from gradalign_scorer.hosts import is_loopback
from gradalign_scorer.settings import Settings

HELM = Path(__file__).parents[3] / "deploy/helm"
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


def pods(documents):
    return {doc["kind"]: doc["spec"]["template"]["spec"] for doc in documents if "template" in doc.get("spec", {})}


def breaches_of_restricted_v2(pod):
    """What OpenShift's restricted-v2 refuses: users and groups of the pod's own, and what the profile `restricted` does."""
    (container,) = pod["containers"]
    own = container.get("securityContext", {})
    both = {**pod.get("securityContext", {}), **own}
    found = [
        f"{name}: {both[name]}" for name in ("runAsUser", "runAsGroup", "fsGroup", "supplementalGroups") if name in both
    ]
    found += [f"{name} of the pod" for name in ("hostNetwork", "hostPID", "hostIPC") if pod.get(name)]
    found += [f"volume {each['name']}" for each in pod.get("volumes", []) if not {"emptyDir", "secret"} & set(each)]
    found += [] if both.get("runAsNonRoot") is True else ["runAsNonRoot"]
    found += [] if both.get("seccompProfile", {}).get("type") == "RuntimeDefault" else ["seccompProfile"]
    found += [] if own.get("allowPrivilegeEscalation") is False else ["allowPrivilegeEscalation"]
    found += [] if own.get("capabilities") == {"drop": ["ALL"]} else ["capabilities"]
    return found


def test_the_example_for_openshift_leaves_users_and_groups_to_it():
    rendered = pods(committed("openshift"))
    assert rendered.keys() == {"Deployment", "StatefulSet"}
    assert {kind: breaches_of_restricted_v2(pod) for kind, pod in rendered.items()} == {
        "Deployment": [],
        "StatefulSet": [],
    }
    for pod in pods(committed("defaults")).values():
        assert len(breaches_of_restricted_v2(pod)) == 3, "users and groups are fixed by default"


def test_the_example_for_ipv6_listens_on_it_and_names_no_ipv4_address():
    documents = committed("ipv6")
    _, environment = scorer(documents)
    assert environment["GRADALIGN_HOST"] == "::"
    assert not is_loopback(environment["GRADALIGN_HOST"])
    assert re.findall(r"\b\d+[.]\d+[.]\d+[.]\d+\b", yaml.safe_dump(documents)) == []
    start = pods(documents)["StatefulSet"]["containers"][0]["command"][-1]
    assert "bind * -::*" in start, "Redis takes IPv4 and, where there is one, IPv6"


@pytest.mark.parametrize("name", ["podSecurityContext", "securityContext"])
def test_the_schema_knows_the_fields_of_kubernetes(name):
    folder = Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema"
    versions = [
        json.loads((each / f"{name.lower()}-v1.json").read_text())["properties"].keys()
        for each in folder.glob("v*-local")
    ]
    assert versions
    ours = SCHEMA["definitions"][name]["properties"].keys()
    assert set.intersection(*map(set, versions)) <= ours <= set.union(*map(set, versions))


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
    "env.GRADALIGN_HOST=::": "GRADALIGN_HOST",
    "host=127.0.0.1": "0.0.0.0, or ::",
    "host=::1": "0.0.0.0, or ::",
    "host=localhost": "0.0.0.0, or ::",
    "host=[::]": "without brackets",
    "host=": "host",
    "podSecurityContext.runAsuser=7": "runAsuser",
    "podSecurityContext.runAsUser=me": "runAsUser",
    "securityContext.fsGroup=7": "fsGroup",
    "redis.podSecurityContext.fsgroup=7": "fsgroup",
}


@needs_helm
@pytest.mark.parametrize("setting", WRONG)
def test_wrong_values_are_refused(setting, tmp_path):
    done = helm("template", "gradalign", str(CHART), "--set", setting, home=tmp_path)
    assert done.returncode != 0
    assert WRONG[setting] in done.stderr


@needs_helm
@pytest.mark.parametrize(
    ("settings", "pod_has", "container_has"),
    [
        (["podSecurityContext.runAsUser=1000680000"], {"runAsUser": 1000680000, "fsGroup": 10001}, {"capabilities"}),
        (["podSecurityContext.fsGroup=null"], {"runAsUser": 10001, "fsGroup": None}, {"capabilities"}),
        (["podSecurityContext=null", "securityContext=null"], {"runAsNonRoot": None}, set()),
        (["securityContext.capabilities=null"], {"runAsUser": 10001}, {"readOnlyRootFilesystem"}),
    ],
)
def test_a_field_is_changed_added_and_by_null_removed(settings, pod_has, container_has, tmp_path):
    both = [*settings, *(f"redis.{setting}" for setting in settings)]
    flags = [word for setting in both for word in ("--set", setting)]
    done = helm("template", "gradalign", str(CHART), *flags, home=tmp_path)
    assert done.returncode == 0, done.stderr
    documents = [doc for doc in yaml.safe_load_all(done.stdout) if doc]
    check(documents)
    for kind, pod in pods(documents).items():
        fixed = {10001: 999} if kind == "StatefulSet" else {}
        context = pod.get("securityContext", {})
        assert {name: context.get(name) for name in pod_has} == {k: fixed.get(v, v) for k, v in pod_has.items()}
        own = pod["containers"][0].get("securityContext", {})
        assert container_has <= own.keys()
        assert bool(own) == bool(container_has)


@needs_helm
@pytest.mark.parametrize("host", ["::", "0.0.0.0", "fd00::7"])
def test_the_address_to_listen_on_is_a_value(host, tmp_path):
    done = helm("template", "gradalign", str(CHART), "--set", f"host={host}", home=tmp_path)
    assert done.returncode == 0, done.stderr
    documents = [doc for doc in yaml.safe_load_all(done.stdout) if doc]
    check(documents)
    assert scorer(documents)[1]["GRADALIGN_HOST"] == host


@needs_helm
def test_users_of_openshift_in_a_file_stay_whole_numbers(tmp_path):
    (tmp_path / "values.yaml").write_text("podSecurityContext: {runAsUser: 1000680000, fsGroup: 1000680000}\n")
    done = helm("template", "gradalign", str(CHART), "-f", str(tmp_path / "values.yaml"), home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (
        pods([doc for doc in yaml.safe_load_all(done.stdout) if doc])["Deployment"]["securityContext"]["runAsUser"]
        == 1000680000
    )


@needs_helm
def test_lint_is_clean(tmp_path):
    done = helm("lint", "--strict", str(CHART), home=tmp_path)
    assert done.returncode == 0, done.stdout


@needs_helm
@pytest.mark.parametrize("example", EXAMPLES)
def test_committed_manifests_are_what_helm_renders(example, tmp_path):
    rendered = [doc for doc in yaml.safe_load_all(rendering(example, tmp_path)) if doc]
    assert rendered == committed(example), f"stale: make deploy/helm/rendered/{example}.yaml again with `helm template`"
