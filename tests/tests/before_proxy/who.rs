//! Whose listening ends it: anybody's to whom connections would be redirected, and nobody's who comes before the proxy.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use socket2::Socket;
use veer_tests::launch::{Identity, veer_binary};
use veer_tests::mesh::{INBOUND, Listeners, OUTBOUND, connect, tcp};
use veer_tests::socket_maker::Maker;

use super::{DIRECT, REMOTES, Scene};

const ANY: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

fn bound(maker: &Maker, at: impl Into<SocketAddr>) -> Socket {
    let at = at.into();
    let socket = tcp(maker, at).unwrap();
    socket.bind(&at.into()).unwrap();
    socket
}

#[test]
fn the_first_listener_of_either_port_and_of_either_family_ends_it() {
    for at in [
        SocketAddr::from((ANY, OUTBOUND)),
        SocketAddr::from((Ipv6Addr::UNSPECIFIED, OUTBOUND)),
        SocketAddr::from((ANY, INBOUND)),
    ] {
        let scene = Scene::new(&[DIRECT]);
        let [first, second] = [0, 1].map(|_| {
            let socket = tcp(scene.pod().proxy(), at).unwrap();
            socket.set_reuse_port(true).unwrap();
            socket.bind(&at.into()).unwrap();
            socket
        });
        // Bound is not listening.
        scene.is_direct();
        first.listen(16).unwrap();
        assert_eq!(scene.before_proxy(), "over", "{at}");
        second.listen(16).unwrap();
        drop((first, second));
        scene.is_refused();
    }
}

#[test]
fn istio_validation_and_veer_check_pass_before_the_proxy_and_end_nothing() {
    let scene = Scene::new(&[DIRECT]);
    let localhost = IpAddr::from(Ipv4Addr::LOCALHOST);
    let passthrough = IpAddr::from(Ipv4Addr::new(127, 0, 0, 6));
    // What istio-validation does, in Istio's order.
    let mut validation = Listeners::default();
    validation.add("outbound", scene.pod().proxy(), (localhost, OUTBOUND)).unwrap();
    validation.add("inbound", scene.pod().proxy(), (localhost, INBOUND)).unwrap();
    let client = bound(scene.pod().proxy(), (localhost, 0));
    connect(&client, (passthrough, 15002)).unwrap();
    let (arrival, _accepted) = validation.accept().unwrap();
    let original = SocketAddr::new(passthrough, 15002);
    assert_eq!((arrival.at, arrival.original), ("inbound", Some(original)));
    drop(validation);
    scene.is_direct();

    let veer = veer_binary("VEER_BIN", "veer").unwrap();
    let check = scene.pod().launch(Identity::proxy()).command(veer).unwrap().arg("check").output().unwrap();
    assert!(check.status.success(), "{check:?}");
    scene.is_direct();
}

#[test]
fn an_app_that_takes_the_proxys_port_does_not_keep_the_way_past_the_mesh_open() {
    let localhost = IpAddr::from(Ipv4Addr::LOCALHOST);
    for at in [(ANY, OUTBOUND), (ANY, INBOUND), (localhost, OUTBOUND)] {
        for make in [|scene: &Scene| scene.pod().app().tcp4(), |scene: &Scene| scene.pod().root().tcp4()] {
            let scene = Scene::new(&[DIRECT]);
            let socket = make(&scene).unwrap();
            // It need not even listen.
            socket.bind(&SocketAddr::from(at).into()).unwrap();
            assert_eq!(scene.before_proxy(), "over", "{at:?}");
            scene.is_refused();
        }
    }
    // Any other port is nobody's business.
    let scene = Scene::new(&[DIRECT]);
    let _admin = bound(scene.pod().app(), (ANY, 15000));
    scene.is_direct();
}

#[test]
fn where_the_container_says_who_the_proxy_is_the_others_are_direct_no_longer_either() {
    let scene = Scene::new(&[DIRECT, "--proxy-identity=container"]);
    let proxys = scene.pod().cgroup().child("istio-proxy").unwrap();
    let proxys = Maker::start(scene.pod().netns(), &proxys, Identity::proxy()).unwrap();
    // Its first listener says who it is, not that it takes connections.
    let status = bound(&proxys, (ANY, 15020));
    status.listen(16).unwrap();
    let none = Listeners::default();
    assert_eq!(scene.end(scene.pod().proxy(), REMOTES[0], &none), "outside");
    let mut proxy = Listeners::default();
    proxy.add("outbound", &proxys, (ANY, OUTBOUND)).unwrap();
    assert_eq!(scene.end(scene.pod().proxy(), REMOTES[0], &proxy), "proxy");
    assert_eq!(scene.end(&proxys, REMOTES[0], &proxy), "outside");
    assert_eq!(scene.mesh.counter("reasons", "before-proxy").unwrap(), 1);
}
