//! getsockopt(): the original destination for the proxy, and nothing else touched.

use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr};

use nix::errno::Errno;
use nix::sys::socket::sockopt::GetOsString;
use nix::sys::socket::{GetSockOpt, getsockopt};
use nix::{getsockopt_impl, libc, sockopt_impl};
use socket2::Socket;
use veer_tests::mesh::{APP, Listeners, Mesh, OUTBOUND, dial};
use veer_tests::original_dst;
use veer_tests::pod::{REMOTE_V4, World};

use crate::{PORT, TO_V4, TO_V6, connect, mapped, outside, peername, tcp};

const ORIGINAL_DST: i32 = 80;

macro_rules! asks {
    ($($name:ident: $level:expr, $bytes:literal;)*) => {
        $(sockopt_impl!($name, GetOnly, $level, ORIGINAL_DST, [u8; $bytes]);)*
    };
}

// Number 80 of every level, with buffers of several lengths.
asks! {
    V4: libc::SOL_IP, 16;
    V4Short: libc::SOL_IP, 15;
    V4Tiny: libc::SOL_IP, 1;
    V6: libc::SOL_IPV6, 28;
    V6Short: libc::SOL_IPV6, 27;
    V6AsLongAsV4: libc::SOL_IPV6, 16;
    OfSocket: libc::SOL_SOCKET, 16;
    OfTcp: libc::IPPROTO_TCP, 16;
}

/// More than the kernel shows to a program: a page. Read up to the first zero byte.
type Long = GetOsString<[u8; 8192]>;
sockopt_impl!(LongV4, GetOnly, libc::SOL_IP, ORIGINAL_DST, OsString, Long);
sockopt_impl!(LongV6, GetOnly, libc::SOL_IPV6, ORIGINAL_DST, OsString, Long);
sockopt_impl!(LongInfo, GetOnly, libc::IPPROTO_TCP, libc::TCP_INFO, OsString, Long);
sockopt_impl!(LongCongestion, GetOnly, libc::IPPROTO_TCP, libc::TCP_CONGESTION, OsString, Long);
sockopt_impl!(LongDevice, GetOnly, libc::SOL_SOCKET, libc::SO_BINDTODEVICE, OsString, Long);

fn ask<const N: usize>(socket: &Socket, option: impl GetSockOpt<Val = [u8; N]>) -> Result<Vec<u8>, Errno> {
    getsockopt(socket, option).map(Vec::from)
}

/// What everything but the full-sized questions gets.
fn odd_questions(socket: &Socket) -> [Result<Vec<u8>, Errno>; 6] {
    [
        ask(socket, V4Short),
        ask(socket, V4Tiny),
        ask(socket, V6Short),
        ask(socket, V6AsLongAsV4),
        ask(socket, OfSocket),
        ask(socket, OfTcp),
    ]
}

/// A connection in the world, where no program of ours is: client and accepted socket.
fn native(world: &World, to: impl Into<SocketAddr>, listeners: &Listeners) -> (Socket, Socket) {
    let to = to.into();
    let client = world.socket(socket2::Domain::for_address(to), socket2::Type::STREAM, None).unwrap();
    connect(&client, to).unwrap();
    let (_, accepted) = listeners.accept().unwrap();
    (client, accepted)
}

#[test]
fn a_connection_has_an_original_destination_for_the_proxy_and_in_its_own_family_alone() {
    let mesh = Mesh::new().unwrap();
    let outside = outside(&mesh.world, &[PORT]);
    let listeners = mesh.proxy_listeners().unwrap();
    let (_client, native_v4) = native(&mesh.world, TO_V4, &outside);
    let (_client6, native_v6) = native(&mesh.world, TO_V6, &outside);

    let (_, dialled, accepted) = dial(mesh.pod.app(), TO_V4, &listeners).unwrap();
    assert_eq!(original_dst::v4(&accepted).unwrap(), TO_V4.into());
    assert_eq!(ask(&accepted, V6), ask(&native_v4, V6));
    assert_eq!(ask(&dialled, V4), ask(&native_v4, V4), "the app's end has none");

    let (_, dialled, accepted) = dial(mesh.pod.app(), TO_V6, &listeners).unwrap();
    assert_eq!(original_dst::v6(&accepted).unwrap(), TO_V6.into());
    assert_eq!(ask(&accepted, V4), ask(&native_v6, V4));
    assert_eq!(ask(&dialled, V6), ask(&native_v6, V6), "the app's end has none");
}

#[test]
fn a_v4_connection_on_a_dual_stack_listener_has_its_original_destination_at_the_level_of_ipv4() {
    let mesh = Mesh::new().unwrap();
    let mut listeners = Listeners::default();
    let socket = mesh.pod.proxy().tcp6().unwrap();
    socket.set_only_v6(false).unwrap();
    let all = SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, OUTBOUND));
    socket.bind(&all.into()).unwrap();
    listeners.take("outbound", socket).unwrap();
    for to in [TO_V4.into(), mapped(TO_V4.0, PORT)] {
        let socket = tcp(mesh.pod.app(), to);
        connect(&socket, to).unwrap();
        let (arrival, accepted) = listeners.accept().unwrap();
        assert_eq!((arrival.original, peername(&socket)), (Some(TO_V4.into()), to));
        assert_eq!(peername(&accepted), mapped(mesh.pod.v4(), arrival.peer.port()));
        assert!(ask(&accepted, V6).is_err());
    }
}

