//! A place: a world with one pod in it whose traffic somebody redirects, and everybody listens.
//!
//! All places look the same from inside: the same addresses, listeners and users. So what comes of a cell
//! can be compared as it is.

use std::cell::RefCell;
use std::collections::HashSet;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use socket2::{Domain, Protocol, Socket, Type};
use veer_tests::cgroup::Cgroup;
use veer_tests::mesh::{Arrival, INBOUND, Listeners, OUTBOUND};
use veer_tests::pod::{TestPod, World};
use veer_tests::socket_maker::Maker;
use veer_tests::veth::{self, ip};

use crate::cell::{
    By, Cell, DATAGRAM_PORTS, DNS, From, NEIGHBOUR_V4, NEIGHBOUR_V6, OTHER_V4, OTHER_V6, PORTS, SECOND_V4,
    SECOND_V6, identities,
};
use crate::datagrams::Datagrams;
use crate::policy::Policy;

/// How long a connection that goes nowhere is waited for.
pub(crate) const LOST_AFTER: Duration = Duration::from_secs(3);
/// After how long it is left alone for the time being, where it most likely is.
const SOON: Duration = Duration::from_millis(100);

/// A world, its pod, and who listens in them.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) world: World,
    pub(crate) pod: TestPod,
    makers: Vec<Maker>,
    listeners: Listeners,
    datagrams: Datagrams,
    /// Those that datagrams were sent from.
    ports: RefCell<HashSet<u16>>,
}

/// What came of a connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Outcome {
    /// It arrived.
    At {
        /// Whose listener.
        at: &'static str,
        /// `SO_ORIGINAL_DST` there, if it is the proxy's.
        original: Option<SocketAddr>,
        /// Its own address there.
        local: SocketAddr,
        /// Who the client is, there.
        client: IpAddr,
        /// Whom the client believes to talk to.
        peername: SocketAddr,
    },
    /// The datagram arrived.
    Told {
        /// Whose socket.
        at: &'static str,
        /// Who the client is, there.
        client: IpAddr,
        /// Who it is that answers, if it is the proxy.
        answers: Option<SocketAddr>,
        /// Whom the client of a connected socket believes to talk to.
        peername: Option<SocketAddr>,
    },
    /// connect(), or sending, failed; or it went nowhere.
    Failed(ErrorKind),
}

impl Outcome {
    /// The proxy's, app's or service's own address.
    pub(crate) const fn local(&self) -> Option<SocketAddr> {
        match self {
            Self::At { local, .. } => Some(*local),
            Self::Told { .. } | Self::Failed(_) => None,
        }
    }

    /// Whose listener it arrived at.
    pub(crate) const fn at(&self) -> Option<&'static str> {
        match self {
            Self::At { at, .. } | Self::Told { at, .. } => Some(*at),
            Self::Failed(_) => None,
        }
    }

    /// What `SO_ORIGINAL_DST` said.
    pub(crate) fn original(&self) -> Option<SocketAddr> {
        match self {
            Self::At { original, .. } => *original,
            Self::Told { .. } | Self::Failed(_) => None,
        }
    }

    /// The same, had it arrived at another address.
    pub(crate) fn with_local(&self, address: SocketAddr) -> Self {
        let mut other = self.clone();
        if let Self::At { local, .. } = &mut other {
            *local = address;
        }
        other
    }

    /// The same, had the proxy been told this.
    pub(crate) fn with_original(&self, address: Option<SocketAddr>) -> Self {
        let mut other = self.clone();
        if let Self::At { original, .. } = &mut other {
            *original = address;
        }
        other
    }
}

impl Place {
    /// Makes it; nobody redirects yet.
    pub(crate) fn new(cgroup: &Cgroup) -> Result<Self> {
        let world = World::new()?;
        for address in [IpAddr::from(OTHER_V4), OTHER_V6.into()] {
            world.add_address(&format!("{address}/{}", if address.is_ipv4() { 32 } else { 128 }))?;
        }
        let pod = TestPod::new(&world, cgroup, "pod")?;
        veth::pair(
            veth::End {
                netns: pod.netns(),
                name: "net1",
                addresses: &[&format!("{SECOND_V4}/24"), &format!("{SECOND_V6}/64")],
            },
            veth::End {
                netns: world.netns(),
                name: "net1",
                addresses: &[&format!("{NEIGHBOUR_V4}/24"), &format!("{NEIGHBOUR_V6}/64")],
            },
        )?;
        // Istio-init adds it; under veer an app may bind to it where it is.
        ip(pod.netns(), ["address replace ::6/128 dev lo nodad"])?;
        let makers = identities().map(|(_, identity)| pod.maker(identity));
        let makers = makers.into_iter().collect::<Result<_>>()?;
        Ok(Self {
            world,
            pod,
            makers,
            listeners: Listeners::default(),
            datagrams: Datagrams::default(),
            ports: RefCell::default(),
        })
    }

