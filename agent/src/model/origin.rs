//! Where each setting of a pod's capture comes from: what `veer explain` gives as the cause.
//!
//! Owns: the settings by name ([`Setting`]) and, for each, what on the pod or the node said so ([`Origin`]).
//! Never does: judge a value; [`decide`](super::decide) does. It looks where that looks, through the same
//! names. Called by: the CNI server at ADD, and the control socket for pods of an earlier agent.
//!
//! A new setting is a variant of [`Setting`] with its line in [`Setting::ALL`] and in [`Origins::of`].

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::annotation::{self, environment, name};
use super::asked::{self, Asked, AskedBy};
use super::capture::{BeforeProxy, Driver, OwnerGroups, ProxyIdentity};
use super::decision::{self, DEFAULT_PROXY_ID, NodeSettings, PROXY_CONTAINER};
use super::manifest::{Container, Pod};
use super::quoted::Quoted;

/// Flags of `veer agent`.
const INCLUDE_GROUPS: &str = "--outbound-owner-groups";
const EXCLUDE_GROUPS: &str = "--outbound-owner-groups-exclude";
const LOOPBACK: &str = "--host-ipv4-loopback-cidr";
const PROXY_IDENTITY: &str = "--proxy-identity";
const BEFORE_PROXY: &str = "--before-proxy";
/// The field of a pod's spec.
const HOST_USERS: &str = "spec.hostUsers";

/// What a pod or a node sets.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Setting {
    /// The proxy's uid.
    ProxyUid,
    /// The proxy's gid.
    ProxyGid,
    /// REDIRECT or TPROXY.
    Mode,
    /// Which inbound ports are captured.
    IncludedInboundPorts,
    /// Which are not, where all are.
    ExcludedInboundPorts,
    /// Which outbound addresses are captured.
    IncludedRanges,
    /// Which are not.
    ExcludedRanges,
    /// Which outbound ports are captured whatever the address.
    IncludedOutboundPorts,
    /// Which are not, whatever the address.
    ExcludedOutboundPorts,
    /// Interfaces that are left alone.
    ExcludedInterfaces,
    /// Interfaces of virtual machines.
    ReroutedInterfaces,
    /// Whether DNS goes to the proxy.
    DnsCapture,
    /// Whether IPv6 is captured beside IPv4.
    DualStack,
    /// Whose outbound connections are captured.
    OwnerGroups,
    /// What counts as localhost.
    Loopback,
    /// Whether the proxy is known by its ids alone, or by its container, too.
    ProxyIdentity,
    /// What becomes of connections before the proxy has listened.
    BeforeProxy,
    /// Whether the pod's ids are the node's.
    HostUsers,
    /// Who drives the pod's proxy.
    Driver,
}

/// What said so.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "camelCase")]
pub enum Origin {
    /// An annotation of the pod.
    Annotation {
        /// Its name.
        name: String,
        /// Its value as written.
        value: String,
    },
    /// A label of the pod.
    Label {
        /// Its name.
        name: String,
        /// Its value.
        value: String,
    },
    /// A label of the pod's namespace.
    NamespaceLabel {
        /// The namespace.
        namespace: String,
        /// The label's name.
        name: String,
        /// Its value.
        value: String,
    },
    /// An environment variable of the proxy's container.
    Environment {
        /// Its name.
        name: String,
        /// Its value as written.
        value: String,
    },
    /// The securityContext of the proxy's container.
    SecurityContext {
        /// The field.
        field: String,
        /// What it holds.
        value: i64,
    },
    /// The spec of the pod.
    Spec {
        /// The field.
        field: String,
        /// What it holds.
        value: bool,
    },
    /// A flag of the node's agent.
    Node {
        /// The flag.
        flag: String,
        /// What it holds.
        value: String,
    },
    /// Nobody: where it would be said is empty.
    Default {
        /// Where it would be said.
        name: String,
        /// What holds then.
        value: String,
    },
}

/// The origin of every setting of a pod.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Origins(BTreeMap<Setting, Origin>);

