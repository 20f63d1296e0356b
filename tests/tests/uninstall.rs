//! `veer uninstall`: all of veer off the node, and nobody is stranded by it.

#![expect(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Output;
use std::thread;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use socket2::Socket;
use tempfile::TempDir;
use veer_common::ABI_VERSION;
use veer_common::cni::Reply;
use veer_common::maps::name;
use veer_tests::agent::Agent;
use veer_tests::cgroup::Cgroup;
use veer_tests::dst_server::DstServer;
use veer_tests::envoy::{self, Envoy, Sidecar};
use veer_tests::jam::{self, Jam};
use veer_tests::launch::{Identity, Launch};
use veer_tests::mesh::{self, APP, Listeners, Mesh, OUTBOUND, dial, dial_from_world, proxy_listeners};
use veer_tests::netfilter::Netfilter;
use veer_tests::pod::{REMOTE_V4, REMOTE_V6, TestPod, World};
use veer_tests::streams::{self, Stream};
use veer_tests::supervised::Supervised;
use veer_tests::{load, scratch, veth, wait};

const REMOTE: SocketAddr = SocketAddr::new(IpAddr::V4(REMOTE_V4), 80);
const REMOTE_SIX: SocketAddr = SocketAddr::new(IpAddr::V6(REMOTE_V6), 80);
/// A port that is not spoken to with HTTP.
const STREAM: u16 = 9000;

fn run(agent: &Agent, arguments: &[&str]) -> Output {
    agent.command(&[&["uninstall"], arguments].concat()).output().unwrap()
}