    /// Opens all listeners, once somebody redirects.
    pub(crate) fn listen(&mut self, policy: &Policy) -> Result<()> {
        let any = [IpAddr::from(Ipv4Addr::UNSPECIFIED), Ipv6Addr::UNSPECIFIED.into()];
        for any in any {
            let domain = if any.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
            for port in PORTS {
                self.listeners.add("app", self.pod.app(), (any, port))?;
                self.listeners.add_in_world("outside", &self.world, (any, port))?;
            }
            for port in DATAGRAM_PORTS {
                self.datagrams.receive(
                    "app",
                    self.pod.app().socket(domain, Type::DGRAM, None)?,
                    (any, port),
                )?;
                self.datagrams.receive(
                    "outside",
                    self.world.socket(domain, Type::DGRAM, None)?,
                    (any, port),
                )?;
            }
            if policy.proxy_is_away {
                continue;
            }
            // As istio-agent does, on loopback alone.
            let localhost: IpAddr =
                if any.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
            self.listeners.add("dns", self.pod.proxy(), (localhost, DNS))?;
            let dns = self.pod.proxy().socket(domain, Type::DGRAM, None)?;
            self.datagrams.receive("dns", dns, (localhost, DNS))?;
            self.listeners.add("outbound", self.pod.proxy(), (any, OUTBOUND))?;
            let at = SocketAddr::new(any, INBOUND);
            let inbound =
                self.pod.proxy().socket(Domain::for_address(at), Type::STREAM, Some(Protocol::TCP))?;
            if policy.tproxy {
                // What iptables' TPROXY asks of a listener; the test has the privilege, veer does not ask.
                set_transparent(&inbound, any)?;
            }
            self.listeners.listen("inbound", inbound, at)?;
        }
        Ok(())
    }

    /// Opens the connections, one after the other, and tells what came of each.
    ///
    /// Where istio-init drops what is for a proxy that is away, thousands are lost. Those are waited for together: one
    /// that has no answer soon is left to the kernel, which tries on, and looked at again when its time is over.
    pub(crate) fn open_all(&self, policy: &Policy, cells: &[Cell]) -> Result<Vec<Outcome>> {
        let patience = if policy.tproxy && policy.proxy_is_away { SOON } else { LOST_AFTER };
        let mut silent = Vec::new();
        let mut outcomes = Vec::with_capacity(cells.len());
        for cell in cells {
            let (outcome, socket) = self.open(cell, patience).with_context(|| cell.to_string())?;
            silent.extend(socket.map(|socket| (socket, cell, Instant::now())));
            outcomes.push(outcome);
        }
        for (socket, cell, since) in silent {
            let rest = LOST_AFTER.saturating_sub(since.elapsed()).max(Duration::from_millis(1));
            socket.set_write_timeout(Some(rest))?;
            // Waits for what is under way: EALREADY is no answer.
            match socket.connect(&cell.to.into()) {
                Err(error) if error.raw_os_error() == Some(Errno::EALREADY as i32) => {}
                Err(error) if error.kind() == ErrorKind::TimedOut => {}
                answered => bail!("{cell}: {answered:?} after more than {SOON:?}; is the machine busy?"),
            }
        }
        Ok(outcomes)
    }

    /// Opens a connection and tells what came of it; with its socket, if nobody has answered yet.
    fn open(&self, cell: &Cell, patience: Duration) -> Result<(Outcome, Option<Socket>)> {
        if cell.by != By::Tcp {
            return Ok((self.send(cell)?, None));
        }
        let socket = self.socket(cell)?;
        if let Err(error) = socket.connect_timeout(&cell.to.into(), patience) {
            let is_silent = error.kind() == ErrorKind::TimedOut && patience < LOST_AFTER;
            return Ok((Outcome::Failed(error.kind()), is_silent.then_some(socket)));
        }
        let (arrival, accepted) = self.listeners.accept()?;
        let peername = socket.peer_addr()?.as_socket().context("a peer's address")?;
        // Closed with a reset: thousands in TIME-WAIT would take the ports of the next.
        socket.set_linger(Some(Duration::ZERO))?;
        drop(socket);
        drop(accepted);
        Ok((outcome(&arrival, peername), None))
    }

    /// Sends a datagram. Where its port is one that an earlier cell had, conntrack may take it for that one's, so it
    /// is sent again by another socket.
    fn send(&self, cell: &Cell) -> Result<Outcome> {
        loop {
            let socket = self.socket(cell)?;
            let outcome = self.datagrams.send(&socket, cell)?;
            let port = socket.local_addr()?.as_socket().context("a socket's address")?.port();
            // One that could not be sent may have none.
            if port == 0 || self.ports.borrow_mut().insert(port) {
                return Ok(outcome);
            }
        }
    }

    fn socket(&self, cell: &Cell) -> Result<Socket> {
        let domain = Domain::for_address(cell.to);
        let kind = if cell.by == By::Tcp { Type::STREAM } else { Type::DGRAM };
        let (socket, source) = match cell.from {
            From::Pod { who, source } => {
                let maker = self.makers.get(who).context("a cell of nobody")?;
                (maker.socket(domain, kind, None)?, source)
            }
            From::World(source) => (self.world.socket(domain, kind, None)?, Some(source)),
        };
        if let Some(source) = source {
            socket.bind(&SocketAddr::new(source, 0).into()).with_context(|| format!("bind for {cell}"))?;
        }
        Ok(socket)
    }
}

fn outcome(arrival: &Arrival, peername: SocketAddr) -> Outcome {
    let Arrival { at, original, local, peer } = *arrival;
    // Under istio-init a connection that was not redirected has itself as its original destination.
    let original = original.filter(|_| ["outbound", "inbound", "dns"].contains(&at));
    Outcome::At { at, original, local, client: peer.ip(), peername }
}

fn set_transparent(socket: &Socket, family: IpAddr) -> io::Result<()> {
    if family.is_ipv4() { socket.set_ip_transparent_v4(true) } else { socket.set_ip_transparent_v6(true) }
}
