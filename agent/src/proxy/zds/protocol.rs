//! ZDS, as the agent speaks it to one ztunnel after the other: who is told what, when, and what comes of it. Pure.
//!
//! Owns: the pods that ztunnel is to serve, and for each connection what its ztunnel was told and has answered. There is no queue:
//! whenever a connection is idle, what it is told next follows from what is wanted and what it has. So what changed twice
//! is told once, and memory is bounded by the pods and [`MOST_CONNECTIONS`].
//! Never does: I/O, or read a clock. Called by: `proxy::zds`, which takes the [`Step`]s.
//!
//! The rules are those of Istio's node agent and of ztunnel (`proto/zds.proto`, `src/inpod` of istio/ztunnel):
//! * ztunnel says hello. Then each message is answered before the next one is sent.
//! * Before the snapshot it is told of all pods, each added, or kept where the netns cannot be opened. What it has besides it drops at
//!   `snapshot_sent`, so that is sent once all pods of the node are known. To send it twice, or `keep` after it, makes ztunnel end.
//! * Two ztunnels are connected while one takes over from the other. New pods are told to the newest; that one goes is told
//!   to all who were told of it. When the newest goes, the one before it is told what it has missed.
//! * A pod that ztunnel cannot serve is refused and stays with ztunnel, who tries again; it is added again by and by, to hear when
//!   it is served.
//! * Who does not keep to the protocol, or is late, is disconnected: an answer that comes later would be taken for that to the next
//!   message. ztunnel connects again, and gets a whole snapshot.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use thiserror::Error;

use super::message::{self, MessageError};
use crate::platform::netns::NetnsId;

/// How long ztunnel may take for its hello, for taking a message, and for answering it; the same as Istio's node agent gives it.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// Connections at once: two while ztunnel is replaced, and some that hang.
pub const MOST_CONNECTIONS: usize = 8;
/// When a refused pod is added again first; twice as long each time. ztunnel itself tries again each 5 s.
const AGAIN: Duration = Duration::from_secs(5);
/// The longest that this becomes.
const AGAIN_AT_MOST: Duration = Duration::from_mins(1);

/// Of a pod that ztunnel was told to keep.
const KEPT: &str = "its netns cannot be opened, so ztunnel was told to keep it if it has it";

/// A connection: one ztunnel, as long as it lasts. A later one has a larger number.
pub type ConnectionId = u64;
/// A pod's `metadata.uid`, by which ztunnel knows it.
pub type Uid = String;

/// A pod that ztunnel is to serve.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Workload {
    /// Its `metadata.uid`.
    pub uid: Uid,
    /// Kubernetes namespace.
    pub namespace: String,
    /// Pod name.
    pub name: String,
    /// Its service account: who it is in the mesh. Without it, ztunnel cannot be told of it.
    pub service_account: Option<String>,
    /// Its netns as a path.
    pub netns_path: String,
    /// The file that this must be.
    pub netns: NetnsId,
}

/// What ztunnel is told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Request {
    /// A pod, with the descriptor of its netns.
    Add(Workload),
    /// A pod whose netns cannot be opened; ztunnel has it, or has not.
    Keep(Workload),
    /// A pod has gone.
    Del(Uid),
    /// That was all of them.
    SnapshotSent,
}

/// What is to be done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// Send it, and then say so by [`Protocol::sent`].
    Send {
        /// To whom.
        to: ConnectionId,
        /// What.
        request: Request,
    },
    /// Close it; it is forgotten already.
    Close {
        /// Which.
        connection: ConnectionId,
        /// Why.
        reason: Breach,
    },
}

/// Why a connection is closed.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum Breach {
    /// Nothing was said.
    #[error("it has not said hello within {} s", PATIENCE.as_secs())]
    NoHello,
    /// What came is not what should.
    #[error("what it says is not understood: {0}")]
    Message(#[from] MessageError),
    /// It speaks unasked.
    #[error("it answers what it was not asked")]
    Unasked,
    /// It does not read.
    #[error("it has not taken a message within {} s", PATIENCE.as_secs())]
    NotTaken,
    /// It does not answer.
    #[error("it has not answered within {} s", PATIENCE.as_secs())]
    Silent,
    /// There are others.
    #[error("too many are connected, and it is the oldest")]
    TooMany,
}

/// How far a pod is, with the ztunnel that came last.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum State {
    /// None is connected.
    NoProxy,
    /// It has not answered yet.
    Pending,
    /// It serves the pod.
    Served,
    /// It does not, and says why; or could not be told, and we say why.
    Refused(String),
}

