//! The agent's place on the socket: receives a request as the agent does and answers as a test says.
//!
//! The messages are `veer_common::cni`'s, the descriptor comes through the kernel. Never does: anything
//! to a pod.

use std::fs;
use std::io::{IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};

use rustix::fs::{fstat, fstatfs};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use veer_common::cni::{Reply, SOCKET_NAME, encode, message_length};

/// `NSFS_MAGIC` of linux/magic.h.
const NSFS: i64 = 0x6e73_6673;

/// What the agent does with a request.
#[derive(Clone, Debug)]
pub(crate) enum Behaviour {
    /// Answers.
    Reply(Reply),
    /// Reads the request and sends these bytes.
    Bytes(Vec<u8>),
    /// Reads the request, says nothing and keeps the connection.
    Silence,
    /// Reads the request and closes the connection.
    HangUp,
    /// Closes the connection before it has read the request.
    Rejection,
}

/// What came over one connection.
#[derive(Debug)]
pub(crate) struct Received {
    /// The JSON of the request.
    pub(crate) request: String,
    /// The descriptors that came with the request's first byte.
    pub(crate) descriptors: Vec<OwnedFd>,
    /// A connection that is to stay open.
    _silent: Option<UnixStream>,
}

impl Received {
    /// Whether the one descriptor that came is this namespace.
    pub(crate) fn has_netns(&self, path: &Path) -> bool {
        let [fd] = self.descriptors.as_slice() else { return false };
        let (sent, named) = (fstat(fd).unwrap(), rustix::fs::stat(path).unwrap());
        fstatfs(fd).unwrap().f_type == NSFS && (sent.st_dev, sent.st_ino) == (named.st_dev, named.st_ino)
    }
}

/// A running agent's socket below a run directory.
pub(crate) struct Agent {
    socket: PathBuf,
    thread: JoinHandle<Vec<Received>>,
}

impl Agent {
    /// Listens, and treats every connection alike.
    pub(crate) fn start(run_dir: &Path, behaviour: Behaviour) -> Self {
        let socket = run_dir.join(SOCKET_NAME);
        let listener = UnixListener::bind(&socket).unwrap();
        let thread = thread::spawn(move || serve(&listener, &behaviour));
        Self { socket, thread }
    }

    /// Ends it, and tells what came.
    pub(crate) fn stop(self) -> Vec<Received> {
        // A connection without a byte is the word to stop; whatever came before is in the queue before it.
        UnixStream::connect(&self.socket).unwrap().shutdown(Shutdown::Both).unwrap();
        let received = self.thread.join().unwrap();
        fs::remove_file(&self.socket).unwrap();
        received
    }
}

fn serve(listener: &UnixListener, behaviour: &Behaviour) -> Vec<Received> {
    let mut all = Vec::new();
    loop {
        let (mut connection, _) = listener.accept().unwrap();
        let Some((first, descriptors)) = receive_first(&connection) else { return all };
        let rejected = matches!(behaviour, Behaviour::Rejection);
        let request = if rejected { "rejected".into() } else { receive_rest(first, &mut connection) };
        let mut silent = None;
        match behaviour {
            Behaviour::Reply(reply) => connection.write_all(&encode(reply).unwrap()).unwrap(),
            Behaviour::Bytes(bytes) => connection.write_all(bytes).unwrap(),
            Behaviour::Silence => silent = Some(connection),
            Behaviour::HangUp | Behaviour::Rejection => {}
        }
        all.push(Received { request, descriptors, _silent: silent });
    }
}

/// The request's first byte and the descriptors that came with it; `None` when nothing comes.
fn receive_first(connection: &UnixStream) -> Option<(u8, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let mut buffers = [IoSliceMut::new(&mut byte)];
    if recvmsg(connection, &mut buffers, &mut ancillary, RecvFlags::CMSG_CLOEXEC).unwrap().bytes == 0 {
        return None;
    }
    let mut descriptors = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            descriptors.extend(fds);
        }
    }
    Some((byte[0], descriptors))
}

fn receive_rest(first: u8, connection: &mut UnixStream) -> String {
    let mut rest = [0; 3];
    connection.read_exact(&mut rest).unwrap();
    let length = message_length([first, rest[0], rest[1], rest[2]]).unwrap();
    let mut body = vec![0; length];
    connection.read_exact(&mut body).unwrap();
    String::from_utf8(body).unwrap()
}
