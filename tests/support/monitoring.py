"""What deploy/ gives to Prometheus and Grafana, taken apart: rules, panels, and the metrics that their queries name."""

import json
import re
from pathlib import Path

import promql_parser
import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
PROMETHEUS = DEPLOY / "prometheus"
GRAFANA = DEPLOY / "grafana"
# What Prometheus makes itself: of scrapes, and of alerts.
OF_PROMETHEUS = {"up", "ALERTS"}


def rules():
    """Every rule of alerts.yml."""
    return [
        rule for group in yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"] for rule in group["rules"]
    ]


def dashboard():
    """The dashboard."""
    return json.loads((GRAFANA / "dashboards/gradalign.json").read_text())


def panels():
    """Its panels, rows left out."""
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def panel_queries():
    """(title, query) of every panel; queries as Prometheus takes them, with every scorer and every run chosen."""
    return [(panel["title"], filled(target["expr"])) for panel in panels() for target in panel["targets"]]


def filled(query):
    """A query with Grafana's variables replaced."""
    query = re.sub(r"\$\{?__rate_interval\}?", "1m", query)
    return re.sub(r"\$\{?(instance|run)\}?", ".+", query)


def variable_metrics():
    """Metrics that the variables of the dashboard are filled from."""
    queries = [each["query"]["query"] for each in dashboard()["templating"]["list"] if each["type"] == "query"]
    return {re.fullmatch(r"label_values\((\w+), \w+\)", query)[1] for query in queries}


def metric_names(query):
    """The metrics that a query selects, by Prometheus' own grammar.

    Raises:
        ValueError: the query cannot be parsed, or selects by something else than a name.
    """
    names = set()

    def visit(node):
        selector = getattr(node, "vector_selector", node)
        if isinstance(selector, promql_parser.VectorSelector):
            if not selector.name:
                raise ValueError(f"{query} has a selector without a name")
            names.add(selector.name)

    promql_parser.walk(promql_parser.parse(query), visit)
    return names
