//! One trial of a redirection: listen where the proxy does, dial, and see where it ends.
//!
//! Owns: the sockets of a trial, which are gone when it ends. Never does: need a privilege, judge what it saw,
//! or wait longer than it is told. Called by: `commands::check`.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{Domain, Protocol, Socket, Type};

use crate::check::{Family, INBOUND_PORT, OUTBOUND_PORT, Observation, Trial};

/// The addresses of all interfaces of this netns.
///
/// # Errors
/// As the system says.
pub fn addresses() -> io::Result<Vec<IpAddr>> {
    let of = |address: nix::sys::socket::SockaddrStorage| {
        let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
    };
    Ok(getifaddrs()?.filter_map(|interface| of(interface.address?)).collect())
}

/// Listens, dials once and waits, `patience` at the most.
///
/// # Errors
/// What cannot be an observation: no sockets at all.
pub fn observe(trial: &Trial, patience: Duration) -> io::Result<Observation> {
    let mut listeners = Vec::new();
    for port in [OUTBOUND_PORT, INBOUND_PORT] {
        match listen(trial.family, port) {
            Ok(listener) => listeners.push((port, listener)),
            Err(error) => return Ok(Observation::PortTaken { port, problem: error.to_string() }),
        }
    }
    let dialler = match dial(trial) {
        Ok(dialler) => dialler,
        Err(error) => return Ok(Observation::Failed(error.to_string())),
    };
    wait(&listeners, &dialler, trial.family, patience)
}

fn socket(family: Family) -> io::Result<Socket> {
    let domain = match family {
        Family::V4 => Domain::IPV4,
        Family::V6 => Domain::IPV6,
    };
    let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn listen(family: Family, port: u16) -> io::Result<Socket> {
    let socket = socket(family)?;
    // The trial before this one leaves TIME_WAIT behind.
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddr::new(family.localhost(), port).into())?;
    socket.listen(8)?;
    Ok(socket)
}

fn dial(trial: &Trial) -> io::Result<Socket> {
    let socket = socket(trial.family)?;
    if let Some(source) = trial.source {
        socket.bind(&SocketAddr::new(source, 0).into())?;
    }
    match socket.connect(&trial.destination.into()) {
        Err(error) if error.raw_os_error() != Some(Errno::EINPROGRESS as i32) => Err(error),
        Ok(()) | Err(_) => Ok(socket),
    }
}

/// Waits for one of the listeners to get the dialler, or for the dialler to end otherwise.
fn wait(
    listeners: &[(u16, Socket)],
    dialler: &Socket,
    family: Family,
    patience: Duration,
) -> io::Result<Observation> {
    let end = Instant::now() + patience;
    let mut connected = false;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(if connected { Observation::WentElsewhere } else { Observation::Silence });
        }
        let mut descriptors: Vec<_> =
            listeners.iter().map(|(_, listener)| PollFd::new(listener.as_fd(), PollFlags::POLLIN)).collect();
        if !connected {
            descriptors.push(PollFd::new(dialler.as_fd(), PollFlags::POLLOUT));
        }
        // Connected means that somebody has it: if it is us, we know at once.
        let limit = if connected { left.min(Duration::from_millis(200)) } else { left };
        let ready = poll(&mut descriptors, PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX))?;
        if let Some(observation) = accept(listeners, dialler, family)? {
            return Ok(observation);
        }
        if let Some(error) = dialler.take_error()? {
            return Ok(Observation::Failed(error.to_string()));
        }
        if connected && ready == 0 {
            return Ok(Observation::WentElsewhere);
        }
        connected = dialler.peer_addr().is_ok();
    }
}

/// Takes what has come, until it is the dialler.
fn accept(listeners: &[(u16, Socket)], dialler: &Socket, family: Family) -> io::Result<Option<Observation>> {
    let ours = dialler.local_addr()?.as_socket();
    for (port, listener) in listeners {
        while let Ok((accepted, peer)) = listener.accept() {
            // Somebody else may have dialled the port: in a pod whose inbound connections come here, say.
            if peer.as_socket() != ours {
                continue;
            }
            let original = match family {
                Family::V4 => accepted.original_dst_v4(),
                Family::V6 => accepted.original_dst_v6(),
            };
            let original = original.map_err(|error| error.to_string()).and_then(|address| {
                address.as_socket().ok_or_else(|| "an address of another family".to_owned())
            });
            return Ok(Some(Observation::Arrived { port: *port, original }));
        }
    }
    Ok(None)
}
