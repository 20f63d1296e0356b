//! Sets the stage for what runs on sockets: tools, binaries, and the environment that names them.
//!
//! The programs and tests of `veer-tests` find everything in these variables and look nowhere else.

use std::ffi::OsString;
use std::process::{Command, ExitCode};

use anyhow::Result;

use crate::build::{self, Binaries, Profile};
use crate::setup::{KubeTools, Tools};
use crate::{exec, setup, workspace};

/// Builds for release and becomes the program of that name in `veer-tests`, with further variables.
pub(crate) fn perform(
    program: &str,
    arguments: &[OsString],
    further: &[(&'static str, OsString)],
) -> Result<ExitCode> {
    let tools = setup::ensure()?;
    // All of them: the program starts others of its package, as the processes of a pod.
    let built = build::executables(&workspace::root()?, Profile::Release, &["--exclude", "xtask", "--bins"])?;
    let mut command = Command::new(built.find(program)?);
    command
        .args(arguments)
        .envs(variables(&built.of_a_node()?, &tools))
        .envs(further.iter().cloned())
        .env("PATH", workspace::search_path());
    Err(exec::become_program(&mut command))
}

/// What `veer-tests` reads where it makes a Kubernetes.
pub(crate) fn variables_of_kube(tools: &KubeTools) -> [(&'static str, OsString); 3] {
    [
        ("VEER_KUBERNETES", tools.kubernetes.clone().into()),
        ("VEER_CONTAINERD", tools.containerd.clone().into()),
        ("VEER_OTHER_CONTAINERDS", tools.other_containerds.clone().into()),
    ]
}

/// What `veer-tests` reads.
pub(crate) fn variables(binaries: &Binaries, tools: &Tools) -> [(&'static str, OsString); 5] {
    [
        ("VEER_BIN", binaries.veer.clone().into()),
        ("VEER_CNI_BIN", binaries.veer_cni.clone().into()),
        ("VEER_ENVOY", tools.envoy.clone().into()),
        ("VEER_ISTIO_IPTABLES", tools.istio_iptables.clone().into()),
        ("CNI_PATH", tools.cni_plugins.clone().into()),
    ]
}
