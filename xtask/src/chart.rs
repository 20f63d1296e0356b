//! The Helm chart: `cargo xtask check chart`, and `cargo xtask manifests`, which renders it into `deploy/manifests`.
//!
//! Rendering is Helm's own; whether what comes out is Kubernetes' is kubeconform's to say, with schemas that are made
//! of Kubernetes' own description of its types ([`schema`]). Kinds that are not Kubernetes' own (Prometheus Operator's,
//! OpenShift's) have no schema here, and are compared only with what was rendered before.

mod alerts;
mod schema;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

use crate::exec::{self, quiet, say};
use crate::setup::{self, ChartTools, KUBERNETES_VERSION};
use crate::workspace;

const CHART: &str = "deploy/helm/veer";
const MANIFESTS: &str = "deploy/manifests";
const EVERYTHING: &str = "tests/charts/everything.yaml";
/// Not Kubernetes' own.
const OTHERS_KINDS: &str =
    "PodMonitor,ServiceMonitor,PrometheusRule,SecurityContextConstraints,NetworkAttachmentDefinition";
/// What the schema of the values has to refuse.
const REFUSED: [&str; 12] = [
    "platform=gke-autopilot",
    "cni.instal=auto",
    "cni.install=sometimes",
    "agent.reconcileInterval=0",
    "image.digest=latest",
    "metrics.port=70000",
    "metrics.address=::",
    "proxy.mode=command",
    r"proxy.mode=container,proxy.config.a\.conf=x",
    r"proxy.config.a\.yaml=x",
    "prometheusRule.slowAddSeconds=1",
    "platform=openshift,cni.install=multus",
];
/// `kubectl apply` makes no namespace, and one without this label may refuse pods of the host's network.
const PREAMBLE: &str = "\
# Rendered from deploy/helm/veer by `cargo xtask manifests`, for those who do not use Helm. Not edited by hand.
---
apiVersion: v1
kind: Namespace
metadata:
  name: veer-system
  labels:
    pod-security.kubernetes.io/enforce: privileged
";

/// Something that is rendered.
struct Rendering {
    /// Of its file in `deploy/manifests`, without `.yaml`.
    name: String,
    /// What Helm is told.
    arguments: Vec<String>,
}