/// Ends with success, and tells what it did.
fn uninstall(agent: &Agent, arguments: &[&str]) -> Value {
    let output = run(agent, &[&["--json"], arguments].concat());
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn names(report: &Value, kind: &str) -> Vec<String> {
    let removed = report["removed"].as_array().unwrap().iter();
    let of_kind = removed.filter(|removed| removed["kind"] == kind);
    of_kind.map(|removed| removed["name"].as_str().unwrap().to_owned()).collect()
}

/// Kinds in the order of their removal, each once.
fn kinds(report: &Value) -> Vec<String> {
    let removed = report["removed"].as_array().unwrap().iter();
    let mut kinds: Vec<_> = removed.map(|removed| removed["kind"].as_str().unwrap().to_owned()).collect();
    kinds.dedup();
    kinds
}

#[track_caller]
fn assert_nothing_is_left(agent: &Agent) {
    assert!(!agent.bpffs().exists(), "{}", agent.bpffs().display());
    assert!(!agent.run_dir().exists(), "{}", agent.run_dir().display());
    let output = run(agent, &[]);
    let text = format!(
        "nothing of veer is here: neither in {} nor in {}\n",
        agent.bpffs().display(),
        agent.run_dir().display()
    );
    assert_eq!((output.status.code(), String::from_utf8(output.stdout).unwrap()), (Some(0), text));
}

/// Where connections of the pod and to the pod end.
fn ends(mesh: &Mesh, listeners: &Listeners) -> (&'static str, &'static str) {
    let (outbound, ..) = dial(mesh.pod.app(), REMOTE, listeners).unwrap();
    let (inbound, ..) = dial_from_world(&mesh.world, (mesh.pod.v4(), APP), listeners).unwrap();
    (outbound.at, inbound.at)
}

const CAPTURED: (&str, &str) = ("outbound", "inbound");
const DIRECT: (&str, &str) = ("outside", "app");

/// The proxy's listeners, an app, and a server outside.
fn listeners(mesh: &Mesh) -> Listeners {
    let mut listeners = proxy_listeners(&mesh.pod).unwrap();
    listeners.add("app", mesh.pod.app(), (Ipv4Addr::UNSPECIFIED, APP)).unwrap();
    listeners.add_in_world("outside", &mesh.world, REMOTE).unwrap();
    listeners
}

fn start_envoy(pod: &TestPod) -> (Envoy, TempDir) {
    let directory = scratch::directory().unwrap();
    let launch = pod.launch(Identity::proxy());
    let sidecar =
        Sidecar { netns: pod.netns(), launch, directory: directory.path(), http_ports: &[APP], workers: 2 };
    (sidecar.start().unwrap(), directory)
}

/// A byte goes there and another comes back.
fn exchange((mut one, mut other): (&Socket, &Socket)) -> [u8; 2] {
    let mut bytes = [0; 2];
    for socket in [one, other] {
        socket.set_nonblocking(false).unwrap();
        socket.set_read_timeout(Some(mesh::PATIENCE)).unwrap();
    }
    one.write_all(b"a").unwrap();
    other.read_exact(&mut bytes[..1]).unwrap();
    other.write_all(b"b").unwrap();
    one.read_exact(&mut bytes[1..]).unwrap();
    bytes
}

/// Connections that Envoy's listeners have taken.
fn taken(pod: &TestPod) -> u64 {
    let stats = envoy::stats(pod.netns()).unwrap();
    let of_listener = |name: &str| {
        name.starts_with("listener.")
            && (name.ends_with("_15001.downstream_cx_total") || name.ends_with("_15006.downstream_cx_total"))
    };
    stats.iter().filter(|(name, _)| of_listener(name)).map(|(_, count)| count).sum()
}

fn has_passthrough_address(pod: &TestPod) -> bool {
    let show = || std::process::Command::new("ip").args(["-6", "addr", "show", "dev", "lo"]).output();
    let output = pod.netns().run(show).unwrap().unwrap();
    String::from_utf8(output.stdout).unwrap().contains("inet6 ::6/128")
}

#[test]
fn open_streams_through_envoys_go_on_and_new_connections_go_direct() {
    let mut mesh = Mesh::new().unwrap();
    let b = mesh.another_pod("b").unwrap();
    let _envoys = [start_envoy(&mesh.pod), start_envoy(&b)];
    let a = &mesh.pod;
    let mut app = Listeners::default();
    app.add("app", b.app(), (Ipv4Addr::UNSPECIFIED, STREAM)).unwrap();
    app.add("app", b.app(), (std::net::Ipv6Addr::UNSPECIFIED, STREAM)).unwrap();
    let to = [SocketAddr::from((b.v4(), STREAM)), SocketAddr::from((b.v6(), STREAM))];
    let streams = to.map(|to| dial(a.app(), to, &app).unwrap());
    let passthrough: [IpAddr; 2] = ["127.0.0.6".parse().unwrap(), "::6".parse().unwrap()];
    for ((arrival, dialled, accepted), passthrough) in streams.iter().zip(passthrough) {
        assert_eq!(arrival.peer.ip(), passthrough, "through both sidecars");
        assert_eq!(exchange((dialled, accepted)), *b"ab");
    }
    mesh.agent.stop().unwrap();

    let report = uninstall(&mesh.agent, &[]);

    assert_eq!(
        kinds(&report),
        [
            "policies",
            "redirecting-link",
            "netns-link",
            "passthrough-address",
            "cgroup-link",
            "answering-link",
            "program",
            "map",
            "pin-directory",
            "run-file",
            "run-directory"
        ]
    );
    // That of b is what one of the streams comes from.
    assert_eq!(names(&report, "passthrough-address"), ["test/pod"]);
    assert_eq!((has_passthrough_address(a), has_passthrough_address(&b)), (false, true));
    let left =
        "::6 on lo of pod test/b: the proxy's connections to its app come from there; it goes with the pod";
    assert_eq!((&report["left"], &report["problems"]), (&json!([left]), &json!([])));
    for (_, dialled, accepted) in &streams {
        assert_eq!(exchange((dialled, accepted)), *b"ab");
    }
    for (to, from) in to.into_iter().zip([IpAddr::from(a.v4()), a.v6().into()]) {
        let (arrival, dialled, accepted) = dial(a.app(), to, &app).unwrap();
        assert_eq!((arrival.peer.ip(), arrival.original), (from, None), "past both sidecars");
        assert_eq!(exchange((&dialled, &accepted)), *b"ab");
    }
    assert_nothing_is_left(&mesh.agent);
}

/// A server in the world that writes "direct" to everyone, until the guard goes.
fn serve_direct(world: &World) -> Result<Socket> {
    let listener = world.tcp4()?;
    listener.set_reuse_address(true)?;
    listener.bind(&REMOTE.into())?;
    listener.listen(4096)?;
    let accepting = listener.try_clone()?;
    thread::spawn(move || {
        while let Ok((mut client, _)) = accepting.accept() {
            drop(client.write_all(b"direct"));
        }
    });
    Ok(listener)
}

#[test]
fn connections_that_are_opened_meanwhile_reach_the_proxy_which_knows_where_to_or_their_destination() {
    let mut mesh = Mesh::new().unwrap();
    let direct = serve_direct(&mesh.world).unwrap();
    let Mesh { agent, pod, .. } = &mut mesh;
    let proxy = DstServer::start(pod.proxy(), (Ipv4Addr::UNSPECIFIED, OUTBOUND)).unwrap();
    let app = || pod.maker(Identity::app()).unwrap();
    let diallers = [app(), app(), app()];
    let work = |app: &veer_tests::socket_maker::Maker, _turn| {
        let mut socket = app.tcp4()?;
        mesh::connect(&socket, REMOTE).context("dial")?;
        socket.set_read_timeout(Some(mesh::PATIENCE))?;
        let mut told = String::new();
        socket.read_to_string(&mut told).context("hear")?;
        ensure!(told == "direct" || told == REMOTE.to_string(), "{told}");
        Ok(())
    };
    agent.stop().unwrap();
    let made = load::during(&diallers, work, |progress| {
        progress.wait_for(300).unwrap();
        uninstall(agent, &[]);
        progress.wait_for(300).unwrap();
    })
    .unwrap();
    let redirected = proxy.accepted();
    assert!(redirected >= 300 && made >= redirected + 300, "{redirected} of {made}");
    direct.shutdown(std::net::Shutdown::Both).unwrap();
    assert_nothing_is_left(agent);
}

#[test]
fn while_an_agent_runs_nothing_is_done_and_its_pid_is_told() {
    let mesh = Mesh::new().unwrap();
    let listeners = listeners(&mesh);
    for arguments in [&[][..], &["--dry-run"], &["--json"]] {
        let output = run(&mesh.agent, arguments);
        let pid = mesh.agent.process().pid();
        let text = format!(
            "veer: an agent runs, pid {pid} (it has {} locked): end it first, and see that nothing starts it again \
             (delete its DaemonSet or stop its unit; by hand: kill -TERM {pid})\n",
            mesh.agent.run_dir().join("agent.lock").display()
        );
        assert_eq!(String::from_utf8(output.stderr).unwrap(), text);
        assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(75), &b""[..]));
    }
    assert_eq!(mesh.agent.check(&mesh.pod).unwrap(), Reply::Done);
    assert_eq!(ends(&mesh, &listeners), CAPTURED);
}

