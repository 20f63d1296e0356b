//! DNS over TCP: what is too long for UDP.

use std::net::{IpAddr, SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};
use veer_tests::dns::{DNS, question, receive_framed, send_framed, told};
use veer_tests::mesh::{self, PATIENCE};
use veer_tests::socket_maker::Maker;

use super::{By, all, at, in_all_forms};

/// Asks by TCP: what the responder tells.
pub(crate) fn ask(maker: &Maker, resolver: IpAddr) -> (Socket, String) {
    let mut socket =
        maker.socket(Domain::for_address(at(resolver)), Type::STREAM, Some(Protocol::TCP)).unwrap();
    mesh::connect(&socket, at(resolver)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    send_framed(&mut socket, &question(1)).unwrap();
    let (_, text) = told(&receive_framed(&mut socket).unwrap()).unwrap();
    (socket, text)
}

#[test]
fn dns_over_tcp_goes_to_the_proxys_dns_which_learns_whom_it_was_for() {
    for scene in all() {
        for resolver in in_all_forms(scene.resolvers()) {
            for maker in [scene.pod().app(), scene.pod().root()] {
                let (socket, text) = ask(maker, resolver);
                let port = socket.local_addr().unwrap().as_socket().unwrap().port();
                let client = SocketAddr::new(scene.client(resolver), port);
                let resolver_on_wire = SocketAddr::new(resolver.to_canonical(), DNS);
                assert_eq!(text, format!("proxy tcp {client} for {resolver_on_wire}"), "{:?}", scene.by);
                assert_eq!(socket.peer_addr().unwrap().as_socket(), Some(at(resolver)), "{:?}", scene.by);
            }
        }
        if scene.by != By::Istio {
            scene.mesh.no_hand_off_left().unwrap();
        }
    }
}
