//! On real sockets, with a peer that speaks bytes.

use std::fs;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendFlags,
    SocketAddrUnix, SocketFlags, SocketType, connect, recvmsg, sendmsg, socket_with,
};
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};

use super::*;

const HELLO: &[u8] = b"\x08\x01";
const DONE: &[u8] = b"\x0a\x00";
const SNAPSHOT_SENT: &[u8] = b"\x1a\x00";
const DEL: &[u8] = b"\x12\x05\x12\x03u-1";
const KEEP: &[u8] = b"\x2a\x05\x0a\x03u-1";
/// Longer than the agent gives anybody.
const LIMIT: Duration = Duration::from_secs(20);

/// A server, on a thread of its own.
struct Server {
    zds: Zds,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
    directory: TempDir,
}

impl Server {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = socket_path(&directory);
        let (zds, task) = Zds::new(true, Redirections::nowhere());
        let stop = CancellationToken::new();
        let (serving, stopping) = (zds.clone(), stop.clone());
        let (ready, is_ready) = std::sync::mpsc::channel();
        let thread = thread::spawn(move || {
            runtime().block_on(async move {
                let listener = open(&path).unwrap();
                ready.send(()).unwrap();
                tokio::join!(task.run(stopping.clone()), serve(listener, serving, stopping));
            });
        });
        is_ready.recv().unwrap();
        Self { zds, stop, thread: Some(thread), directory }
    }

    /// Asks for a pod, as an ADD does.
    fn ask(&self, workload: Workload) -> JoinHandle<Result<(), ZdsError>> {
        let zds = self.zds.clone();
        thread::spawn(move || runtime().block_on(zds.serve(workload)))
    }

    fn complete(&self) {
        runtime().block_on(self.zds.complete());
    }

    fn standing(&self) -> Standing {
        runtime().block_on(self.zds.standing()).unwrap()
    }

    fn connect(&self) -> Peer {
        Peer::connect(&socket_path(&self.directory))
    }

    fn file(&self, name: &str) -> (PathBuf, File) {
        let path = self.directory.path().join(name);
        fs::write(&path, "").unwrap();
        (path.clone(), File::open(path).unwrap())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.cancel();
        self.thread.take().map(JoinHandle::join).unwrap().unwrap();
    }
}

/// A ztunnel that says what the test has it say.
struct Peer(OwnedFd);

impl Peer {
    fn connect(path: &Path) -> Self {
        let kind = SocketType::SEQPACKET;
        let socket = socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).unwrap();
        connect(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
        set_socket_timeout(&socket, Timeout::Recv, Some(LIMIT)).unwrap();
        Self(socket)
    }

    fn say(&self, packet: &[u8]) {
        let mut nothing = SendAncillaryBuffer::default();
        let sent = sendmsg(&self.0, &[IoSlice::new(packet)], &mut nothing, SendFlags::NOSIGNAL);
        // Who has closed already need not hear it.
        assert!(matches!(sent, Ok(_) | Err(Errno::PIPE)), "{sent:?}");
    }

    /// A packet and what came with it; an empty one at the end.
    fn hear(&self) -> (Vec<u8>, Vec<OwnedFd>) {
        let (mut packet, mut descriptors) = (vec![0; 1024], Vec::new());
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut packet)];
        let received = recvmsg(&self.0, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC);
        let count = match received {
            Err(Errno::CONNRESET) => 0,
            received => received.unwrap().bytes,
        };
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(received) = message {
                descriptors.extend(received);
            }
        }
        packet.truncate(count);
        (packet, descriptors)
    }

    /// Hears exactly this, without any descriptor, and answers.
    #[track_caller]
    fn expect(&self, packet: &[u8]) {
        let (heard, descriptors) = self.hear();
        assert_eq!((heard.as_slice(), descriptors.len()), (packet, 0));
        self.say(DONE);
    }
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

fn socket_path(directory: &TempDir) -> PathBuf {
    directory.path().join("ztunnel/ztunnel.sock")
}

fn workload(path: &Path, netns: &File) -> Workload {
    Workload {
        uid: "u-1".to_owned(),
        namespace: "shop".to_owned(),
        name: "cart".to_owned(),
        service_account: Some("seller".to_owned()),
        netns_path: path.display().to_string(),
        netns: NetnsId::of(netns.as_fd()).unwrap(),
    }
}

