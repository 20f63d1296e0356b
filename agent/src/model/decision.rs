//! Whether a pod's traffic is captured, and how: the one place where all that was read of a pod meets.
//!
//! A pod is passed, untouched, for the first of the reasons of [`PassReason`] that holds, in the order
//! in which they stand there. Only a pod that is not passed has its annotations judged, so a mistake on
//! a pod that is not in the mesh harms nobody; and `NONE` passes whatever the other annotations say.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use ipnet::Ipv4Net;
use thiserror::Error;

use super::ambient;
use super::annotation::{self, RequestedMode, ValueError, environment, name};
use super::asked;
use super::capture::{
    BeforeProxy, Capture, Driver, EnvironmentWarning, IdSpace, InboundPorts, InterceptionMode,
    OutboundRanges, OwnerGroups, Presence, ProxyIdentity,
};
use super::manifest::{Container, Pod};
use super::quoted::Quoted;
use super::values::Port;

/// The proxy's uid and gid where the pod does not say.
pub const DEFAULT_PROXY_ID: u32 = 1337;
/// The proxy's container.
pub const PROXY_CONTAINER: &str = "istio-proxy";
/// The container that would program iptables; veer and it must not both act.
pub const INIT_CONTAINER: &str = "istio-init";
/// Inbound ports that are never captured: the proxy's merged metrics, readiness and own metrics.
pub const PROXY_OWN_PORTS: [u16; 3] = [15020, 15021, 15090];

const DEFAULT_EXCLUDED_PORT: Port = Port::new(15020);

/// What holds for all pods of the node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeSettings {
    /// Kubernetes namespaces whose pods are passed.
    pub excluded_namespaces: BTreeSet<String>,
    /// Whose outbound connections are captured.
    pub owner_groups: OwnerGroups,
    /// IPv4 addresses that count as the pod's localhost.
    pub loopback: Ipv4Net,
    /// What makes a process the proxy.
    pub proxy_identity: ProxyIdentity,
    /// What becomes of connections before a pod's proxy has listened.
    pub before_proxy: BeforeProxy,
    /// Whether there is a ztunnel to serve pods of ambient mode; without one they are left alone.
    pub ztunnel: bool,
}

/// What is to be done with a pod.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Decision {
    /// Nothing: its traffic is left alone.
    Pass(PassReason),
    /// Its traffic is captured like this.
    Capture(Box<Capture>),
}

/// Why a pod's traffic is left alone. They are tried in this order, and the first that holds is given.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum PassReason {
    /// It has no network namespace of its own.
    HostNetwork,
    /// Its Kubernetes namespace is excluded on this node.
    NamespaceExcluded,
    /// `sidecar.istio.io/inject` says false.
    InjectFalse,
    /// It has no `sidecar.istio.io/status`.
    NotInjected,
    /// It has no container named `istio-proxy`.
    NoProxyContainer,
    /// Its proxy is not a sidecar (`proxy router`).
    Gateway,
    /// It still has an `istio-init` container, which redirects by itself.
    IstioInitPresent,
    /// `DISABLE_ENVOY`: proxyless gRPC.
    EnvoyDisabled,
    /// `sidecar.istio.io/interceptionMode` says NONE.
    ModeNone,
}

/// Everything that is wrong with a pod.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PodErrors {
    /// `namespace/name`.
    pub pod: String,
    /// All errors, at least one.
    pub errors: Vec<PodError>,
}

/// One thing that is wrong with a pod.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum PodError {
    /// An annotation.
    #[error("annotation {annotation}: {problem}{}", within(.value, .problem))]
    Annotation {
        /// Its name.
        annotation: &'static str,
        /// All of its value, shared by all that is wrong with it.
        value: Arc<str>,
        /// What is wrong with it.
        problem: ValueError,
    },
    /// TPROXY, where the node's proxy serves the pod.
    #[error(
        "annotation {}: TPROXY needs a sidecar, and label {} of the pod or its namespace asks for the node's proxy: \
         remove one of them",
        name::INTERCEPTION_MODE,
        name::PROXY
    )]
    TproxyByNode,
    /// Virtual machines, where ztunnel serves the pod.
    #[error(
        "annotation {annotation}: what virtual machines send is not captured in ambient mode: remove it, or give the pod a sidecar"
    )]
    RerouteByZtunnel {
        /// Which of its two names it has.
        annotation: &'static str,
    },
    /// The proxy's identity.
    #[error("container {PROXY_CONTAINER}: securityContext.{field} {value} is not an id 0-4294967294")]
    Identity {
        /// The field.
        field: &'static str,
        /// What it holds.
        value: i64,
    },
}

