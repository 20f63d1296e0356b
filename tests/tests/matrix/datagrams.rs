//! Datagrams: who receives one, and whose answer the sender sees.

use std::io::{self, ErrorKind};
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result};
use socket2::Socket;
use veer_tests::wait;

use crate::cell::{By, Cell};
use crate::place::{LOST_AFTER, Outcome};

/// Everybody who receives datagrams in a place.
#[derive(Debug, Default)]
pub(crate) struct Datagrams {
    sockets: Vec<(&'static str, Socket)>,
}

impl Datagrams {
    /// Receives, from here on, as somebody. IPv6 sockets serve IPv6 alone.
    pub(crate) fn receive(&mut self, at: &'static str, socket: Socket, address: (IpAddr, u16)) -> Result<()> {
        if address.0.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        let address = SocketAddr::from(address);
        socket.bind(&address.into()).with_context(|| format!("bind {at} to {address}"))?;
        socket.set_nonblocking(true)?;
        self.sockets.push((at, socket));
        Ok(())
    }

    /// Sends a datagram and tells what came of it.
    pub(crate) fn send(&self, socket: &Socket, cell: &Cell) -> Result<Outcome> {
        let sent = match cell.by {
            By::ConnectedUdp => socket.connect(&cell.to.into()).and_then(|()| socket.send(b"question")),
            By::Tcp | By::Udp => socket.send_to(b"question", &cell.to.into()),
        };
        if let Err(error) = sent {
            return Ok(Outcome::Failed(error.kind()));
        }
        let arrived = wait::until_some("a datagram to arrive", LOST_AFTER, || self.try_receive().transpose());
        let Ok(arrived) = arrived else { return Ok(Outcome::Failed(ErrorKind::TimedOut)) };
        let (at, receiver, client) = arrived?;
        let answers = if at == "dns" {
            receiver.send_to(b"answer", &client.into())?;
            Some(answer(socket)?)
        } else {
            None
        };
        let is_connected = cell.by == By::ConnectedUdp;
        let peername = is_connected.then(|| socket.peer_addr().ok()?.as_socket()).flatten();
        Ok(Outcome::Told { at, client: client.ip(), answers, peername })
    }

    fn try_receive(&self) -> Result<Option<(&'static str, &Socket, SocketAddr)>> {
        for (at, socket) in &self.sockets {
            match receive(socket) {
                Ok(client) => return Ok(Some((at, socket, client))),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                // What an answer that nobody took has left behind.
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
                Err(error) => return Err(error).context(*at),
            }
        }
        Ok(None)
    }
}

/// From whom the answer seems to be.
fn answer(socket: &Socket) -> Result<SocketAddr> {
    socket.set_read_timeout(Some(LOST_AFTER))?;
    receive(socket).context("hear the answer of the proxy")
}

fn receive(socket: &Socket) -> io::Result<SocketAddr> {
    let mut buffer = [MaybeUninit::uninit(); 16];
    let (_length, from) = socket.recv_from(&mut buffer)?;
    from.as_socket().ok_or_else(|| io::Error::new(ErrorKind::InvalidData, "not an IP address"))
}