impl Setting {
    /// All settings.
    pub const ALL: [Self; 19] = [
        Self::ProxyUid,
        Self::ProxyGid,
        Self::Mode,
        Self::IncludedInboundPorts,
        Self::ExcludedInboundPorts,
        Self::IncludedRanges,
        Self::ExcludedRanges,
        Self::IncludedOutboundPorts,
        Self::ExcludedOutboundPorts,
        Self::ExcludedInterfaces,
        Self::ReroutedInterfaces,
        Self::DnsCapture,
        Self::DualStack,
        Self::OwnerGroups,
        Self::Loopback,
        Self::ProxyIdentity,
        Self::BeforeProxy,
        Self::HostUsers,
        Self::Driver,
    ];

    /// Where it is said: an annotation, a variable or a field of the proxy's container, or a flag.
    pub const fn place(self) -> &'static str {
        match self {
            Self::ProxyUid => "securityContext.runAsUser",
            Self::ProxyGid => "securityContext.runAsGroup",
            Self::Mode => name::INTERCEPTION_MODE,
            Self::IncludedInboundPorts => name::INCLUDE_INBOUND_PORTS,
            Self::ExcludedInboundPorts => name::EXCLUDE_INBOUND_PORTS,
            Self::IncludedRanges => name::INCLUDE_OUTBOUND_RANGES,
            Self::ExcludedRanges => name::EXCLUDE_OUTBOUND_RANGES,
            Self::IncludedOutboundPorts => name::INCLUDE_OUTBOUND_PORTS,
            Self::ExcludedOutboundPorts => name::EXCLUDE_OUTBOUND_PORTS,
            Self::ExcludedInterfaces => name::EXCLUDE_INTERFACES,
            Self::ReroutedInterfaces => name::REROUTE_INTERFACES,
            Self::DnsCapture => environment::DNS_CAPTURE,
            Self::DualStack => environment::DUAL_STACK,
            Self::OwnerGroups => INCLUDE_GROUPS,
            Self::Loopback => LOOPBACK,
            Self::ProxyIdentity => PROXY_IDENTITY,
            Self::BeforeProxy => BEFORE_PROXY,
            Self::HostUsers => HOST_USERS,
            Self::Driver => name::PROXY,
        }
    }
}

impl Origins {
    /// The origins of a pod that is captured.
    pub fn of(pod: &Pod, node: &NodeSettings) -> Self {
        let proxy = pod.container(PROXY_CONTAINER);
        let annotations = &pod.metadata.annotations;
        let rerouted = decision::reroute_annotation(annotations);
        let asked = asked::served_by(pod, node);
        let by_ztunnel = asked.filter(|asked| asked.driver == Driver::Ztunnel);
        let origin = |setting| match setting {
            Setting::ProxyUid => identity("runAsUser", proxy.and_then(|p| p.security_context.run_as_user)),
            Setting::ProxyGid => identity("runAsGroup", proxy.and_then(|p| p.security_context.run_as_group)),
            Setting::Mode => annotated(annotations, name::INTERCEPTION_MODE, "REDIRECT"),
            Setting::IncludedInboundPorts if by_ztunnel.is_some() => {
                annotated(annotations, name::AMBIENT_BYPASS_INBOUND, "false")
            }
            Setting::DnsCapture if by_ztunnel.is_some() => {
                annotated(annotations, name::AMBIENT_DNS_CAPTURE, "true")
            }
            Setting::IncludedInboundPorts => annotated(annotations, name::INCLUDE_INBOUND_PORTS, "*"),
            Setting::ExcludedInboundPorts => annotated(annotations, name::EXCLUDE_INBOUND_PORTS, "15020"),
            Setting::IncludedRanges => by_ztunnel.map_or_else(
                || annotated(annotations, name::INCLUDE_OUTBOUND_RANGES, "*"),
                |asked| labelled(pod, asked),
            ),
            Setting::ExcludedRanges => annotated(annotations, name::EXCLUDE_OUTBOUND_RANGES, ""),
            Setting::IncludedOutboundPorts => annotated(annotations, name::INCLUDE_OUTBOUND_PORTS, ""),
            Setting::ExcludedOutboundPorts => annotated(annotations, name::EXCLUDE_OUTBOUND_PORTS, "15020"),
            Setting::ExcludedInterfaces => annotated(annotations, name::EXCLUDE_INTERFACES, ""),
            Setting::ReroutedInterfaces => annotated(annotations, rerouted, ""),
            Setting::DnsCapture => variable(proxy, environment::DNS_CAPTURE),
            Setting::DualStack => {
                asked.map_or_else(|| variable(proxy, environment::DUAL_STACK), |asked| labelled(pod, asked))
            }
            Setting::OwnerGroups => owner_groups(&node.owner_groups),
            Setting::Loopback => loopback(node),
            Setting::ProxyIdentity => proxy_identity(node.proxy_identity),
            Setting::BeforeProxy => before_proxy(node.before_proxy),
            Setting::HostUsers => host_users(pod.spec.host_users),
            Setting::Driver => asked.map_or_else(by_sidecar, |asked| labelled(pod, asked)),
        };
        Self(Setting::ALL.into_iter().map(|setting| (setting, origin(setting))).collect())
    }

