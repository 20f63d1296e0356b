//! The agent as the supervisor of the node's real Envoy.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "helpers of tests panic as tests do")]

use std::collections::BTreeSet;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr};
use std::path::Path;
use std::thread;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};
use veer_tests::agent::Agent;
use veer_tests::cgroup::Cgroup;
use veer_tests::http::{self, Headers};
use veer_tests::launch::{Identity, Launch};
use veer_tests::load;
use veer_tests::node_proxy::{self, NodeProxy};
use veer_tests::pod::{TestPod, World};
use veer_tests::supervised::{OwnEnvoy, Supervised};
use veer_tests::{scratch, wait};

/// A port of an app that speaks no HTTP.
const BYTES: u16 = 9000;
/// `CAP_SYS_ADMIN`, as `/proc/PID/status` has it.
const SYS_ADMIN: &str = "0000000000200000";

#[test]
fn the_agent_starts_envoy_with_one_right_and_pods_are_served() {
    let node = Supervised::start(&[]).unwrap();
    let (a, b) = (node.pod("a").unwrap(), node.pod("b").unwrap());
    let _echo = echo(&b);
    ask(&Dialler::Pod(&a), b.v4()).unwrap();

    let process = node.process().unwrap();
    let pid = process["pid"].as_u64().unwrap();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim();
    let all_four = "1337\t1337\t1337\t1337";
    assert_eq!([field("Uid:"), field("Gid:"), field("Groups:")], [all_four, all_four, ""]);
    for set in ["CapEff:", "CapPrm:", "CapBnd:", "CapAmb:"] {
        assert_eq!(field(set), SYS_ADMIN, "{set}");
    }
    assert_eq!(field("NoNewPrivs:"), "1");
    let parent: u32 = field("PPid:").parse().unwrap();
    let cgroup = fs::read_to_string(node.proxys_cgroup().join("cgroup.procs")).unwrap();
    let cgroup: BTreeSet<&str> = cgroup.lines().collect();
    assert_eq!(cgroup, BTreeSet::from([parent.to_string().as_str(), pid.to_string().as_str()]));
    // The shim has nothing of the agent's: nothing but its standard streams, and what it has opened itself.
    let log = node.envoys().join("envoy.log").display().to_string();
    for descriptor in fs::read_dir(format!("/proc/{parent}/fd")).unwrap().flatten() {
        let Ok(target) = fs::read_link(descriptor.path()) else { continue };
        let target = target.display().to_string();
        let number: u32 = descriptor.file_name().to_str().unwrap().parse().unwrap();
        // And what whoever runs the tests has given to all of them.
        let is_everybodys =
            fs::read_link(format!("/proc/self/fd/{number}")).is_ok_and(|own| own == Path::new(&target));
        let is_own = number < 3
            || is_everybodys
            || target == log
            || target.starts_with("pipe:")
            || target.ends_with("/envoy");
        assert!(is_own, "{number} is {target}");
    }
    assert_eq!(process["version"], json!("1.40.0"));
    assert_eq!((&process["restarts"], process.get("problem")), (&json!(0), None));
}

#[test]
fn an_envoy_that_is_killed_is_told_of_and_followed_by_another_one() {
    let node = Supervised::start(&["--admin-addr=127.0.0.1:0", "--health-addr=127.0.0.1:0"]).unwrap();
    let (a, b) = (node.pod("a").unwrap(), node.pod("b").unwrap());
    let _echo = echo(&b);
    ask(&Dialler::Pod(&a), b.v4()).unwrap();
    assert_eq!(ready(&node).0, 200);
    let first = node.wait_live(|_pid| true).unwrap();
    node.signal(first, Signal::SIGKILL).unwrap();
    // As with a sidecar that is away, nothing goes past it.
    wait::until("the pod's connections to be refused", wait::LIMIT, || {
        let socket = a.app().socket(Domain::IPV4, Type::STREAM, None).unwrap();
        let connected = socket.connect(&SocketAddr::from((b.v4(), BYTES)).into());
        connected.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
    })
    .unwrap();
    let second = node.wait_live(|pid| pid != first).unwrap();
    wait::until_ok("the pod to be served again", wait::LIMIT, || ask(&Dialler::Pod(&a), b.v4())).unwrap();

    let process = node.process().unwrap();
    let crash = &process["crash"];
    assert_eq!((&process["restarts"], &crash["pid"]), (&json!(1), &json!(first)), "{process}");
    assert_eq!(crash["by"], json!({"signal": 9}), "{process}");
    assert!(crash["lastWords"].as_array().is_some_and(|words| !words.is_empty()), "{process}");
    let text = node.agent.command(&["status"]).output().unwrap().stdout;
    let text = String::from_utf8(text).unwrap();
    assert!(
        text.contains(&format!("process    live, pid {second}, Envoy 1.40.0, restarted 1 times")),
        "{text}"
    );
    assert!(text.contains(&format!("crash      pid {first} was ended by signal 9 after ")), "{text}");

    let metrics = get(&node, "adminAddr", "/metrics").1;
    let metric = |name: &str| -> f64 {
        metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')).unwrap().parse().unwrap()
    };
    assert_eq!((metric("veer_proxy_live"), metric("veer_proxy_restarts_total")), (1.0, 1.0), "{metrics}");
    assert!(metric("veer_proxy_memory_bytes") > 10e6, "{metrics}");
    assert!(metric("veer_proxy_cpu_seconds_total") > 0.0, "{metrics}");
    assert_eq!(ready(&node).0, 200);
}

