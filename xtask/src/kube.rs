//! `cargo xtask test kube`: a real Kubernetes node, and veer on it as its users have it.
//!
//! Owns: what the suite installs there: the image of both builds, and the manifests out of the chart. Never does: make a
//! cluster; that is the suite's.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

use crate::build::{self, Binaries, Profile};
use crate::exec::{self, say};
use crate::{Unavailable, chart, package, setup, stage, workspace};

/// The version that is upgraded to: another build, whose eBPF programs differ.
const NEXT: &str = concat!(env!("CARGO_PKG_VERSION"), "-next");
/// The platform whose directories are upstream's.
const PLATFORM: &str = "kind";

/// The same with shared proxies, below the repository's root.
const SHARED: &str = "tests/src/bin/kube-suite/deployed/shared-values.yaml";

/// One program makes the cluster and all checks in it; what it prints is for whoever started us.
pub(crate) fn run(name: Option<&str>) -> Result<ExitCode> {
    if !setup::is_root() {
        let text = "the suite runs a Kubernetes node in namespaces that it makes: run it as root";
        return Err(Unavailable(text.to_owned()).into());
    }
    let tools = setup::kube_tools()?;
    let root = workspace::root()?;
    let other = build::other_build(&root)?;
    let built = build::executables(&root, Profile::Dev, &["--bins"])?;
    let binaries = built.of_a_node()?;
    let deployment = deployment(&root, &binaries, &other)?;
    let mut command = Command::new(built.find("kube-suite")?);
    command.args(name).envs(stage::variables(&binaries, &tools.tools));
    command.envs(stage::variables_of_kube(&tools)).env("VEER_DEPLOYMENT", deployment);
    Err(exec::become_program(command.env("PATH", workspace::search_path())))
}

/// A directory with what is installed, and what it is upgraded to.
fn deployment(root: &Path, binaries: &Binaries, other: &Path) -> Result<PathBuf> {
    let directory = other.with_file_name("veer-deployment");
    fs::create_dir_all(&directory).with_context(|| format!("make {}", directory.display()))?;
    say("packaging both builds, and rendering the chart");
    let next = Binaries { veer: other.to_owned(), veer_cni: binaries.veer_cni.clone() };
    for (binaries, name, version) in
        [(binaries, "veer", env!("CARGO_PKG_VERSION")), (&next, "veer-next", NEXT)]
    {
        let stripped = stripped(binaries, &directory)?;
        package::image_in(&directory.join(name).with_extension("tar"), root, &stripped, version)?;
    }
    let committed = chart::committed(root, PLATFORM);
    fs::copy(&committed, directory.join("veer.yaml"))
        .with_context(|| format!("copy {}", committed.display()))?;
    let (platform, tag) = (format!("platform={PLATFORM}"), format!("image.tag={NEXT}"));
    let values = [platform.as_str(), &tag, "nodeTaint.enabled=true", "networkPolicy.enabled=true"];
    chart::render_to(&directory.join("veer-next.yaml"), root, &values, None)?;
    chart::render_to(&directory.join("veer-shared.yaml"), root, &values, Some(&root.join(SHARED)))?;
    Ok(directory)
}

/// Without what a debugger wants, as they are released: half of a dev build.
fn stripped(binaries: &Binaries, directory: &Path) -> Result<Binaries> {
    let strip = |from: &Path, name| {
        let to = directory.join(name);
        exec::output(Command::new("strip").arg("--strip-debug").arg("-o").args([&to, from])).map(|_silent| to)
    };
    Ok(Binaries { veer: strip(&binaries.veer, "veer")?, veer_cni: strip(&binaries.veer_cni, "veer-cni")? })
}
