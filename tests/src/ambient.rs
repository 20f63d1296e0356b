//! ztunnel, as far as sockets go: what it listens on and dials in a pod's netns, made as it makes them.
//!
//! Written from ztunnel's source (istio/ztunnel, `src/inpod/config.rs`, `src/proxy.rs`, `src/socket.rs`): a listener begins
//! to listen before it has its mark and `IP_TRANSPARENT`; what is dialled has the mark from the beginning, and to the app
//! it is bound to the address of the client, with no port. Its process is none of the pod's: another cgroup, uid 0, gid
//! 1337. What it is told by ZDS it says yes to ([`Told`]), so that pods can be enrolled. Never does: speak HBONE.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result};
use socket2::{Domain, Protocol, Socket, Type};

use crate::cgroup::Cgroup;
use crate::dns::Responder;
use crate::launch::Identity;
use crate::manifest::Manifest;
use crate::mesh::{self, INBOUND, Listeners, OUTBOUND};
use crate::pod::TestPod;
use crate::socket_maker::Maker;
use crate::{wait, ztunnel};

/// Where ztunnel takes HBONE.
pub const HBONE: u16 = 15008;
/// Mark of all of its sockets.
pub const MARK: u32 = 0x539;

/// Makes sockets in a pod as ztunnel does.
#[derive(Debug)]
pub struct Sockets(Maker);

impl Sockets {
    /// `maker` is ztunnel's: uid 0, gid 1337, in none of the pod's cgroups.
    pub const fn new(maker: Maker) -> Self {
        Self(maker)
    }

    /// Who makes them.
    pub const fn maker(&self) -> &Maker {
        &self.0
    }

    /// Its three listeners: `outbound`, `inbound` and `hbone`.
    pub fn listen(&self) -> Result<Listeners> {
        let mut listeners = Listeners::default();
        for (label, port) in [("outbound", OUTBOUND), ("inbound", INBOUND), ("hbone", HBONE)] {
            let socket = self.0.socket(Domain::IPV6, Type::STREAM, Some(Protocol::TCP))?;
            socket.set_reuse_address(true)?;
            let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
            socket.bind(&any.into()).with_context(|| format!("bind {label}"))?;
            let mark = socket.try_clone()?;
            listeners.take(label, socket)?;
            mark.set_mark(MARK)?;
        }
        listeners.be_transparent()?;
        Ok(listeners)
    }

    /// A TCP socket as it makes them for dialling.
    pub fn tcp(&self, for_address: SocketAddr) -> Result<Socket> {
        let socket = mesh::tcp(&self.0, for_address)?;
        socket.set_mark(MARK)?;
        Ok(socket)
    }

    /// A socket that is bound to a client's address, and may dial the app.
    pub fn as_client(&self, client: IpAddr) -> Result<Socket> {
        let any_port = SocketAddr::new(client, 0);
        let socket = self.tcp(any_port)?;
        if client.is_ipv4() {
            socket.set_ip_transparent_v4(true)?;
        } else {
            socket.set_ip_transparent_v6(true)?;
        }
        socket.bind(&any_port.into()).with_context(|| format!("bind to {client}"))?;
        Ok(socket)
    }

    /// Dials the app from a client's address.
    pub fn hand_on(&self, client: IpAddr, to: SocketAddr) -> io::Result<Socket> {
        let socket = self.as_client(client).map_err(io::Error::other)?;
        mesh::connect(&socket, to)?;
        Ok(socket)
    }
}

/// ztunnel's sockets in a pod. They go with the guard.
#[derive(Debug)]
pub struct Ztunnel {
    sockets: Sockets,
    /// Its three listeners: `outbound`, `inbound` and `hbone`.
    pub listeners: Listeners,
    dns: Responder,
    /// Its container, which is to go after its processes.
    _container: Cgroup,
}

impl Ztunnel {
    /// Listens in a pod's netns; its process is in a cgroup of its own below `cgroup`.
    pub fn serve(pod: &TestPod, cgroup: &Cgroup) -> Result<Self> {
        let container = cgroup.child(&format!("ztunnel-of-{}", pod.name()))?;
        let sockets = Sockets::new(Maker::start(pod.netns(), &container, Identity::new(0, 1337))?);
        let listeners = sockets.listen()?;
        let dns = Responder::of(sockets.maker(), "ztunnel")?;
        Ok(Self { sockets, listeners, dns, _container: container })
    }

    /// Questions that its DNS got.
    pub fn asked(&self) -> u64 {
        self.dns.asked()
    }

    /// A TCP socket as it makes them for dialling.
    pub fn tcp(&self, for_address: SocketAddr) -> Result<Socket> {
        self.sockets.tcp(for_address)
    }

    /// A UDP socket for its own questions.
    pub fn udp(&self, for_address: SocketAddr) -> Result<Socket> {
        let domain = Domain::for_address(for_address);
        let socket = self.sockets.maker().socket(domain, Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_mark(MARK)?;
        Ok(socket)
    }

    /// A socket that is bound to a client's address, and may dial the app.
    pub fn as_client(&self, client: IpAddr) -> Result<Socket> {
        self.sockets.as_client(client)
    }

    /// Dials the app from a client's address.
    pub fn hand_on(&self, client: IpAddr, to: SocketAddr) -> io::Result<Socket> {
        self.sockets.hand_on(client, to)
    }
}

/// A pod's manifest, without any sidecar and of ambient mode.
pub fn manifest(pod: &TestPod) -> Manifest {
    pod.manifest().of_ambient_mode()
}

/// Somebody who is connected to the agent as a ztunnel, and content with whatever he is told. Comes again when the
/// agent does; ends with the guard, which is to go after the agent.
#[derive(Debug)]
pub struct Told {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Told {
    /// Connects to the agent's socket as soon as that is there.
    pub fn start(socket: &Path) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (socket, stopped) = (socket.to_owned(), Arc::clone(&stop));
        Self { stop, thread: Some(thread::spawn(move || obey(&socket, &stopped))) }
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            eprintln!("who is told in the place of ztunnel panicked");
        }
    }
}

fn obey(socket: &Path, stop: &AtomicBool) {
    let connect = || {
        let stopped = stop.load(Ordering::SeqCst);
        if stopped { Some(None) } else { ztunnel::Ztunnel::start(socket).ok().map(Some) }
    };
    // An agent that does not come back is the test's to see.
    while let Ok(Some(mut peer)) = wait::until_some("the agent's socket", wait::LIMIT * 3, connect) {
        let ended = loop {
            if let Err(error) = peer.obey() {
                break error;
            }
        };
        if !stop.load(Ordering::SeqCst) {
            eprintln!("who is told in the place of ztunnel: {ended:#}");
        }
    }
}
