//! Where a cluster's programs are.

use std::env;
use std::path::PathBuf;

use anyhow::{Result, bail};

/// The directory of Kubernetes' programs and etcd.
const KUBERNETES: &str = "VEER_KUBERNETES";
/// The directory of containerd, its shim, `ctr` and runc.
const CONTAINERD: &str = "VEER_CONTAINERD";
/// The directory that has further releases of containerd, each unpacked below the name of its Debian suite.
const OTHER_CONTAINERDS: &str = "VEER_OTHER_CONTAINERDS";
/// The ecosystem's variable for a directory with an etcd and a kube-apiserver.
const ENVTEST: &str = "KUBEBUILDER_ASSETS";
const WAY_OUT: &str = "cargo xtask setup --kube installs it, and cargo xtask test kube sets this variable";

/// etcd or kube-apiserver, of the directory that `KUBEBUILDER_ASSETS` names, if it names one.
pub fn control_plane(name: &str) -> Result<PathBuf> {
    if env::var_os(ENVTEST).is_some() { find(ENVTEST, name) } else { kubernetes(name) }
}

/// A program of Kubernetes.
pub fn kubernetes(name: &str) -> Result<PathBuf> {
    find(KUBERNETES, name)
}

/// A program of the container runtime.
pub fn containerd(name: &str) -> Result<PathBuf> {
    find(CONTAINERD, name)
}

/// What the packages of another Debian suite have at this path.
pub fn of_suite(suite: &str, path: &str) -> Result<PathBuf> {
    find(OTHER_CONTAINERDS, &format!("{suite}/{path}"))
}

fn find(variable: &str, name: &str) -> Result<PathBuf> {
    let Some(directory) = env::var_os(variable) else {
        bail!("{variable} is not set, and so there is no {name}: {WAY_OUT}");
    };
    let path = PathBuf::from(directory).join(name);
    if !path.is_file() {
        bail!("{} is not there ({variable}): {WAY_OUT}", path.display());
    }
    Ok(path)
}
