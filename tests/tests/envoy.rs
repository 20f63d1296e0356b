//! The real Envoy in enrolled pods: requests through both sidecars, by its own access log and counters.

#![expect(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use socket2::Socket;
use tempfile::TempDir;
use veer_tests::dial::{self, Dialled};
use veer_tests::envoy::{self, Direction, Envoy, MARK, Sidecar};
use veer_tests::http::{self, Echo, Headers};
use veer_tests::launch::{Identity, Launch, kit_binary};
use veer_tests::load;
use veer_tests::mesh::{self, APP, Mesh, PATIENCE, dual_stack};
use veer_tests::netfilter::Netfilter;
use veer_tests::netns::NetNs;
use veer_tests::pod::{REMOTE_V4, REMOTE_V6, ROUTER_V4, ROUTER_V6, TestPod, World};
use veer_tests::process::Process;
use veer_tests::socket_maker::Maker;
use veer_tests::{scratch, wait};

/// Envoy's workers: each has its own sockets, for either family.
const WORKERS: u32 = 2;

/// What runs in a pod.
struct Inside {
    envoy: Envoy,
    _app: Process,
    directory: TempDir,
}

impl Inside {
    fn start(pod: &TestPod) -> Self {
        let directory = scratch::directory().unwrap();
        std::fs::create_dir(directory.path().join("envoy")).unwrap();
        let envoy = start_envoy(pod, &directory);
        let app = start_app(pod.name(), &pod.launch(Identity::app()), pod.netns(), &directory);
        Self { envoy, _app: app, directory }
    }
}

fn start_envoy(pod: &TestPod, directory: &TempDir) -> Envoy {
    let sidecar = Sidecar {
        netns: pod.netns(),
        launch: pod.launch(Identity::proxy()),
        directory: &directory.path().join("envoy"),
        http_ports: &[APP],
        workers: WORKERS,
    };
    sidecar.start().unwrap()
}

fn start_app(name: &str, launch: &Launch, netns: &NetNs, directory: &TempDir) -> Process {
    let mut command = launch.command(kit_binary("echo-app").unwrap()).unwrap();
    command.arg("--name").arg(name);
    let mut app = Process::start(name, command, &directory.path().join("app.log")).unwrap();
    let here = SocketAddr::from((Ipv4Addr::LOCALHOST, APP));
    app.wait_ready(|| netns.run(|| http::get_from(here, "/", &Headers::new()))?).unwrap();
    app
}

fn outside(world: &World) -> Launch {
    Launch::new().in_netns(world.netns()).with_identity(Identity::app())
}

fn ask(launch: &Launch, to: SocketAddr, mark: &str) -> (Dialled, Echo) {
    let seen = dial::run(launch, to, (MARK, mark)).unwrap();
    assert_eq!((seen.status, seen.peername), (200, to));
    let echo = seen.echo.clone().unwrap();
    (seen, echo)
}

#[track_caller]
fn assert_logged(inside: &Inside, direction: Direction, mark: &str, client: IpAddr, to: SocketAddr) {
    let entry = inside.envoy.entry(direction, mark).unwrap();
    assert_eq!((entry.status, entry.client.unwrap().ip()), (200, client), "{entry:?}");
    assert_eq!((entry.original_destination, entry.upstream), (Some(to), Some(to)), "{entry:?}");
}

/// Connections that Envoy's listeners on a port, or reached through it, have taken.
fn taken(pod: &TestPod, ports: &[u16]) -> u64 {
    let stats = envoy::stats(pod.netns()).unwrap();
    let of_port = |port: &u16| stats.get(&format!("listener.0.0.0.0_{port}.downstream_cx_total"));
    ports.iter().filter_map(of_port).sum()
}

fn view(mesh: &Mesh, pod: &TestPod) -> Value {
    mesh.agent.json(&["pods", &format!("test/{}", pod.name())]).unwrap()
}

