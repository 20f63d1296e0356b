//! One parser for each annotation value of the interception contract.
//!
//! They take what Istio's CNI plugin takes and refuse what it, or the iptables it calls, refuses; where
//! the two differ a test says so. A list's parser returns every element that is wrong, not the first.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use thiserror::Error;

use super::capture::{InterceptionMode, OutboundRanges};
use super::quoted::Quoted;
use super::values::{InterfaceName, Port};

/// Names of the annotations and of the labels that are read.
pub mod name {
    /// Written by the injector: its presence says that the pod is in the mesh.
    pub const STATUS: &str = "sidecar.istio.io/status";
    /// Label, else annotation: whether the pod wants injection at all.
    pub const INJECT: &str = "sidecar.istio.io/inject";
    /// Label of a pod without a sidecar: `node` has the node's proxy serve it.
    pub const PROXY: &str = "veer.dev/proxy";
    /// Label of a pod without a sidecar: `ambient` has the node's ztunnel serve it.
    pub const DATAPLANE_MODE: &str = "istio.io/dataplane-mode";
    /// Ambient: whether nothing inbound is captured.
    pub const AMBIENT_BYPASS_INBOUND: &str = "ambient.istio.io/bypass-inbound-capture";
    /// Ambient: whether DNS is captured.
    pub const AMBIENT_DNS_CAPTURE: &str = "ambient.istio.io/dns-capture";
    /// REDIRECT, TPROXY or NONE.
    pub const INTERCEPTION_MODE: &str = "sidecar.istio.io/interceptionMode";
    /// Outbound ranges that are captured.
    pub const INCLUDE_OUTBOUND_RANGES: &str = "traffic.sidecar.istio.io/includeOutboundIPRanges";
    /// Outbound ranges that are not captured.
    pub const EXCLUDE_OUTBOUND_RANGES: &str = "traffic.sidecar.istio.io/excludeOutboundIPRanges";
    /// Inbound ports that are captured.
    pub const INCLUDE_INBOUND_PORTS: &str = "traffic.sidecar.istio.io/includeInboundPorts";
    /// Inbound ports that are not captured.
    pub const EXCLUDE_INBOUND_PORTS: &str = "traffic.sidecar.istio.io/excludeInboundPorts";
    /// Outbound ports that are captured whatever the ranges say.
    pub const INCLUDE_OUTBOUND_PORTS: &str = "traffic.sidecar.istio.io/includeOutboundPorts";
    /// Outbound ports that are not captured.
    pub const EXCLUDE_OUTBOUND_PORTS: &str = "traffic.sidecar.istio.io/excludeOutboundPorts";
    /// Interfaces that are left alone.
    pub const EXCLUDE_INTERFACES: &str = "traffic.sidecar.istio.io/excludeInterfaces";
    /// Interfaces of virtual machines.
    pub const REROUTE_INTERFACES: &str = "istio.io/reroute-virtual-interfaces";
    /// The former name of [`REROUTE_INTERFACES`].
    pub const KUBEVIRT_INTERFACES: &str = "traffic.sidecar.istio.io/kubevirtInterfaces";
}

/// Names of the proxy's environment variables that are read. All are booleans.
pub mod environment {
    /// The pod's DNS goes through the proxy.
    pub const DNS_CAPTURE: &str = "ISTIO_META_DNS_CAPTURE";
    /// The proxy serves IPv4 and IPv6.
    pub const DUAL_STACK: &str = "ISTIO_DUAL_STACK";
    /// Packets that belong to no connection are dropped.
    pub const DROP_INVALID: &str = "INVALID_DROP";
    /// There is no Envoy: proxyless gRPC.
    pub const DISABLE_ENVOY: &str = "DISABLE_ENVOY";
    /// All of them.
    pub const ALL: [&str; 4] = [DNS_CAPTURE, DUAL_STACK, DROP_INVALID, DISABLE_ENVOY];
}

/// What the interception mode asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RequestedMode {
    /// Interception, in this mode.
    Capture(InterceptionMode),
    /// None.
    Off,
}

