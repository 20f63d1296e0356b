//! A pod in the mesh and what surrounds it, and the question that every test asks: where did it end?
//!
//! Owns: the agent, a world, an enrolled pod with listeners on the proxy's ports. Never does: decide where
//! a connection should have ended.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};
use socket2::{Domain, Protocol, Socket, Type};

use crate::agent::Agent;
use crate::backend::Backend;
use crate::cgroup::Cgroup;
use crate::launch::Launch;
use crate::manifest::Manifest;
use crate::original_dst;
use crate::pod::{TestPod, World};
use crate::socket_maker::Maker;
use crate::wait;

/// Where outbound connections go.
pub const OUTBOUND: u16 = 15001;
/// Where inbound connections go.
pub const INBOUND: u16 = 15006;
/// The app's port.
pub const APP: u16 = 8080;
/// How long a connection may take to arrive.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// The agent, the world and one pod.
#[derive(Debug)]
pub struct Mesh {
    /// The agent.
    pub agent: Agent,
    /// The pod.
    pub pod: TestPod,
    /// Everything else.
    pub world: World,
    /// The cgroup that the agent is attached to.
    pub cgroup: Cgroup,
}

/// A connection as the accepting end sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Arrival {
    /// Who accepted it: the label of the listener.
    pub at: &'static str,
    /// `SO_ORIGINAL_DST`, where the kernel answers.
    pub original: Option<SocketAddr>,
    /// getsockname().
    pub local: SocketAddr,
    /// getpeername().
    pub peer: SocketAddr,
}

/// A set of listeners, each with a label.
#[derive(Debug, Default)]
pub struct Listeners {
    sockets: Vec<(&'static str, Socket)>,
}

impl Mesh {
    /// With a pod that is enrolled as dual stack, without any other annotation.
    pub fn new() -> Result<Self> {
        Self::with(|manifest| manifest)
    }

    /// With a pod that is enrolled as `change` says.
    pub fn with(change: impl FnOnce(Manifest) -> Manifest) -> Result<Self> {
        let mesh = Self::not_enrolled()?;
        mesh.agent.enrol_as(&mesh.pod, &change(dual_stack(&mesh.pod)))?;
        Ok(mesh)
    }

    /// The same as [`new`](Self::new), redirected by this backend.
    pub fn on(backend: Backend) -> Result<Self> {
        Self::on_with(backend, |manifest| manifest)
    }

    /// The same as [`with`](Self::with), redirected by this backend.
    pub fn on_with(backend: Backend, change: impl FnOnce(Manifest) -> Manifest) -> Result<Self> {
        let mesh = Self::on_node(Launch::new(), &[&backend.flag()])?;
        mesh.agent.enrol_as(&mesh.pod, &change(dual_stack(&mesh.pod)))?;
        Ok(mesh)
    }

    /// With a pod that nobody has told the agent of.
    pub fn not_enrolled() -> Result<Self> {
        Self::on_node(Launch::new(), &[])
    }

    /// The same on a node whose agent is started so, and has further arguments.
    pub fn on_node(launch: Launch, arguments: &[&str]) -> Result<Self> {
        let cgroup = Cgroup::new()?;
        let agent = Agent::start_with(&cgroup, launch, arguments)?;
        let world = World::new()?;
        let pod = TestPod::new(&world, &cgroup, "pod")?;
        Ok(Self { agent, pod, world, cgroup })
    }

    /// Another pod of the same world, enrolled.
    pub fn another_pod(&self, name: &str) -> Result<TestPod> {
        let pod = TestPod::new(&self.world, &self.cgroup, name)?;
        self.agent.enrol_as(&pod, &dual_stack(&pod))?;
        Ok(pod)
    }

    /// The proxy's listeners, as Envoy of a dual-stack pod has them.
    pub fn proxy_listeners(&self) -> Result<Listeners> {
        proxy_listeners(&self.pod)
    }

    /// The pod's counters as `veer pods` has them: reasons and faults by name.
    pub fn counter(&self, group: &str, name: &str) -> Result<u64> {
        let pod = self.agent.json(&["pods", &format!("test/{}", self.pod.name())])?;
        let counted = pod.get(group).and_then(|counters| counters.get(name)?.as_u64());
        Ok(counted.unwrap_or_default())
    }

    /// Waits until no redirected connection is on its way any more.
    pub fn no_hand_off_left(&self) -> Result<()> {
        wait::until("the hand-off map to be empty", PATIENCE, || {
            let status = self.agent.json(&["status"]);
            status.is_ok_and(|status| status.get("handingOver").is_some_and(|count| *count == 0))
        })
    }
}

/// The pod's manifest, telling that its proxy serves both families.
pub fn dual_stack(pod: &TestPod) -> Manifest {
    pod.manifest().with_proxy_env("ISTIO_DUAL_STACK", "true")
}

/// Listeners on the proxy's ports, as Envoy of a dual-stack pod has them.
pub fn proxy_listeners(pod: &TestPod) -> Result<Listeners> {
    let mut listeners = Listeners::default();
    for (label, port) in [("outbound", OUTBOUND), ("inbound", INBOUND)] {
        listeners.add(label, pod.proxy(), (Ipv4Addr::UNSPECIFIED, port))?;
        listeners.add(label, pod.proxy(), (Ipv6Addr::UNSPECIFIED, port))?;
    }
    Ok(listeners)
}

impl Listeners {
    /// Listens in a pod.
    pub fn add(&mut self, label: &'static str, maker: &Maker, at: impl Into<SocketAddr>) -> Result<()> {
        let at = at.into();
        let socket = maker.socket(Domain::for_address(at), Type::STREAM, Some(Protocol::TCP))?;
        self.listen(label, socket, at)
    }