#[test]
fn an_envoy_whose_record_cannot_be_written_is_ended_and_another_one_is_started_when_it_can() {
    let node = Supervised::start(&[]).unwrap();
    let first = node.wait_live(|_pid| true).unwrap();
    // In the way of those that follow.
    let records: Vec<_> =
        (2..6).map(|number| node.envoys().join(format!("instance-{number}.json"))).collect();
    for record in &records {
        fs::create_dir(record).unwrap();
    }
    node.signal(first, Signal::SIGKILL).unwrap();
    wait::until_ok("the agent to say that it has started none", wait::LIMIT, || {
        let process = node.process()?;
        let problem = process["problem"].as_str().unwrap_or_default();
        ensure!(problem.contains("write the record into"), "{process}");
        anyhow::Ok(())
    })
    .unwrap();
    let left = || fs::read_to_string(node.proxys_cgroup().join("cgroup.procs")).unwrap();
    wait::until("nobody to be left", wait::LIMIT, || left().is_empty())
        .unwrap_or_else(|error| panic!("{error}: {}", left()));
    for record in &records {
        fs::remove_dir(record).unwrap();
    }
    node.wait_live(|pid| pid != first).unwrap();
}

#[test]
fn an_agent_that_comes_back_finds_envoy_as_it_was_and_looks_after_it_again() {
    let mut node = Supervised::start(&[]).unwrap();
    let (a, b) = (node.pod("a").unwrap(), node.pod("b").unwrap());
    let echo = echo(&b);
    let first = node.wait_live(|_pid| true).unwrap();
    let mut open = connect(&Dialler::Pod(&a), b.v4()).unwrap();
    node.agent.kill().unwrap();
    exchange(&mut open).unwrap();
    ask(&Dialler::Pod(&a), b.v4()).unwrap();
    node.agent.start_again().unwrap();
    assert_eq!(node.wait_live(|_pid| true).unwrap(), first);
    exchange(&mut open).unwrap();
    let process = node.process().unwrap();
    assert_eq!((&process["takeovers"], &process["restarts"]), (&json!(0), &json!(0)), "{process}");
    // What it says from now on is in the agent's log again: the end of that connection.
    open.shutdown(Shutdown::Both).unwrap();
    let ended = format!("\"destination\":\"{}:{BYTES}\"", b.v4());
    wait::until("the access log's line in the agent's log", wait::LIMIT, || {
        node.agent.log().contains(&ended)
    })
    .unwrap();

    node.signal(first, Signal::SIGKILL).unwrap();
    node.wait_live(|pid| pid != first).unwrap();
    let crash = node.process().unwrap()["crash"].clone();
    assert_eq!((&crash["pid"], &crash["by"]), (&json!(first), &json!({"signal": 9})));
    wait::until_ok("the pod to be served again", wait::LIMIT, || ask(&Dialler::Pod(&a), b.v4())).unwrap();
    drop(echo);
}