    /// Where a setting comes from; `None` from an agent of another release, which knew fewer.
    pub fn get(&self, setting: Setting) -> Option<&Origin> {
        self.0.get(&setting)
    }
}

fn annotated(annotations: &BTreeMap<String, String>, name: &str, default: &str) -> Origin {
    let name = name.to_owned();
    match annotations.get(&name) {
        Some(value) => Origin::Annotation { name, value: value.clone() },
        None => Origin::Default { name, value: default.to_owned() },
    }
}

fn by_sidecar() -> Origin {
    Origin::Default { name: name::PROXY.to_owned(), value: Driver::Sidecar.name().to_owned() }
}

/// What asks for the node's proxy: the pod's label, or its namespace's.
fn labelled(pod: &Pod, asked: Asked) -> Origin {
    let (name, value) = asked.label();
    let (name, value) = (name.to_owned(), value.to_owned());
    match asked.by {
        AskedBy::Pod => Origin::Label { name, value },
        AskedBy::Namespace => {
            Origin::NamespaceLabel { namespace: pod.metadata.namespace.clone(), name, value }
        }
    }
}

fn variable(proxy: Option<&Container>, name: &str) -> Origin {
    let value = proxy.and_then(|container| decision::variable(container, name));
    let name = name.to_owned();
    match value {
        Some(value) => Origin::Environment { name, value: value.to_owned() },
        None => Origin::Default { name, value: false.to_string() },
    }
}

/// Zero counts as unset, as it does for [`decide`](super::decide).
fn identity(field: &str, value: Option<i64>) -> Origin {
    match value {
        None | Some(0) => {
            Origin::Default { name: format!("securityContext.{field}"), value: DEFAULT_PROXY_ID.to_string() }
        }
        Some(value) => Origin::SecurityContext { field: field.to_owned(), value },
    }
}

fn owner_groups(groups: &OwnerGroups) -> Origin {
    let listed = |groups: &std::collections::BTreeSet<u32>| {
        groups.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
    };
    match groups {
        OwnerGroups::AllExcept(none) if none.is_empty() => {
            Origin::Default { name: INCLUDE_GROUPS.to_owned(), value: "*".to_owned() }
        }
        OwnerGroups::AllExcept(groups) => {
            Origin::Node { flag: EXCLUDE_GROUPS.to_owned(), value: listed(groups) }
        }
        OwnerGroups::Only(groups) => Origin::Node { flag: INCLUDE_GROUPS.to_owned(), value: listed(groups) },
    }
}

fn loopback(node: &NodeSettings) -> Origin {
    let value = node.loopback.to_string();
    if node.loopback == NodeSettings::default().loopback {
        Origin::Default { name: LOOPBACK.to_owned(), value }
    } else {
        Origin::Node { flag: LOOPBACK.to_owned(), value }
    }
}

fn proxy_identity(identity: ProxyIdentity) -> Origin {
    let value = identity.name().to_owned();
    match identity {
        ProxyIdentity::Uid => Origin::Default { name: PROXY_IDENTITY.to_owned(), value },
        ProxyIdentity::Container => Origin::Node { flag: PROXY_IDENTITY.to_owned(), value },
    }
}