#[test]
fn a_pod_comes_with_its_netns_and_whoever_asked_for_it_hears_what_ztunnel_says() {
    let server = Server::start();
    let (path, netns) = server.file("netns");
    let peer = server.connect();
    peer.say(HELLO);
    server.complete();
    peer.expect(SNAPSHOT_SENT);

    let pod = workload(&path, &netns);
    let asked = server.ask(pod.clone());
    let (packet, descriptors) = peer.hear();
    assert_eq!(packet, b"\x0a\x1b\x0a\x03u-1\x12\x14\x0a\x04cart\x12\x04shop\x1a\x06seller");
    let received: Vec<_> = descriptors.iter().map(|one| NetnsId::of(one.as_fd()).unwrap()).collect();
    assert_eq!(received, [pod.netns]);
    peer.say(b"\x0a\x04\x0a\x02no");
    assert_eq!(asked.join().unwrap(), Err(ZdsError::Refused("no".to_owned())));
    let refused = [("shop/cart".to_owned(), "no".to_owned())].into();
    let standing = Standing { connected: 1, has_snapshot: true, pods: 1, served: 0, refused };
    assert_eq!(server.standing(), standing);

    let asked = server.ask(pod.clone());
    assert_eq!(peer.hear().1.len(), 1);
    peer.say(DONE);
    assert_eq!(asked.join().unwrap(), Ok(()));
    server.zds.forget(pod.uid, pod.netns);
    peer.expect(DEL);
}

#[test]
fn the_next_ztunnel_gets_the_netns_by_its_path_or_keeps_the_pod() {
    let server = Server::start();
    let (path, netns) = server.file("netns");
    let pod = workload(&path, &netns);
    runtime().block_on(server.zds.begin(pod.clone()));
    let first = server.connect();
    first.say(HELLO);
    let (_, descriptors) = first.hear();
    assert_eq!(NetnsId::of(descriptors[0].as_fd()).unwrap(), pod.netns);
    first.say(DONE);

    // Another file in its place; the first one lives on, so that its number is not used again.
    fs::remove_file(&path).unwrap();
    fs::write(&path, "").unwrap();
    let second = server.connect();
    second.say(HELLO);
    second.expect(KEEP);
    server.complete();
    second.expect(SNAPSHOT_SENT);
    first.expect(SNAPSHOT_SENT);
    drop(netns);
}

#[test]
fn a_peer_that_is_broken_or_hostile_is_closed_and_the_next_one_is_served() {
    let server = Server::start();
    server.complete();
    let too_long = [b'x'; message::LONGEST + 1];
    let breaches: [&[&[u8]]; 5] = [
        &[DONE],
        &[b"\x08\x02"],
        &[&too_long],
        // It has said hello, and then does not wait to be asked.
        &[HELLO, DONE, DONE],
        &[b"\xff\xff\xff\xff"],
    ];
    for breach in breaches {
        let peer = server.connect();
        for packet in breach {
            peer.say(packet);
        }
        // Whatever was under way, the end comes.
        while !peer.hear().0.is_empty() {}
    }
    let peer = server.connect();
    peer.say(HELLO);
    peer.expect(SNAPSHOT_SENT);
    assert_eq!(server.standing().connected, 1);
}

#[test]
fn a_socket_that_somebody_serves_is_left_to_him_and_an_old_one_is_replaced() {
    let server = Server::start();
    let path = socket_path(&server.directory);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let another = || runtime().block_on(async { open(&path).map(drop) });
    let error = another().unwrap_err();
    assert!(error.to_string().starts_with("somebody else serves it"), "{error}");
    let peer = server.connect();
    peer.say(HELLO);
    server.complete();
    peer.expect(SNAPSHOT_SENT);
    server.stop.cancel();
    assert!(peer.hear().0.is_empty());
    // Its own listener is gone when the thread has ended.
    let deadline = Instant::now() + LIMIT;
    while another().is_err() {
        assert!(Instant::now() < deadline);
        thread::yield_now();
    }
}

#[test]
fn without_a_socket_whoever_asks_is_told_so() {
    let (zds, _task) = Zds::new(false, Redirections::nowhere());
    let netns = File::open("/dev/null").unwrap();
    let pod = workload(Path::new("/dev/null"), &netns);
    let outcome = runtime().block_on(async { (zds.standing().await, zds.serve(pod).await) });
    assert_eq!(outcome, (None, Err(ZdsError::Off)));
}