/// A part of an annotation's value that is not what the annotation takes.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum ValueError {
    /// An element of a list of ports.
    #[error("port {} is not a number 0-65535", Quoted(.0))]
    Port(String),
    /// `*` where all ports cannot be meant.
    #[error("port \"*\" is not taken here, each port must be named as a number 0-65535")]
    AllPorts,
    /// An element of a list of ranges.
    #[error("range {} is not a CIDR such as 10.0.0.0/8, 10.1.2.3/32 or 2001:db8::/32", Quoted(.0))]
    Range(String),
    /// `*` where all addresses cannot be meant, or not beside others.
    #[error("range \"*\" is not taken here, each range must be named as a CIDR such as 10.0.0.0/8")]
    AllRanges,
    /// An element of a list of interfaces.
    #[error(
        "interface {} is not a name of 1-15 letters, digits, '_', '.' and '-' that begins with a letter",
        Quoted(.0)
    )]
    Interface(String),
    /// An interception mode.
    #[error("mode {} is not REDIRECT, TPROXY or NONE", Quoted(.0))]
    Mode(String),
    /// A boolean.
    #[error("{} is not true or false", Quoted(.0))]
    Boolean(String),
}

/// `REDIRECT`, `TPROXY` or `NONE`.
pub fn interception_mode(value: &str) -> Result<RequestedMode, ValueError> {
    match value {
        "REDIRECT" => Ok(RequestedMode::Capture(InterceptionMode::Redirect)),
        "TPROXY" => Ok(RequestedMode::Capture(InterceptionMode::Tproxy)),
        "NONE" => Ok(RequestedMode::Off),
        _ => Err(ValueError::Mode(value.to_owned())),
    }
}

/// A boolean.
pub fn boolean(value: &str) -> Result<bool, ValueError> {
    go_bool(value).ok_or_else(|| ValueError::Boolean(value.to_owned()))
}

/// A list of ports, empty for an empty value. White space around a port is nothing.
pub fn ports(value: &str) -> Result<BTreeSet<Port>, Vec<ValueError>> {
    if value.trim().is_empty() {
        return Ok(BTreeSet::new());
    }
    collect(value.split(',').map(|element| match element.trim() {
        "*" => Err(ValueError::AllPorts),
        port => Port::parse(port).ok_or_else(|| ValueError::Port(element.to_owned())),
    }))
}

/// `*` (none here), or a list of ports: which inbound ports are captured.
pub fn included_inbound_ports(value: &str) -> Result<Option<BTreeSet<Port>>, Vec<ValueError>> {
    if value == "*" { Ok(None) } else { ports(value).map(Some) }
}

/// A list of ranges, empty for an empty value. Unlike in a list of ports, white space is an error.
pub fn ranges(value: &str) -> Result<BTreeSet<IpNet>, Vec<ValueError>> {
    if value.is_empty() {
        return Ok(BTreeSet::new());
    }
    collect(value.split(',').map(|element| match element {
        "*" => Err(ValueError::AllRanges),
        range => parse_range(range).ok_or_else(|| ValueError::Range(range.to_owned())),
    }))
}

/// `*`, or a list of ranges: which outbound addresses are captured.
pub fn included_outbound_ranges(value: &str) -> Result<OutboundRanges, Vec<ValueError>> {
    if value == "*" { Ok(OutboundRanges::All) } else { ranges(value).map(OutboundRanges::Only) }
}

/// A list of interfaces, empty for an empty value. White space around a name is nothing.
pub fn interfaces(value: &str) -> Result<BTreeSet<InterfaceName>, Vec<ValueError>> {
    if value.is_empty() {
        return Ok(BTreeSet::new());
    }
    collect(value.split(',').map(|element| {
        let name = element.trim();
        InterfaceName::parse(name).ok_or_else(|| ValueError::Interface(name.to_owned()))
    }))
}

/// A boolean as Go's `strconv.ParseBool` takes it.
pub fn go_bool(value: &str) -> Option<bool> {
    match value {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

/// All elements, or everything that is wrong with them.
fn collect<T: Ord>(
    elements: impl Iterator<Item = Result<T, ValueError>>,
) -> Result<BTreeSet<T>, Vec<ValueError>> {
    let mut good = BTreeSet::new();
    let mut bad = Vec::new();
    for element in elements {
        match element {
            Ok(value) => drop(good.insert(value)),
            Err(error) => bad.push(error),
        }
    }
    if bad.is_empty() { Ok(good) } else { Err(bad) }
}

/// As Go's `netip.ParsePrefix`: an address, a slash, and a length without sign or leading zero. Host
/// bits are allowed and kept.
fn parse_range(text: &str) -> Option<IpNet> {
    let (address, length) = text.rsplit_once('/')?;
    let address: IpAddr = address.parse().ok()?;
    let plain = length.bytes().all(|byte| byte.is_ascii_digit());
    let leading_zero = length.len() > 1 && length.starts_with('0');
    if !plain || leading_zero {
        return None;
    }
    IpNet::new(address, length.parse().ok()?).ok()
}

#[cfg(test)]
mod tests;