#[test]
fn requests_take_the_sidecars_of_both_families_and_veer_counts_what_envoy_counts() {
    let mesh = Mesh::new().unwrap();
    let (a, b) = (&mesh.pod, &mesh.another_pod("b").unwrap());
    let (in_a, in_b) = (Inside::start(a), Inside::start(b));
    let directory = scratch::directory().unwrap();
    let _world = start_app("world", &outside(&mesh.world), mesh.world.netns(), &directory);
    let families: [[IpAddr; 5]; 2] = [
        [
            a.v4().into(),
            b.v4().into(),
            REMOTE_V4.into(),
            ROUTER_V4.into(),
            Ipv4Addr::new(127, 0, 0, 6).into(),
        ],
        [a.v6().into(), b.v6().into(), REMOTE_V6.into(), ROUTER_V6.into(), "::6".parse().unwrap()],
    ];
    for [of_a, of_b, remote, router, passthrough] in families {
        let to = SocketAddr::new(of_b, APP);
        let mark = format!("pod to pod {of_b}");
        let (seen, echo) = ask(&a.launch(Identity::app()), to, &mark);
        assert_eq!((seen.client.uid, seen.local.ip()), (1000, of_a));
        assert_eq!((echo.app.as_str(), echo.peer.ip(), echo.local), ("b", passthrough, to));
        assert_logged(&in_a, Direction::Outbound, &mark, of_a, to);
        assert_logged(&in_b, Direction::Inbound, &mark, of_a, to);

        let mark = format!("world to pod {of_b}");
        let (_, echo) = ask(&outside(&mesh.world), to, &mark);
        assert_eq!((echo.app.as_str(), echo.peer.ip(), echo.local), ("b", passthrough, to));
        assert_logged(&in_b, Direction::Inbound, &mark, router, to);

        let to = SocketAddr::new(remote, APP);
        let mark = format!("pod to world {remote}");
        let (_, echo) = ask(&a.launch(Identity::app()), to, &mark);
        assert_eq!((echo.app.as_str(), echo.peer.ip(), echo.local), ("world", of_a, to));
        assert_logged(&in_a, Direction::Outbound, &mark, of_a, to);
    }
    let (of_a, of_b) = (view(&mesh, a), view(&mesh, b));
    assert_eq!((&of_a["totals"]["toOutbound"], taken(a, &[15001, APP])), (&json!(4), 4), "{of_a}");
    assert_eq!((&of_b["totals"]["toInbound"], taken(b, &[15006])), (&json!(4), 4), "{of_b}");
    // Envoy's own: one to each of four places, and one from each of two places to the app.
    assert_eq!(of_a["reasons"], json!({"all-outbound": 4, "proxy": 4}));
    assert_eq!(of_b["reasons"]["all-inbound"], 4);
    for pod in [a, b] {
        assert_eq!(view(&mesh, pod)["faults"], json!({}));
        assert!(Netfilter::of(pod.netns()).unwrap().none());
    }
}

#[test]
fn an_envoy_that_is_older_than_the_enrolment_is_found() {
    let mesh = Mesh::not_enrolled().unwrap();
    let pod = &mesh.pod;
    let inside = Inside::start(pod);
    let to = SocketAddr::from((pod.v4(), APP));
    let (_, echo) = ask(&outside(&mesh.world), to, "before");
    assert_eq!(echo.peer.ip(), IpAddr::from(ROUTER_V4), "not in the mesh yet");

    mesh.agent.enrol_as(pod, &dual_stack(pod)).unwrap();

    let listeners = u64::from(WORKERS) * 2;
    let policy = &view(&mesh, pod)["policy"];
    assert_eq!(policy["outbound"]["listeners"], listeners, "{policy}");
    assert_eq!(policy["inbound"]["listeners"], listeners, "{policy}");
    let clients = [(IpAddr::from(pod.v4()), IpAddr::from(ROUTER_V4)), (pod.v6().into(), ROUTER_V6.into())];
    for (own, client) in clients {
        let (mark, to) = (format!("to {own}"), SocketAddr::new(own, APP));
        let (_, echo) = ask(&outside(&mesh.world), to, &mark);
        assert!(echo.peer.ip() != client, "{echo:?}");
        assert_logged(&inside, Direction::Inbound, &mark, client, to);
    }
    let directory = scratch::directory().unwrap();
    let _world = start_app("world", &outside(&mesh.world), mesh.world.netns(), &directory);
    let to = SocketAddr::from((REMOTE_V4, APP));
    ask(&pod.launch(Identity::app()), to, "out");
    assert_logged(&inside, Direction::Outbound, "out", pod.v4().into(), to);
}

