//! Metrics of all proxies of a node in one answer of the agent, and what a hostile pod can do to it.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "helpers of tests panic as tests do")]

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::thread::{self, JoinHandle};
use std::time::Instant;
use std::{fs, iter};

use socket2::{Domain, Socket, Type};
use veer_tests::agent::Agent;
use veer_tests::cgroup::Cgroup;
use veer_tests::envoy::{self, STATUS, TELEMETRY};
use veer_tests::http::{self, Headers, Response};
use veer_tests::launch::{Identity, Launch};
use veer_tests::mesh::APP;
use veer_tests::netns::NetNs;
use veer_tests::pod::{TestPod, World};
use veer_tests::process::Process;
use veer_tests::prometheus::{self, Sample};
use veer_tests::proxied_node::ProxiedNode;
use veer_tests::{dial, node_proxy, scratch, wait, ztunnel};

const ON_A_PORT: [&str; 2] = ["--admin-addr=127.0.0.1:0", "--health-addr=127.0.0.1:0"];
const PATH: &str = "/stats/prometheus";

fn address(agent: &Agent, which: &str) -> SocketAddr {
    agent.json(&["status"]).unwrap()["agent"][which].as_str().unwrap().parse().unwrap()
}

fn fetch(agent: &Agent, path: &str) -> (u16, String) {
    let which = if path.starts_with("/readyz") { "healthAddr" } else { "adminAddr" };
    let Response { status, body, .. } = http::get_from(address(agent, which), path, &Headers::new()).unwrap();
    (status, String::from_utf8(body).unwrap())
}

#[track_caller]
fn samples(agent: &Agent, path: &str) -> Vec<Sample> {
    let (status, text) = fetch(agent, path);
    assert_eq!(status, 200, "{text}");
    let types: Vec<&str> = text.lines().filter(|line| line.starts_with("# TYPE ")).collect();
    let name = |line: &str| line.split(' ').nth(2).unwrap().to_owned();
    let mut names: Vec<String> = types.iter().copied().map(name).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), types.len(), "a type is told twice");
    prometheus::parse(&text).unwrap()
}

#[track_caller]
fn value(samples: &[Sample], name: &str, labels: &[(&str, &str)]) -> Option<u64> {
    prometheus::value(samples, name, labels).unwrap().map(|value| value.to_string().parse().unwrap())
}

/// How often a question to proxies ended so.
fn scrapes(agent: &Agent, driver: &str, result: &str) -> u64 {
    let labels = [("driver", driver), ("result", result)];
    value(&samples(agent, "/metrics"), "veer_proxy_scrapes_total", &labels).unwrap()
}

/// A node of pods with sidecars.
struct Node {
    agent: Agent,
    world: World,
    cgroup: Cgroup,
}

impl Node {
    fn start() -> Self {
        Self::start_with(&[])
    }

    fn start_with(flags: &[&str]) -> Self {
        let cgroup = Cgroup::new().unwrap();
        let flags = [&ON_A_PORT, flags].concat();
        let agent = Agent::start_with(&cgroup, Launch::new(), &flags).unwrap();
        Self { agent, world: World::new().unwrap(), cgroup }
    }

    fn pod(&self, name: &str) -> TestPod {
        let pod = TestPod::new(&self.world, &self.cgroup, name).unwrap();
        self.agent.enrol(&pod).unwrap();
        pod
    }
}

/// Somebody in a pod, where its proxy's metrics are, who does what he likes to those who connect.
struct Stand {
    listener: Socket,
    thread: Option<JoinHandle<()>>,
}