/// Decides on a pod.
pub fn decide(pod: &Pod, node: &NodeSettings) -> Result<Decision, PodErrors> {
    let proxy = match pass_reason(pod, node) {
        Ok(proxy) => proxy,
        Err(reason) => return Ok(Decision::Pass(reason)),
    };
    let none = Container::default();
    let mut reader = Reader { annotations: &pod.metadata.annotations, errors: Vec::new() };
    let (proxy, driver) = match proxy {
        ServedBy::Sidecar(container) => (container, Driver::Sidecar),
        ServedBy::Node => (&none, Driver::Node),
        ServedBy::Ztunnel => {
            let capture = ambient::capture(&mut reader);
            return reader.end(pod, capture);
        }
    };
    let mode = match reader.one(name::INTERCEPTION_MODE, annotation::interception_mode) {
        Some(RequestedMode::Off) => return Ok(Decision::Pass(PassReason::ModeNone)),
        Some(RequestedMode::Capture(mode)) => mode,
        None => InterceptionMode::Redirect,
    };
    let mut capture = read_capture(pod, proxy, node, mode, &mut reader);
    if driver == Driver::Node {
        by_the_nodes_proxy(&mut capture, &mut reader.errors);
    }
    reader.end(pod, capture)
}

impl Default for NodeSettings {
    /// Istio's: no namespace excluded, every group captured, `127.0.0.1/32`, the proxy known by its ids, and nothing
    /// goes past it; no ztunnel.
    fn default() -> Self {
        Self {
            excluded_namespaces: BTreeSet::new(),
            owner_groups: OwnerGroups::AllExcept(BTreeSet::new()),
            loopback: Ipv4Net::from(std::net::Ipv4Addr::LOCALHOST),
            proxy_identity: ProxyIdentity::Uid,
            before_proxy: BeforeProxy::Refuse,
            ztunnel: false,
        }
    }
}

impl PassReason {
    /// All reasons, in the order in which they are tried.
    pub const ALL: [Self; 9] = [
        Self::HostNetwork,
        Self::NamespaceExcluded,
        Self::InjectFalse,
        Self::NotInjected,
        Self::NoProxyContainer,
        Self::Gateway,
        Self::IstioInitPresent,
        Self::EnvoyDisabled,
        Self::ModeNone,
    ];

    /// The name that commands, logs and metrics show.
    pub const fn name(self) -> &'static str {
        match self {
            Self::HostNetwork => "host-network",
            Self::NamespaceExcluded => "namespace-excluded",
            Self::InjectFalse => "inject-false",
            Self::NotInjected => "not-injected",
            Self::NoProxyContainer => "no-proxy-container",
            Self::Gateway => "gateway",
            Self::IstioInitPresent => "istio-init-present",
            Self::EnvoyDisabled => "envoy-disabled",
            Self::ModeNone => "mode-none",
        }
    }

    /// The reason as a sentence.
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::HostNetwork => "the pod uses the node's network",
            Self::NamespaceExcluded => "its namespace is excluded on this node",
            Self::InjectFalse => "its label or annotation sidecar.istio.io/inject is false",
            Self::NotInjected => "it has no annotation sidecar.istio.io/status: it was not injected",
            Self::NoProxyContainer => "it has no container istio-proxy",
            Self::Gateway => "its istio-proxy is a gateway, not a sidecar",
            Self::IstioInitPresent => "it has an istio-init container, which redirects by itself",
            Self::EnvoyDisabled => "DISABLE_ENVOY is true: it is proxyless",
            Self::ModeNone => "its annotation sidecar.istio.io/interceptionMode is NONE",
        }
    }
}

impl fmt::Display for PodErrors {
    /// All errors, up to a number that a person reads.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MOST: usize = 20;
        write!(f, "pod {}", self.pod)?;
        for (index, error) in self.errors.iter().take(MOST).enumerate() {
            write!(f, "{} {error}", if index == 0 { ":" } else { ";" })?;
        }
        match self.errors.len().checked_sub(MOST) {
            None | Some(0) => Ok(()),
            Some(more) => write!(f, "; and {more} more"),
        }
    }
}

impl std::error::Error for PodErrors {}

/// The whole value beside the part that is wrong, where they differ.
fn within(value: &str, problem: &ValueError) -> String {
    let part = match problem {
        ValueError::Port(part)
        | ValueError::Range(part)
        | ValueError::Interface(part)
        | ValueError::Mode(part)
        | ValueError::Boolean(part) => part,
        ValueError::AllPorts | ValueError::AllRanges => "*",
    };
    if part == value { String::new() } else { format!(" (in {})", Quoted(value)) }
}

