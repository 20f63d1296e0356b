//! Alerts and dashboard: whether they are what Prometheus reads, come when they should, and speak of metrics that there are.
//!
//! Owns: promtool's part (syntax, and the tests in `tests/charts/alerts.yaml`), and what promtool cannot know: that each
//! metric is in `docs/metrics.md`, which a test compares with an agent's own, and each alert in `docs/troubleshooting.md`.
//! Called by: `check chart`.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::exec::{self, say};
use crate::setup::ChartTools;

const RULES: &str = "deploy/helm/veer/rules/veer.yaml";
const DASHBOARD: &str = "deploy/helm/veer/dashboards/veer.json";
const TESTS: &str = "tests/charts/alerts.yaml";
const METRICS: &str = "docs/metrics.md";
const TROUBLESHOOTING: &str = "docs/troubleshooting.md";
/// How the agent's metrics begin.
const PREFIXES: [&str; 3] = ["veer_", "istio_cni_", "nodeagent_"];
/// What the text form puts behind their names.
const SUFFIXES: [&str; 5] = ["_total", "_bucket", "_sum", "_count", "_info"];

/// All of it.
pub(super) fn check(tools: &ChartTools, root: &Path) -> Result<()> {
    let read = |path: &str| fs::read_to_string(root.join(path)).with_context(|| format!("read {path}"));
    let (rules, dashboard, tests) = (read(RULES)?, read(DASHBOARD)?, read(TESTS)?);
    promtool(tools, "check", &root.join(RULES))?;
    promtool(tools, "test", &root.join(TESTS))?;
    let alerts = alerts(&rules)?;
    documented(&alerts, &read(TROUBLESHOOTING)?)?;
    for Alert { name, .. } in &alerts {
        ensure!(tests.contains(&format!("alertname: {name}\n")), "{TESTS} does not say when {name} comes");
    }
    let expressions = expressions(&serde_json::from_str(&dashboard).context(DASHBOARD)?)?;
    syntax(tools, &expressions)?;
    let documented_metrics = read(METRICS)?;
    let known = known(&documented_metrics);
    ensure!(known.len() > 15, "{METRICS} has {} metrics", known.len());
    let all = alerts.iter().map(|alert| &alert.expression).chain(&expressions);
    for name in all.flat_map(|expression| metrics(expression)) {
        ensure!(known.contains(base(&name)), "{name} is in {RULES} or {DASHBOARD}, and not in {METRICS}");
    }
    say(&format!(
        "{} alerts, {} expressions of the dashboard, all of known metrics",
        alerts.len(),
        expressions.len()
    ));
    Ok(())
}

/// An alert, as far as it is looked at here.
#[derive(PartialEq, Eq, Debug)]
struct Alert {
    name: String,
    expression: String,
    /// The heading that says what to do.
    runbook: String,
}

/// The alerts of a file of rules, each of whose values begins on the line of its name.
fn alerts(rules: &str) -> Result<Vec<Alert>> {
    rules
        .split("- alert: ")
        .skip(1)
        .map(|text| {
            let name = text.lines().next().unwrap_or_default().trim().to_owned();
            let value = |key: &str| {
                let found = text.lines().find_map(|line| line.trim().strip_prefix(key)?.strip_prefix(": "));
                found.map(str::to_owned).with_context(|| format!("{RULES}: {name} has no {key}"))
            };
            for key in ["labels", "summary", "description"] {
                value(key)?;
            }
            let (expression, runbook) = (value("expr")?, value("runbook")?);
            ensure!(
                !expression.starts_with(['>', '|']),
                "{RULES}: the expression of {name} is on lines of its own"
            );
            Ok(Alert { name, expression, runbook })
        })
        .collect()
}