impl Stand {
    fn of(pod: &TestPod, port: u16, answer: impl Fn(&mut Socket) + Send + 'static) -> Self {
        let listener = pod.proxy().socket(Domain::IPV4, Type::STREAM, None).unwrap();
        listener.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).into()).unwrap();
        Self::on(listener, answer)
    }

    fn on(listener: Socket, answer: impl Fn(&mut Socket) + Send + 'static) -> Self {
        listener.listen(16).unwrap();
        let accepting = listener.try_clone().unwrap();
        let accept = move || {
            while let Ok((mut stream, _peer)) = accepting.accept() {
                answer(&mut stream);
            }
        };
        Self { listener, thread: Some(thread::spawn(accept)) }
    }

    /// Who says this, and then no more.
    fn saying(pod: &TestPod, port: u16, body: &str) -> Self {
        Self::of(pod, port, says(body))
    }
}

/// Whoever says this, and then no more.
fn says(body: &str) -> impl Fn(&mut Socket) + Send + 'static {
    let answer = format!("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n{body}");
    move |stream| {
        let asked = stream.read(&mut [0; 4096]).and_then(|_length| stream.write_all(answer.as_bytes()));
        asked.unwrap_or_else(|error| eprintln!("{error}"));
    }
}

/// Whoever says the same until nobody listens any more.
fn endless(stream: &mut Socket) {
    let line = format!("a_line{{of=\"{}\"}} 1\n", "many".repeat(1000));
    let head = "HTTP/1.1 200 OK\r\n\r\n";
    // After the request.
    assert_ne!(stream.read(&mut [0; 4096]).unwrap(), 0);
    let all = iter::once(head).chain(iter::repeat(line.as_str()));
    let _broken = all.map(str::as_bytes).find_map(|part| stream.write_all(part).err());
}

/// A ztunnel in a netns of its own, which tells of itself there as the real one does.
struct Ztunnel {
    peer: ztunnel::Ztunnel,
    netns: NetNs,
    _stand: Stand,
}

impl Ztunnel {
    fn start(socket: &Path, answer: impl Fn(&mut Socket) + Send + 'static) -> Self {
        let netns = NetNs::new().unwrap();
        let listener = netns.run(|| Socket::new(Domain::IPV6, Type::STREAM, None)).unwrap().unwrap();
        listener.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, ztunnel::TELEMETRY)).into()).unwrap();
        let peer = told(&netns, socket);
        Self { peer, netns, _stand: Stand::on(listener, answer) }
    }

    /// By what the agent tells it from others.
    fn inode(&self) -> String {
        ztunnel::identity(&self.netns).unwrap().1.to_string()
    }
}

/// Somebody who has said hello to the agent, and has its answer.
fn told(netns: &NetNs, socket: &Path) -> ztunnel::Ztunnel {
    let mut peer = ztunnel::Ztunnel::start_in(netns, socket).unwrap();
    assert_eq!(peer.obey_to_the_snapshot().unwrap(), ["snapshot"]);
    peer
}

/// What ztunnel says, in OpenMetrics whatever it is asked for, with so many connections.
fn of_ztunnel(connections: u8) -> String {
    let help = "The total number of TCP connections opened";
    format!(
        "# HELP istio_build Istio component build info.\n# TYPE istio_build gauge\n\
         istio_build{{component=\"ztunnel\",tag=\"1.27.0\"}} 1\n\
         # HELP istio_tcp_connections_opened {help}.\n# TYPE istio_tcp_connections_opened counter\n\
         istio_tcp_connections_opened_total{{reporter=\"source\"}} {connections}\n\
         # HELP workload_manager_active_proxy_count The total number current proxies.\n\
         # TYPE workload_manager_active_proxy_count gauge\nworkload_manager_active_proxy_count 2\n# EOF\n"
    )
}

impl Drop for Stand {
    fn drop(&mut self) {
        // accept() returns then.
        drop(self.listener.shutdown(Shutdown::Both));
        drop(self.thread.take().map(JoinHandle::join));
    }
}