/// What of a pod's capture the node's proxy says rather than the pod: it serves both families, and does not take
/// connections as their clients' own.
fn by_the_nodes_proxy(capture: &mut Capture, errors: &mut Vec<PodError>) {
    capture.driver = Driver::Node;
    capture.dual_stack = true;
    // It is a process of the node's, whosever users the pod's are.
    capture.ids = IdSpace::Node;
    if capture.mode == InterceptionMode::Tproxy {
        errors.push(PodError::TproxyByNode);
    }
}

/// What a pod's proxy is.
enum ServedBy<'a> {
    /// This container of its own.
    Sidecar(&'a Container),
    /// The node's Envoy.
    Node,
    /// The node's ztunnel.
    Ztunnel,
}

/// Why the pod is passed, else its proxy. The mode comes later, with the annotations.
fn pass_reason<'a>(pod: &'a Pod, node: &NodeSettings) -> Result<ServedBy<'a>, PassReason> {
    if pod.spec.host_network {
        return Err(PassReason::HostNetwork);
    }
    if node.excluded_namespaces.contains(&pod.metadata.namespace) {
        return Err(PassReason::NamespaceExcluded);
    }
    if let Some(asked) = asked::served_by(pod, node) {
        return if pod.container(INIT_CONTAINER).is_some() {
            Err(PassReason::IstioInitPresent)
        } else {
            Ok(if asked.driver == Driver::Ztunnel { ServedBy::Ztunnel } else { ServedBy::Node })
        };
    }
    let inject = pod.metadata.labels.get(name::INJECT).or_else(|| pod.metadata.annotations.get(name::INJECT));
    if inject.and_then(|value| annotation::go_bool(value)) == Some(false) {
        return Err(PassReason::InjectFalse);
    }
    if !pod.metadata.annotations.contains_key(name::STATUS) {
        return Err(PassReason::NotInjected);
    }
    let proxy = pod.container(PROXY_CONTAINER).ok_or(PassReason::NoProxyContainer)?;
    if let [first, kind, ..] = proxy.args.as_slice()
        && first == "proxy"
        && !matches!(kind.as_str(), "sidecar" | "")
    {
        return Err(PassReason::Gateway);
    }
    if pod.container(INIT_CONTAINER).is_some() {
        return Err(PassReason::IstioInitPresent);
    }
    if is_true(proxy, environment::DISABLE_ENVOY) {
        return Err(PassReason::EnvoyDisabled);
    }
    Ok(ServedBy::Sidecar(proxy))
}

fn read_capture(
    pod: &Pod,
    proxy: &Container,
    node: &NodeSettings,
    mode: InterceptionMode,
    reader: &mut Reader<'_>,
) -> Capture {
    let outbound = reader.list(name::INCLUDE_OUTBOUND_RANGES, annotation::included_outbound_ranges);
    let excluded_ranges = reader.list(name::EXCLUDE_OUTBOUND_RANGES, annotation::ranges);
    let included_inbound = reader.list(name::INCLUDE_INBOUND_PORTS, annotation::included_inbound_ports);
    let excluded_inbound = reader.list(name::EXCLUDE_INBOUND_PORTS, annotation::ports);
    let included_outbound_ports = reader.list(name::INCLUDE_OUTBOUND_PORTS, annotation::ports);
    let excluded_outbound_ports = reader.list(name::EXCLUDE_OUTBOUND_PORTS, annotation::ports);
    let excluded_interfaces = reader.list(name::EXCLUDE_INTERFACES, annotation::interfaces);
    let rerouted = reroute_annotation(reader.annotations);
    let rerouted_interfaces = reader.list(rerouted, annotation::interfaces);

    let identity = &proxy.security_context;
    Capture {
        proxy_uid: reader.identity("runAsUser", identity.run_as_user),
        proxy_gid: reader.identity("runAsGroup", identity.run_as_group),
        ids: if pod.spec.host_users == Some(false) { IdSpace::Pod } else { IdSpace::Node },
        mode,
        inbound: inbound(included_inbound.flatten(), excluded_inbound),
        outbound: outbound.unwrap_or(OutboundRanges::All),
        excluded_ranges: excluded_ranges.unwrap_or_default(),
        included_outbound_ports: included_outbound_ports.unwrap_or_default(),
        excluded_outbound_ports: excluded_outbound_ports.unwrap_or_else(default_excluded_ports),
        excluded_interfaces: excluded_interfaces.unwrap_or_default(),
        rerouted_interfaces: rerouted_interfaces.unwrap_or_default(),
        dns_capture: is_true(proxy, environment::DNS_CAPTURE),
        dual_stack: is_true(proxy, environment::DUAL_STACK),
        drop_invalid: is_true(proxy, environment::DROP_INVALID),
        owner_groups: node.owner_groups.clone(),
        loopback: node.loopback,
        proxy_identity: node.proxy_identity,
        before_proxy: node.before_proxy,
        driver: Driver::Sidecar,
        presence: Presence::Full,
        warnings: warnings(proxy),
    }
}