fn before_proxy(before: BeforeProxy) -> Origin {
    let value = before.name().to_owned();
    match before {
        BeforeProxy::Refuse => Origin::Default { name: BEFORE_PROXY.to_owned(), value },
        BeforeProxy::Direct => Origin::Node { flag: BEFORE_PROXY.to_owned(), value },
    }
}

/// `null` counts as unset, as it does for the API server.
fn host_users(value: Option<bool>) -> Origin {
    let name = HOST_USERS.to_owned();
    match value {
        Some(value) => Origin::Spec { field: name, value },
        None => Origin::Default { name, value: true.to_string() },
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Annotation { name, value } => write!(f, "annotation {name}={}", Quoted(value)),
            Self::Label { name, value } => write!(f, "label {name}={}", Quoted(value)),
            Self::NamespaceLabel { namespace, name, value } => {
                write!(f, "label {name}={} of namespace {namespace}", Quoted(value))
            }
            Self::Environment { name, value } => {
                let note =
                    if annotation::go_bool(value).is_none() { ", no boolean, taken as false" } else { "" };
                write!(f, "environment of {PROXY_CONTAINER}: {name}={}{note}", Quoted(value))
            }
            Self::SecurityContext { field, value } => {
                write!(f, "container {PROXY_CONTAINER}: securityContext.{field} {value}")
            }
            Self::Spec { field, value } => write!(f, "{field} {value}"),
            Self::Node { flag, value } => write!(f, "the node's agent: {flag}={value}"),
            Self::Default { name, value } => write!(f, "{name} is absent: default {}", Quoted(value)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origins(annotations: &str, proxy: &str) -> Origins {
        let text = format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: cart, annotations: {{{annotations}}}}}, \
             spec: {{containers: [{{name: istio-proxy{proxy}}}]}}}}"
        );
        Origins::of(&Pod::from_manifest(text.as_bytes()).unwrap(), &NodeSettings::default())
    }

    fn shown(origins: &Origins, setting: Setting) -> String {
        origins.get(setting).unwrap().to_string()
    }

    #[test]
    fn what_nobody_said_is_a_default() {
        let origins = origins("", "");
        for setting in Setting::ALL {
            assert!(matches!(origins.get(setting), Some(Origin::Default { .. })), "{setting:?}");
        }
        assert_eq!(
            shown(&origins, Setting::IncludedRanges),
            "traffic.sidecar.istio.io/includeOutboundIPRanges is absent: default \"*\""
        );
    }

    #[test]
    fn what_was_said_is_shown_as_it_was_written() {
        let origins = origins(
            "traffic.sidecar.istio.io/excludeOutboundPorts: ' 443,25', \
             traffic.sidecar.istio.io/kubevirtInterfaces: net1",
            ", env: [{name: ISTIO_DUAL_STACK, value: 'yes'}, {name: ISTIO_META_DNS_CAPTURE, value: 'true'}], \
             securityContext: {runAsUser: 2000, runAsGroup: 0}",
        );
        for (setting, text) in [
            (
                Setting::ExcludedOutboundPorts,
                "annotation traffic.sidecar.istio.io/excludeOutboundPorts=\" 443,25\"",
            ),
            (Setting::ReroutedInterfaces, "annotation traffic.sidecar.istio.io/kubevirtInterfaces=\"net1\""),
            (
                Setting::DualStack,
                "environment of istio-proxy: ISTIO_DUAL_STACK=\"yes\", no boolean, taken as false",
            ),
            (Setting::DnsCapture, "environment of istio-proxy: ISTIO_META_DNS_CAPTURE=\"true\""),
            (Setting::ProxyUid, "container istio-proxy: securityContext.runAsUser 2000"),
            (Setting::ProxyGid, "securityContext.runAsGroup is absent: default \"1337\""),
        ] {
            assert_eq!(shown(&origins, setting), text);
        }
    }

    #[test]
    fn origins_survive_the_control_socket() {
        let origins = origins("traffic.sidecar.istio.io/excludeOutboundPorts: '443'", "");
        let text = serde_json::to_string(&origins).unwrap();
        assert_eq!(serde_json::from_str::<Origins>(&text).unwrap(), origins);
    }
}
