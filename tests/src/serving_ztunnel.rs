//! A ztunnel that serves: it listens in the pods that it is told of, passes on what comes, and ceases when it is told to.
//!
//! As ztunnel does: what it was told is done before it says so; what is open stays when a pod is taken from it, and what waits
//! in the queue of its listeners is reset. Never does: speak HBONE, or refuse a pod but for a port that is taken.

use std::io;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, bail, ensure};
use rustix::net::shutdown;
use socket2::Socket;

use crate::ambient::{HBONE, MARK, Sockets};
use crate::cgroup::Cgroup;
use crate::dns::Responder;
use crate::launch::Identity;
use crate::mesh::{Arrival, Listeners};
use crate::pod::TestPod;
use crate::socket_maker::Maker;
use crate::wait;
use crate::ztunnel::{DONE, Message, Workload, Ztunnel, identity};

/// It, connected to an agent or on its way there. Ends with the guard, and with it all that it has open.
#[derive(Debug)]
pub struct Serving {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// A pod that it may be told of.
#[derive(Debug)]
struct Seat {
    netns: (u64, u64),
    sockets: Sockets,
    carried: [AtomicU64; 2],
    _container: Cgroup,
}

#[derive(Debug)]
struct Shared {
    seats: Vec<Arc<Seat>>,
    socket: PathBuf,
    stop: AtomicBool,
    told: Mutex<Vec<String>>,
    /// For waking the thread that hears.
    connection: Mutex<Option<OwnedFd>>,
}

/// What it has in a pod.
struct Served {
    uid: String,
    stop: Arc<AtomicBool>,
    acceptor: Option<JoinHandle<()>>,
    _dns: Responder,
}

impl Serving {
    /// Connects to the agent's socket as soon as that is there. `pods` are all that it may be told of; its processes are in
    /// cgroups of their own below `cgroup`.
    pub fn start(socket: &Path, pods: &[&TestPod], cgroup: &Cgroup) -> Result<Self> {
        let seat = |pod: &&TestPod| -> Result<Arc<Seat>> {
            let container = cgroup.child(&format!("ztunnel-of-{}", pod.name()))?;
            let maker = Maker::start(pod.netns(), &container, Identity::new(0, 1337))?;
            let (netns, sockets) = (identity(pod.netns())?, Sockets::new(maker));
            Ok(Arc::new(Seat { netns, sockets, carried: Default::default(), _container: container }))
        };
        let shared = Arc::new(Shared {
            seats: pods.iter().map(seat).collect::<Result<_>>()?,
            socket: socket.to_owned(),
            stop: AtomicBool::new(false),
            told: Mutex::default(),
            connection: Mutex::default(),
        });
        let hearing = Arc::clone(&shared);
        Ok(Self { shared, thread: Some(thread::spawn(move || hearing.hear())) })
    }

    /// What it was told, in its order: `add u-1`, `del u-1`, `snapshot`, and `refused u-1` where it could not.
    pub fn told(&self) -> Vec<String> {
        self.shared.told.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Connections that it has passed on, outbound and inbound, of all pods.
    pub fn carried(&self) -> [u64; 2] {
        let of = |index: usize| {
            let counts = self.shared.seats.iter().filter_map(|seat| seat.carried.get(index));
            counts.map(|count| count.load(Ordering::SeqCst)).sum()
        };
        [of(0), of(1)]
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        let connection = self.shared.connection.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(connection) = connection {
            // Its other end may have gone.
            shutdown(connection, rustix::net::Shutdown::Both).ok();
        }
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            eprintln!("the serving ztunnel panicked");
        }
    }
}

impl Shared {
    fn hear(self: Arc<Self>) {
        let mut served = Vec::new();
        let connect = || {
            let stopped = self.stop.load(Ordering::SeqCst);
            if stopped { Some(None) } else { self.connect().ok().map(Some) }
        };
        // An agent that does not come back is the test's to see.
        while let Ok(Some(mut peer)) = wait::until_some("the agent's socket", wait::LIMIT * 3, connect) {
            let ended = self.obey(&mut peer, &mut served);
            if !self.stop.load(Ordering::SeqCst) {
                eprintln!("the serving ztunnel: {ended:?}");
            }
        }
    }

    fn connect(&self) -> Result<Ztunnel> {
        let peer = Ztunnel::start(&self.socket)?;
        peer.wait_without_limit()?;
        *self.connection.lock().unwrap_or_else(PoisonError::into_inner) = Some(peer.another_end()?);
        // Whoever drops this has not seen this connection, and would wait for its end.
        ensure!(!self.stop.load(Ordering::SeqCst), "it has been dropped");
        Ok(peer)
    }

