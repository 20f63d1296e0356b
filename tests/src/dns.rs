//! DNS: a responder that tells whom it saw, and as much of the messages as a test needs.
//!
//! The responder stands for the proxy's DNS (port 15053, on localhost, as the proxy's user) or for a
//! resolver of the world. It answers A and AAAA with fixed addresses and TXT with what it has seen: who asked
//! it, how, and, for TCP, what for. So every exchange proves where it went and that the reply came back.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use socket2::{Domain, Protocol, Socket, Type};

use crate::original_dst;
use crate::pod::{TestPod, World};
use crate::socket_maker::Maker;

/// The port of resolvers.
pub const DNS: u16 = 53;
/// The proxy's DNS port.
pub const PROXY_DNS: u16 = 15053;
/// What every A question is answered with.
pub const ANSWER_V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 7);
/// What every AAAA question is answered with.
pub const ANSWER_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x7, 0, 0, 0, 0, 7);

/// How often a thread looks whether it is to end.
const TICK: Duration = Duration::from_millis(50);
const HEADER: usize = 12;
const A: u16 = 1;
const TXT: u16 = 16;
const AAAA: u16 = 28;

/// A running responder. Its threads end with the guard.
#[derive(Debug)]
pub struct Responder {
    stop: Arc<AtomicBool>,
    asked: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
}

impl Responder {
    /// The DNS of a pod's proxy, UDP and TCP, where pilot-agent listens: 127.0.0.1 and ::1.
    pub fn of_proxy(pod: &TestPod) -> Result<Self> {
        Self::of(pod.proxy(), "proxy")
    }

    /// The DNS of a proxy that makes its sockets so, likewise.
    pub fn of(proxy: &Maker, label: &'static str) -> Result<Self> {
        let mut responder = Self::none();
        for ip in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
            let make = |kind, protocol| proxy.socket(family(ip), kind, Some(protocol));
            responder.serve(label, (ip, PROXY_DNS).into(), make)?;
        }
        Ok(responder)
    }

    /// A resolver on addresses of the world.
    pub fn in_world(world: &World, addresses: &[IpAddr]) -> Result<Self> {
        let mut responder = Self::none();
        for ip in addresses {
            let make = |kind, protocol| world.socket(family(*ip), kind, Some(protocol));
            responder.serve("world", (*ip, DNS).into(), make)?;
        }
        Ok(responder)
    }

    /// A resolver on port 53 of addresses in a pod.
    pub fn at(label: &'static str, maker: &Maker, addresses: &[IpAddr]) -> Result<Self> {
        let mut responder = Self::none();
        for ip in addresses {
            let make = |kind, protocol| maker.socket(family(*ip), kind, Some(protocol));
            responder.serve(label, (*ip, DNS).into(), make)?;
        }
        Ok(responder)
    }

    /// How many questions it got.
    pub fn asked(&self) -> u64 {
        self.asked.load(Ordering::SeqCst)
    }

    fn none() -> Self {
        Self { stop: Arc::default(), asked: Arc::default(), threads: Vec::new() }
    }

    fn serve(
        &mut self,
        label: &'static str,
        at: SocketAddr,
        make: impl Fn(Type, Protocol) -> Result<Socket>,
    ) -> Result<()> {
        let (udp, tcp) = (make(Type::DGRAM, Protocol::UDP)?, make(Type::STREAM, Protocol::TCP)?);
        tcp.set_reuse_address(true)?;
        for socket in [&udp, &tcp] {
            if at.is_ipv6() {
                socket.set_only_v6(true)?;
            }
            socket.bind(&at.into()).with_context(|| format!("bind {label} to {at}"))?;
        }
        tcp.listen(64)?;
        let udp = UdpSocket::from(udp);
        udp.set_read_timeout(Some(TICK))?;
        // It holds for accept(), too.
        tcp.set_read_timeout(Some(TICK))?;
        let tcp = TcpListener::from(tcp);
        let (stop, asked) = (Arc::clone(&self.stop), Arc::clone(&self.asked));
        self.threads.push(thread::spawn(move || answer_datagrams(label, &udp, &stop, &asked)));
        let (stop, asked) = (Arc::clone(&self.stop), Arc::clone(&self.asked));
        self.threads.push(thread::spawn(move || answer_connections(label, &tcp, &stop, &asked)));
        Ok(())
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                eprintln!("a thread of the DNS responder panicked");
            }
        }
    }
}

fn family(ip: IpAddr) -> Domain {
    Domain::for_address((ip, 0).into())
}

fn answer_datagrams(label: &str, socket: &UdpSocket, stop: &AtomicBool, asked: &AtomicU64) {
    let mut buffer = [0; 1500];
    while !stop.load(Ordering::SeqCst) {
        let Ok((length, client)) = socket.recv_from(&mut buffer) else { continue };
        asked.fetch_add(1, Ordering::SeqCst);
        let question = buffer.get(..length).unwrap_or_default();
        let Some(reply) = reply(question, &format!("{label} udp {client}")) else { continue };
        // Whoever waits in vain says so.
        drop(socket.send_to(&reply, client));
    }
}

