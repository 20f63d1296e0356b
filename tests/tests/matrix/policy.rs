//! The pods of the matrix: what stands on each, told to veer as a manifest and to istio-init as arguments.

use veer_tests::manifest::Manifest;
use veer_tests::pod::TestPod;

/// What the injector makes of a pod, and what the node adds.
#[derive(Clone, Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of its own of the pod")]
pub(crate) struct Policy {
    pub(crate) name: String,
    pub(crate) include_ranges: Option<String>,
    pub(crate) exclude_ranges: Option<String>,
    pub(crate) include_outbound: Option<String>,
    pub(crate) exclude_outbound: Option<String>,
    pub(crate) include_inbound: Option<String>,
    pub(crate) exclude_inbound: Option<String>,
    pub(crate) exclude_interfaces: Option<String>,
    /// Behind which virtual machines are said to be.
    pub(crate) reroute: Option<String>,
    pub(crate) tproxy: bool,
    pub(crate) v4_only: bool,
    pub(crate) dns: bool,
    pub(crate) proxy_user: Option<u32>,
    /// Nobody listens on the proxy's ports.
    pub(crate) proxy_is_away: bool,
    pub(crate) node: Node,
}

/// A setting of the node.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) enum Node {
    #[default]
    Plain,
    IncludesGroups(&'static str),
    ExcludesGroups(&'static str),
    Loopback(&'static str),
}

impl Policy {
    pub(crate) fn manifest(&self, pod: &TestPod) -> Manifest {
        let mut manifest = pod.manifest();
        for (name, value) in self.annotations() {
            manifest = manifest.with_traffic(name, value);
        }
        if self.tproxy {
            manifest = manifest.with_annotation("sidecar.istio.io/interceptionMode", "TPROXY");
        }
        if !self.v4_only {
            manifest = manifest.with_dual_stack();
        }
        if self.dns {
            manifest = manifest.with_proxy_env("ISTIO_META_DNS_CAPTURE", "true");
        }
        if let Some(interfaces) = &self.reroute {
            manifest = manifest.with_annotation("istio.io/reroute-virtual-interfaces", interfaces);
        }
        match self.proxy_user {
            Some(uid) => manifest.with_proxy_user(uid),
            None => manifest,
        }
    }

    fn annotations(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let all = [
            ("includeOutboundIPRanges", &self.include_ranges),
            ("excludeOutboundIPRanges", &self.exclude_ranges),
            ("includeOutboundPorts", &self.include_outbound),
            ("excludeOutboundPorts", &self.exclude_outbound),
            ("includeInboundPorts", &self.include_inbound),
            ("excludeInboundPorts", &self.exclude_inbound),
            ("excludeInterfaces", &self.exclude_interfaces),
        ];
        all.into_iter().filter_map(|(name, value)| Some((name, value.as_deref()?)))
    }

    /// What the injector's template writes for these annotations.
    pub(crate) fn arguments(&self) -> Vec<String> {
        let mut arguments = Vec::new();
        let mut flag = |flag: &str, value: &str| arguments.extend([flag.to_owned(), value.to_owned()]);
        for (annotation, value) in self.annotations() {
            match annotation {
                "includeOutboundIPRanges" => flag("-i", value),
                "excludeOutboundIPRanges" => flag("-x", value),
                "includeOutboundPorts" => flag("-q", value),
                "excludeOutboundPorts" => flag("-o", value),
                "includeInboundPorts" => flag("-b", value),
                "excludeInterfaces" => flag("-c", value),
                _ => flag("-d", &format!("15090,15021,15020,{value}")),
            }
        }
        if self.tproxy {
            flag("-m", "TPROXY");
        }
        if let Some(interfaces) = &self.reroute {
            flag("-k", interfaces);
        }
        if let Some(uid) = self.proxy_user {
            flag("-u", &uid.to_string());
        }
        if !self.v4_only {
            arguments.push("--dual-stack".to_owned());
        }
        if self.dns {
            arguments.extend(["--redirect-dns", "--capture-all-dns"].map(str::to_owned));
        }
        arguments
    }
}

impl Node {
    /// For the agent.
    pub(crate) fn flags(&self) -> Vec<String> {
        match self {
            Self::Plain => vec![],
            Self::IncludesGroups(groups) => vec![format!("--outbound-owner-groups={groups}")],
            Self::ExcludesGroups(groups) => vec![format!("--outbound-owner-groups-exclude={groups}")],
            Self::Loopback(range) => vec![format!("--host-ipv4-loopback-cidr={range}")],
        }
    }

    /// For istio-init.
    pub(crate) fn environment(&self) -> Vec<(&'static str, &'static str)> {
        match self {
            Self::Plain => vec![],
            Self::IncludesGroups(groups) => vec![("ISTIO_OUTBOUND_OWNER_GROUPS", groups)],
            Self::ExcludesGroups(groups) => vec![("ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE", groups)],
            Self::Loopback(range) => vec![("ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR", range)],
        }
    }
}

/// A policy by its name and what differs from a pod without annotations.
fn named(name: &str, change: impl FnOnce(&mut Policy)) -> Policy {
    let mut policy = Policy { name: name.to_owned(), ..Policy::default() };
    change(&mut policy);
    policy
}

/// The pods that every run has.
pub(crate) fn all() -> Vec<Policy> {
    let mut policies = of_connections();
    policies.extend(of_resolvers());
    policies.extend(of_interfaces());
    policies
}

fn of_interfaces() -> Vec<Policy> {
    let excluding = |interfaces: &str| Some(interfaces.to_owned());
    vec![
        named("net1 excluded", |pod| pod.exclude_interfaces = excluding("net1")),
        named("net1 excluded, DNS", |pod| {
            pod.exclude_interfaces = excluding("net1,net9");
            pod.dns = true;
        }),
        named("net1 excluded, TPROXY", |pod| {
            pod.exclude_interfaces = excluding("net1");
            pod.tproxy = true;
        }),
        named("net1 excluded, lists", |pod| {
            pod.exclude_interfaces = excluding("net1");
            pod.include_ranges = Some("10.99.0.0/16,fd99::/64,192.0.2.0/24".to_owned());
            pod.include_inbound = Some("80,8080,15006".to_owned());
        }),
        named("eth0 excluded, DNS", |pod| {
            pod.exclude_interfaces = excluding("eth0");
            pod.dns = true;
        }),
        named("lo excluded, DNS", |pod| {
            pod.exclude_interfaces = excluding("lo");
            pod.dns = true;
        }),
        named("net1 rerouted", |pod| pod.reroute = excluding("net1")),
        named("net1 rerouted, lists", |pod| {
            pod.reroute = excluding("net1");
            pod.exclude_interfaces = excluding("net1");
            pod.include_ranges = Some("10.99.0.0/16".to_owned());
        }),
    ]
}

fn of_resolvers() -> Vec<Policy> {
    vec![
        named("DNS", |pod| pod.dns = true),
        named("DNS, IPv4 alone", |pod| {
            pod.dns = true;
            pod.v4_only = true;
        }),
        named("DNS, port excluded", |pod| {
            pod.dns = true;
            pod.exclude_outbound = Some("53,443".to_owned());
        }),
        named("DNS, lists", |pod| {
            pod.dns = true;
            pod.include_ranges = Some("198.51.100.0/24,127.0.0.2/32".to_owned());
            pod.exclude_ranges = Some("192.0.2.0/24".to_owned());
        }),
        named("DNS, TPROXY", |pod| {
            pod.dns = true;
            pod.tproxy = true;
        }),
        named("DNS, owner groups", |pod| {
            pod.dns = true;
            pod.node = Node::ExcludesGroups("1000,3000");
        }),
    ]
}

fn of_connections() -> Vec<Policy> {
    vec![
        named("plain", |_| {}),
        named("IPv4 alone", |pod| pod.v4_only = true),
        named("proxy away", |pod| pod.proxy_is_away = true),
        named("included ranges", |pod| pod.include_ranges = Some("192.0.2.0/24,2001:db8::/32".to_owned())),
        named("every outbound list", |pod| {
            pod.include_ranges = Some("192.0.2.0/24,198.51.100.0/24,2001:db8::/32".to_owned());
            pod.exclude_ranges = Some("192.0.2.1/32,2001:db8::1/128".to_owned());
            pod.include_outbound = Some("443,53".to_owned());
            pod.exclude_outbound = Some("80".to_owned());
        }),
        named("excluded ranges", |pod| {
            pod.exclude_ranges = Some("192.0.2.0/24,10.77.0.0/16,2001::/16".to_owned());
        }),
        named("nothing but ports", |pod| {
            pod.include_ranges = Some(String::new());
            pod.include_outbound = Some("443,8080".to_owned());
        }),
        named("loopback included", |pod| {
            pod.include_ranges = Some("127.0.0.2/32,10.77.0.0/24,fd77::/64".to_owned());
        }),
        named("all of loopback included", |pod| {
            pod.include_ranges = Some("127.0.0.0/8,::1/128,10.0.0.0/8".to_owned());
        }),
        named("excluded outbound ports", |pod| pod.exclude_outbound = Some("443,8080".to_owned())),
        named("included inbound ports", |pod| {
            pod.include_inbound = Some("8080,15021".to_owned());
            pod.exclude_inbound = Some("8080".to_owned());
        }),
        named("no inbound ports", |pod| pod.include_inbound = Some(String::new())),
        named("excluded inbound ports", |pod| pod.exclude_inbound = Some("22,8080".to_owned())),
        named("TPROXY", |pod| pod.tproxy = true),
        named("TPROXY, lists", |pod| {
            pod.tproxy = true;
            pod.include_ranges = Some("192.0.2.0/24,fd77::/64".to_owned());
            pod.exclude_inbound = Some("22,8080".to_owned());
            pod.exclude_outbound = Some("443".to_owned());
        }),
        named("TPROXY, included inbound ports", |pod| {
            pod.tproxy = true;
            pod.include_inbound = Some("80,15021".to_owned());
        }),
        named("proxy of another user", |pod| pod.proxy_user = Some(2102)),
        named("owner groups included", |pod| pod.node = Node::IncludesGroups("1000,3000")),
        named("owner groups excluded", |pod| pod.node = Node::ExcludesGroups("1000,3000")),
        named("wider loopback", |pod| {
            pod.node = Node::Loopback("127.0.0.0/8");
            pod.include_ranges = Some("127.0.0.0/8,0.0.0.0/0".to_owned());
        }),
    ]
}

const RANGES: [&str; 14] = [
    "0.0.0.0/0",
    "::/0",
    "192.0.2.0/24",
    "192.0.2.1/32",
    "198.51.100.0/24",
    "10.0.0.0/8",
    "10.77.0.2/32",
    "10.99.0.0/16",
    "127.0.0.0/8",
    "127.0.0.2/32",
    "::1/128",
    "fd77::/64",
    "2001:db8::/32",
    "2002::/16",
];
const PORTS: [&str; 10] = ["22", "53", "80", "443", "8080", "15001", "15006", "15008", "15020", "15021"];

/// A pod with anything on it.
pub(crate) fn random(number: usize, random: &mut fastrand::Rng) -> Policy {
    let mut list = |all: &[&'static str], most: usize| {
        let count = random.usize(0..=most);
        let chosen: Vec<_> = random.choose_multiple(all.iter().copied(), count);
        random.bool().then(|| chosen.join(","))
    };
    let mut policy = Policy {
        name: format!("random {number}"),
        include_ranges: list(&RANGES, 4),
        exclude_ranges: list(&RANGES, 2),
        include_outbound: list(&PORTS, 3),
        exclude_outbound: list(&PORTS, 3),
        include_inbound: list(&PORTS, 4),
        exclude_inbound: list(&PORTS, 3),
        ..Policy::default()
    };
    policy.tproxy = random.u8(0..4) == 0;
    policy.v4_only = random.u8(0..5) == 0;
    policy.dns = random.u8(0..3) == 0;
    policy.proxy_is_away = random.u8(0..12) == 0;
    let interfaces = ["net1", "eth0", "lo", "net1,lo"];
    policy.exclude_interfaces =
        (random.u8(0..4) == 0).then(|| random.choice(interfaces).unwrap_or_default().to_owned());
    policy.proxy_user = (random.u8(0..5) == 0).then_some(2102);
    policy.node = match random.u8(0..12) {
        0 => Node::IncludesGroups("1000,3000"),
        1 => Node::ExcludesGroups("1000,1337"),
        2 => Node::Loopback("127.0.0.0/8"),
        3 => Node::Loopback("127.0.0.2/32"),
        _ => Node::Plain,
    };
    policy
}