#[test]
fn an_agent_without_the_command_leaves_envoy_alone_and_says_so() {
    let mut node = Supervised::start(&[]).unwrap();
    let (a, b) = (node.pod("a").unwrap(), node.pod("b").unwrap());
    let _echo = echo(&b);
    let first = node.wait_live(|_pid| true).unwrap();
    node.agent.stop().unwrap();
    let directory = node.envoys().parent().unwrap().display().to_string();
    node.agent.set_arguments(&[&format!("--proxy-dir={directory}")]);
    node.agent.start_again().unwrap();
    ask(&Dialler::Pod(&a), b.v4()).unwrap();
    assert!(fs::exists(format!("/proc/{first}/fd")).unwrap());
    wait::until("the agent to say so", wait::LIMIT, || {
        let log = node.agent.log();
        log.contains("this agent does not look after it") && log.contains(&format!("pid={first}"))
    })
    .unwrap();
    assert_eq!(node.process().unwrap(), Value::Null);
}

#[test]
fn a_command_that_is_no_envoy_is_an_error_with_a_name_and_the_node_is_not_ready() {
    let health = ["--health-addr=127.0.0.1:0"];
    let cases = [
        (
            "/nonexistent/envoy",
            "proxy-process: start /nonexistent/envoy: open /nonexistent/envoy: No such file",
        ),
        ("/bin/false", "exited with status 1 after 0 s"),
    ];
    for (command, problem) in cases {
        let node = Supervised::with_command(command, &health).unwrap();
        wait::until_ok("the agent to say what is wrong", wait::LIMIT, || {
            let (status, text) = ready(&node);
            ensure!(status == 503 && text.contains(problem), "{status}: {text}");
            let process = node.process()?;
            ensure!(
                process["problem"]
                    .as_str()
                    .is_some_and(|told| told.contains(problem.trim_start_matches("proxy-process: "))),
                "{process}"
            );
            ensure!(process["phase"] == "down" || command == "/bin/false", "{process}");
            anyhow::Ok(())
        })
        .unwrap();
    }
}

#[test]
fn another_build_takes_over_without_a_connection_refused_or_reset() {
    let own = OwnEnvoy::copy().unwrap();
    let node = Supervised::with_command(&own.command(), &[]).unwrap();
    let mut pid = node.wait_live(|_pid| true).unwrap();
    let (a, b, c) = (node.pod("a").unwrap(), node.pod("b").unwrap(), node.pod("c").unwrap());
    let echoes = [echo(&b), echo(&c)];
    let mut open = connect(&Dialler::Pod(&a), b.v4()).unwrap();
    let times = if std::env::var_os("VEER_LONG").is_some() { 10 } else { 3 };
    let diallers = [Dialler::Pod(&a), Dialler::Pod(&c), Dialler::World(&node.world), Dialler::Pod(&a)];
    let made = load::during(
        &diallers,
        |dialler, _turn| ask(dialler, b.v4()),
        |progress| {
            for turn in 1..=times {
                own.become_another().unwrap();
                node.agent.signal(Signal::SIGHUP).unwrap();
                let before = pid;
                pid = node.wait_live(|pid| pid != before).unwrap();
                progress.wait_for(100).unwrap();
                if turn == 1 {
                    // Pods that come while two of them run.
                    let d = node.pod("d").unwrap();
                    ask(&Dialler::Pod(&d), b.v4()).unwrap();
                    exchange(&mut open).unwrap();
                    open.shutdown(Shutdown::Both).unwrap();
                }
                wait::until("the one before to be ended", wait::LIMIT * 2, || {
                    node.process().unwrap().get("draining").is_none()
                })
                .unwrap();
            }
        },
    )
    .unwrap();
    println!("{made} connections during {times} takeovers");
    assert_eq!(node.process().unwrap()["takeovers"], json!(times));
    let epoch = node.admin("/server_info").unwrap();
    assert!(epoch.contains(&format!("\"restart_epoch\": {times}")), "{epoch}");
    drop(echoes);
}