/// Each alert has a heading of its own in the document, and each heading of that kind an alert.
fn documented(alerts: &[Alert], document: &str) -> Result<()> {
    for Alert { name, runbook, .. } in alerts {
        let anchor = format!("{TROUBLESHOOTING}#{}", name.to_lowercase());
        ensure!(*runbook == anchor, "{RULES}: the runbook of {name} is {runbook}, and not {anchor}");
        ensure!(document.contains(&format!("\n### {name}\n")), "{TROUBLESHOOTING} has no heading {name}");
    }
    let headings = document.lines().filter_map(|line| line.strip_prefix("### Veer"));
    if let Some(heading) = headings
        .map(|rest| format!("Veer{rest}"))
        .find(|name| !alerts.iter().any(|alert| alert.name == *name))
    {
        bail!("{TROUBLESHOOTING} explains {heading}, and {RULES} has no such alert");
    }
    Ok(())
}

/// What the dashboard's panels ask.
fn expressions(dashboard: &Value) -> Result<Vec<String>> {
    let panels = dashboard.get("panels").and_then(Value::as_array).context("a dashboard without panels")?;
    let targets =
        panels.iter().flat_map(|panel| panel.get("targets").and_then(Value::as_array).into_iter().flatten());
    targets
        .map(|target| {
            let expression = target.get("expr").and_then(Value::as_str);
            expression.map(str::to_owned).context("a target of the dashboard without an expression")
        })
        .collect()
}

/// Whether promtool reads them: as rules that record something.
fn syntax(tools: &ChartTools, expressions: &[String]) -> Result<()> {
    let rules: Vec<Value> = (0..)
        .zip(expressions)
        .map(|(number, expr)| json!({"record": format!("panel_{number}"), "expr": expr}))
        .collect();
    let directory = tempfile::tempdir().context("make a temporary directory")?;
    let path = directory.path().join("dashboard.yaml");
    // JSON is YAML, too.
    fs::write(&path, json!({"groups": [{"name": "dashboard", "rules": rules}]}).to_string())
        .with_context(|| format!("write {}", path.display()))?;
    promtool(tools, "check", &path)
}

fn promtool(tools: &ChartTools, what: &str, path: &Path) -> Result<()> {
    exec::output(Command::new(&tools.promtool).args([what, "rules"]).arg(path)).map(drop)
}

/// The metrics that are documented.
fn known(document: &str) -> BTreeSet<&str> {
    document.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect()
}

/// The agent's metrics that an expression names.
fn metrics(expression: &str) -> Vec<String> {
    let words = expression.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':'));
    words.filter(|word| PREFIXES.iter().any(|prefix| word.starts_with(prefix))).map(str::to_owned).collect()
}

/// The name without what the text form puts behind it.
fn base(name: &str) -> &str {
    SUFFIXES.iter().find_map(|suffix| name.strip_suffix(suffix)).unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: &str = "\
groups:
  - rules:
      - alert: VeerA
        expr: rate(veer_x_total{a=\"b\"}[5m]) / veer_y > 0
        labels: { severity: warning }
        annotations:
          summary: s
          description: >-
            d
          runbook: docs/troubleshooting.md#veera
";

    #[test]
    fn metrics_are_told_from_functions_and_by_their_documented_names() {
        let alerts = alerts(RULE).unwrap();
        let names = metrics(&alerts[0].expression);
        assert_eq!(names.iter().map(|name| base(name)).collect::<Vec<_>>(), ["veer_x", "veer_y"]);
        assert!(known("| `veer_x` | counter |\n| other |").contains("veer_x"));
        assert_eq!(
            metrics("up == 0 and on (job) group by (job) (istio_cni_install_ready)"),
            ["istio_cni_install_ready"]
        );
    }

    #[test]
    fn an_alert_without_its_heading_and_a_heading_without_its_alert_are_refused() {
        let alerts = alerts(RULE).unwrap();
        documented(&alerts, "# x\n\n### VeerA\n\ntext").unwrap();
        assert!(documented(&alerts, "# x\n").unwrap_err().to_string().contains("no heading VeerA"));
        let more = documented(&alerts, "\n### VeerA\n\n### VeerB\n").unwrap_err();
        assert!(more.to_string().contains("explains VeerB"), "{more}");
        assert!(
            super::alerts(&RULE.replace("summary: s", "")).is_err(),
            "an alert without a summary was taken"
        );
    }
}