/// All of it.
#[derive(Debug, Default)]
pub struct Protocol {
    wanted: BTreeMap<Uid, Workload>,
    /// Whether all pods of the node are among [`Self::wanted`].
    is_complete: bool,
    connections: BTreeMap<ConnectionId, Connection>,
    last: ConnectionId,
}

#[derive(Debug)]
struct Connection {
    phase: Phase,
    told: BTreeMap<Uid, Told>,
    outstanding: Option<Outstanding>,
    /// Until when the hello, or the outstanding message's next move, must come.
    deadline: Option<Instant>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Greeting,
    Snapshot,
    Live,
}

/// What a ztunnel was told of a pod.
#[derive(Debug)]
struct Told {
    workload: Workload,
    outcome: Outcome,
    /// How often it was not taken in a row.
    refusals: u32,
    /// The pod has gone since, whether or not it is back: it is to be told so first.
    is_over: bool,
}

#[derive(PartialEq, Eq, Debug)]
enum Outcome {
    Served,
    /// Why not, and when it is told again.
    Refused(String, Instant),
    /// It is to be told again now.
    Due,
}

#[derive(Debug)]
struct Outstanding {
    request: Request,
    is_sent: bool,
    /// The pod has gone since.
    is_over: bool,
}

impl Protocol {
    /// A connection has come. It is nobody before it has said hello.
    pub fn open(&mut self, now: Instant) -> (ConnectionId, Vec<Step>) {
        let mut steps = Vec::new();
        if self.connections.len() >= MOST_CONNECTIONS {
            let silent = self.connections.iter().find(|(_, one)| one.phase == Phase::Greeting);
            if let Some(oldest) = silent.or(self.connections.iter().next()).map(|(id, _)| *id) {
                self.close(oldest, Breach::TooMany, &mut steps);
            }
        }
        self.last += 1;
        let connection = Connection {
            phase: Phase::Greeting,
            told: BTreeMap::new(),
            outstanding: None,
            deadline: Some(now + PATIENCE),
        };
        self.connections.insert(self.last, connection);
        (self.last, self.then(now, steps))
    }

    /// A connection has ended by itself.
    pub fn gone(&mut self, id: ConnectionId, now: Instant) -> Vec<Step> {
        self.connections.remove(&id);
        self.then(now, Vec::new())
    }

    /// A pod is to be served, or served otherwise. One that was refused is told again at once.
    pub fn want(&mut self, workload: Workload, now: Instant) -> Vec<Step> {
        for connection in self.connections.values_mut() {
            if let Some(told) = connection.told.get_mut(&workload.uid)
                && matches!(told.outcome, Outcome::Refused(..))
            {
                told.outcome = Outcome::Due;
            }
        }
        self.wanted.insert(workload.uid.clone(), workload);
        self.then(now, Vec::new())
    }

    /// A pod is not to be served any more in that netns. It may have another one by now: a sandbox is made anew, and the old one's end
    /// is heard of later.
    pub fn forget(&mut self, uid: &str, netns: NetnsId, now: Instant) -> Vec<Step> {
        if self.wanted.get(uid).is_some_and(|workload| workload.netns != netns) {
            return Vec::new();
        }
        self.wanted.remove(uid);
        for connection in self.connections.values_mut() {
            if let Some(told) = connection.told.get_mut(uid) {
                told.is_over = true;
            }
            let outstanding = connection.outstanding.as_mut();
            if let Some(outstanding) = outstanding.filter(|one| one.request.uid() == Some(uid)) {
                outstanding.is_over = true;
            }
        }
        self.then(now, Vec::new())
    }

    /// All pods of the node are known.
    pub fn complete(&mut self, now: Instant) -> Vec<Step> {
        self.is_complete = true;
        self.then(now, Vec::new())
    }

    /// A message is out; its answer is awaited from here on.
    pub fn sent(&mut self, id: ConnectionId, now: Instant) {
        if let Some(connection) = self.connections.get_mut(&id)
            && let Some(outstanding) = &mut connection.outstanding
        {
            outstanding.is_sent = true;
            connection.deadline = Some(now + PATIENCE);
        }
    }