    fn obey(&self, peer: &mut Ztunnel, served: &mut Vec<Served>) -> Result<()> {
        let mut named = Vec::new();
        loop {
            let Some(message) = peer.hear()? else { bail!("the agent has closed") };
            let said = match message {
                Message::Add { uid, workload } => {
                    named.push(uid.clone());
                    match self.serve(&uid, &workload, served) {
                        Ok(()) => format!("add {uid}"),
                        Err(error) => {
                            self.note(format!("refused {uid}"));
                            peer.refuse(&format!("failure to start proxy : {:.80}", format!("{error:#}")))?;
                            continue;
                        }
                    }
                }
                Message::Keep(uid) => {
                    named.push(uid.clone());
                    format!("keep {uid}")
                }
                Message::Del(uid) => {
                    served.retain(|one| one.uid != uid);
                    format!("del {uid}")
                }
                Message::SnapshotSent => {
                    served.retain(|one| named.contains(&one.uid));
                    "snapshot".to_owned()
                }
            };
            self.note(said);
            peer.say(DONE)?;
        }
    }

    fn note(&self, said: String) {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).push(said);
    }

    fn serve(&self, uid: &str, workload: &Workload, served: &mut Vec<Served>) -> Result<()> {
        if served.iter().any(|one| one.uid == uid) {
            return Ok(());
        }
        let seat = self.seats.iter().find(|seat| seat.netns == workload.netns).context("an unknown netns")?;
        let (listeners, dns) = (seat.sockets.listen()?, Responder::of(seat.sockets.maker(), "ztunnel")?);
        let (stop, seat) = (Arc::<AtomicBool>::default(), Arc::clone(seat));
        let stopped = Arc::clone(&stop);
        let acceptor = thread::spawn(move || accept(&seat, &listeners, &stopped));
        served.push(Served { uid: uid.to_owned(), stop, acceptor: Some(acceptor), _dns: dns });
        Ok(())
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if self.acceptor.take().is_some_and(|thread| thread.join().is_err()) {
            eprintln!("the acceptor of the serving ztunnel panicked");
        }
    }
}

/// Accepts until it is to stop; the listeners go with it.
fn accept(seat: &Arc<Seat>, listeners: &Listeners, stop: &AtomicBool) {
    let next = || match listeners.try_accept() {
        _ if stop.load(Ordering::SeqCst) => Some(Ok(None)),
        Ok(None) => None,
        accepted => Some(accepted),
    };
    loop {
        match wait::until_some("a connection", wait::LIMIT, next) {
            Ok(Ok(None)) => return,
            Ok(Ok(Some((arrival, socket)))) => {
                let seat = Arc::clone(seat);
                thread::spawn(move || {
                    if let Err(error) = carry(&seat, &arrival, &socket) {
                        eprintln!("the serving ztunnel, with {arrival:?}: {error:#}");
                    }
                });
            }
            Ok(Err(error)) => eprintln!("the serving ztunnel accepts: {error:#}"),
            // Nobody has come.
            Err(_late) => {}
        }
    }
}

/// Passes a connection on, to the app as its client, until both ends have said all.
fn carry(seat: &Seat, arrival: &Arrival, accepted: &Socket) -> Result<()> {
    let to = arrival.original.context("no original destination")?;
    let (dialled, index) = match arrival.at {
        "outbound" => {
            let socket = seat.sockets.tcp(to)?;
            crate::mesh::connect(&socket, to).with_context(|| format!("dial {to}"))?;
            (socket, 0)
        }
        "inbound" => {
            (seat.sockets.hand_on(arrival.peer.ip(), to).with_context(|| format!("hand on to {to}"))?, 1)
        }
        other => bail!("nobody speaks HBONE here, and {other} was dialled at {HBONE}, with the mark {MARK}"),
    };
    if let Some(count) = seat.carried.get(index) {
        count.fetch_add(1, Ordering::SeqCst);
    }
    accepted.set_nonblocking(false)?;
    dialled.set_nonblocking(false)?;
    thread::scope(|scope| {
        scope.spawn(|| pass(accepted, &dialled));
        pass(&dialled, accepted);
    });
    Ok(())
}

/// All bytes of one direction, and its end. Who resets is not to be waited for.
fn pass(mut from: &Socket, mut to: &Socket) {
    let ended = io::copy(&mut from, &mut to);
    drop(to.shutdown(if ended.is_ok() { Shutdown::Write } else { Shutdown::Both }));
}