#[test]
fn an_agent_that_says_nothing_any_more_is_named_by_its_lock() {
    let mesh = Mesh::new().unwrap();
    let _listeners = listeners(&mesh);
    mesh.agent.signal(nix::sys::signal::Signal::SIGSTOP).unwrap();
    let output = run(&mesh.agent, &[]);
    mesh.agent.signal(nix::sys::signal::Signal::SIGCONT).unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.starts_with(&format!("veer: an agent runs, pid {} ", mesh.agent.process().pid())), "{text}");
}

#[test]
fn a_dry_run_changes_nothing_and_names_what_would_go() {
    let mut mesh = Mesh::new().unwrap();
    let listeners = listeners(&mesh);
    mesh.agent.kill().unwrap();
    let would = uninstall(&mesh.agent, &["--dry-run"]);
    assert_eq!(ends(&mesh, &listeners), CAPTURED);
    let text = String::from_utf8(run(&mesh.agent, &["--dry-run"]).stdout).unwrap();
    assert!(text.starts_with("would remove    1 map of policies: nothing new is redirected\n"), "{text}");

    let did = uninstall(&mesh.agent, &[]);

    assert_eq!((&would["dryRun"], &did["dryRun"]), (&json!(true), &json!(false)));
    assert_eq!(would["removed"], did["removed"]);
    assert_eq!(ends(&mesh, &listeners), DIRECT);
    assert_nothing_is_left(&mesh.agent);
}

#[test]
fn what_somebody_removed_by_hand_before_is_no_hindrance() {
    let half = |pins: &Path| {
        for pin in [&format!("maps/{}", name::PODS), "links/veer_getsockopt", "programs/veer_sockops"] {
            fs::remove_file(pins.join(pin)).unwrap();
        }
    };
    let without_names = |pins: &Path| {
        fs::remove_file(pins.join("maps").join(name::ENROLMENTS)).unwrap();
        fs::remove_dir_all(pins.join("programs")).unwrap();
    };
    let all_but_links = |pins: &Path| {
        for directory in ["maps", "programs"] {
            fs::remove_dir_all(pins.join(directory)).unwrap();
        }
    };
    for sabotage in [half, without_names, all_but_links] {
        let mut mesh = Mesh::new().unwrap();
        let listeners = listeners(&mesh);
        mesh.agent.kill().unwrap();
        sabotage(&mesh.agent.bpffs().join(format!("v{ABI_VERSION}")));
        uninstall(&mesh.agent, &[]);
        assert_eq!(ends(&mesh, &listeners), DIRECT);
        assert_nothing_is_left(&mesh.agent);
    }
}

