//! The verdict against the table of the interception contract, row by row, and against istio-init's own
//! rules, which an interpreter of iptables runs.

use std::net::{IpAddr, Ipv4Addr};

use crate::address::{Address, Port};
use crate::interface::kind;
use crate::maps::{PodPolicy, PortList, RangeList, flag};
use crate::reason::Reason;
use crate::rule::{Rule, Trace};
use crate::verdict::Rules;

mod agreement;
mod ambient;
mod before_proxy;
mod dns;
mod impostor;
mod iptables;
mod table;
mod tproxy;

/// The proxy's id in most tests, the app's, and one that is neither.
const PROXY: u32 = 1337;
const APP: u32 = 1000;
const ROOT: u32 = 0;

/// A range as an annotation names it: host bits are allowed.
type Range = (IpAddr, u8);

/// A pod: what its annotations say, its node, and its addresses. Both the verdict and the iptables rules
/// are made from it.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a setting of its own")]
struct Scene {
    proxy_uid: u32,
    proxy_gid: u32,
    tproxy: bool,
    /// ztunnel is its proxy.
    ambient: bool,
    captures_dns: bool,
    /// Its proxy has not listened yet, and connections go direct until it does.
    before_proxy: bool,
    dual_stack: bool,
    /// In netlink's order: IPv4 first.
    own: Vec<IpAddr>,
    excluded_outbound: Vec<u16>,
    included_outbound: Vec<u16>,
    /// `None` is `*`.
    included_ranges: Option<Vec<Range>>,
    excluded_ranges: Vec<Range>,
    /// `None` is `*`.
    included_inbound: Option<Vec<u16>>,
    excluded_inbound: Vec<u16>,
    /// `Err` are those that are not captured, `Ok` those that alone are.
    groups: Result<Vec<u32>, Vec<u32>>,
    /// What counts as localhost.
    localhost: (Ipv4Addr, u8),
    excluded_interfaces: Vec<u32>,
    rerouted_interfaces: Vec<u32>,
    /// The interface that each destination out of the pod leaves by: all but the default, which is [`ETH0`].
    routes: Vec<(Range, u32)>,
}

/// The pod's main interface, and a second one.
const ETH0: u32 = 2;
const NET1: u32 = 3;
const LO: u32 = 1;

impl Scene {
    /// An injected pod without any annotation of its own, with addresses of both families.
    fn default_pod() -> Self {
        Self {
            proxy_uid: PROXY,
            proxy_gid: PROXY,
            tproxy: false,
            ambient: false,
            captures_dns: false,
            before_proxy: false,
            dual_stack: true,
            own: addresses(&["10.0.0.5", "192.168.7.5", "2001:db8::5", "fd00::5", "fe80::5", "::6"]),
            excluded_outbound: vec![15020],
            included_outbound: vec![],
            included_ranges: None,
            excluded_ranges: vec![],
            included_inbound: None,
            excluded_inbound: vec![15020, 15021, 15090],
            groups: Err(vec![]),
            localhost: (Ipv4Addr::LOCALHOST, 32),
            excluded_interfaces: vec![],
            rerouted_interfaces: vec![],
            routes: vec![],
        }
    }

    /// The interface that the longest route to an address names.
    fn route_to(&self, destination: IpAddr) -> u32 {
        let holding = self.routes.iter().filter(|((network, length), _)| match (network, destination) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                (u32::from(*network) ^ u32::from(address)).leading_zeros() >= u32::from(*length)
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                (u128::from(*network) ^ u128::from(address)).leading_zeros() >= u32::from(*length)
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        });
        holding.max_by_key(|((_, length), _)| *length).map_or(ETH0, |(_, interface)| *interface)
    }

    /// What the agent would put into the map of pods.
    fn policy(&self) -> PodPolicy {
        let v4 = self.own.iter().any(IpAddr::is_ipv4);
        let routable_v4 = self.own.iter().any(|address| match address {
            IpAddr::V4(v4) => !v4.is_link_local(),
            IpAddr::V6(_) => false,
        });
        let v6 = self.own.iter().any(|address| match address {
            IpAddr::V6(v6) => !v6.is_unicast_link_local() && address.to_string() != "::6",
            IpAddr::V4(_) => false,
        });
        let includes_loopback = self
            .included_ranges
            .as_ref()
            .is_some_and(|ranges| ranges.iter().any(|(address, _)| address.to_canonical().is_loopback()));
        let flags = [
            (flag::INBOUND_ALL, self.included_inbound.is_none()),
            (flag::OUTBOUND_ALL, self.included_ranges.is_none()),
            (flag::EXCLUDES_OUTBOUND_PORTS, !self.excluded_outbound.is_empty()),
            (flag::INCLUDES_OUTBOUND_PORTS, !self.included_outbound.is_empty()),
            (flag::EXCLUDES_RANGES, !self.excluded_ranges.is_empty()),
            (flag::INCLUDES_LOOPBACK, includes_loopback),
            (flag::EXCLUDES_GROUPS, self.groups.as_ref().is_err_and(|groups| !groups.is_empty())),
            (flag::INCLUDES_GROUPS, self.groups.is_ok()),
            (flag::TPROXY, self.tproxy),
            (flag::AMBIENT, self.ambient),
            (flag::DNS_CAPTURE, self.captures_dns),
            (flag::HAS_V4, v4),
            (flag::HAS_V6, v6),
            (flag::CAPTURES_V6, v6 && (self.dual_stack || !routable_v4)),
            (flag::EXCLUDES_INTERFACES, !self.excluded_interfaces.is_empty()),
            (flag::REROUTES_INTERFACES, !self.rerouted_interfaces.is_empty()),
        ];
        let (network, length) = self.localhost;
        let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
        let network = Ipv4Addr::from(u32::from(network) & mask);
        let mask = Ipv4Addr::from(mask);
        let word = |address: Ipv4Addr| u32::from_ne_bytes(address.octets());
        PodPolicy {
            flags: flags.into_iter().filter(|(_, on)| *on).map(|(bit, _)| bit).sum(),
            proxy_uid: self.proxy_uid,
            proxy_gid: self.proxy_gid,
            outbound_port: Port::new(15001),
            inbound_port: Port::new(15006),
            tunnel_port: Port::new(15008),
            dns_port: Port::new(15053),
            _reserved: [0; 4],
            localhost: word(network),
            localhost_mask: word(mask),
            source_v4: Address::UNSPECIFIED,
            source_v6: Address::UNSPECIFIED,
        }
    }
}