    /// Listens in the world.
    pub fn add_in_world(
        &mut self,
        label: &'static str,
        world: &World,
        at: impl Into<SocketAddr>,
    ) -> Result<()> {
        let at = at.into();
        let socket = world.socket(Domain::for_address(at), Type::STREAM, Some(Protocol::TCP))?;
        self.listen(label, socket, at)
    }

    /// Binds a socket, listens, and takes it in. IPv6 sockets serve IPv6 alone, as Envoy's do.
    pub fn listen(&mut self, label: &'static str, socket: Socket, at: SocketAddr) -> Result<()> {
        if at.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.set_reuse_address(true)?;
        socket.bind(&at.into()).with_context(|| format!("bind {label} to {at}"))?;
        self.take(label, socket)
    }

    /// Listens on a socket that is bound, and takes it in.
    pub fn take(&mut self, label: &'static str, socket: Socket) -> Result<()> {
        socket.listen(1024).with_context(|| format!("listen at {label}"))?;
        socket.set_nonblocking(true)?;
        self.sockets.push((label, socket));
        Ok(())
    }

    /// Takes what is for other addresses, too (`IP_TRANSPARENT`).
    pub fn be_transparent(&self) -> Result<()> {
        self.sockets.iter().try_for_each(|(label, socket)| {
            let is_v4 = socket.local_addr()?.is_ipv4();
            let set = if is_v4 { Socket::set_ip_transparent_v4 } else { Socket::set_ip_transparent_v6 };
            set(socket, true).with_context(|| format!("make {label} transparent"))
        })
    }

    /// Leaves room for one connection that waits to be accepted.
    pub fn shorten_queues(&self) -> Result<()> {
        self.sockets.iter().try_for_each(|(label, socket)| socket.listen(0).context(*label))
    }

    /// Adds all of another set.
    pub fn extend(&mut self, other: Self) {
        self.sockets.extend(other.sockets);
    }

    /// Takes the socket with this index out again, for closing it.
    pub fn remove(&mut self, index: usize) -> Socket {
        self.sockets.remove(index).1
    }

    /// Waits for a connection.
    pub fn accept(&self) -> Result<(Arrival, Socket)> {
        wait::until_some("a connection to arrive", PATIENCE, || self.try_accept().transpose())?
    }

    /// Whether nothing has arrived.
    pub fn is_idle(&self) -> Result<bool> {
        Ok(self.try_accept()?.is_none())
    }

    /// A connection, if one has arrived.
    pub fn try_accept(&self) -> Result<Option<(Arrival, Socket)>> {
        for (label, listener) in &self.sockets {
            match listener.accept() {
                Ok((socket, peer)) => {
                    let peer = peer.as_socket().context("an address of a peer")?;
                    return Ok(Some((arrival(label, &socket, peer)?, socket)));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error).context(*label),
            }
        }
        Ok(None)
    }
}

fn arrival(at: &'static str, socket: &Socket, peer: SocketAddr) -> Result<Arrival> {
    let local = canonical(socket.local_addr()?.as_socket().context("a local address")?);
    let original = if local.is_ipv4() { original_dst::v4(socket) } else { original_dst::v6(socket) };
    let original = match original {
        Ok(address) => Some(canonical(address)),
        Err(error) if is_unknown(&error) => None,
        Err(error) => return Err(error).context("SO_ORIGINAL_DST"),
    };
    Ok(Arrival { at, original, local, peer: canonical(peer) })
}

/// What the kernel answers where nothing was redirected: no entry, or no such option.
fn is_unknown(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc_enoent) if libc_enoent == 2) || error.raw_os_error() == Some(92)
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Connects a socket within [`PATIENCE`].
pub fn connect(socket: &Socket, to: impl Into<SocketAddr>) -> io::Result<()> {
    socket.connect_timeout(&to.into().into(), wait::scaled(PATIENCE))
}

/// A TCP socket of a maker for the family of an address.
pub fn tcp(maker: &Maker, for_address: impl Into<SocketAddr>) -> Result<Socket> {
    maker.socket(Domain::for_address(for_address.into()), Type::STREAM, Some(Protocol::TCP))
}

/// Dials from a pod and waits for the arrival at one of `listeners`.
pub fn dial(
    maker: &Maker,
    to: impl Into<SocketAddr>,
    listeners: &Listeners,
) -> Result<(Arrival, Socket, Socket)> {
    let to = to.into();
    let socket = tcp(maker, to)?;
    connect(&socket, to).with_context(|| format!("dial {to}"))?;
    let (arrival, accepted) = listeners.accept()?;
    Ok((arrival, socket, accepted))
}

/// Dials from the world.
pub fn dial_from_world(
    world: &World,
    to: impl Into<SocketAddr>,
    listeners: &Listeners,
) -> Result<(Arrival, Socket, Socket)> {
    let to = to.into();
    let socket = world.socket(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
    connect(&socket, to).with_context(|| format!("dial {to} from the world"))?;
    let (arrival, accepted) = listeners.accept()?;
    Ok((arrival, socket, accepted))
}

/// Address of a family, for tests that run for both.
pub const fn of_family(v6: bool, a4: Ipv4Addr, a6: Ipv6Addr) -> IpAddr {
    if v6 { IpAddr::V6(a6) } else { IpAddr::V4(a4) }
}