    /// A message cannot be sent, and why: the netns of the pod that is to be added cannot be opened, most likely.
    /// Before the snapshot ztunnel keeps the pod, if it has it.
    pub fn unsendable(&mut self, id: ConnectionId, why: &str, now: Instant) -> Vec<Step> {
        let Some(connection) = self.connections.get_mut(&id) else { return Vec::new() };
        let Some(outstanding) = connection.outstanding.take() else { return Vec::new() };
        connection.deadline = None;
        let mut steps = Vec::new();
        let uid = outstanding.request.uid().unwrap_or_default();
        if let (Request::Add(workload), Some(told)) = (&outstanding.request, connection.told.get_mut(uid))
            && told.workload != *workload
        {
            // What it has is not the pod any more: that goes first.
            told.is_over = true;
            return self.then(now, steps);
        }
        match (outstanding.request, connection.phase) {
            (Request::Add(workload), Phase::Snapshot) => {
                steps.push(connection.send(id, Request::Keep(workload), outstanding.is_over, now));
            }
            (request, _) => connection.conclude(request, outstanding.is_over, Some(why.to_owned()), now),
        }
        self.then(now, steps)
    }

    /// A packet has come.
    pub fn received(&mut self, id: ConnectionId, packet: &[u8], now: Instant) -> Vec<Step> {
        let Some(connection) = self.connections.get_mut(&id) else { return Vec::new() };
        let heard = connection.hear(packet, now);
        let mut steps = Vec::new();
        if let Err(breach) = heard {
            self.close(id, breach, &mut steps);
        }
        self.then(now, steps)
    }

    /// Time has passed: who is late is disconnected, who was refused is tried again.
    pub fn tick(&mut self, now: Instant) -> Vec<Step> {
        let mut steps = Vec::new();
        let is_late = |one: &Connection| one.deadline.is_some_and(|deadline| deadline <= now);
        let late: Vec<(ConnectionId, Breach)> = self
            .connections
            .iter()
            .filter(|(_, one)| is_late(one))
            .map(|(id, one)| (*id, one.lateness()))
            .collect();
        for (id, breach) in late {
            self.close(id, breach, &mut steps);
        }
        self.then(now, steps)
    }

    /// When [`Self::tick`] is due next, if nothing else comes.
    pub fn deadline(&self) -> Option<Instant> {
        let newest = self.newest().and_then(|id| self.connections.get(&id));
        let again =
            newest.filter(|one| one.outstanding.is_none()).into_iter().flat_map(|one| one.told.values());
        let again = again.filter_map(|told| match told.outcome {
            Outcome::Refused(_, at) => Some(at),
            Outcome::Served | Outcome::Due => None,
        });
        self.connections.values().filter_map(|one| one.deadline).chain(again).min()
    }

    /// How far a pod is.
    pub fn state(&self, uid: &str) -> State {
        let newest = self.newest().and_then(|id| self.connections.get(&id));
        let Some(connection) = newest else { return State::NoProxy };
        let is_current = |told: &&Told| !told.is_over && self.wanted.get(uid) == Some(&told.workload);
        match connection.told.get(uid).filter(is_current).map(|told| &told.outcome) {
            Some(Outcome::Served) => State::Served,
            Some(Outcome::Refused(words, _)) => State::Refused(words.clone()),
            Some(Outcome::Due) | None => State::Pending,
        }
    }

    /// Who is to be served.
    pub fn workloads(&self) -> impl Iterator<Item = &Workload> {
        self.wanted.values()
    }

    /// How many ztunnels are connected and have said hello.
    pub fn connected(&self) -> usize {
        self.greeted().count()
    }

    /// Those that have said hello, the newest last.
    pub fn greeted(&self) -> impl DoubleEndedIterator<Item = ConnectionId> {
        let greeted = self.connections.iter().filter(|(_, one)| one.phase != Phase::Greeting);
        greeted.map(|(id, _)| *id)
    }

    /// Whether the newest of them has its snapshot, which is what makes it ready.
    pub fn has_snapshot(&self) -> bool {
        let newest = self.newest().and_then(|id| self.connections.get(&id));
        newest.is_some_and(|one| one.phase == Phase::Live)
    }

    fn newest(&self) -> Option<ConnectionId> {
        self.greeted().next_back()
    }

    fn close(&mut self, connection: ConnectionId, reason: Breach, steps: &mut Vec<Step>) {
        self.connections.remove(&connection);
        steps.push(Step::Close { connection, reason });
    }

    /// Whoever is idle is told what follows from what has happened.
    fn then(&mut self, now: Instant, mut steps: Vec<Step>) -> Vec<Step> {
        let newest = self.newest();
        for (id, connection) in &mut self.connections {
            if connection.phase == Phase::Greeting || connection.outstanding.is_some() {
                continue;
            }
            let next = connection.next(&self.wanted, Some(*id) == newest, self.is_complete, now);
            if let Some(request) = next {
                steps.push(connection.send(*id, request, false, now));
            }
        }
        steps
    }
}

