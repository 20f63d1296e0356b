//! DNS capture on the real kernel: every way in which resolvers ask, where the question ends, whom the proxy
//! sees, and from whom the reply seems to come. Each is done under istio-init's own rules, too, and compared.

#![expect(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

mod connected;
mod identity;
mod others;
mod resolvers;
mod several;
mod tcp;
mod told;
mod unconnected;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use socket2::{Domain, Protocol, SockAddr, SockRef, Type};
use veer_tests::backend::Backend;
use veer_tests::dns::{self, DNS, Responder};
use veer_tests::istio_init;
use veer_tests::manifest::Manifest;
use veer_tests::mesh::{Listeners, Mesh, PATIENCE, proxy_listeners};
use veer_tests::pod::{REMOTE_V4, REMOTE_V6, TestPod};
use veer_tests::socket_maker::Maker;
use veer_tests::wait;

/// A service address: no interface has it, and nobody answers there.
const CLUSTER_DNS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
/// Another one.
const OTHER_DNS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 11);
/// The same for IPv6.
const CLUSTER_DNS_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, 0x10);

/// What redirects.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum By {
    Veer(Backend),
    Istio,
}

const EBPF: By = By::Veer(Backend::Ebpf);
const NFTABLES: By = By::Veer(Backend::Nftables);

impl By {
    /// Whether it is done by NAT: what differs then from eBPF is the same for both that do it.
    fn is_nat(self) -> bool {
        self != EBPF
    }
}

/// A pod that captures DNS, the DNS of its proxy, and a resolver in the world.
struct Scene {
    by: By,
    _proxy: Responder,
    world: Responder,
    _proxy_listeners: Listeners,
    mesh: Mesh,
}

impl Scene {
    fn new(by: By) -> Self {
        Self::with(by, |manifest| manifest, &[])
    }

    /// With what an annotation says to veer, and an argument to istio-init.
    fn with(by: By, change: impl FnOnce(Manifest) -> Manifest, arguments: &[&str]) -> Self {
        let mesh = match by {
            By::Veer(backend) => {
                let capturing = |pod: Manifest| pod.with_proxy_env("ISTIO_META_DNS_CAPTURE", "true");
                Mesh::on_with(backend, |pod| change(capturing(pod))).unwrap()
            }
            By::Istio => {
                let mesh = Mesh::not_enrolled().unwrap();
                let capture = ["--dual-stack", "--redirect-dns", "--capture-all-dns"];
                istio_init::apply_with(
                    mesh.pod.netns(),
                    capture.into_iter().chain(arguments.iter().copied()),
                )
                .unwrap();
                mesh
            }
        };
        let proxy = Responder::of_proxy(&mesh.pod).unwrap();
        let world = Responder::in_world(&mesh.world, &[REMOTE_V4.into(), REMOTE_V6.into()]).unwrap();
        let listeners = proxy_listeners(&mesh.pod).unwrap();
        Self { by, _proxy: proxy, world, _proxy_listeners: listeners, mesh }
    }

    fn pod(&self) -> &TestPod {
        &self.mesh.pod
    }

    /// Resolvers of all kinds: elsewhere, on loopback, and in the pod.
    fn resolvers(&self) -> Vec<IpAddr> {
        vec![
            CLUSTER_DNS.into(),
            REMOTE_V4.into(),
            Ipv4Addr::LOCALHOST.into(),
            Ipv4Addr::new(127, 0, 0, 53).into(),
            self.pod().v4().into(),
            CLUSTER_DNS_V6.into(),
            REMOTE_V6.into(),
            Ipv6Addr::LOCALHOST.into(),
            self.pod().v6().into(),
        ]
    }

    /// Whom the proxy is to see: the pod, or localhost where loopback was asked.
    fn client(&self, resolver: IpAddr) -> IpAddr {
        match resolver.to_canonical() {
            ip if ip.is_loopback() && ip.is_ipv4() => Ipv4Addr::LOCALHOST.into(),
            ip if ip.is_loopback() => Ipv6Addr::LOCALHOST.into(),
            IpAddr::V4(_) => self.pod().v4().into(),
            IpAddr::V6(_) => self.pod().v6().into(),
        }
    }
}

/// Istio-init's rules, which say what is right, and each backend of veer.
const ALL: [By; 3] = [By::Istio, EBPF, NFTABLES];

/// The same scene under each.
fn all() -> [Scene; 3] {
    ALL.map(Scene::new)
}

/// A UDP socket for the family that an address is written in; replies are waited for with patience.
fn udp(maker: &Maker, address: IpAddr) -> UdpSocket {
    let domain = Domain::for_address((address, 0).into());
    let socket = maker.socket(domain, Type::DGRAM, Some(Protocol::UDP)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.into()
}

/// The same, bound.
fn bound(maker: &Maker, source: impl Into<SocketAddr>) -> UdpSocket {
    let source = source.into();
    let socket = udp(maker, source.ip());
    let source = SockAddr::from(source);
    // Whoever made an earlier socket of this port may hold it for a moment after it was closed here.
    wait::until_ok("the port to be free", wait::LIMIT, || SockRef::from(&socket).bind(&source)).unwrap();
    socket
}

/// An address and the port of resolvers.
fn at(resolver: impl Into<IpAddr>) -> SocketAddr {
    SocketAddr::new(resolver.into(), DNS)
}

/// The address as an `AF_INET6` socket has it that serves both families.
fn mapped(v4: Ipv4Addr) -> IpAddr {
    v4.to_ipv6_mapped().into()
}

/// Each IPv4 address in both of its forms, and each IPv6 address.
fn in_all_forms(addresses: Vec<IpAddr>) -> Vec<IpAddr> {
    let forms = |address| match address {
        IpAddr::V4(v4) => vec![address, mapped(v4)],
        IpAddr::V6(_) => vec![address],
    };
    addresses.into_iter().flat_map(forms).collect()
}

/// The next reply: the id of its question, what the responder tells, and from whom it seems to come.
fn hear(socket: &UdpSocket) -> (u16, String, SocketAddr) {
    let mut buffer = [0; 512];
    let heard = socket.recv_from(&mut buffer);
    let (length, from) =
        heard.unwrap_or_else(|error| panic!("no reply comes to {:?}: {error}", socket.local_addr()));
    let (id, told) = dns::told(buffer.get(..length).unwrap()).unwrap();
    (id, told, from)
}

/// What the responder of the proxy tells of a question by UDP on this socket.
fn by_proxy(client: IpAddr, socket: &UdpSocket) -> String {
    format!("proxy udp {}", SocketAddr::new(client, socket.local_addr().unwrap().port()))
}
