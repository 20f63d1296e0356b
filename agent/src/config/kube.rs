//! Where pods are read from.
//!
//! Owns: the accepted forms. Never does: stop at the first error. Called by: `config`.

use std::path::PathBuf;

use super::{ABSOLUTE, ConfigError, Setting, absolute};
use crate::cli::AgentFlags;

const PODS_FROM: Setting =
    Setting("--pods-from", "VEER_PODS_FROM", "kube, or the absolute path of a directory of Pod manifests");
const NODE_NAME: Setting = Setting(
    "--node-name",
    "VEER_NODE_NAME",
    "this node's name in the cluster (a-z, 0-9, - and ., 253 at most), which --pods-from kube needs",
);
const NODE_TAINT: Setting = Setting("--node-taint", "VEER_NODE_TAINT", "possible without --pods-from kube");
const KUBECONFIG: Setting = Setting("--kubeconfig", "VEER_KUBECONFIG", ABSOLUTE);

/// Where pods are read from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PodsFrom {
    /// A directory of manifests.
    Directory(PathBuf),
    /// The API server.
    Kube(KubeConfig),
}

/// How the API server is found, and who this node is to it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KubeConfig {
    /// The node's name in the cluster.
    pub node: String,
    /// The kubeconfig; `None`: the service account of the agent's pod.
    pub kubeconfig: Option<PathBuf>,
    /// Whether the node's taint is ours to keep.
    pub node_taint: bool,
}

/// Parses the flags.
pub(super) fn parse(flags: &AgentFlags, errors: &mut Vec<ConfigError>) -> PodsFrom {
    let is_kube = flags.pods_from.as_deref() == Some("kube");
    if flags.kube.node_taint && !is_kube {
        errors.push(NODE_TAINT.invalid("true"));
    }
    match flags.pods_from.as_deref() {
        Some("kube") => PodsFrom::Kube(kube(flags, errors)),
        Some(path) => {
            if !path.starts_with('/') {
                errors.push(PODS_FROM.invalid(path));
            }
            PodsFrom::Directory(PathBuf::from(path))
        }
        None => {
            errors.push(PODS_FROM.missing());
            PodsFrom::Directory(PathBuf::new())
        }
    }
}

fn kube(flags: &AgentFlags, errors: &mut Vec<ConfigError>) -> KubeConfig {
    let given = |value: &Option<String>| value.clone().filter(|value| !value.is_empty());
    let node = given(&flags.kube.node_name);
    match &node {
        None => errors.push(NODE_NAME.missing()),
        Some(node) if !is_node(node) => errors.push(NODE_NAME.invalid(node)),
        Some(_) => {}
    }
    let kubeconfig = given(&flags.kube.kubeconfig).map(|path| absolute(&KUBECONFIG, &path, errors));
    KubeConfig { node: node.unwrap_or_default(), kubeconfig, node_taint: flags.kube.node_taint }
}

/// A DNS subdomain (RFC 1123), as Kubernetes wants it.
fn is_node(name: &str) -> bool {
    let allowed =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.');
    (1..=253).contains(&name.len()) && name.bytes().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::flags;

    fn parsed(
        pods_from: &str,
        node: Option<&str>,
        kubeconfig: Option<&str>,
    ) -> Result<PodsFrom, Vec<String>> {
        let mut flags = AgentFlags { pods_from: Some(pods_from.to_owned()), ..flags() };
        flags.kube.node_name = node.map(str::to_owned);
        flags.kube.kubeconfig = kubeconfig.map(str::to_owned);
        let mut errors = Vec::new();
        let pods_from = parse(&flags, &mut errors);
        if errors.is_empty() { Ok(pods_from) } else { Err(errors.iter().map(ToString::to_string).collect()) }
    }

    #[test]
    fn pods_come_from_the_api_server_or_a_directory() {
        assert_eq!(parsed("/pods", None, None), Ok(PodsFrom::Directory(PathBuf::from("/pods"))));
        let kube = |kubeconfig: Option<&str>| {
            Ok(PodsFrom::Kube(KubeConfig {
                node: "n-1.zone".to_owned(),
                kubeconfig: kubeconfig.map(PathBuf::from),
                node_taint: false,
            }))
        };
        assert_eq!(parsed("kube", Some("n-1.zone"), None), kube(None));
        assert_eq!(parsed("kube", Some("n-1.zone"), Some("")), kube(None), "an empty variable is not set");
        assert_eq!(parsed("kube", Some("n-1.zone"), Some("/k")), kube(Some("/k")));
    }

    #[test]
    fn the_api_server_wants_to_know_which_node_and_how_to_be_found() {
        for (node, kubeconfig, wrong) in [
            (None, None, "--node-name (or VEER_NODE_NAME) is missing: this node's name in the cluster"),
            (Some(""), None, "--node-name (or VEER_NODE_NAME) is missing"),
            (Some("Node_1"), None, "--node-name (or VEER_NODE_NAME): \"Node_1\" is not this node's name"),
            (
                Some("n"),
                Some("config"),
                "--kubeconfig (or VEER_KUBECONFIG): \"config\" is not an absolute path",
            ),
        ] {
            let errors = parsed("kube", node, kubeconfig).unwrap_err();
            assert!(errors.len() == 1 && errors[0].starts_with(wrong), "{errors:?}");
        }
    }
}