impl Connection {
    /// What it is told next.
    fn next(
        &self,
        wanted: &BTreeMap<Uid, Workload>,
        is_newest: bool,
        is_complete: bool,
        now: Instant,
    ) -> Option<Request> {
        let gets_pods = is_newest || self.phase == Phase::Snapshot;
        let is_stale = |uid: &Uid, told: &Told| {
            told.is_over || (!gets_pods && wanted.get(uid).is_some_and(|wanted| *wanted != told.workload))
        };
        if let Some((uid, _)) = self.told.iter().find(|(uid, told)| is_stale(uid, told)) {
            return Some(Request::Del(uid.clone()));
        }
        if gets_pods {
            // Those that it has never heard of come before those that it has refused.
            let unheard = wanted.values().find(|workload| !self.told.contains_key(&workload.uid));
            let is_due = |workload: &&Workload| {
                self.told.get(&workload.uid).is_some_and(|told| told.is_due(workload, now))
            };
            if let Some(workload) = unheard.or_else(|| wanted.values().find(is_due)) {
                return Some(Request::Add(workload.clone()));
            }
        }
        (self.phase == Phase::Snapshot && is_complete).then_some(Request::SnapshotSent)
    }

    fn send(&mut self, to: ConnectionId, request: Request, is_over: bool, now: Instant) -> Step {
        self.deadline = Some(now + PATIENCE);
        self.outstanding = Some(Outstanding { request: request.clone(), is_sent: false, is_over });
        Step::Send { to, request }
    }

    fn hear(&mut self, packet: &[u8], now: Instant) -> Result<(), Breach> {
        if self.phase == Phase::Greeting {
            message::read_hello(packet)?;
            self.phase = Phase::Snapshot;
            self.deadline = None;
            return Ok(());
        }
        let answered = self.outstanding.take_if(|outstanding| outstanding.is_sent).ok_or(Breach::Unasked)?;
        let refused = message::read_answer(packet)?;
        self.deadline = None;
        self.conclude(answered.request, answered.is_over, refused, now);
        Ok(())
    }

    fn conclude(&mut self, request: Request, is_over: bool, refused: Option<String>, now: Instant) {
        match request {
            // It says the same where it has never had the pod.
            Request::Del(uid) => drop(self.told.remove(&uid)),
            Request::SnapshotSent => self.phase = Phase::Live,
            Request::Add(workload) => self.note(workload, is_over, refused, now),
            Request::Keep(workload) => {
                self.note(workload, is_over, Some(refused.unwrap_or_else(|| KEPT.to_owned())), now);
            }
        }
    }

    fn note(&mut self, workload: Workload, is_over: bool, refused: Option<String>, now: Instant) {
        let before = self.told.get(&workload.uid).map_or(0, |told| told.refusals);
        let (outcome, refusals) = match refused {
            None => (Outcome::Served, 0),
            Some(words) => (Outcome::Refused(words, now + pause(before)), before.saturating_add(1)),
        };
        self.told.insert(workload.uid.clone(), Told { workload, outcome, refusals, is_over });
    }

    /// What it is, if it is late.
    const fn lateness(&self) -> Breach {
        match (self.phase, &self.outstanding) {
            (Phase::Greeting, _) | (_, None) => Breach::NoHello,
            (_, Some(Outstanding { is_sent: false, .. })) => Breach::NotTaken,
            (_, Some(Outstanding { is_sent: true, .. })) => Breach::Silent,
        }
    }
}

impl Told {
    fn is_due(&self, wanted: &Workload, now: Instant) -> bool {
        self.workload != *wanted
            || match self.outcome {
                Outcome::Served => false,
                Outcome::Refused(_, at) => at <= now,
                Outcome::Due => true,
            }
    }
}

impl Request {
    /// Whom it is about.
    pub fn uid(&self) -> Option<&str> {
        match self {
            Self::Add(workload) | Self::Keep(workload) => Some(&workload.uid),
            Self::Del(uid) => Some(uid),
            Self::SnapshotSent => None,
        }
    }
}

/// How long until a pod that was refused so often before is told again.
fn pause(refusals: u32) -> Duration {
    AGAIN.saturating_mul(2_u32.saturating_pow(refusals)).min(AGAIN_AT_MOST)
}

#[cfg(test)]
mod tests;
