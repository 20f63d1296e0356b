//! What `cargo xtask check chart` needs beyond the rest: Helm, kubeconform, what Kubernetes says of its own types, and
//! promtool.
//!
//! The verb installs them when it first runs, and no other verb needs them. promtool is Debian's, out of its package of
//! Prometheus, which is unpacked and not installed: it would start a server. The other programs are built by Go from
//! `tests/charts`, whose `go.sum` has the hash of each module; the description of the API is one file out of the
//! module of Kubernetes itself, because there is no other place in a package registry that has it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::machine::{self, Machine};
use super::needs::{Need, PIP, State, Step};
use super::{debian, missing, steps};
use crate::Unavailable;
use crate::exec::{self, quiet, say, step};

/// Of `tests/charts/go.mod`, which names it once more.
const HELM_VERSION: &str = "3.22.0";
/// The release whose types manifests are checked against, and the hash of its module.
pub(crate) const KUBERNETES_VERSION: &str = "1.36.3";
const KUBERNETES_SUM: &str = "h1:qDQdoMiluAE2Eab6Fa52YV+WjiGz9mZFFoagEA6cI+o=";
/// Two and a half minutes of one processor; a busy machine takes its time.
const BUILD_LIMIT: Duration = Duration::from_mins(30);

/// The name, the package, and what it is for.
const PROGRAMS: [(&str, &str, &str); 2] = [
    ("helm", "helm.sh/helm/v3/cmd/helm", "renders the chart"),
    ("kubeconform", "github.com/yannh/kubeconform/cmd/kubeconform", "checks manifests against schemas"),
];
/// In Debian's package of Prometheus, and with us.
const PROMTOOL: &str = "promtool";
/// In Kubernetes' module, and with us.
const OPENAPI: &str = "swagger.json";

/// What the verb works with.
pub(crate) struct ChartTools {
    pub(crate) helm: PathBuf,
    pub(crate) kubeconform: PathBuf,
    pub(crate) promtool: PathBuf,
    /// Kubernetes' description of its API, OpenAPI 2.
    pub(crate) openapi: PathBuf,
}

fn place(tools: &Path) -> PathBuf {
    tools.join(format!("chart-{HELM_VERSION}-{KUBERNETES_VERSION}"))
}

/// What is there once nothing is missing.
pub(super) fn look(tools: &Path) -> ChartTools {
    let at = |name| place(tools).join(name);
    ChartTools {
        helm: at("helm"),
        kubeconform: at("kubeconform"),
        promtool: at(PROMTOOL),
        openapi: at(OPENAPI),
    }
}

/// Installs what is missing.
pub(super) fn install(machine: &Machine) -> Result<()> {
    let needs = needs(&machine.tools);
    let missing_now = missing(&needs);
    if missing_now.is_empty() {
        return Ok(());
    }
    let is_missing = |name: &str| missing_now.iter().any(|need| need.name == name);
    let place = place(&machine.tools);
    fs::create_dir_all(&place).with_context(|| format!("make {}", place.display()))?;
    if is_missing(PROMTOOL) {
        fetch_promtool(machine, &place)?;
    }
    let of_go: Vec<&Need> = missing_now.iter().copied().filter(|need| need.name != PROMTOOL).collect();
    if of_go.is_empty() {
        return Ok(());
    }
    let go = go(machine, &of_go)?;
    if of_go.iter().any(|need| need.name != OPENAPI) {
        let what = format!("building Helm {HELM_VERSION} and kubeconform (one to six minutes)");
        step(&what, &mut build(machine, &go, &place), BUILD_LIMIT)?;
    }
    if is_missing(OPENAPI) {
        describe(&go, &place)?;
    }
    Ok(())
}

/// The machine's Go, or one that is fetched.
fn go(machine: &Machine, missing: &[&Need]) -> Result<PathBuf> {
    if machine::look_for_go(&machine.tools).is_none() {
        let has_pip = machine::look_for_pip().is_some();
        if !has_pip && !machine.may_install() {
            let text = "Helm is built by Go 1.21 or newer, and there is neither a Go nor a pip to fetch one";
            return Err(Unavailable(text.to_owned()).into());
        }
        let first: Vec<&Need> = missing.iter().copied().take(1).collect();
        steps::carry_out(machine, &first)?;
    }
    machine::look_for_go(&machine.tools).context("Go was there a moment ago")
}