/// It would be told of no pod, and have all listeners of the one before closed.
#[test]
fn another_build_waits_for_what_users_add_and_takes_nothing_from_pods_meanwhile() {
    let own = OwnEnvoy::copy().unwrap();
    let directory = scratch::directory().unwrap();
    let config = directory.path().join("cluster.yaml");
    let good = "resources:\n- '@type': type.googleapis.com/envoy.config.cluster.v3.Cluster\n  name: elsewhere\n  type: STATIC\n";
    fs::write(&config, good).unwrap();
    let flag = format!("--proxy-config={}", directory.path().display());
    let mut node = Supervised::with_command(&own.command(), &[&flag]).unwrap();
    let first = node.wait_live(|_pid| true).unwrap();
    let (a, b) = (node.pod("a").unwrap(), node.pod("b").unwrap());
    let _echo = echo(&b);
    ask(&Dialler::Pod(&a), b.v4()).unwrap();

    node.agent.kill().unwrap();
    fs::write(&config, "resources: [{").unwrap();
    own.become_another().unwrap();
    node.agent.start_again().unwrap();
    wait::until_ok("the agent to say what it waits for", wait::LIMIT, || {
        let process = node.process()?;
        let problem = process["problem"].as_str().unwrap_or_default();
        ensure!(problem.contains("waits until --proxy-config can be read"), "{process}");
        anyhow::Ok(())
    })
    .unwrap();
    let made = load::during(
        &[Dialler::Pod(&a), Dialler::World(&node.world)],
        |dialler, _turn| ask(dialler, b.v4()),
        |progress| {
            node.agent.signal(Signal::SIGHUP).unwrap();
            progress.wait_for(50).unwrap();
            assert_eq!(node.process().unwrap()["pid"], json!(first));
            fs::write(&config, good).unwrap();
            node.wait_live(|pid| pid != first).unwrap();
            progress.wait_for(50).unwrap();
        },
    );
    assert!(made.unwrap() >= 100);
    assert_eq!(node.process().unwrap().get("problem"), None);
}

/// Whichever finds an agent that comes back last, a new pod needs the one that goes on.
#[test]
fn an_envoy_that_drains_does_not_answer_for_the_one_that_follows_it() {
    let own = OwnEnvoy::copy().unwrap();
    let command = own.command().replace("--parent-shutdown-time-s 6", "--parent-shutdown-time-s 600");
    let mut node = Supervised::with_command(&command, &[]).unwrap();
    let first = node.wait_live(|_pid| true).unwrap();
    own.become_another().unwrap();
    node.agent.signal(Signal::SIGHUP).unwrap();
    let second = node.wait_live(|pid| pid != first).unwrap();
    let a = node.pod("a").unwrap();
    let _echo = echo(&a);

    node.agent.kill().unwrap();
    node.signal(first, Signal::SIGSTOP).unwrap();
    node.agent.start_again().unwrap();
    node.wait_connected(1).unwrap();
    node.signal(first, Signal::SIGCONT).unwrap();
    node.wait_connected(2).unwrap();
    node.signal(second, Signal::SIGSTOP).unwrap();
    let error = format!("{:#}", node.pod("b").unwrap_err());
    assert!(error.contains("the node's proxy has not answered within 10 s"), "{error}");
    node.signal(second, Signal::SIGCONT).unwrap();
    let c = node.pod("c").unwrap();
    ask(&Dialler::Pod(&c), a.v4()).unwrap();
}

#[test]
fn another_build_that_does_not_run_is_told_and_the_one_before_goes_on() {
    let own = OwnEnvoy::copy().unwrap();
    let node = Supervised::with_command(&own.command(), &["--health-addr=127.0.0.1:0"]).unwrap();
    let first = node.wait_live(|_pid| true).unwrap();
    let (a, b) = (node.pod("a").unwrap(), node.pod("b").unwrap());
    let _echo = echo(&b);
    own.replace("/bin/false".as_ref()).unwrap();
    node.agent.signal(Signal::SIGHUP).unwrap();
    wait::until_ok("the agent to say that it has not", wait::LIMIT, || {
        let process = node.process()?;
        let problem = process["problem"].as_str().unwrap_or_default();
        ensure!(
            problem.starts_with("another build of the node's proxy has not taken over: pid "),
            "{process}"
        );
        ensure!(problem.contains("exited with status 1"), "{process}");
        anyhow::Ok(())
    })
    .unwrap();
    ask(&Dialler::Pod(&a), b.v4()).unwrap();
    assert_eq!(node.wait_live(|_pid| true).unwrap(), first);
    assert_eq!(ready(&node).0, 200);
}

