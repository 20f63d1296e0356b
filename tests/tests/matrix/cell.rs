//! One cell: a connection, in words that mean the same in every place.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use veer_tests::launch::Identity;
use veer_tests::mesh::{APP, INBOUND, OUTBOUND};
use veer_tests::pod::{REMOTE_V4, REMOTE_V6, ROUTER_V4, ROUTER_V6};

/// The first pod of a world.
pub(crate) const OWN_V4: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
pub(crate) const OWN_V6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 2);
/// Of a second interface, as Multus adds one.
pub(crate) const SECOND_V4: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 2);
pub(crate) const SECOND_V6: Ipv6Addr = Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, 2);
/// The world on that interface's network.
pub(crate) const NEIGHBOUR_V4: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
pub(crate) const NEIGHBOUR_V6: Ipv6Addr = Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, 1);
/// Further services outside.
pub(crate) const OTHER_V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
pub(crate) const OTHER_V6: Ipv6Addr = Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 1);
pub(crate) const TUNNEL: u16 = 15008;
/// Where the app and the services outside listen.
pub(crate) const PORTS: [u16; 9] = [22, 53, 80, 443, APP, TUNNEL, 15020, 15021, 15090];

/// What is dialled in the pod.
const CONNECTED_PORTS: [u16; 6] = [53, 80, 443, APP, TUNNEL, OUTBOUND];
/// Where the app and the services outside take datagrams.
pub(crate) const DATAGRAM_PORTS: [u16; 2] = [53, 80];
/// Where the proxy answers for resolvers.
pub(crate) const DNS: u16 = 15053;

/// Who opens a connection in the pod.
pub(crate) fn identities() -> [(&'static str, Identity); 8] {
    [
        ("app", Identity::app()),
        ("root", Identity::root()),
        ("proxy", Identity::proxy()),
        ("proxy's uid", Identity::new(1337, 1000)),
        ("proxy's gid", Identity::new(1000, 1337)),
        ("root of proxy's gid", Identity::new(0, 1337)),
        ("supplementary", Identity::app().with_groups(&[1337, 3000])),
        ("2102", Identity::new(2102, 2102)),
    ]
}

/// A connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Cell {
    pub(crate) by: By,
    pub(crate) from: From,
    pub(crate) to: SocketAddr,
}

/// What it speaks, and how.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum By {
    /// A connection.
    Tcp,
    /// A datagram of a socket that is connected first.
    ConnectedUdp,
    /// A datagram of a socket that is not connected.
    Udp,
}

/// Where it begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum From {
    /// In the pod.
    Pod {
        /// Index in [`identities`].
        who: usize,
        /// The address that the socket is bound to.
        source: Option<IpAddr>,
    },
    /// Outside, bound to this address.
    World(IpAddr),
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.from {
            From::Pod { who, source } => {
                let who = identities().into_iter().nth(who).map_or("nobody", |(name, _)| name);
                write!(f, "{who}")?;
                source.map_or(Ok(()), |source| write!(f, " bound to {source}"))?;
            }
            From::World(source) => write!(f, "the world from {source}")?,
        }
        let by = match self.by {
            By::Tcp => "",
            By::ConnectedUdp => " by connected UDP",
            By::Udp => " by UDP",
        };
        write!(f, " -> {}{by}", self.to)
    }
}

/// All datagrams to resolvers, and to others.
pub(crate) fn datagrams() -> Vec<Cell> {
    [By::ConnectedUdp, By::Udp]
        .into_iter()
        .flat_map(|by| outbound(by, &destinations(), &DATAGRAM_PORTS))
        .collect()
}

/// What leaves by the second interface, for pods that leave that alone: with others the proxy sees the pod's main
/// address as the client, where iptables shows that of the route.
pub(crate) fn by_second_interface() -> Vec<Cell> {
    let neighbours: [IpAddr; 3] =
        [NEIGHBOUR_V4.into(), NEIGHBOUR_V6.into(), NEIGHBOUR_V4.to_ipv6_mapped().into()];
    let mut cells = outbound(By::Tcp, &neighbours, &CONNECTED_PORTS);
    cells.extend(outbound(By::ConnectedUdp, &neighbours, &DATAGRAM_PORTS));
    cells.extend(outbound(By::Udp, &neighbours, &DATAGRAM_PORTS));
    cells
}