/// The one program out of the package (20 MB, 96 unpacked).
fn fetch_promtool(machine: &Machine, place: &Path) -> Result<()> {
    if !machine.has_apt {
        let text = "promtool comes out of Debian's package of Prometheus, and there is no apt-get";
        return Err(Unavailable(text.to_owned()).into());
    }
    let unpacked = tempfile::tempdir_in(place).context("make a temporary directory")?;
    debian::unpack(&["prometheus"], unpacked.path())?;
    let (from, to) = (unpacked.path().join("usr/bin").join(PROMTOOL), place.join(PROMTOOL));
    fs::rename(&from, &to).with_context(|| format!("put {} in its place", to.display()))
}

/// Go checks every module against `go.sum`.
fn build(machine: &Machine, go: &Path, place: &Path) -> Command {
    let mut command = Command::new(go);
    command.args(["build", "-mod=readonly", "-trimpath", "-ldflags=-s -w", "-o"]).arg(place.join(""));
    command
        .args(PROGRAMS.map(|(_, package, _)| package))
        .current_dir(machine.repository.join("tests/charts"));
    command.env("CGO_ENABLED", "0").env("GOFLAGS", "-buildvcs=false").env("GOWORK", "off");
    command
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Downloaded {
    dir: PathBuf,
    sum: String,
}

/// Fetches the module (20 MB) into a cache of its own, takes the one file, and removes the rest.
fn describe(go: &Path, place: &Path) -> Result<()> {
    say(&format!("fetching what Kubernetes {KUBERNETES_VERSION} says of its types, 20 MB"));
    let cache = tempfile::tempdir_in(place).context("make a temporary directory")?;
    let mut download = Command::new(go);
    download.args(["mod", "download", "-json", &format!("k8s.io/kubernetes@v{KUBERNETES_VERSION}")]);
    download
        .env("GOMODCACHE", cache.path())
        .env("GOFLAGS", "-modcacherw")
        .env("GOWORK", "off")
        .current_dir(place);
    let Downloaded { dir, sum } =
        serde_json::from_str(&exec::output(&mut download)?).context("read Go's answer")?;
    if sum != KUBERNETES_SUM {
        bail!(
            "the module of Kubernetes {KUBERNETES_VERSION} has the hash {sum}, and {KUBERNETES_SUM} is known here"
        );
    }
    let (from, to) = (dir.join("api/openapi-spec").join(OPENAPI), place.join(OPENAPI));
    // Under its own name only once it is whole.
    let part = to.with_extension("part");
    fs::copy(&from, &part).with_context(|| format!("copy {}", from.display()))?;
    fs::rename(&part, &to).with_context(|| format!("put {} in its place", to.display()))
}

/// All of it, met or not.
pub(super) fn needs(tools: &Path) -> Vec<Need> {
    let place = place(tools);
    let missing = || State::Missing { found: "not built yet".to_owned(), steps: steps_to_build(tools) };
    let program = |(name, _, reason): (&'static str, &'static str, &'static str)| {
        let path = place.join(name);
        let runs = quiet(Command::new(&path).arg("-h")).is_some();
        let state = if runs { State::Present { found: path.display().to_string() } } else { missing() };
        Need { name, reason, state }
    };
    let openapi = place.join(OPENAPI);
    let found = openapi.is_file().then(|| State::Present { found: openapi.display().to_string() });
    let described =
        Need { name: OPENAPI, reason: "what the schemas are made of", state: found.unwrap_or_else(missing) };
    let promtool = place.join(PROMTOOL);
    let state = if quiet(Command::new(&promtool).arg("--version")).is_some() {
        State::Present { found: promtool.display().to_string() }
    } else {
        State::Missing { found: "not fetched yet".to_owned(), steps: vec![Step::Chart] }
    };
    let tested = Need { name: PROMTOOL, reason: "tests the alerts", state };
    PROGRAMS.into_iter().map(program).chain([described, tested]).collect()
}

fn steps_to_build(tools: &Path) -> Vec<Step> {
    if machine::look_for_go(tools).is_some() {
        vec![Step::Chart]
    } else if machine::look_for_pip().is_some() {
        vec![Step::Go, Step::Chart]
    } else {
        vec![Step::Packages(PIP), Step::Go, Step::Chart]
    }
}