#[test]
fn an_envoy_that_is_root_with_the_proxys_group_as_in_a_container_serves_pods() {
    let cgroup = Cgroup::new().unwrap();
    let place = node_proxy::directory().unwrap();
    let place = place.path().join("proxy");
    let agent =
        Agent::start_with(&cgroup, Launch::new(), &[&format!("--proxy-dir={}", place.display())]).unwrap();
    let world = World::new().unwrap();
    let proxys = cgroup.child("proxy").unwrap();
    let who = Identity::new(0, Identity::proxy().gid);
    let proxy = NodeProxy::start_as(who, &place, world.netns(), &proxys).unwrap();
    let pod = |name: &str| {
        let pod = TestPod::new(&world, &cgroup, name).unwrap();
        agent.enrol_as(&pod, &pod.manifest().with_node_proxy()).unwrap();
        pod
    };
    let (a, b) = (pod("a"), pod("b"));
    let _echo = echo(&b);
    for dialler in [Dialler::Pod(&a), Dialler::World(&world)] {
        ask(&dialler, b.v4()).unwrap();
    }
    let reasons =
        |pod: &TestPod| agent.json(&["pods", &format!("test/{}", pod.name())]).unwrap()["totals"].clone();
    let (of_a, of_b) = (reasons(&a), reasons(&b));
    assert_eq!((&of_a["toOutbound"], &of_b["toInbound"]), (&json!(1), &json!(2)), "{of_a} {of_b}");
    drop(proxy);
}

/// Who dials.
enum Dialler<'a> {
    /// A pod's app.
    Pod(&'a TestPod),
    /// Somebody who is in no pod.
    World(&'a World),
}

/// An app that says what it is told, until it is dropped.
struct Echo {
    listener: Socket,
    serves: Option<thread::JoinHandle<()>>,
}

fn echo(pod: &TestPod) -> Echo {
    let listener = pod.app().socket(Domain::IPV4, Type::STREAM, None).unwrap();
    listener.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, BYTES)).into()).unwrap();
    listener.listen(128).unwrap();
    let accepting = listener.try_clone().unwrap();
    let serves = thread::spawn(move || {
        while let Ok((mut stream, _peer)) = accepting.accept() {
            thread::spawn(move || {
                let mut bytes = [0; 64];
                while let Ok(length @ 1..) = stream.read(&mut bytes) {
                    if stream.write_all(&bytes[..length]).is_err() {
                        return;
                    }
                }
            });
        }
    });
    Echo { listener, serves: Some(serves) }
}

impl Drop for Echo {
    fn drop(&mut self) {
        // Ends the accept() of the other thread.
        drop(self.listener.shutdown(Shutdown::Both));
        self.serves.take().map(thread::JoinHandle::join).unwrap().unwrap();
    }
}

fn connect(from: &Dialler<'_>, to: Ipv4Addr) -> Result<Socket> {
    let socket = match from {
        Dialler::Pod(pod) => pod.app().socket(Domain::IPV4, Type::STREAM, None)?,
        Dialler::World(world) => world.tcp4()?,
    };
    socket.connect_timeout(&SocketAddr::from((to, BYTES)).into(), wait::LIMIT).context("connect")?;
    socket.set_read_timeout(Some(wait::LIMIT))?;
    Ok(socket)
}

/// A connection of one question, from its beginning to its end.
fn ask(from: &Dialler<'_>, to: Ipv4Addr) -> Result<()> {
    let mut socket = connect(from, to)?;
    exchange(&mut socket)?;
    socket.shutdown(Shutdown::Write).context("end")?;
    ensure!(socket.read(&mut [0]).context("read the end")? == 0, "it said more");
    Ok(())
}

fn exchange(socket: &mut Socket) -> Result<()> {
    let said = [7, 0, 255, 13, 10];
    socket.write_all(&said).context("write")?;
    let mut heard = [0; 5];
    socket.read_exact(&mut heard).context("read")?;
    ensure!(heard == said, "it said {heard:?}");
    Ok(())
}

fn get(node: &Supervised, which: &str, path: &str) -> (u16, String) {
    let status = node.agent.json(&["status"]).unwrap();
    let address: SocketAddr = status["agent"][which].as_str().unwrap().parse().unwrap();
    let response = http::get_from(address, path, &Headers::new()).unwrap();
    (response.status, String::from_utf8(response.body).unwrap())
}

fn ready(node: &Supervised) -> (u16, String) {
    get(node, "healthAddr", "/readyz")
}
