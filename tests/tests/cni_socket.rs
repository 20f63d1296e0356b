//! The socket of the plugin, spoken to by everybody but the plugin: whatever comes, it is answered or cut
//! off, the agent keeps nothing of it, and the next pod starts.

#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests panic as tests do")]

use std::fs::{self, File, Permissions};
use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use veer_common::cni::{
    Attachment, MAX_MESSAGE, PROTOCOL_VERSION, Reply, Request, SOCKET_NAME, Verb, code, encode, read_message,
};
use veer_tests::agent::Agent;
use veer_tests::attachment;
use veer_tests::cgroup::Cgroup;
use veer_tests::launch::{Identity, Launch, veer_binary};
use veer_tests::mesh::Mesh;
use veer_tests::netns::NetNs;
use veer_tests::pinned::Pinned;
use veer_tests::wait;

fn connect(agent: &Agent) -> UnixStream {
    let stream = UnixStream::connect(agent.run_dir().join(SOCKET_NAME)).unwrap();
    stream.set_read_timeout(Some(wait::LIMIT)).unwrap();
    stream
}

/// Sends bytes and reads the answer.
fn say(agent: &Agent, bytes: &[u8]) -> io::Result<Reply> {
    let mut stream = connect(agent);
    stream.write_all(bytes)?;
    read_message(&mut stream)
}

