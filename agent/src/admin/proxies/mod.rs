//! Metrics of the proxies that the agent drives, in one answer for the node: `/stats/prometheus`, as Envoy's users know it.
//!
//! Owns: who is asked, the limits of that, and the order of what is said. The node's Envoy is asked over its own socket; a
//! sidecar in its pod's netns, on the port where Envoy tells of itself alone; a ztunnel in the netns that it has dialled the
//! agent from. Everything goes by in pieces, and nobody is asked faster than whoever wants to know reads. When he has gone,
//! so have the questions.
//! Never does: keep anything, believe what comes from a pod ([`exposition`]), or ask unasked. Called by: `admin`.

pub(super) mod asked;
mod exposition;
mod fetch;
pub(super) mod ready;

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::stream::{self, Stream, StreamExt};
use hyper::body::Bytes;
use socket2::{Domain, Socket, Type};
use tokio::net::{TcpSocket, TcpStream, UnixStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;
use veer_common::maps::NetnsCookie;

use self::asked::Asked;
use self::exposition::{Exposition, Origin, Types};
use self::fetch::FetchError;
use super::metrics::{Metrics, Scrape};
use crate::enrol::NodeHandle;
use crate::model::{DEFAULT_PROXY_ID, Driver};
use crate::platform::netns::{NetnsError, NetnsThread};
use crate::proxy::ads::Ads;
use crate::proxy::zds::{Peer, Zds};

/// Where Envoy tells of itself.
const PATH: &str = "/stats/prometheus";
/// Where a sidecar's Envoy does. Behind 15020 Istio's agent adds what the app tells: that is the app's business, and of pods
/// that network policies may guard.
const SIDECAR: u16 = 15090;
/// Where ztunnel does, on all addresses of its netns.
const ZTUNNEL: u16 = 15020;
/// Pods that are asked at once.
const AT_ONCE: usize = 32;
/// Answers that are made at once: each has the pods be asked anew.
const ANSWERS: usize = 2;
/// Envoys of the node: one, or two while one takes over.
const MAX_ENVOYS: usize = 8;
/// Pieces are about so long, in bytes, and so many wait for whoever reads.
const PIECE: usize = 16 << 10;
const PIECES: usize = 4;
/// How long a proxy in a pod may take, and how much it may say. Istio's own Envoy says 0.1 to 1 MB.
const POD: Limits = Limits { time: Duration::from_secs(5), bytes: 4 << 20 };
/// The same of ztunnel: some 3 kB for each pair of workloads that talk.
const OF_ZTUNNEL: Limits = Limits { time: Duration::from_secs(10), bytes: 64 << 20 };
/// The same of the node's: some 50 kB for each of its pods.
const NODE: Limits = Limits { time: Duration::from_secs(30), bytes: 256 << 20 };

struct Limits {
    time: Duration,
    bytes: usize,
}

/// Who is asked.
#[derive(Debug)]
pub struct Proxies {
    /// Where the node's Envoy and the agent meet, if the agent drives one.
    pub directory: Option<PathBuf>,
    /// Who is enrolled.
    pub node: NodeHandle,
    /// The thread that makes sockets in pods' namespaces.
    pub netns: NetnsThread,
    /// What is counted.
    pub metrics: Metrics,
    /// What the node's Envoy has said.
    pub ads: Ads,
    /// Which ztunnels are connected.
    pub zds: Zds,
    answers: Semaphore,
}

/// One of them.
#[derive(Debug)]
enum Proxy {
    Envoy {
        socket: PathBuf,
        number: Option<String>,
    },
    Sidecar {
        cookie: NetnsCookie,
        namespace: String,
        name: String,
    },
    /// `None` where there ought to be one.
    Ztunnel(Option<Peer>),
}

/// What is being answered.
pub(super) type Pieces = Pin<Box<dyn Stream<Item = Bytes> + Send>>;

impl Proxies {
    /// Asks nobody yet.
    pub fn new(
        directory: Option<PathBuf>,
        node: NodeHandle,
        netns: NetnsThread,
        metrics: Metrics,
        ads: Ads,
        zds: Zds,
    ) -> Self {
        Self { directory, node, netns, metrics, ads, zds, answers: Semaphore::new(ANSWERS) }
    }

    /// What they say.
    ///
    /// # Errors
    /// That it is asked about a pod which is not enrolled.
    pub(super) async fn metrics(self: Arc<Self>, asked: Asked) -> Result<Pieces, String> {
        let proxies = self.asked_about(&asked).await?;
        let (sender, receiver) = mpsc::channel(PIECES);
        let asking = async move { self.ask_all(proxies, asked, sender).await };
        let answering = Answering { asking: Some(Box::pin(asking)), receiver, types: Types::default() };
        Ok(Box::pin(stream::unfold(answering, Answering::next)))
    }

    async fn asked_about(&self, asked: &Asked) -> Result<Vec<Proxy>, String> {
        let only = asked.pod.clone();
        let enrolled = self.node.run(move |node| {
            let is_meant = |pod: &&crate::enrol::registry::Enrolled| {
                only.as_ref()
                    .is_none_or(|(namespace, name)| (&pod.pod.namespace, &pod.pod.name) == (namespace, name))
            };
            let pods = node.registry().iter().filter(is_meant);
            pods.map(|pod| (pod.driver, pod.cookie, pod.pod.clone())).collect::<Vec<_>>()
        });
        let pods = enrolled.await.map_err(|error| error.to_string())?;
        if let (Some((namespace, name)), true) = (&asked.pod, pods.is_empty()) {
            return Err(format!("no pod {namespace}/{name} is enrolled"));
        }
        let mut proxies = Vec::new();
        let of_node = asked.pod.is_none() || pods.iter().any(|(driver, ..)| *driver == Driver::Node);
        if let (Some(directory), true) = (&self.directory, of_node && asked.is_about(Driver::Node)) {
            proxies.extend(envoys(directory));
        }
        if asked.is_about(Driver::Sidecar) {
            let sidecars = pods.into_iter().filter(|(driver, ..)| *driver == Driver::Sidecar);
            proxies.extend(sidecars.map(|(_, cookie, pod)| Proxy::Sidecar {
                cookie,
                namespace: pod.namespace,
                name: pod.name,
            }));
        }
        // What ztunnel says of a pod it says under the name of its workload, so none can be picked out.
        if asked.pod.is_none() && asked.is_about(Driver::Ztunnel) {
            proxies.extend(self.zds.peers().await.map(ztunnels).into_iter().flatten());
        }
        Ok(proxies)
    }

    /// Asks each of them, and tells in the end who has answered.
    async fn ask_all(&self, proxies: Vec<Proxy>, asked: Asked, pieces: mpsc::Sender<String>) {
        let Ok(_place) = self.answers.acquire().await else { return };
        let up = Mutex::new("# TYPE veer_proxy_up gauge\n".to_owned());
        let asking = proxies.iter().map(|proxy| self.ask(proxy, &asked, &pieces, &up));
        // Nobody is waited for while others can be asked, and the node's own are among them.
        stream::iter(asking).for_each_concurrent(AT_ONCE, |one| one).await;
        let up = up.into_inner().unwrap_or_else(PoisonError::into_inner);
        // Whoever has gone has no need of it.
        drop(pieces.send(up).await);
    }

    async fn ask(&self, proxy: &Proxy, asked: &Asked, pieces: &mpsc::Sender<String>, up: &Mutex<String>) {
        let (limits, driver) = proxy.limits();
        let mut exposition = Exposition::of(proxy.origin(asked.pod.as_ref()));
        let mut piece = String::new();
        let told = self.tell(proxy, &asked.query, limits.bytes, pieces, &mut exposition, &mut piece);
        let scrape = match timeout(limits.time, told).await {
            Ok(Ok(scrape)) => scrape,
            Ok(Err(error)) => {
                tracing::debug!(proxy = %proxy.labels(), %error, "its metrics are not read");
                match error {
                    FetchError::Connect(_) => Scrape::Unreachable,
                    FetchError::Http(_) | FetchError::Status(_) | FetchError::Path { .. } => Scrape::Refused,
                }
            }
            Err(_elapsed) => Scrape::Late,
        };
        let dropped = exposition.end();
        self.metrics.scraped(driver, scrape, dropped);
        let is_up = u8::from(scrape == Scrape::Done);
        let line = format!("veer_proxy_up{{{}}} {is_up}\n", proxy.labels());
        up.lock().unwrap_or_else(PoisonError::into_inner).push_str(&line);
        if !piece.is_empty() {
            drop(pieces.send(piece).await);
        }
    }

    /// Reads what one says, and sends it on. What is left of it when time is up is in `piece`, in whole lines.
    async fn tell(
        &self,
        proxy: &Proxy,
        query: &str,
        most: usize,
        pieces: &mpsc::Sender<String>,
        exposition: &mut Exposition,
        piece: &mut String,
    ) -> Result<Scrape, FetchError> {
        let path = format!("{PATH}{query}");
        let mut answer = match proxy {
            Proxy::Envoy { socket, .. } => {
                fetch::get(UnixStream::connect(socket).await?, "envoy", &path).await?
            }
            Proxy::Sidecar { cookie, .. } => {
                fetch::get(self.connect(*cookie, SIDECAR).await?, "sidecar", &path).await?
            }
            Proxy::Ztunnel(peer) => {
                let peer = peer.as_ref().ok_or_else(|| std::io::Error::other("no ztunnel is connected"))?;
                let stream = self.connect_in(peer.netns.try_clone()?, ZTUNNEL).await?;
                // It knows no query.
                fetch::get(stream, "ztunnel", PATH).await?
            }
        };
        let mut read = 0_usize;
        while let Some(bytes) = answer.next().await? {
            read = read.saturating_add(bytes.len());
            if read > most {
                return Ok(Scrape::TooLong);
            }
            exposition.take(&bytes, piece);
            if piece.len() >= PIECE && pieces.send(std::mem::take(piece)).await.is_err() {
                break;
            }
        }
        Ok(Scrape::Done)
    }

    /// Connects to a pod's proxy, out of its own netns.
    async fn connect(&self, cookie: NetnsCookie, port: u16) -> Result<TcpStream, FetchError> {
        let gone = || std::io::Error::other("its netns is gone");
        let opened = self.node.run(move |node| node.netns_of(cookie)).await;
        let pod: OwnedFd = opened.ok().flatten().ok_or_else(gone)?.into();
        self.connect_in(pod, port).await
    }

    /// Connects to a port of localhost, as it is in a netns.
    async fn connect_in(&self, netns: OwnedFd, port: u16) -> Result<TcpStream, FetchError> {
        let loopback = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
        let mut last = std::io::Error::other("nobody was asked");
        for ip in loopback {
            let (thread, netns) = (self.netns.clone(), netns.try_clone()?);
            let domain = if ip.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
            // That thread may be busy, and this one must not wait.
            let made = tokio::task::spawn_blocking(move || {
                thread.run(netns.as_fd(), move || Socket::new(domain, Type::STREAM.nonblocking(), None))
            });
            let made = made.await.map_err(std::io::Error::other)?;
            let connected = match made.map_err(NetnsError::into_io).flatten() {
                Ok(socket) => {
                    TcpSocket::from_std_stream(socket.into()).connect(SocketAddr::new(ip, port)).await
                }
                Err(error) => Err(error),
            };
            match connected {
                Ok(stream) => return Ok(stream),
                Err(error) => last = error,
            }
        }
        Err(last.into())
    }
}

impl Proxy {
    const fn limits(&self) -> (Limits, Driver) {
        match self {
            Self::Envoy { .. } => (NODE, Driver::Node),
            Self::Sidecar { .. } => (POD, Driver::Sidecar),
            Self::Ztunnel(_) => (OF_ZTUNNEL, Driver::Ztunnel),
        }
    }

    fn origin(&self, only: Option<&(String, String)>) -> Origin {
        match self {
            Self::Envoy { number, .. } => Origin::Node { number: number.clone(), only: only.cloned() },
            Self::Sidecar { namespace, name, .. } => {
                Origin::Pod { namespace: namespace.clone(), name: name.clone() }
            }
            Self::Ztunnel(peer) => Origin::Ztunnel { inode: peer.as_ref().map_or(0, |peer| peer.id.inode) },
        }
    }

    /// Who it is, as labels.
    fn labels(&self) -> String {
        match self {
            Self::Envoy { number: None, .. } => "veer_driver=\"node\"".to_owned(),
            Self::Envoy { number: Some(number), .. } => {
                format!("veer_driver=\"node\",veer_envoy=\"{number}\"")
            }
            Self::Sidecar { namespace, name, .. } => {
                format!("veer_driver=\"sidecar\",veer_namespace=\"{namespace}\",veer_pod=\"{name}\"")
            }
            Self::Ztunnel(None) => "veer_driver=\"ztunnel\"".to_owned(),
            Self::Ztunnel(Some(peer)) => {
                format!("veer_driver=\"ztunnel\",veer_ztunnel=\"{}\"", peer.id.inode)
            }
        }
    }
}

/// Those that are connected. There is one, also where none is, as with the node's Envoy.
fn ztunnels(peers: Vec<Peer>) -> Vec<Proxy> {
    if peers.is_empty() {
        return vec![Proxy::Ztunnel(None)];
    }
    peers.into_iter().map(|peer| Proxy::Ztunnel(Some(peer))).collect()
}

/// The sockets of the node's Envoys. There is one, also where nobody has made it: that it does not answer is to be seen.
fn envoys(directory: &Path) -> Vec<Proxy> {
    let files = fs::read_dir(directory).into_iter().flatten().filter_map(Result::ok);
    let mut envoys: Vec<Proxy> = files
        .filter_map(|file| {
            let name = file.file_name().into_string().ok()?;
            let number = name.strip_prefix("admin")?.strip_suffix(".sock")?;
            let number = match number.strip_prefix('-') {
                Some(number) if is_number(number) => Some(number.to_owned()),
                None if number.is_empty() => None,
                Some(_) | None => return None,
            };
            // The directory is anybody's to make files in, so whose it is counts, and a link is none of Envoy's.
            let status = fs::symlink_metadata(file.path()).ok()?;
            let is_its = status.file_type().is_socket() && [0, DEFAULT_PROXY_ID].contains(&status.uid());
            is_its.then(|| Proxy::Envoy { socket: file.path(), number })
        })
        .take(MAX_ENVOYS)
        .collect();
    if envoys.is_empty() {
        envoys.push(Proxy::Envoy { socket: directory.join("admin.sock"), number: None });
    }
    envoys
}

fn is_number(text: &str) -> bool {
    (1..=20).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// An answer under way: the asking goes on only while somebody reads.
struct Answering {
    asking: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    receiver: mpsc::Receiver<String>,
    types: Types,
}

impl Answering {
    async fn next(mut self) -> Option<(Bytes, Self)> {
        loop {
            let piece = match &mut self.asking {
                None => self.receiver.recv().await?,
                Some(asking) => tokio::select! {
                    biased;
                    Some(piece) = self.receiver.recv() => piece,
                    () = asking => {
                        self.asking = None;
                        continue;
                    }
                },
            };
            return Some((self.types.once(&piece).into(), self));
        }
    }
}