/// The annotation that counts: the deprecated one only where the other is absent.
pub(super) fn reroute_annotation(annotations: &BTreeMap<String, String>) -> &'static str {
    let former = annotations.contains_key(name::KUBEVIRT_INTERFACES);
    if former && !annotations.contains_key(name::REROUTE_INTERFACES) {
        name::KUBEVIRT_INTERFACES
    } else {
        name::REROUTE_INTERFACES
    }
}

/// An include list makes the exclude list irrelevant; the proxy's own ports are excluded whatever the pod says.
fn inbound(included: Option<BTreeSet<Port>>, excluded: Option<BTreeSet<Port>>) -> InboundPorts {
    if let Some(ports) = included {
        return InboundPorts::Only(ports);
    }
    let mut excluded = excluded.unwrap_or_else(default_excluded_ports);
    excluded.extend(PROXY_OWN_PORTS.map(Port::new));
    InboundPorts::All { excluded }
}

fn default_excluded_ports() -> BTreeSet<Port> {
    BTreeSet::from([DEFAULT_EXCLUDED_PORT])
}

/// An environment variable as the kernel would hand it over: of two with one name the last counts.
pub(super) fn variable<'a>(container: &'a Container, name: &str) -> Option<&'a str> {
    container.env.iter().rfind(|variable| variable.name == name).map(|variable| variable.value.as_str())
}

fn is_true(container: &Container, name: &str) -> bool {
    variable(container, name).and_then(annotation::go_bool) == Some(true)
}

fn warnings(container: &Container) -> Vec<EnvironmentWarning> {
    let wrong = |name| {
        let value = variable(container, name)?;
        annotation::go_bool(value).is_none().then(|| EnvironmentWarning { name, value: value.to_owned() })
    };
    environment::ALL.into_iter().filter_map(wrong).collect()
}

/// Reads annotations and gathers what is wrong with them.
pub(super) struct Reader<'a> {
    pub(super) annotations: &'a BTreeMap<String, String>,
    pub(super) errors: Vec<PodError>,
}

impl Reader<'_> {
    /// The capture, if nothing was wrong.
    fn end(self, pod: &Pod, capture: Capture) -> Result<Decision, PodErrors> {
        if self.errors.is_empty() {
            Ok(Decision::Capture(Box::new(capture)))
        } else {
            Err(PodErrors { pod: pod.full_name(), errors: self.errors })
        }
    }

    /// A value, if the annotation is there and right.
    pub(super) fn one<T>(
        &mut self,
        name: &'static str,
        parse: fn(&str) -> Result<T, ValueError>,
    ) -> Option<T> {
        let value = self.annotations.get(name)?;
        match parse(value) {
            Ok(parsed) => Some(parsed),
            Err(problem) => {
                self.errors.push(PodError::Annotation {
                    annotation: name,
                    value: value.as_str().into(),
                    problem,
                });
                None
            }
        }
    }

    /// A list, if the annotation is there and all of it is right.
    pub(super) fn list<T>(
        &mut self,
        name: &'static str,
        parse: fn(&str) -> Result<T, Vec<ValueError>>,
    ) -> Option<T> {
        let value = self.annotations.get(name)?;
        match parse(value) {
            Ok(parsed) => Some(parsed),
            Err(problems) => {
                let value: Arc<str> = value.as_str().into();
                let error =
                    |problem| PodError::Annotation { annotation: name, value: Arc::clone(&value), problem };
                self.errors.extend(problems.into_iter().map(error));
                None
            }
        }
    }

    /// An id of the proxy's; zero or nothing means the default.
    fn identity(&mut self, field: &'static str, value: Option<i64>) -> u32 {
        let value = match value {
            None | Some(0) => return DEFAULT_PROXY_ID,
            Some(value) => value,
        };
        match u32::try_from(value) {
            Ok(id) if id != u32::MAX => id,
            Ok(_) | Err(_) => {
                self.errors.push(PodError::Identity { field, value });
                DEFAULT_PROXY_ID
            }
        }
    }
}

#[cfg(test)]
mod tests;