/// `cargo xtask manifests`.
pub(crate) fn write() -> Result<ExitCode> {
    let root = workspace::root()?;
    let tools = setup::chart_tools()?;
    for rendering in renderings(&root)? {
        let path = committed(&root, &rendering.name);
        fs::write(&path, render(&tools, &root, &rendering)?)
            .with_context(|| format!("write {}", path.display()))?;
        exec::print(&path.display().to_string())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What is committed for a platform.
pub(crate) fn committed(root: &Path, platform: &str) -> PathBuf {
    root.join(MANIFESTS).join(platform).with_extension("yaml")
}

/// The manifests of these values, in the words of `helm --set`, and of those in a further file, in a file.
pub(crate) fn render_to(file: &Path, root: &Path, values: &[&str], further: Option<&Path>) -> Result<()> {
    let values = values.iter().flat_map(|value| ["--set".to_owned(), (*value).to_owned()]);
    let further = further.into_iter().flat_map(|path| ["--values".to_owned(), path.display().to_string()]);
    let arguments = values.chain(further).collect();
    let rendering = Rendering { name: String::new(), arguments };
    let rendered = render(&setup::chart_tools()?, root, &rendering)?;
    fs::write(file, rendered).with_context(|| format!("write {}", file.display()))
}

/// `cargo xtask check chart`.
pub(crate) fn check(root: &Path) -> Result<()> {
    let tools = setup::chart_tools()?;
    exec::output(Command::new(&tools.helm).args(["lint", "--strict", "--quiet"]).arg(root.join(CHART)))?;
    for setting in REFUSED {
        if quiet(template(&tools, root).args(["--set", setting])).is_some() {
            bail!("the chart takes {setting}, which it is to refuse");
        }
    }
    let renderings = renderings(root)?;
    let mut paths = Vec::new();
    for rendering in &renderings {
        let path = committed(root, &rendering.name);
        let committed = fs::read_to_string(&path).unwrap_or_default();
        let rendered = render(&tools, root, rendering)?;
        if let Some(difference) = difference(&committed, &rendered) {
            let path = path.strip_prefix(root).unwrap_or(&path).display();
            bail!(
                "{path} is not what the chart renders: {difference}\nif the chart is right: cargo xtask manifests"
            );
        }
        paths.push(path);
    }
    conform(&tools, &paths)?;
    alerts::check(&tools, root)?;
    say(&format!("{} manifests, as rendered and as Kubernetes {KUBERNETES_VERSION} has them", paths.len()));
    Ok(())
}

/// Each platform, and everything at once.
fn renderings(root: &Path) -> Result<Vec<Rendering>> {
    let directory = root.join(CHART).join("platforms");
    let entries = fs::read_dir(&directory).with_context(|| format!("read {}", directory.display()))?;
    let platform = |path: PathBuf| Some(path.file_stem()?.to_str()?.to_owned());
    let mut platforms: Vec<String> = entries.flatten().filter_map(|entry| platform(entry.path())).collect();
    platforms.sort();
    let of = |name: String| {
        let arguments = vec!["--set".to_owned(), format!("platform={name}")];
        Rendering { name, arguments }
    };
    let everything = vec!["--values".to_owned(), root.join(EVERYTHING).display().to_string()];
    let everything = Rendering { name: "everything".to_owned(), arguments: everything };
    Ok(platforms.into_iter().map(of).chain([everything]).collect())
}

fn template(tools: &ChartTools, root: &Path) -> Command {
    let mut command = Command::new(&tools.helm);
    command.args(["template", "veer"]).arg(root.join(CHART)).args(["--namespace", "veer-system"]);
    command.args(["--kube-version", KUBERNETES_VERSION]);
    command
}

fn render(tools: &ChartTools, root: &Path, rendering: &Rendering) -> Result<String> {
    let rendered = exec::output(template(tools, root).args(&rendering.arguments))?;
    Ok(format!("{PREAMBLE}{rendered}"))
}

/// The first line that differs.
fn difference(committed: &str, rendered: &str) -> Option<String> {
    if committed == rendered {
        return None;
    }
    let lines = committed.lines().chain(std::iter::repeat("(nothing)"));
    let (number, (old, new)) =
        (1..).zip(lines.zip(rendered.lines().chain(["(nothing)"]))).find(|(_, (a, b))| a != b)?;
    Some(format!("line {number}\n- {old}\n+ {new}"))
}

fn conform(tools: &ChartTools, manifests: &[PathBuf]) -> Result<()> {
    let openapi = fs::read(&tools.openapi).with_context(|| format!("read {}", tools.openapi.display()))?;
    let directory = tempfile::tempdir().context("make a temporary directory")?;
    for (name, schema) in schema::all(&serde_json::from_slice(&openapi).context("read Kubernetes' OpenAPI")?)
    {
        fs::write(directory.path().join(name), schema.to_string()).context("write a schema")?;
    }
    let mut command = Command::new(&tools.kubeconform);
    let location = format!("{}/{{{{.ResourceKind}}}}{{{{.KindSuffix}}}}.json", directory.path().display());
    command
        .args(["-strict", "-summary", "-skip", OTHERS_KINDS, "-schema-location", &location])
        .args(manifests);
    exec::print(exec::output(&mut command)?.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_that_differs_is_named() {
        assert_eq!(difference("a\nb\n", "a\nb\n"), None);
        assert_eq!(difference("a\nb\n", "a\nc\n").unwrap(), "line 2\n- b\n+ c");
        assert_eq!(difference("a\n", "a\nb\n").unwrap(), "line 2\n- (nothing)\n+ b");
        assert_eq!(difference("a\nb\n", "a\n").unwrap(), "line 2\n- b\n+ (nothing)");
        assert_eq!(difference("", "a\n").unwrap(), "line 1\n- (nothing)\n+ a");
    }
}
