"""prometheus/rules.yaml: promtool takes it, its cases pass, and every alert says what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.support.prometheus import OTLP_SINCE, Prometheus, find_version, promtool
from tests.support.stack_files import ROOT, load

if TYPE_CHECKING:
    from pathlib import Path

RULES = "prometheus/rules.yaml"
CASES = "prometheus/rules_test.yaml"
ALERTS = {rule["alert"]: rule for group in load(RULES)["groups"] for rule in group["rules"] if "alert" in rule}


def test_promtool_accepts_the_rules() -> None:
    promtool("check", "rules", ROOT / RULES)


def test_the_cases_pass() -> None:
    promtool("test", "rules", ROOT / CASES)


def test_the_cases_of_native_histograms_pass() -> None:
    if find_version() < (OTLP_SINCE,):
        pytest.skip("this promtool cannot write native histograms down")
    promtool("test", "rules", ROOT / "prometheus/rules_native_test.yaml")


def test_the_cases_know_the_order_of_all_groups() -> None:
    """Those that are not named come in an order that differs from run to run."""
    assert load(CASES)["group_eval_order"] == [group["name"] for group in load(RULES)["groups"]]


def test_promtool_accepts_the_configuration() -> None:
    if find_version() < (OTLP_SINCE,):
        pytest.skip("this Prometheus has no OTLP receiver to be configured")
    promtool("check", "config", ROOT / "prometheus/prometheus.yaml")


@pytest.mark.parametrize("name", ALERTS)
def test_every_alert_has_cases(name: str) -> None:
    """One at least in which it fires, with all that it says, and one in which it does not."""
    cases = [case for test in load(CASES)["tests"] for case in test.get("alert_rule_test", ())]
    expected = [case["exp_alerts"] for case in cases if case["alertname"] == name]
    assert any(expected)
    assert not all(expected)


@pytest.mark.parametrize("rule", ALERTS.values(), ids=ALERTS)
def test_every_alert_says_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in {"warning", "critical"}
    assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
    assert rule["annotations"]["runbook_url"] == f"{{{{ $externalURL }}}}/user/operations.md#{rule['alert'].lower()}"


def test_prometheus_serves_the_runbook(tmp_path: Path) -> None:
    """The address that an alert links to is that of the page, on a Prometheus that is started as in the stack."""
    with Prometheus(tmp_path) as prometheus:
        assert prometheus.get("/user/operations.md") == (ROOT / "docs/operations.md").read_text(encoding="utf-8")
