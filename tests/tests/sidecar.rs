//! The kit's sidecar under the rules of istio-init: the reference for what the real Envoy does with
//! redirected connections, and the proof that the kit's Envoy, app and client are as real pods have them.

#![expect(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

use std::net::{IpAddr, SocketAddr};

use tempfile::TempDir;
use veer_tests::cgroup::Cgroup;
use veer_tests::envoy::{self, Direction, Envoy, MARK, Sidecar};
use veer_tests::launch::{Identity, kit_binary};
use veer_tests::netfilter::Netfilter;
use veer_tests::pod::{TestPod, World};
use veer_tests::process::Process;
use veer_tests::{dial, http, istio_init, scratch};

struct Meshed {
    envoy: Envoy,
    _app: Process,
    pod: TestPod,
    _directory: TempDir,
}

fn meshed(world: &World, cgroup: &Cgroup, name: &str) -> Meshed {
    let pod = TestPod::new(world, cgroup, name).unwrap();
    istio_init::apply(pod.netns()).unwrap();
    let directory = scratch::directory().unwrap();
    let envoy_directory = directory.path().join("envoy");
    std::fs::create_dir(&envoy_directory).unwrap();
    let sidecar = Sidecar {
        netns: pod.netns(),
        launch: pod.launch(Identity::proxy()),
        directory: &envoy_directory,
        http_ports: &[8080],
        workers: 2,
    };
    let envoy = sidecar.start().unwrap();
    let mut command = pod.launch(Identity::app()).command(kit_binary("echo-app").unwrap()).unwrap();
    command.arg("--name").arg(name);
    let mut app = Process::start(name, command, &directory.path().join("app.log")).unwrap();
    let loopback = SocketAddr::from(([127, 0, 0, 1], 8080));
    let ask = || http::get_from(loopback, "/", &http::Headers::new());
    app.wait_ready(|| pod.netns().run(ask)?).unwrap();
    Meshed { envoy, _app: app, pod, _directory: directory }
}

#[test]
fn a_request_from_pod_to_pod_goes_through_both_sidecars() {
    let cgroup = Cgroup::new().unwrap();
    let world = World::new().unwrap();
    let a = meshed(&world, &cgroup, "a");
    let b = meshed(&world, &cgroup, "b");
    let rows: [(IpAddr, IpAddr, &str); 2] =
        [(a.pod.v4().into(), b.pod.v4().into(), "127.0.0.6"), (a.pod.v6().into(), b.pod.v6().into(), "::6")];
    for (from, to, passthrough) in rows {
        let mark = to.to_string();
        let to = SocketAddr::new(to, 8080);
        let seen = dial::run(&a.pod.launch(Identity::app()), to, (MARK, &mark)).unwrap();
        assert_eq!((seen.status, seen.client.uid, seen.peername), (200, 1000, to));
        let echo = seen.echo.unwrap();
        assert_eq!((echo.app.as_str(), echo.uid), ("b", 1000));
        assert_eq!((echo.peer.ip(), echo.local), (passthrough.parse().unwrap(), to));
        for (envoy, direction) in [(&a.envoy, Direction::Outbound), (&b.envoy, Direction::Inbound)] {
            let entry = envoy.entry(direction, &mark).unwrap();
            assert_eq!(entry.status, 200);
            assert_eq!(entry.client.unwrap().ip(), from);
            assert_eq!((entry.original_destination, entry.upstream), (Some(to), Some(to)));
        }
    }
    assert_eq!(Netfilter::of(world.netns()).unwrap(), Netfilter::default());
    let reference = Netfilter::of(a.pod.netns()).unwrap();
    assert!(reference.rules() > 30 && reference.connections >= 2, "{reference:?}");
    let stats = envoy::stats(a.pod.netns()).unwrap();
    assert_eq!(stats.get("listener.0.0.0.0_8080.downstream_cx_total"), Some(&2), "{stats:#?}");
    let stats = envoy::stats(b.pod.netns()).unwrap();
    assert_eq!(stats.get("listener.0.0.0.0_15006.downstream_cx_total"), Some(&2), "{stats:#?}");
}