#[test]
fn odd_questions_get_the_kernels_own_answers() {
    let mesh = Mesh::new().unwrap();
    let outside = outside(&mesh.world, &[PORT]);
    let listeners = mesh.proxy_listeners().unwrap();
    for to in [SocketAddr::from(TO_V4), TO_V6.into()] {
        let (client, accepted_natively) = native(&mesh.world, to, &outside);
        let (_, dialled, accepted) = dial(mesh.pod.app(), to, &listeners).unwrap();
        assert_eq!(odd_questions(&accepted), odd_questions(&accepted_natively));
        assert_eq!(odd_questions(&dialled), odd_questions(&client));
    }
}

#[test]
fn sockets_that_are_not_the_proxys_have_no_original_destination() {
    let mesh = Mesh::new().unwrap();
    let outside = outside(&mesh.world, &[PORT]);
    let mut listeners = Listeners::default();
    listeners.add("app", mesh.pod.app(), (Ipv4Addr::UNSPECIFIED, APP)).unwrap();
    let (_client, native) = native(&mesh.world, TO_V4, &outside);
    let none = ask(&native, V4);
    assert!(none.is_err());
    let (arrival, _, accepted) = dial(mesh.pod.app(), (Ipv4Addr::LOCALHOST, APP), &listeners).unwrap();
    assert_eq!((arrival.at, ask(&accepted, V4)), ("app", none.clone()));

    let listener = mesh.pod.proxy().tcp4().unwrap();
    assert!(ask(&listener, V4).is_err(), "a socket that is not connected");
    let (arrival, dialled, _accepted) = dial(mesh.pod.proxy(), TO_V4, &outside).unwrap();
    assert_eq!((arrival.at, ask(&dialled, V4)), ("outside", none), "the proxy's own connection");
}

#[test]
fn buffers_longer_than_a_page_are_answered() {
    let mesh = Mesh::new().unwrap();
    let outside = outside(&mesh.world, &[PORT]);
    let listeners = mesh.proxy_listeners().unwrap();
    let (_client, native) = native(&mesh.world, TO_V4, &outside);
    let (_, dialled, accepted) = dial(mesh.pod.app(), TO_V4, &listeners).unwrap();
    dialled.bind_device(Some(b"eth0")).unwrap();
    assert_eq!(getsockopt(&dialled, LongDevice).unwrap(), "eth0");
    for socket in [&dialled, &accepted] {
        assert_eq!(getsockopt(socket, LongInfo), getsockopt(&native, LongInfo));
        assert_eq!(getsockopt(socket, LongCongestion), getsockopt(&native, LongCongestion));
        // Number 80 of a level that has none: an error must stay the error that it is.
        assert_eq!(getsockopt(socket, LongV6), getsockopt(&native, LongV6));
    }
    assert_eq!(getsockopt(&dialled, LongV4), getsockopt(&native, LongV4));
    // AF_INET, and the zero byte that ends what is read.
    assert_eq!(getsockopt(&accepted, LongV4).unwrap(), "\u{2}");
}

#[test]
fn other_options_are_what_they_were_set_to() {
    let mesh = Mesh::new().unwrap();
    let outside = outside(&mesh.world, &[PORT]);
    let listeners = mesh.proxy_listeners().unwrap();
    let (client, accepted_natively) = native(&mesh.world, TO_V4, &outside);
    let (_, dialled, accepted) = dial(mesh.pod.app(), TO_V4, &listeners).unwrap();
    for (ours, native) in [(&dialled, &client), (&accepted, &accepted_natively)] {
        for socket in [ours, native] {
            socket.set_keepalive(true).unwrap();
            socket.set_tcp_nodelay(true).unwrap();
            socket.set_ttl_v4(17).unwrap();
            socket.set_mark(0).unwrap();
        }
        let all = |socket: &Socket| {
            let first = (socket.domain().unwrap(), socket.r#type().unwrap(), socket.protocol().unwrap());
            let second = (socket.keepalive().unwrap(), socket.tcp_nodelay().unwrap());
            let third = (socket.ttl_v4().unwrap(), socket.tcp_user_timeout().unwrap());
            (first, second, third, socket.mark().unwrap(), socket.is_listener().unwrap())
        };
        assert_eq!(all(ours), all(native));
        assert!(ours.take_error().unwrap().is_none());
    }
}

#[test]
fn the_address_that_accept_gives_is_the_clients() {
    let mesh = Mesh::new().unwrap();
    let to = TO_V4.into();
    let listener = mesh.pod.proxy().tcp4().unwrap();
    listener.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, OUTBOUND)).into()).unwrap();
    listener.listen(8).unwrap();
    let dialled = tcp(mesh.pod.app(), to);
    connect(&dialled, to).unwrap();
    let (accepted, from) = listener.accept().unwrap();
    let client = dialled.local_addr().unwrap().as_socket().unwrap();
    assert_eq!((from.as_socket().unwrap(), peername(&accepted)), (client, client));
    // The client's address is one that the pod itself dials, too: the proxy's end must not take it for that.
    assert_eq!(client.ip(), mesh.pod.v4());
    assert_ne!(peername(&accepted), SocketAddr::from((REMOTE_V4, PORT)));
}