#[test]
fn the_nodes_envoy_is_told_of_by_the_agent_while_it_is_there() {
    let mut node = ProxiedNode::start_with(&ON_A_PORT).unwrap();
    let (a, b) = (node.pod("a").unwrap(), node.pod("b.v1").unwrap());
    let _app = node.app(&b).unwrap();
    let to = SocketAddr::from((b.v4(), APP));
    for _ in 0..3 {
        assert_eq!(dial::run(&a.launch(Identity::app()), to, ("x-mark", "1")).unwrap().status, 200);
    }
    let of = |direction, pod| [("veer_direction", direction), ("veer_namespace", "test"), ("veer_pod", pod)];
    let counted = |path: &str| {
        let samples = samples(&node.agent, path);
        let total = |labels: &[_]| value(&samples, "envoy_http_downstream_rq_total", labels);
        let up = value(&samples, "veer_proxy_up", &[("veer_driver", "node")]);
        (total(&of("outbound", "a")), total(&of("inbound", "b.v1")), up)
    };
    let all = (Some(3), Some(3), Some(1));
    wait::until("the requests to be counted", wait::LIMIT, || counted(PATH) == all).unwrap();
    assert_eq!(counted(&format!("{PATH}?driver=node&usedonly")), all);
    assert_eq!(counted(&format!("{PATH}?pod=test%2Fa")), (Some(3), None, Some(1)));
    assert_eq!(counted(&format!("{PATH}?driver=sidecar")), (None, None, None));

    // What another one beside it tells is told apart; what others have put there is not asked.
    let place = node.place();
    let second = UnixListener::bind(place.join("admin-2.sock")).unwrap();
    symlink(place.join("ads.sock"), place.join("admin-3.sock")).unwrap();
    fs::write(place.join("admin-4.sock"), "").unwrap();
    let answer = thread::spawn(move || {
        let (mut stream, _peer) = second.accept().unwrap();
        assert_ne!(stream.read(&mut [0; 4096]).unwrap(), 0);
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n# TYPE other counter\nother{} 7\n").unwrap();
    });
    let both = samples(&node.agent, PATH);
    answer.join().unwrap();
    assert_eq!(value(&both, "other", &[("veer_envoy", "2")]), Some(7));
    let up: Vec<_> = both.iter().filter(|sample| sample.name == "veer_proxy_up").collect();
    assert_eq!(up.len(), 2, "{up:?}");
    for name in ["admin-2.sock", "admin-3.sock", "admin-4.sock"] {
        fs::remove_file(place.join(name)).unwrap();
    }

    let ready = |path: &str| fetch(&node.agent, path);
    assert_eq!(ready("/readyz?pod=test%2Fa"), (200, "ready\n".to_owned()));
    assert_eq!(ready("/readyz?pod=test/c"), (404, "no pod test/c is enrolled\n".to_owned()));
    assert!(ready("/readyz?verbose").1.contains("proxy: ok\n"));
    node.proxy.process_mut().kill().unwrap();
    wait::until("the agent to miss its Envoy", wait::LIMIT, || fetch(&node.agent, "/readyz").0 == 503)
        .unwrap();
    assert_eq!(fetch(&node.agent, "/readyz").1, "proxy: no Envoy is connected\n");
    let (status, problem) = fetch(&node.agent, "/readyz?pod=test/a");
    assert_eq!((status, problem.as_str()), (503, "the node's proxy is not connected\n"));
    let without = samples(&node.agent, PATH);
    assert_eq!(value(&without, "veer_proxy_up", &[("veer_driver", "node")]), Some(0));
    assert_eq!(without.len(), 1, "{without:?}");
    assert_eq!(scrapes(&node.agent, "node", "unreachable"), 1);
    assert_eq!(scrapes(&node.agent, "node", "done"), 5);
}

