//! `SO_ORIGINAL_DST`, as a proxy asks for it.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;

use socket2::SockRef;

/// What `SO_ORIGINAL_DST` of `SOL_IP` answers.
pub fn v4(socket: &impl AsFd) -> io::Result<SocketAddr> {
    address(&SockRef::from(socket).original_dst_v4()?)
}

/// What `SO_ORIGINAL_DST` of `SOL_IPV6` answers.
pub fn v6(socket: &impl AsFd) -> io::Result<SocketAddr> {
    address(&SockRef::from(socket).original_dst_v6()?)
}

fn address(answer: &socket2::SockAddr) -> io::Result<SocketAddr> {
    answer.as_socket().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "not an IP address"))
}
