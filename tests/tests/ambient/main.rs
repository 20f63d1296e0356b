//! Pods of Istio's ambient mode on the real kernel, with sockets as ztunnel makes them: where each kind of connection
//! ends, for both families; what ztunnel hands to the app, and how the app's answers come back; the node's own probes.
//!
//! The node is the world: the agent runs in its netns, so that the router's addresses are the node's. Clients are another
//! pod's, which nobody has enrolled.

#![expect(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

mod dns;
mod handed_on;
mod lasting;
mod namespaces;
mod probes;
mod redirected;
mod told;

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::Command;

use socket2::Socket;
use tempfile::TempDir;
use veer_common::cni::Reply;
use veer_tests::agent::Agent;
use veer_tests::ambient::{self, Told, Ztunnel};
use veer_tests::cgroup::Cgroup;
use veer_tests::launch::Launch;
use veer_tests::manifest::Manifest;
use veer_tests::mesh::{APP, Listeners, PATIENCE};
use veer_tests::pod::{REMOTE_V4, REMOTE_V6, TestPod, World};
use veer_tests::{scratch, wait};

/// A port outside of the pod.
const REMOTE: u16 = 80;
/// A port of the pod where nobody listens.
const CLOSED: u16 = 9999;

/// A pod of ambient mode with its ztunnel and its app, a client, and a server elsewhere.
struct Scene {
    listeners: Listeners,
    ztunnel: Ztunnel,
    agent: Agent,
    _told: Told,
    _directory: TempDir,
    pod: TestPod,
    client: TestPod,
    world: World,
    _cgroup: Cgroup,
}

impl Scene {
    fn new() -> Self {
        Self::with(|manifest| manifest, &[])
    }

    fn with(change: impl FnOnce(Manifest) -> Manifest, arguments: &[&str]) -> Self {
        Self::enrolling(|agent, pod| agent.enrol_as(pod, &change(ambient::manifest(pod))).unwrap(), arguments)
    }

    /// One whose pod is enrolled in some other way.
    fn enrolling(enrol: impl FnOnce(&Agent, &TestPod), arguments: &[&str]) -> Self {
        let world = World::new().unwrap();
        let cgroup = Cgroup::new().unwrap();
        let directory = scratch::directory().unwrap();
        let socket = directory.path().join("ztunnel.sock");
        let flag = format!("--ztunnel-socket={}", socket.display());
        let arguments = [&[flag.as_str()], arguments].concat();
        let launch = Launch::new().in_netns(world.netns());
        let agent = Agent::start_with(&cgroup, launch, &arguments).unwrap();
        let told = Told::start(&socket);
        let [pod, client] = ["pod", "client"].map(|name| TestPod::new(&world, &cgroup, name).unwrap());
        enrol(&agent, &pod);
        let mut ztunnel = Ztunnel::serve(&pod, &cgroup).unwrap();
        let mut listeners = std::mem::take(&mut ztunnel.listeners);
        for (any, remote) in [
            (IpAddr::from(Ipv4Addr::UNSPECIFIED), IpAddr::from(REMOTE_V4)),
            (Ipv6Addr::UNSPECIFIED.into(), REMOTE_V6.into()),
        ] {
            listeners.add("app", pod.app(), (any, APP)).unwrap();
            listeners.add_in_world("remote", &world, (remote, REMOTE)).unwrap();
        }
        Self {
            listeners,
            ztunnel,
            agent,
            _told: told,
            _directory: directory,
            pod,
            client,
            world,
            _cgroup: cgroup,
        }
    }

    /// The pod's address and the client's, of either family.
    fn families(&self) -> [(IpAddr, IpAddr); 2] {
        let (pod, client) = (&self.pod, &self.client);
        [(pod.v4().into(), client.v4().into()), (pod.v6().into(), client.v6().into())]
    }

    /// How often the pod's connections had a reason.
    fn counted(&self, reason: &str) -> u64 {
        let pod = self.agent.json(&["pods", "test/pod"]).unwrap();
        let count = pod.get("reasons").and_then(|reasons| reasons.get(reason)?.as_u64());
        count.unwrap_or_default()
    }

    /// Waits until no connection is on its way any more.
    fn nothing_on_its_way(&self) {
        wait::until("nothing to be on its way", PATIENCE, || {
            let status = self.agent.json(&["status"]);
            status.is_ok_and(|status| status.get("handingOver").is_some_and(|count| *count == 0))
        })
        .unwrap();
    }
}

/// Bytes go there and others come back.
#[track_caller]
fn exchange(mut one: &Socket, mut other: &Socket) {
    for socket in [one, other] {
        socket.set_nonblocking(false).unwrap();
        socket.set_read_timeout(Some(wait::scaled(PATIENCE))).unwrap();
    }
    let mut there = [0; 4];
    one.write_all(b"ping").unwrap();
    other.read_exact(&mut there).unwrap();
    let mut back = [0; 4];
    other.write_all(b"pong").unwrap();
    one.read_exact(&mut back).unwrap();
    assert_eq!((&there, &back), (b"ping", b"pong"));
}

/// The rules of a pod's netns by which its app's answers find to ztunnel.
fn ways(pod: &TestPod) -> usize {
    let of_family = |family| {
        let show = || Command::new("ip").args([family, "rule", "show", "table", "100"]).output();
        let output = pod.netns().run(show).unwrap().unwrap();
        String::from_utf8(output.stdout).unwrap().matches("fwmark 0x111/0xfff").count()
    };
    of_family("-4") + of_family("-6")
}

fn localhost(v6: bool, port: u16) -> SocketAddr {
    let ip = if v6 { IpAddr::from(Ipv6Addr::LOCALHOST) } else { Ipv4Addr::LOCALHOST.into() };
    SocketAddr::new(ip, port)
}

fn failed(reply: Reply) -> String {
    match reply {
        Reply::Failed { msg, .. } => msg,
        other @ (Reply::Done | Reply::Passed { .. }) => panic!("{other:?}"),
    }
}