#[test]
fn while_envoy_is_away_connections_are_refused_and_when_it_is_back_they_go_through() {
    let mesh = Mesh::new().unwrap();
    let pod = &mesh.pod;
    let Inside { envoy, _app, directory } = Inside::start(pod);
    let to = SocketAddr::from((pod.v4(), APP));
    ask(&outside(&mesh.world), to, "first");
    drop(envoy);
    let listeners = || view(&mesh, pod)["policy"]["inbound"]["listeners"].as_u64().unwrap();
    wait::until("Envoy's listeners to go", PATIENCE, || listeners() == 0).unwrap();
    let refused = |socket: Socket, to: SocketAddr| mesh::connect(&socket, to).unwrap_err().kind();
    for error in
        [refused(mesh.world.tcp4().unwrap(), to), refused(pod.app().tcp4().unwrap(), (REMOTE_V4, APP).into())]
    {
        assert_eq!(error, std::io::ErrorKind::ConnectionRefused, "never past the proxy");
    }
    let envoy = start_envoy(pod, &directory);
    let (_, echo) = ask(&outside(&mesh.world), to, "second");
    assert_eq!(echo.peer.ip(), Ipv4Addr::new(127, 0, 0, 6));
    assert_eq!(envoy.entry(Direction::Inbound, "second").unwrap().original_destination, Some(to));
}

/// One request over a connection of its own, answered by `b`.
fn request(socket: Socket, to: SocketAddr) -> Result<()> {
    mesh::connect(&socket, to).with_context(|| format!("dial {to}"))?;
    socket.set_read_timeout(Some(wait::LIMIT))?;
    let mut stream = socket;
    let response = http::get(&mut stream, &to.to_string(), "/", &Headers::new())?;
    let text = String::from_utf8_lossy(&response.body).into_owned();
    ensure!(response.status == 200, "{}: {text}", response.status);
    let echo: Echo = serde_json::from_str(&text).with_context(|| text.clone())?;
    ensure!(echo.app == "b" && echo.peer.ip() == Ipv4Addr::new(127, 0, 0, 6), "{echo:?}");
    Ok(())
}

/// Who sends requests.
enum Client<'a> {
    App(Maker),
    World(&'a World),
}

#[test]
fn killing_the_agent_under_load_loses_no_request() {
    let mut mesh = Mesh::new().unwrap();
    let b = mesh.another_pod("b").unwrap();
    let (_in_a, _in_b) = (Inside::start(&mesh.pod), Inside::start(&b));
    let to = SocketAddr::from((b.v4(), APP));
    let Mesh { agent, pod: a, world, .. } = &mut mesh;
    let clients = [Client::App(a.maker(Identity::app()).unwrap()), Client::World(world)];
    let work = |client: &Client<'_>, _turn| match client {
        Client::App(maker) => request(maker.tcp4()?, to),
        Client::World(world) => request(world.tcp4()?, to),
    };
    let sent = load::during(&clients, work, |progress| {
        progress.wait_for(100).unwrap();
        agent.kill().unwrap();
        progress.wait_for(300).unwrap();
        agent.start_again().unwrap();
        progress.wait_for(100).unwrap();
    })
    .unwrap();
    let (of_a, of_b) = (view(&mesh, &mesh.pod), view(&mesh, &b));
    assert_eq!(of_a["totals"]["toOutbound"], taken(&mesh.pod, &[15001, APP]), "{of_a}");
    // Fewer than requests: the sidecar of the other pod sends several over one connection.
    assert_eq!(of_b["totals"]["toInbound"], taken(&b, &[15006]), "{of_b}");
    // The app closes after each, so that every request is a connection of Envoy to it.
    assert_eq!(of_b["reasons"]["passthrough-source"], sent, "{of_b}");
    assert_eq!((&of_a["faults"], &of_b["faults"]), (&json!({}), &json!({})));
}