impl Rules for Scene {
    fn port_listed(&self, list: PortList, port: Port) -> bool {
        let none = vec![];
        let ports = match list {
            PortList::ExcludedOutbound => &self.excluded_outbound,
            PortList::IncludedOutbound => &self.included_outbound,
            PortList::ExcludedInbound => &self.excluded_inbound,
            PortList::IncludedInbound => self.included_inbound.as_ref().unwrap_or(&none),
        };
        ports.contains(&port.get())
    }

    fn range_listed(&self, list: RangeList, address: &Address) -> bool {
        let none = vec![];
        let ranges = match list {
            RangeList::ExcludedV4 | RangeList::ExcludedV6 => &self.excluded_ranges,
            RangeList::IncludedV4 | RangeList::IncludedV6 => self.included_ranges.as_ref().unwrap_or(&none),
            RangeList::Groups => &none,
        };
        let address = IpAddr::from(*address);
        ranges.iter().any(|(network, length)| match (list, network, address) {
            (RangeList::IncludedV4 | RangeList::ExcludedV4, IpAddr::V4(network), IpAddr::V4(address)) => {
                let bits = u32::from(*network) ^ u32::from(address);
                bits.leading_zeros() >= u32::from(*length)
            }
            (RangeList::IncludedV6 | RangeList::ExcludedV6, IpAddr::V6(network), IpAddr::V6(address)) => {
                let bits = u128::from(*network) ^ u128::from(address);
                bits.leading_zeros() >= u32::from(*length)
            }
            _ => false,
        })
    }

    fn own_address(&self, address: &Address) -> bool {
        self.own.contains(&IpAddr::from(*address))
    }

    fn group_listed(&self, gid: u32) -> bool {
        let (Ok(groups) | Err(groups)) = &self.groups;
        groups.contains(&gid)
    }

    fn interface_is(&self, index: u32, kind: u32) -> bool {
        let named =
            if kind == kind::EXCLUDED { &self.excluded_interfaces } else { &self.rerouted_interfaces };
        named.contains(&index)
    }

    fn route_excluded(&self, destination: &Address) -> bool {
        self.excluded_interfaces.contains(&self.route_to(IpAddr::from(*destination)))
    }
}

/// The rules that a verdict looked at.
#[derive(Default, Debug)]
struct Trail(Vec<(Rule, bool)>);

impl Trace for Trail {
    fn looked_at(&mut self, rule: Rule, matched: bool) -> bool {
        self.0.push((rule, matched));
        matched
    }
}

impl Trail {
    /// Whether the last rule alone matched, gives this reason, and all were looked at in their order.
    fn leads_to(&self, reason: Reason) -> bool {
        let Some(((last, matched), before)) = self.0.split_last() else { return false };
        let place = |rule: &Rule| Rule::ALL.iter().position(|other| other == rule);
        *matched
            && last.reason() == reason
            && before.iter().all(|(_, matched)| !matched)
            && self.0.iter().is_sorted_by(|(left, _), (right, _)| place(left) < place(right))
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn addresses(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| ip(text)).collect()
}

fn ranges(texts: &[&str]) -> Vec<Range> {
    let range = |text: &&str| {
        let (address, length) = text.split_once('/').unwrap();
        (ip(address), length.parse().unwrap())
    };
    texts.iter().map(range).collect()
}