fn answer_connections(label: &str, listener: &TcpListener, stop: &AtomicBool, asked: &AtomicU64) {
    // A thread each, because who keeps a connection for the next question must not keep the others waiting.
    thread::scope(|scope| {
        while !stop.load(Ordering::SeqCst) {
            match listener.accept() {
                Ok((mut stream, client)) => {
                    scope.spawn(move || {
                        if let Err(error) = answer_connection(label, &mut stream, client, stop, asked) {
                            eprintln!("the DNS responder, to {client}: {error:#}");
                        }
                    });
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => eprintln!("the DNS responder cannot accept: {error}"),
            }
        }
    });
}

/// Answers until the client has no more questions.
fn answer_connection(
    label: &str,
    stream: &mut TcpStream,
    client: SocketAddr,
    stop: &AtomicBool,
    asked: &AtomicU64,
) -> Result<()> {
    let original = if client.is_ipv4() { original_dst::v4(stream) } else { original_dst::v6(stream) };
    let original = original.map_or_else(|error| error.to_string(), |address| address.to_string());
    while !stop.load(Ordering::SeqCst) {
        stream.set_read_timeout(Some(TICK))?;
        match stream.peek(&mut [0]) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error).context("wait for a question"),
        }
        stream.set_read_timeout(Some(crate::wait::scaled(crate::mesh::PATIENCE)))?;
        let question = receive_framed(stream)?;
        asked.fetch_add(1, Ordering::SeqCst);
        let told = format!("{label} tcp {client} for {original}");
        send_framed(stream, &reply(&question, &told).context("no question")?)?;
    }
    Ok(())
}

/// The reply to a message with one question; TXT is answered with `told`.
fn reply(question: &[u8], told: &str) -> Option<Vec<u8>> {
    let body = question.get(HEADER..)?;
    let name = body.iter().position(|length| *length == 0)? + 1;
    let kind = u16::from_be_bytes(body.get(name..name + 2)?.try_into().ok()?);
    let data = match kind {
        A => ANSWER_V4.octets().to_vec(),
        AAAA => ANSWER_V6.octets().to_vec(),
        TXT => [&[u8::try_from(told.len()).ok()?], told.as_bytes()].concat(),
        _ => Vec::new(),
    };
    let mut reply = question.get(..2)?.to_vec();
    // A reply, recursion desired and available; one question, one answer at the most, nothing else.
    reply.extend([0x81, 0x80, 0, 1, 0, u8::from(!data.is_empty()), 0, 0, 0, 0]);
    reply.extend(body.get(..name + 4)?);
    if !data.is_empty() {
        // The name is the question's; class IN, for no time at all.
        reply.extend([0xc0, 0x0c]);
        reply.extend(kind.to_be_bytes());
        reply.extend([0, 1, 0, 0, 0, 0]);
        reply.extend(u16::try_from(data.len()).ok()?.to_be_bytes());
        reply.extend(data);
    }
    Some(reply)
}

/// A TXT question.
pub fn question(id: u16) -> Vec<u8> {
    let mut message = id.to_be_bytes().to_vec();
    message.extend([0x01, 0x00, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in ["who", "asks"] {
        message.push(u8::try_from(label.len()).unwrap_or_default());
        message.extend(label.as_bytes());
    }
    message.push(0);
    message.extend(TXT.to_be_bytes());
    message.extend([0, 1]);
    message
}

/// What a reply to [`question`] tells, and to which question.
pub fn told(reply: &[u8]) -> Result<(u16, String)> {
    let id = reply.get(..2).and_then(|id| id.try_into().ok()).map(u16::from_be_bytes);
    // The header, the question, the answer's head of 12 bytes, and the length of its only text.
    let text = reply.get(question(0).len() + 13..);
    match (id, text) {
        (Some(id), Some(text)) => Ok((id, String::from_utf8_lossy(text).into_owned())),
        _ => bail!("{reply:?} is no reply with a text"),
    }
}

/// Sends a message with its length in front, as DNS over TCP has it.
pub fn send_framed(stream: &mut impl Write, message: &[u8]) -> Result<()> {
    let length = u16::try_from(message.len())?.to_be_bytes();
    stream.write_all(&[&length, message].concat()).context("send over TCP")
}

/// Receives such a message.
pub fn receive_framed(stream: &mut impl Read) -> Result<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length).context("receive over TCP")?;
    let mut message = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut message).context("receive over TCP")?;
    Ok(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_tells_what_the_responder_saw() {
        let reply = reply(&question(4711), "proxy udp 10.0.0.5:1").unwrap();
        assert_eq!(told(&reply).unwrap(), (4711, "proxy udp 10.0.0.5:1".to_owned()));
        assert!(told(&question(1)).is_err() && super::reply(&[0; 11], "").is_none());
    }
}