#[test]
fn a_failure_is_named_does_not_stop_it_and_is_gone_when_it_is_run_again() {
    let mut mesh = Mesh::new().unwrap();
    let listeners = listeners(&mesh);
    mesh.agent.kill().unwrap();
    let in_the_way = ["cni.sock", "control.sock"].map(|socket| mesh.agent.run_dir().join(socket));
    for path in &in_the_way {
        fs::remove_file(path).unwrap();
        fs::create_dir(path).unwrap();
    }
    let output = run(&mesh.agent, &[]);
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(70), "{errors}");
    for path in &in_the_way {
        assert!(errors.contains(&format!("remove {}: Is a directory", path.display())), "{errors}");
        fs::remove_dir(path).unwrap();
    }
    assert!(!mesh.agent.bpffs().exists() && !mesh.agent.run_dir().join("agent.lock").exists());
    assert_eq!(ends(&mesh, &listeners), DIRECT);
    let again = uninstall(&mesh.agent, &[]);
    assert_eq!(kinds(&again), ["run-directory"]);
    assert_nothing_is_left(&mesh.agent);
}

#[test]
fn a_proxy_that_does_not_accept_does_not_hold_it_up() {
    let mut mesh = Mesh::new().unwrap();
    let jam = Jam::start(&mesh.pod, REMOTE_SIX).unwrap();
    let under_way = jam::begin(mesh.pod.app(), REMOTE_SIX).unwrap();
    mesh.agent.stop().unwrap();
    let report = uninstall(&mesh.agent, &[]);
    let left = report["left"].as_array().unwrap();
    let text =
        "1 connection on the way to a proxy that does not accept: it will not learn where they were dialled";
    assert!(left.contains(&json!(text)), "{left:?}");
    drop((jam, under_way));
    assert_nothing_is_left(&mesh.agent);
}

#[test]
fn what_other_abi_versions_have_pinned_goes_too() {
    let mut mesh = Mesh::new().unwrap();
    let listeners = listeners(&mesh);
    mesh.agent.stop().unwrap();
    let pins = |version| mesh.agent.bpffs().join(format!("v{version}"));
    fs::rename(pins(ABI_VERSION), pins(ABI_VERSION + 1)).unwrap();
    mesh.agent.start_again().unwrap();
    let another = mesh.another_pod("another").unwrap();
    mesh.agent.stop().unwrap();

    let report = uninstall(&mesh.agent, &[]);

    assert_eq!((names(&report, "policies").len(), names(&report, "netns-link").len()), (2, 2));
    assert_eq!(ends(&mesh, &listeners), DIRECT);
    assert_nothing_is_left(&mesh.agent);
    drop(another);
}

#[test]
fn files_of_others_stay_and_so_do_their_directories() {
    let mut mesh = Mesh::new().unwrap();
    mesh.agent.stop().unwrap();
    let theirs = mesh.agent.run_dir().join("notes.txt");
    fs::write(&theirs, "not veer's").unwrap();
    let pinned = mesh.agent.bpffs().join("somebody-elses");
    fs::create_dir(&pinned).unwrap();
    let report = uninstall(&mesh.agent, &[]);
    assert_eq!((&report["left"], &report["problems"]), (&json!([]), &json!([])));
    assert!(theirs.exists() && pinned.exists());
    assert!(!mesh.agent.bpffs().join(format!("v{ABI_VERSION}")).exists());
    let again = uninstall(&mesh.agent, &[]);
    assert_eq!(again["removed"], json!([]));
}