#[test]
fn a_sidecars_metrics_come_from_its_pod_with_the_pods_name() {
    let node = Node::start();
    let (pod, other) = (node.pod("pod.v1"), node.pod("other"));
    let directory = node_proxy::directory().unwrap();
    let _envoy = sidecar(&pod, directory.path());
    let samples = samples(&node.agent, PATH);
    let of = |pod| [("veer_namespace", "test"), ("veer_pod", pod)];
    assert_eq!(value(&samples, "envoy_server_live", &of("pod.v1")), Some(1));
    let up = |pod| {
        let labels = [&[("veer_driver", "sidecar")][..], &of(pod)].concat();
        value(&samples, "veer_proxy_up", &labels)
    };
    assert_eq!((up("pod.v1"), up("other")), (Some(1), Some(0)));
    assert_eq!(scrapes(&node.agent, "sidecar", "unreachable"), 1);
    // Envoy asks Istio's agent there, of which there is none.
    let of_envoy = (503, "it answers with 503 Service Unavailable\n".to_owned());
    assert_eq!(fetch(&node.agent, "/readyz?pod=test/pod.v1"), of_envoy);
    let (status, problem) = fetch(&node.agent, "/readyz?pod=test/other");
    assert!(status == 503 && problem.starts_with("connect: Connection refused"), "{status} {problem}");
    let _ready = Stand::saying(&other, STATUS, "");
    assert_eq!(fetch(&node.agent, "/readyz?pod=test/other"), (200, "ready\n".to_owned()));
    node.agent.unenrol(&other).unwrap();

    for (path, status, said) in [
        ("?pod=test/nobody", 404, "no pod test/nobody is enrolled\n"),
        ("?pod=nobody", 400, "pod is \"nobody\", and not NAMESPACE/NAME\n"),
        ("?driver=envoy", 400, "driver is \"envoy\", and not node, sidecar or ztunnel\n"),
    ] {
        assert_eq!(fetch(&node.agent, &format!("{PATH}{path}")), (status, said.to_owned()));
    }
}

#[test]
fn a_hostile_pod_harms_neither_the_answer_nor_the_agent() {
    let node = Node::start();
    let pods = ["honest", "liar", "endless", "silent", "rude"].map(|name| node.pod(name));
    let [honest, liar, endless, silent, rude] = &pods;
    let lies = "# TYPE good gauge\ngood{a=\"b\"} 1\ngood{veer_pod=\"honest\"} 2\nveer_proxy_up 1\n\
                good{a=\"1\",a=\"2\"} 3\nbroken{\n\u{1}\ngood{a=\"\\\"} 4\\n\"} 5\n";
    let _stands = [
        Stand::saying(honest, TELEMETRY, "# TYPE good counter\ngood 1\n"),
        Stand::saying(liar, TELEMETRY, lies),
        Stand::of(endless, TELEMETRY, self::endless),
        Stand::of(silent, TELEMETRY, |stream| {
            drop(stream.read(&mut [0; 4096]).and_then(|_head| stream.read(&mut [0])));
        }),
        Stand::of(rude, TELEMETRY, |stream| drop(stream.write_all(b"220 mail.example.com ESMTP\r\n"))),
    ];
    let begun = Instant::now();
    let samples = samples(&node.agent, PATH);
    let took = begun.elapsed();
    assert!(took < wait::scaled(wait::LIMIT), "{took:?}");

    let of = |pod| [("veer_namespace", "test"), ("veer_pod", pod)];
    assert_eq!(value(&samples, "good", &of("honest")), Some(1));
    let of_liar: Vec<&Sample> = samples
        .iter()
        .filter(|sample| sample.name != "veer_proxy_up" && sample.labels["veer_pod"] == "liar")
        .collect();
    assert_eq!(of_liar.len(), 2, "{of_liar:?}");
    let up = samples.iter().filter(|sample| sample.name == "veer_proxy_up");
    let up = up.filter(|up| up.value > 0.5).map(|up| up.labels["veer_pod"].as_str());
    assert_eq!(up.collect::<BTreeSet<_>>(), BTreeSet::from(["honest", "liar"]));
    for (result, count) in [("done", 2), ("too-long", 1), ("late", 1), ("refused", 1), ("unreachable", 0)] {
        assert_eq!(scrapes(&node.agent, "sidecar", result), count, "{result}");
    }
    let metrics = self::samples(&node.agent, "/metrics");
    let dropped = value(&metrics, "veer_proxy_scrape_lines_dropped_total", &[("driver", "sidecar")]).unwrap();
    // Those of the liar, and a line in whose middle the endless one was left.
    assert!((5..=6).contains(&dropped), "{dropped}");
}

