"""Dashboards, alerts and autoscalers ask for what the server exports."""

import json
import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse

from headrace.base.config import flat
from headrace.serve.metrics import Metrics
from headrace.serve.settings import Serve
from tests.serve.watched import FACTS

DEPLOY = Path(__file__).parents[2] / "deploy"
NAME = re.compile(r"\b(?:vllm:|headrace_|http_|process_)\w+")


@pytest.fixture(scope="module")
def exported() -> set[str]:
    metrics = Metrics("m")
    metrics.met(FACTS)
    metrics.http("/health", "GET", 200, 0.001)  # a series of HTTP is there from its first use on
    return {sample.name for family in parse(metrics.render().decode()) for sample in family.samples}


def expressions() -> list[tuple[str, str]]:
    board = json.loads((DEPLOY / "grafana.json").read_text())
    found = [(panel["title"], target["expr"]) for panel in board["panels"] for target in panel["targets"]]
    for file in ("alerts.yaml", "keda.yaml"):
        text = (DEPLOY / file).read_text()
        found += [(file, said) for said in re.findall(r"(?:expr|query): (\|\n(?:\s{10,}.*\n)+|.*)", text)]
    return found


@pytest.mark.parametrize(("where", "expression"), expressions())
def test_every_expression_names_series_that_are_there(exported: set[str], where: str, expression: str):
    asked = set(NAME.findall(expression))
    assert asked, where
    assert asked <= exported


def test_there_are_enough_of_them():
    assert len(expressions()) >= 25


def test_the_autoscaler_asks_for_the_deployment_s_model():
    (name,) = re.findall(r"--served-model-name=(\S+)", (DEPLOY / "kubernetes.yaml").read_text())
    assert set(re.findall(r'model_name="(.*?)"', (DEPLOY / "keda.yaml").read_text())) == {name}


def test_every_flag_of_the_deployment_is_a_knob():
    flags = re.findall(r"- --([\w-]+)=", (DEPLOY / "kubernetes.yaml").read_text())
    assert len(flags) >= 4
    assert {flag.replace("-", "_") for flag in flags} <= {*flat(Serve), "model"}