/// Sends a request with any descriptors and reads the answer.
fn say_with(agent: &Agent, message: &[u8], descriptors: &[BorrowedFd<'_>]) -> Reply {
    let mut stream = connect(agent);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    assert!(ancillary.push(SendAncillaryMessage::ScmRights(descriptors)));
    let sent = sendmsg(&stream, &[IoSlice::new(message)], &mut ancillary, SendFlags::NOSIGNAL).unwrap();
    assert_eq!(sent, message.len());
    read_message(&mut stream).unwrap()
}

fn request(verb: Verb) -> Vec<u8> {
    encode(&Request { version: PROTOCOL_VERSION, verb }).unwrap()
}

/// A length and what follows it, which need not fit together.
fn message(length: usize, body: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(length).unwrap().to_le_bytes().to_vec();
    bytes.extend_from_slice(body);
    bytes
}

#[track_caller]
fn assert_failed(reply: &Reply, expected: u32, text: &str) {
    let Reply::Failed { code, msg, .. } = reply else { panic!("{reply:?}") };
    assert_eq!(*code, expected, "{msg}");
    assert!(msg.contains(text), "{msg}");
}

/// Whether the agent cuts the connection without an answer.
fn is_cut_off(mut stream: UnixStream) -> bool {
    match stream.read(&mut [0; 1]) {
        Ok(0) => true,
        Err(error) => error.kind() == ErrorKind::ConnectionReset,
        Ok(_) => false,
    }
}

fn descriptors(agent: &Agent) -> usize {
    fs::read_dir(format!("/proc/{}/fd", agent.process().pid())).unwrap().count()
}

/// What must hold after every hostility: no descriptor was kept, nothing was enrolled, and the pod that
/// comes now is.
struct Unharmed {
    mesh: Mesh,
    descriptors: usize,
}

impl Unharmed {
    fn new() -> Self {
        let mesh = Mesh::not_enrolled().unwrap();
        mesh.agent.write_manifest(&mesh.pod.manifest()).unwrap();
        let descriptors = descriptors(&mesh.agent);
        Self { mesh, descriptors }
    }

    fn agent(&self) -> &Agent {
        &self.mesh.agent
    }

    fn add(&self, with: &[BorrowedFd<'_>]) -> Reply {
        say_with(self.agent(), &request(Verb::Add(self.mesh.pod.attachment())), with)
    }

    fn assert(self) {
        let agent = self.agent();
        wait::until("the agent to close what it was given", wait::LIMIT, || {
            descriptors(agent) <= self.descriptors
        })
        .unwrap();
        assert!(Pinned::of(agent).counts().unwrap().is_empty());
        assert_eq!(agent.add(&self.mesh.pod).unwrap(), Reply::Done);
        assert_eq!(agent.check(&self.mesh.pod).unwrap(), Reply::Done);
    }
}

#[test]
fn what_is_no_request_is_answered_with_the_protocols_error() {
    let unharmed = Unharmed::new();
    let deep = format!(r#"{{"version":1,"verb":{}"#, "[".repeat(100_000));
    let rows: [(&str, Vec<u8>); 11] = [
        ("another protocol", b"GET / HTTP/1.1\r\nhost: veer\r\n\r\n".to_vec()),
        ("the longest length", message(u32::MAX as usize, b"{}")),
        ("a length just too long", message(MAX_MESSAGE + 1, &[])),
        ("nothing at all", message(0, b"")),
        ("no JSON", message(4, b"\xff\xfe\x00\x01")),
        ("no object", message(2, b"[]")),
        ("no verb", message(13, br#"{"version":1}"#)),
        ("an unknown verb", message(28, br#"{"version":1,"verb":"obey"} "#)),
        ("a version that is a text", message(31, br#"{"version":"1","verb":"status"}"#)),
        ("nesting without end", message(deep.len(), deep.as_bytes())),
        ("as much white space as there may be", message(MAX_MESSAGE, &vec![b' '; MAX_MESSAGE])),
    ];
    for (what, bytes) in rows {
        let reply = say(unharmed.agent(), &bytes).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_failed(&reply, code::PROTOCOL, "the request is not one: ");
    }
    unharmed.assert();
}

#[test]
fn another_version_of_the_protocol_is_told_so() {
    let unharmed = Unharmed::new();
    for version in [0, PROTOCOL_VERSION + 1, u32::MAX] {
        let bytes = encode(&Request { version, verb: Verb::Status }).unwrap();
        let text = format!("speaks version {version} of the agent's protocol, this agent {PROTOCOL_VERSION}");
        assert_failed(&say(unharmed.agent(), &bytes).unwrap(), code::PROTOCOL, &text);
    }
    unharmed.assert();
}

#[test]
fn who_breaks_off_is_forgotten() {
    let unharmed = Unharmed::new();
    let whole = request(Verb::Add(unharmed.mesh.pod.attachment()));
    for end in [0, 1, 3, 4, 5, whole.len() - 1] {
        let mut stream = connect(unharmed.agent());
        stream.write_all(whole.get(..end).unwrap()).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        assert!(is_cut_off(stream), "after {end} bytes");
    }
    // And one that does not wait for the answer.
    drop(connect(unharmed.agent()).write_all(&request(Verb::Status)));
    unharmed.assert();
}

#[test]
fn who_is_slow_is_cut_off_and_holds_nobody_up() {
    let unharmed = Unharmed::new();
    let started = Instant::now();
    let silent = connect(unharmed.agent());
    let mut trickle = connect(unharmed.agent());
    trickle.set_read_timeout(Some(Duration::from_millis(250))).unwrap();
    // A length that the agent takes, and a byte of the rest now and then.
    trickle.write_all(&message(MAX_MESSAGE, b"{")).unwrap();
    loop {
        assert_eq!(unharmed.agent().ask(Verb::Status).unwrap(), Reply::Done);
        match trickle.read(&mut [0; 1]) {
            Ok(0) => break,
            Ok(_) => panic!("an answer to half a request"),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => break,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => panic!("{error}"),
        }
        assert!(started.elapsed() < wait::LIMIT, "the agent still waits for more");
        // It may cut off just now, which the next read tells.
        drop(trickle.write_all(b" "));
    }
    assert!(is_cut_off(silent));
    unharmed.assert();
}

#[test]
fn an_add_without_a_netns_or_with_something_else_is_refused() {
    let unharmed = Unharmed::new();
    let (pod, agent) = (&unharmed.mesh.pod, unharmed.agent());
    let reply = agent.ask(Verb::Add(pod.attachment())).unwrap();
    assert_failed(&reply, code::PROTOCOL, "ADD came without the pod's netns");

    let (reading, _writing) = io::pipe().unwrap();
    let socket = UnixStream::pair().unwrap().0;
    let path = |path: &str| File::open(path).unwrap();
    let rows = [
        ("a file", path("/proc/version").into()),
        ("a directory", path("/").into()),
        ("a device", path("/dev/null").into()),
        ("a pipe", reading.into()),
        ("a socket", socket.into()),
        ("another namespace", path("/proc/thread-self/ns/mnt").into()),
        ("the user namespace", path("/proc/thread-self/ns/user").into()),
    ];
    for (what, descriptor) in rows {
        let descriptor: std::os::fd::OwnedFd = descriptor;
        let reply = unharmed.add(&[descriptor.as_fd()]);
        let text = "what was given as the pod's netns is not a network namespace";
        assert!(
            matches!(&reply, Reply::Failed { code: code::INVALID_ENVIRONMENT, msg, .. } if msg.contains(text)),
            "{what}: {reply:?}"
        );
    }
    unharmed.assert();
}

#[test]
fn the_nodes_own_netns_is_never_enrolled() {
    let unharmed = Unharmed::new();
    // A bind mount of it is it.
    let host = File::open("/proc/thread-self/ns/net").unwrap();
    assert_failed(&unharmed.add(&[host.as_fd()]), code::INVALID_ENVIRONMENT, "is the node's own");
    unharmed.assert();
}

#[test]
fn of_several_descriptors_the_first_counts_and_none_is_kept() {
    let unharmed = Unharmed::new();
    let null = File::open("/dev/null").unwrap();
    let other = NetNs::new().unwrap();
    let many = [null.as_fd(); 60];
    assert_failed(&unharmed.add(&many), code::INVALID_ENVIRONMENT, "is not a network namespace");
    let status = say_with(unharmed.agent(), &request(Verb::Status), &many);
    assert_eq!(status, Reply::Done, "descriptors that nobody wants");
    let first = [unharmed.mesh.pod.netns().as_fd(), other.as_fd(), null.as_fd()];
    assert_eq!(unharmed.add(&first), Reply::Done);
    assert_eq!(unharmed.agent().del(&unharmed.mesh.pod).unwrap(), Reply::Done);
    unharmed.assert();
}

#[test]
fn names_that_are_no_names_enrol_nobody() {
    let unharmed = Unharmed::new();
    let own = unharmed.mesh.pod.attachment();
    for name in ["", "../pod", "pod\0", "pod\n", "POD", &"p".repeat(10_000)] {
        let mut pod = own.pod.clone().unwrap();
        name.clone_into(&mut pod.name);
        let add = Verb::Add(Attachment { pod: Some(pod), ..own.clone() });
        let netns = unharmed.mesh.pod.netns().as_fd();
        let reply = attachment::ask(&unharmed.agent().run_dir(), add, Some(netns)).unwrap();
        assert_failed(&reply, code::TRY_AGAIN, "is not known");
    }
    let nobody = Verb::Add(Attachment { pod: None, ..own });
    let netns = unharmed.mesh.pod.netns().as_fd();
    let reply = attachment::ask(&unharmed.agent().run_dir(), nobody, Some(netns)).unwrap();
    assert_eq!(reply, Reply::Passed { reason: "no-kubernetes-pod".to_owned() });
    unharmed.assert();
}

#[test]
fn two_hundred_at_once_are_all_answered() {
    let unharmed = Unharmed::new();
    let mut streams: Vec<UnixStream> = (0..200).map(|_| connect(unharmed.agent())).collect();
    let status = request(Verb::Status);
    let (first, second) = status.split_at(2);
    for half in [first, second] {
        for stream in &mut streams {
            stream.write_all(half).unwrap();
        }
    }
    for stream in &mut streams {
        assert_eq!(read_message::<Reply>(stream).unwrap(), Reply::Done);
    }
    drop(streams);
    unharmed.assert();
}

#[test]
fn an_add_whose_plugin_was_killed_does_not_come_after_its_del() {
    let mesh = Mesh::not_enrolled().unwrap();
    let (agent, pod) = (&mesh.agent, &mesh.pod);
    agent.write_manifest(&pod.manifest()).unwrap();
    // Both are in its queue when it goes on: the DEL has nothing to look up, and overtakes.
    agent.signal(Signal::SIGSTOP).unwrap();
    let add = Verb::Add(pod.attachment());
    attachment::ask_and_die(&agent.run_dir(), add, Some(pod.netns().as_fd())).unwrap();
    let mut del = connect(agent);
    del.write_all(&request(Verb::Del(pod.attachment()))).unwrap();
    agent.signal(Signal::SIGCONT).unwrap();
    assert_eq!(read_message::<Reply>(&mut del).unwrap(), Reply::Done);
    let said = || agent.log().contains("its plugin has gone, so it is not enrolled");
    wait::until("the agent to notice that the plugin has gone", wait::LIMIT, said).unwrap();
    assert_eq!(agent.ask(Verb::Status).unwrap(), Reply::Done);
    let left = Pinned::of(agent).counts().unwrap();
    assert!(left.is_empty(), "{left:?}");
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o7777
}

#[test]
fn the_sockets_and_their_directory_are_roots_alone() {
    let agent = Agent::start(&Cgroup::new().unwrap()).unwrap();
    assert_eq!(mode(&agent.run_dir()), 0o700);
    for socket in ["cni.sock", "control.sock"] {
        assert_eq!(mode(&agent.run_dir().join(socket)), 0o600, "{socket}");
    }
}

/// Runs a program as somebody who is not root; gives back its exit code and everything it wrote.
fn as_nobody(program: &Path, arguments: &[&str], variables: &[(&str, &str)], input: &str) -> (i32, String) {
    let mut command = Launch::new().with_identity(Identity::app()).command(program).unwrap();
    command.args(arguments).envs(variables.iter().copied());
    command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
    let mut child = command.stderr(std::process::Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let in_time = wait::until_some("the program to end", wait::LIMIT, || child.try_wait().unwrap());
    // One that would never end must not stay.
    child.kill().unwrap();
    let output = child.wait_with_output().unwrap();
    in_time.unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap(), String::from_utf8(text).unwrap())
}

#[test]
fn who_is_not_root_is_refused_by_the_mode_and_by_the_agent() {
    let unharmed = Unharmed::new();
    let run_dir = unharmed.agent().run_dir();
    let (veer, plugin) =
        (veer_binary("VEER_BIN", "veer").unwrap(), veer_binary("VEER_CNI_BIN", "veer-cni").unwrap());
    let run_dir_text = run_dir.display().to_string();
    let flag = format!("--run-dir={run_dir_text}");
    let monitor = |veer: &PathBuf| as_nobody(veer, &["monitor", &flag], &[], "");
    let configuration = format!(
        r#"{{"cniVersion":"1.1.0","name":"n","type":"veer-cni","runDir":"{run_dir_text}","logLevel":"off"}}"#
    );
    let status = |plugin: &PathBuf| as_nobody(plugin, &[], &[("CNI_COMMAND", "STATUS")], &configuration);

    let (code, text) = monitor(&veer);
    assert_eq!((code, text.contains("Permission denied")), (69, true), "{text}");
    let (code, text) = status(&plugin);
    assert_eq!((code, text.contains("ermission denied")), (1, true), "{text}");

    // Modes get changed. The agent asks the kernel who it is.
    fs::set_permissions(&run_dir, Permissions::from_mode(0o777)).unwrap();
    for socket in ["cni.sock", "control.sock"] {
        fs::set_permissions(run_dir.join(socket), Permissions::from_mode(0o666)).unwrap();
    }
    let (code, text) = monitor(&veer);
    assert_eq!((code, text.contains("watching")), (69, false), "{text}");
    let (code, text) = status(&plugin);
    assert_eq!(code, 1, "{text}");
    for socket in ["cni.sock", "control.sock"] {
        let line = format!("refused a connection: the peer is not root socket=\"{socket}\"");
        assert!(unharmed.agent().log().contains(&line), "{}", unharmed.agent().log());
    }
    unharmed.assert();
}