#[test]
fn what_each_ztunnel_tells_in_its_own_netns_is_told_once_and_under_its_own_names() {
    let place = scratch::directory().unwrap();
    let socket = place.path().join("ztunnel.sock");
    let node = Node::start_with(&[&format!("--ztunnel-socket={}", socket.display())]);
    let pod = node.pod("pod");
    let opened = "istio_tcp_connections_opened_total";
    let _sidecar = Stand::saying(&pod, TELEMETRY, &format!("# TYPE {opened} counter\n{opened} 4\n"));
    let of_pod = [("veer_namespace", "test"), ("veer_pod", "pod")];
    let ups = |samples: &[Sample]| -> Vec<(Option<String>, f64)> {
        let is_its =
            |sample: &&Sample| sample.name == "veer_proxy_up" && sample.labels["veer_driver"] == "ztunnel";
        let up = samples.iter().filter(is_its);
        let mut up: Vec<_> = up.map(|up| (up.labels.get("veer_ztunnel").cloned(), up.value)).collect();
        up.sort_by(|one, other| one.0.cmp(&other.0));
        up
    };
    // That there is none is to be seen.
    assert_eq!(ups(&samples(&node.agent, PATH)), [(None, 0.0)]);
    assert_eq!(scrapes(&node.agent, "ztunnel", "unreachable"), 1);

    // Nobody before it has said hello.
    let nobodys = NetNs::new().unwrap();
    let _silent = nobodys.run(|| ztunnel::Ztunnel::connect(&socket)).unwrap().unwrap();
    let first = Ztunnel::start(&socket, says(&of_ztunnel(3)));
    // The same one a second time, as after an end that the agent has not noticed yet.
    let again = told(&first.netns, &socket);
    let of = |ztunnel: &Ztunnel, samples: &[Sample]| {
        let inode = ztunnel.inode();
        let opened = value(samples, opened, &[("reporter", "source"), ("veer_ztunnel", &inode)]);
        (opened, value(samples, "workload_manager_active_proxy_count", &[("veer_ztunnel", &inode)]))
    };
    let one = samples(&node.agent, PATH);
    assert_eq!(ups(&one), [(Some(first.inode()), 1.0)]);
    assert_eq!((of(&first, &one), value(&one, opened, &of_pod)), ((Some(3), Some(2)), Some(4)));
    let (_, text) = fetch(&node.agent, &format!("{PATH}?driver=ztunnel&usedonly"));
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let expected = [
        "istio_build gauge",
        "istio_tcp_connections_opened_total counter",
        "workload_manager_active_proxy_count gauge",
        "veer_proxy_up gauge",
    ];
    assert_eq!(types.collect::<Vec<_>>(), expected, "{text}");

    // While one takes over from the other, both are there.
    let second = Ztunnel::start(&socket, says(&of_ztunnel(1)));
    let both = samples(&node.agent, PATH);
    assert_eq!((of(&first, &both), of(&second, &both)), ((Some(3), Some(2)), (Some(1), Some(2))));
    assert_eq!(ups(&both).len(), 2);
    let narrowed = |query: &str| ups(&samples(&node.agent, &format!("{PATH}?{query}"))).len();
    assert_eq!((narrowed("driver=sidecar"), narrowed("pod=test/pod"), narrowed("driver=ztunnel")), (0, 0, 2));
    drop((again, first.peer));
    let is_gone = || ups(&samples(&node.agent, PATH)) == [(Some(second.inode()), 1.0)];
    wait::until("the agent to miss the first one", wait::LIMIT, is_gone).unwrap();
}