/// All connections that make sense on any pod: the whole product.
pub(crate) fn connections() -> Vec<Cell> {
    let mut cells = outbound(By::Tcp, &destinations(), &CONNECTED_PORTS);
    for (sources, own) in [
        (vec![IpAddr::V4(ROUTER_V4), REMOTE_V4.into()], IpAddr::V4(OWN_V4)),
        (vec![ROUTER_V6.into(), REMOTE_V6.into()], OWN_V6.into()),
        (vec![NEIGHBOUR_V4.into()], SECOND_V4.into()),
        (vec![NEIGHBOUR_V6.into()], SECOND_V6.into()),
    ] {
        for source in sources {
            for port in PORTS.into_iter().chain([OUTBOUND, INBOUND]) {
                cells.push(Cell { by: By::Tcp, from: From::World(source), to: (own, port).into() });
            }
        }
    }
    cells
}

fn outbound(by: By, destinations: &[IpAddr], ports: &[u16]) -> Vec<Cell> {
    let mut cells = Vec::new();
    for destination in destinations.iter().copied() {
        for source in sources(destination) {
            for who in 0..identities().len() {
                for port in ports {
                    // Nobody listens there outside.
                    if *port == OUTBOUND && !is_local(destination.to_canonical()) {
                        continue;
                    }
                    cells.push(Cell { by, from: From::Pod { who, source }, to: (destination, *port).into() });
                }
            }
        }
    }
    cells
}

fn destinations() -> Vec<IpAddr> {
    let mut addresses: Vec<IpAddr> = vec![
        REMOTE_V4.into(),
        OTHER_V4.into(),
        ROUTER_V4.into(),
        OWN_V4.into(),
        SECOND_V4.into(),
        Ipv4Addr::LOCALHOST.into(),
        Ipv4Addr::new(127, 0, 0, 2).into(),
        Ipv4Addr::new(127, 0, 0, 6).into(),
        Ipv4Addr::UNSPECIFIED.into(),
        REMOTE_V6.into(),
        OTHER_V6.into(),
        ROUTER_V6.into(),
        OWN_V6.into(),
        Ipv6Addr::LOCALHOST.into(),
        Ipv6Addr::UNSPECIFIED.into(),
    ];
    let mapped = [REMOTE_V4, OWN_V4, Ipv4Addr::LOCALHOST, Ipv4Addr::new(127, 0, 0, 2)];
    addresses.extend(mapped.map(|v4| IpAddr::V6(v4.to_ipv6_mapped())));
    addresses
}

/// What a socket that dials there may be bound to.
fn sources(destination: IpAddr) -> Vec<Option<IpAddr>> {
    let (own, localhost, passthrough): (IpAddr, IpAddr, IpAddr) = match destination {
        IpAddr::V4(_) => (OWN_V4.into(), Ipv4Addr::LOCALHOST.into(), Ipv4Addr::new(127, 0, 0, 6).into()),
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => return vec![None],
        IpAddr::V6(_) => {
            (OWN_V6.into(), Ipv6Addr::LOCALHOST.into(), Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6).into())
        }
    };
    // It would come from the second interface with the first one's address.
    if [IpAddr::from(NEIGHBOUR_V4), NEIGHBOUR_V6.into()].contains(&destination) {
        return vec![None];
    }
    let mut sources = vec![None, Some(own)];
    // What leaves the pod with a loopback source never arrives, so there would be nothing to see.
    if is_local(destination) {
        sources.extend([Some(localhost), Some(passthrough)]);
    }
    sources
}

/// Whether it stays in the pod.
pub(crate) fn is_local(address: IpAddr) -> bool {
    let own: [IpAddr; 4] = [OWN_V4.into(), OWN_V6.into(), SECOND_V4.into(), SECOND_V6.into()];
    address.is_loopback() || address.is_unspecified() || own.contains(&address)
}