#[test]
fn open_streams_of_pods_of_nftables_go_on_and_new_connections_go_direct() {
    let cgroup = Cgroup::new().unwrap();
    let mut agent = Agent::start_with(&cgroup, Launch::new(), &["--backend=nftables"]).unwrap();
    let world = World::new().unwrap();
    let [streaming, idle] = ["streaming", "idle"].map(|name| TestPod::new(&world, &cgroup, name).unwrap());
    for pod in [&streaming, &idle] {
        agent.enrol_as(pod, &mesh::dual_stack(pod)).unwrap();
    }
    let envoy = start_envoy(&streaming);
    let mut outside = Listeners::default();
    outside.add_in_world("outside", &world, (REMOTE_V4, STREAM)).unwrap();
    outside.add_in_world("outside", &world, (REMOTE_V6, STREAM)).unwrap();
    let mut app = Listeners::default();
    app.add("app", streaming.app(), (Ipv4Addr::UNSPECIFIED, STREAM)).unwrap();
    app.add("app", streaming.app(), (std::net::Ipv6Addr::UNSPECIFIED, STREAM)).unwrap();
    let out = [SocketAddr::from((REMOTE_V4, STREAM)), SocketAddr::from((REMOTE_V6, STREAM))];
    let back = [SocketAddr::from((streaming.v4(), STREAM)), SocketAddr::from((streaming.v6(), STREAM))];
    let open = || {
        let outbound = out.map(|to| dial(streaming.app(), to, &outside).unwrap());
        let inbound = back.map(|to| dial_from_world(&world, to, &app).unwrap());
        outbound.into_iter().chain(inbound).collect::<Vec<_>>()
    };
    let connections = || taken(&streaming);
    let streams = open();
    let work = |streams: &[(mesh::Arrival, Socket, Socket)]| {
        for (arrival, dialled, accepted) in streams {
            assert_eq!(exchange((dialled, accepted)), *b"ab", "{arrival:?}");
        }
    };
    work(&streams);
    let before = connections();
    assert!(before >= 4, "{before}");
    agent.stop().unwrap();

    let report = uninstall(&agent, &[]);

    work(&streams);
    work(&open());
    assert_eq!(connections(), before, "the new ones are none of Envoy's");
    assert_eq!(names(&report, "rules"), ["test/idle"]);
    let left = "chains of nftables without a redirection in pod test/streaming: connections that its proxy has are translated there; \
                they go with the pod";
    assert_eq!((&report["left"], &report["problems"]), (&json!([left]), &json!([])));
    assert!(Netfilter::of(idle.netns()).unwrap().none());
    assert!(!has_passthrough_address(&idle));
    assert_nothing_is_left(&agent);
    drop(envoy);
}

#[test]
fn a_node_is_installed_again_after_it() {
    let mut mesh = Mesh::new().unwrap();
    let listeners = listeners(&mesh);
    mesh.agent.stop().unwrap();
    uninstall(&mesh.agent, &[]);
    assert_eq!(ends(&mesh, &listeners), DIRECT);
    mesh.agent.start_again().unwrap();
    mesh.agent.enrol(&mesh.pod).unwrap();
    assert_eq!(ends(&mesh, &listeners), CAPTURED);
    // The address that it may have had from before is fine.
    veth::ip(mesh.pod.netns(), ["address add ::6/128 dev lo nodad"]).unwrap();
    mesh.agent.enrol_as(&mesh.pod, &mesh::dual_stack(&mesh.pod)).unwrap();
    assert_eq!(mesh.agent.check(&mesh.pod).unwrap(), Reply::Done);
}

#[test]
fn the_nodes_envoy_ends_once_nobodys_connection_goes_through_it() {
    let mut node = Supervised::start(&[]).unwrap();
    let (a, b) = (node.pod("a").unwrap(), node.pod("b").unwrap());
    let listener = streams::listen(&b, STREAM).unwrap();
    let mut stream = Stream::open(&a, &listener, (b.v4(), STREAM).into()).unwrap();
    stream.exchange().unwrap();
    let pid = node.wait_live(|_pid| true).unwrap();
    let (place, cgroup) = (node.envoys().parent().unwrap().to_owned(), node.proxys_cgroup());
    let flag = format!("--proxy-dir={}", place.display());
    node.agent.kill().unwrap();

    let report = uninstall(&node.agent, &[&flag]);
    let left = report["left"].to_string();
    assert!(left.contains(&format!("pid {pid}: 2 connections of pods go through it")), "{left}");
    assert_eq!((names(&report, "proxy"), names(&report, "proxy-file")), (vec![], vec![]));
    stream.exchange().unwrap();

    drop(stream);
    let proxy = [format!("pid {pid}")];
    wait::until("Envoy to hear of the end", wait::LIMIT, || {
        names(&uninstall(&node.agent, &[&flag, "--dry-run"]), "proxy") == proxy
    })
    .unwrap();
    assert!(Path::new(&format!("/proc/{pid}")).exists() && place.join("envoy.json").exists());
    let report = uninstall(&node.agent, &[&flag]);
    assert_eq!((names(&report, "proxy").as_slice(), &report["left"]), (proxy.as_slice(), &json!([])));
    for path in [Path::new(&format!("/proc/{pid}")), &place, &cgroup] {
        assert!(!path.exists(), "{}", path.display());
    }
    assert_eq!(uninstall(&node.agent, &[&flag])["removed"], json!([]));
}