#[test]
fn a_ztunnel_that_lies_or_never_ends_harms_neither_the_answer_nor_the_agent() {
    let place = scratch::directory().unwrap();
    let socket = place.path().join("ztunnel.sock");
    let node = Node::start_with(&[&format!("--ztunnel-socket={}", socket.display())]);
    let lies = "# TYPE good gauge\ngood 1\ngood{veer_ztunnel=\"1\"} 2\nveer_proxy_up 1\nbroken{\n\u{1}\n";
    let liar = Ztunnel::start(&socket, says(lies));
    let _endless = Ztunnel::start(&socket, endless);
    let _rude = Ztunnel::start(&socket, |stream| {
        drop(
            stream.read(&mut [0; 4096]).and_then(|_head| stream.write_all(b"HTTP/1.1 404 Not Found\r\n\r\n")),
        );
    });
    let samples = samples(&node.agent, PATH);
    let inode = liar.inode();
    assert_eq!(value(&samples, "good", &[("veer_ztunnel", &inode)]), Some(1));
    let of_liar = |sample: &&Sample| sample.labels.get("veer_ztunnel") == Some(&inode);
    // With that it is up.
    assert_eq!(samples.iter().filter(of_liar).count(), 2);
    let up = samples.iter().filter(|sample| sample.name == "veer_proxy_up").map(|up| up.value);
    assert_eq!((up.clone().sum::<f64>(), up.count()), (1.0, 3));
    for (result, count) in [("done", 1), ("too-long", 1), ("refused", 1), ("unreachable", 0)] {
        assert_eq!(scrapes(&node.agent, "ztunnel", result), count, "{result}");
    }
    let metrics = self::samples(&node.agent, "/metrics");
    let dropped = value(&metrics, "veer_proxy_scrape_lines_dropped_total", &[("driver", "ztunnel")]).unwrap();
    // Those of the liar, and a line in whose middle the endless one was left.
    assert!((4..=5).contains(&dropped), "{dropped}");
}

#[test]
fn whoever_asks_and_goes_leaves_no_question_behind() {
    let node = Node::start();
    let pod = node.pod("silent");
    let _stand = Stand::of(&pod, TELEMETRY, |stream| {
        drop(stream.read(&mut [0; 4096]).and_then(|_head| stream.read(&mut [0])));
    });
    let address = address(&node.agent, "adminAddr");
    for _ in 0..8 {
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        write!(stream, "GET {PATH} HTTP/1.1\r\nhost: veer\r\n\r\n").unwrap();
        // The head comes before anybody is asked.
        stream.read_exact(&mut [0; 12]).unwrap();
    }
    let begun = Instant::now();
    drop(samples(&node.agent, PATH));
    // Eight of them, two at a time, would take four times the limit of one.
    assert!(begun.elapsed() < wait::scaled(wait::LIMIT) / 2, "{:?}", begun.elapsed());
}

/// The real Envoy in a pod, with what Istio's tells of itself on 15090.
fn sidecar(pod: &TestPod, directory: &Path) -> Process {
    let (configuration, log) = (directory.join("envoy.json"), directory.join("envoy.log"));
    let bootstrap = envoy::configuration(Path::new("/dev/null"), &[]);
    fs::write(&configuration, serde_json::to_vec(&bootstrap).unwrap()).unwrap();
    let mut command = pod.launch(Identity::proxy()).command(envoy::binary().unwrap()).unwrap();
    command.arg("--config-path").arg(&configuration);
    command.args(["--concurrency", "1", "--disable-hot-restart", "--log-level", "warning"]);
    command.args(["--service-node", "sidecar", "--service-cluster", "test"]);
    let mut process = Process::start("sidecar", command, &log).unwrap();
    let there = SocketAddr::from((Ipv4Addr::LOCALHOST, TELEMETRY));
    process.wait_ready(|| pod.netns().run(|| http::get_from(there, PATH, &Headers::new()))?).unwrap();
    process
}
