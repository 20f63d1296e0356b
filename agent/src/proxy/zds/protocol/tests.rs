//! Against ztunnels that are as strict as the real one, in every order of what may happen.

use proptest::prelude::*;

use super::*;

const HELLO: &[u8] = b"\x08\x01";
const DONE: &[u8] = b"\x0a\x00";
const FAILED: &[u8] = b"\x0a\x04\x0a\x02no";
const PODS: u8 = 4;

fn workload(number: u8, netns: u64) -> Workload {
    Workload {
        uid: format!("u-{number}"),
        namespace: "shop".to_owned(),
        name: format!("cart-{number}"),
        service_account: Some("seller".to_owned()),
        netns_path: format!("/run/netns/{number}"),
        netns: NetnsId { device: 4, inode: netns },
    }
}

/// A ztunnel, as far as the agent can tell.
#[derive(Debug, Default)]
struct Peer {
    has_greeted: bool,
    outstanding: Option<Request>,
    is_sent: bool,
    /// Named before the snapshot, which is all that it keeps then.
    named: BTreeMap<Uid, Workload>,
    /// What it serves or tries to.
    has: BTreeMap<Uid, Workload>,
    snapshots: u32,
}

/// An agent and its ztunnels.
struct World {
    now: Instant,
    protocol: Protocol,
    peers: BTreeMap<ConnectionId, Peer>,
    wanted: BTreeMap<Uid, Workload>,
    is_complete: bool,
    closed: Vec<(ConnectionId, Breach)>,
}

impl World {
    fn new() -> Self {
        let (peers, wanted) = (BTreeMap::new(), BTreeMap::new());
        let protocol = Protocol::default();
        Self { now: Instant::now(), protocol, peers, wanted, is_complete: false, closed: Vec::new() }
    }

    fn newest(&self) -> Option<ConnectionId> {
        self.peers.iter().filter(|(_, peer)| peer.has_greeted).map(|(id, _)| *id).next_back()
    }

    fn perform(&mut self, steps: Vec<Step>) {
        for step in steps {
            match step {
                Step::Close { connection, reason } => {
                    assert!(self.peers.remove(&connection).is_some(), "{connection} is closed twice");
                    self.closed.push((connection, reason));
                }
                Step::Send { to, request } => self.send(to, request),
            }
        }
    }

    /// What ztunnel would end for, or would get wrong, must never be sent.
    fn send(&mut self, to: ConnectionId, request: Request) {
        let newest = self.newest();
        let peer = self.peers.get_mut(&to).unwrap();
        assert!(peer.has_greeted && peer.outstanding.is_none(), "{request:?} to {peer:?}");
        match &request {
            Request::Add(workload) => {
                assert_eq!(self.wanted.get(&workload.uid), Some(workload));
                assert!(peer.snapshots == 0 || Some(to) == newest, "a new pod for one that is replaced");
            }
            Request::Keep(_) => assert_eq!(peer.snapshots, 0, "keep after the snapshot"),
            // Of one that could not be sent it knows nothing, which is fine with it.
            Request::Del(_) => {}
            Request::SnapshotSent => {
                assert!(self.is_complete && peer.snapshots == 0);
                assert_eq!(peer.named.keys().collect::<Vec<_>>(), self.wanted.keys().collect::<Vec<_>>());
            }
        }
        (peer.outstanding, peer.is_sent) = (Some(request), false);
    }

    fn connect(&mut self) -> ConnectionId {
        let (id, steps) = self.protocol.open(self.now);
        self.peers.insert(id, Peer::default());
        self.perform(steps);
        id
    }

    fn greet(&mut self, id: ConnectionId) {
        self.peers.get_mut(&id).unwrap().has_greeted = true;
        self.say(id, HELLO);
    }

    fn greeted(&mut self) -> ConnectionId {
        let id = self.connect();
        self.greet(id);
        id
    }

    fn say(&mut self, id: ConnectionId, packet: &[u8]) {
        let steps = self.protocol.received(id, packet, self.now);
        self.perform(steps);
    }

    fn want(&mut self, workload: Workload) {
        self.wanted.insert(workload.uid.clone(), workload.clone());
        let steps = self.protocol.want(workload, self.now);
        self.perform(steps);
    }

    fn forget(&mut self, number: u8) {
        let Some(gone) = self.wanted.remove(&workload(number, 0).uid) else { return };
        let steps = self.protocol.forget(&gone.uid, gone.netns, self.now);
        self.perform(steps);
    }

    fn complete(&mut self) {
        self.is_complete = true;
        let steps = self.protocol.complete(self.now);
        self.perform(steps);
    }

    fn hang_up(&mut self, id: ConnectionId) {
        self.peers.remove(&id);
        let steps = self.protocol.gone(id, self.now);
        self.perform(steps);
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        let steps = self.protocol.tick(self.now);
        self.perform(steps);
    }

    /// The message reaches it.
    fn deliver(&mut self, id: ConnectionId) {
        let peer = self.peers.get_mut(&id).unwrap();
        if peer.outstanding.is_some() && !peer.is_sent {
            peer.is_sent = true;
            self.protocol.sent(id, self.now);
        }
    }

    /// The netns of the pod that it is to be told of cannot be opened.
    fn cannot_send(&mut self, id: ConnectionId) {
        let peer = self.peers.get_mut(&id).unwrap();
        if !peer.is_sent && matches!(peer.outstanding, Some(Request::Add(_))) {
            peer.outstanding = None;
            let steps = self.protocol.unsendable(id, "gone", self.now);
            self.perform(steps);
        }
    }

    /// It does what it is told, and answers. Of what it refuses it has the pod all the same, as ztunnel does.
    fn answer(&mut self, id: ConnectionId, packet: &[u8]) {
        let peer = self.peers.get_mut(&id).unwrap();
        if !peer.is_sent {
            return;
        }
        peer.is_sent = false;
        match peer.outstanding.take().unwrap() {
            Request::Add(workload) => {
                if peer.snapshots == 0 {
                    peer.named.insert(workload.uid.clone(), workload.clone());
                }
                peer.has.insert(workload.uid.clone(), workload);
            }
            Request::Keep(workload) => drop(peer.named.insert(workload.uid.clone(), workload)),
            Request::Del(uid) => {
                peer.named.remove(&uid);
                peer.has.remove(&uid);
            }
            Request::SnapshotSent => {
                peer.snapshots += 1;
                peer.has.retain(|uid, _| peer.named.contains_key(uid));
            }
        }
        self.say(id, packet);
    }

    /// Everybody takes and does everything, for as long as there is something.
    fn settle(&mut self) {
        for _ in 0..1000 {
            let busy = self.peers.iter().find(|(_, peer)| peer.outstanding.is_some()).map(|(id, _)| *id);
            if let Some(id) = busy {
                self.deliver(id);
                self.answer(id, DONE);
            } else if let Some(deadline) = self.protocol.deadline() {
                self.pass(deadline.saturating_duration_since(self.now));
            } else {
                return;
            }
        }
        panic!("it never comes to an end: {:?}", self.protocol);
    }

    fn request_to(&self, id: ConnectionId) -> Option<&Request> {
        self.peers[&id].outstanding.as_ref()
    }

    fn state(&self, number: u8) -> State {
        self.protocol.state(&workload(number, 0).uid)
    }
}

#[test]
fn a_ztunnel_is_told_of_all_pods_one_after_the_other_and_then_that_these_were_all() {
    let mut world = World::new();
    world.want(workload(1, 11));
    let id = world.connect();
    assert_eq!((world.request_to(id), world.protocol.connected()), (None, 0), "before its hello");
    world.greet(id);
    assert_eq!(world.request_to(id), Some(&Request::Add(workload(1, 11))));
    world.want(workload(2, 12));
    world.deliver(id);
    world.answer(id, DONE);
    assert_eq!((world.state(1), world.state(2)), (State::Served, State::Pending));
    world.deliver(id);
    world.answer(id, DONE);
    // Not all pods of the node are known yet.
    assert_eq!((world.request_to(id), world.protocol.has_snapshot()), (None, false));
    world.complete();
    assert_eq!(world.request_to(id), Some(&Request::SnapshotSent));
    world.settle();
    assert!(world.protocol.has_snapshot());
}

#[test]
fn a_pod_whose_netns_cannot_be_opened_is_kept_before_the_snapshot_and_not_told_of_after_it() {
    let mut world = World::new();
    world.want(workload(1, 11));
    let id = world.greeted();
    world.cannot_send(id);
    assert_eq!(world.request_to(id), Some(&Request::Keep(workload(1, 11))));
    world.complete();
    world.settle();
    // It is tried again, and by then it can be opened.
    assert_eq!(world.state(1), State::Served);

    world.want(workload(2, 12));
    world.cannot_send(id);
    assert_eq!((world.request_to(id), world.state(2)), (None, State::Refused("gone".to_owned())));
}

#[test]
fn a_refused_pod_harms_no_other_and_is_told_again_by_and_by_or_when_it_is_asked_for() {
    let mut world = World::new();
    world.complete();
    let id = world.greeted();
    world.settle();
    world.want(workload(1, 11));
    world.want(workload(2, 12));
    world.deliver(id);
    world.answer(id, FAILED);
    assert_eq!(world.state(1), State::Refused("no".to_owned()));
    assert_eq!(world.request_to(id), Some(&Request::Add(workload(2, 12))));
    world.deliver(id);
    world.answer(id, DONE);
    assert_eq!(world.request_to(id), None);
    world.pass(AGAIN);
    assert_eq!(world.request_to(id), Some(&Request::Add(workload(1, 11))));
    world.deliver(id);
    world.answer(id, FAILED);
    world.pass(AGAIN);
    assert_eq!(world.request_to(id), None, "twice as long");
    world.want(workload(1, 11));
    assert_eq!(world.request_to(id), Some(&Request::Add(workload(1, 11))));
    assert_eq!(world.state(1), State::Pending);
}

#[test]
fn new_pods_go_to_the_newest_and_what_goes_goes_everywhere() {
    let mut world = World::new();
    world.complete();
    world.want(workload(1, 11));
    let old = world.greeted();
    world.settle();
    let new = world.greeted();
    world.settle();
    world.want(workload(2, 12));
    world.forget(1);
    assert_eq!(world.request_to(old), Some(&Request::Del("u-1".to_owned())));
    world.settle();
    assert_eq!(world.peers[&new].has.keys().collect::<Vec<_>>(), ["u-2"]);
    assert!(world.peers[&old].has.is_empty());
    world.hang_up(new);
    world.settle();
    assert_eq!(world.peers[&old].has.keys().collect::<Vec<_>>(), ["u-2"], "it serves again");
    assert_eq!(world.peers[&old].snapshots, 1);
}

#[test]
fn whoever_breaks_the_protocol_is_disconnected_and_nobody_else() {
    let said = |what: &dyn Fn(&mut World, ConnectionId)| {
        let mut world = World::new();
        world.complete();
        let other = world.greeted();
        world.settle();
        let id = world.connect();
        what(&mut world, id);
        assert!(world.peers.contains_key(&other));
        assert_eq!(world.closed.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [id]);
        world.closed.remove(0).1
    };
    assert_eq!(said(&|world, _| world.pass(PATIENCE)), Breach::NoHello);
    let wrong = said(&|world, id| world.say(id, DONE));
    assert!(
        wrong.to_string().starts_with("what it says is not understood: it is no hello of ZDS"),
        "{wrong}"
    );
    let version = said(&|world, id| world.say(id, b"\x08\x02"));
    assert_eq!(version, Breach::Message(MessageError::Version(2)));
    let early = said(&|world, id| {
        world.greet(id);
        // Its snapshot is not out yet.
        world.say(id, DONE);
    });
    assert_eq!(early, Breach::Unasked);
    let twice = said(&|world, id| {
        world.greet(id);
        world.deliver(id);
        world.answer(id, DONE);
        world.say(id, DONE);
    });
    assert_eq!(twice, Breach::Unasked);
    let deaf = said(&|world, id| {
        world.greet(id);
        world.pass(PATIENCE);
    });
    assert_eq!(deaf, Breach::NotTaken);
    let silent = said(&|world, id| {
        world.greet(id);
        world.pass(PATIENCE / 2);
        world.deliver(id);
        world.pass(PATIENCE / 2);
        assert!(world.closed.is_empty(), "its time begins when it has the message");
        world.pass(PATIENCE);
    });
    assert_eq!(silent, Breach::Silent);
}

#[test]
fn connections_are_bounded_and_those_who_have_said_nothing_go_first() {
    let mut world = World::new();
    let first = world.greeted();
    let silent = world.connect();
    for _ in 2..=MOST_CONNECTIONS {
        world.greeted();
    }
    assert_eq!(world.closed, [(silent, Breach::TooMany)]);
    world.connect();
    assert_eq!((world.closed[1].clone(), world.peers.len()), ((first, Breach::TooMany), MOST_CONNECTIONS));
}

#[test]
fn a_pod_that_goes_and_comes_back_while_it_is_told_of_ends_before_it_begins_anew() {
    let mut world = World::new();
    world.complete();
    let id = world.greeted();
    world.settle();
    world.want(workload(1, 11));
    world.forget(1);
    world.want(workload(1, 11));
    world.deliver(id);
    world.answer(id, DONE);
    assert_eq!(world.request_to(id), Some(&Request::Del("u-1".to_owned())));
    assert_eq!(world.state(1), State::Pending);
    world.settle();
    assert_eq!(world.state(1), State::Served);
}

#[test]
fn the_late_end_of_a_pods_earlier_netns_is_not_the_end_of_the_pod() {
    let mut world = World::new();
    world.complete();
    let id = world.greeted();
    world.settle();
    world.want(workload(1, 11));
    world.settle();
    world.want(workload(1, 12));
    assert_eq!(world.request_to(id), Some(&Request::Add(workload(1, 12))), "ztunnel replaces it");
    world.settle();
    let steps = world.protocol.forget("u-1", workload(1, 11).netns, world.now);
    assert_eq!((steps, world.state(1)), (Vec::new(), State::Served));
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Connect,
    Greet(usize),
    HangUp(usize),
    Want(u8, u64),
    Forget(u8),
    Complete,
    Deliver(usize),
    CannotSend(usize),
    Done(usize),
    Failed(usize),
    Nonsense(usize),
    Pass(u64),
}

fn event() -> impl Strategy<Value = Event> {
    let peer = 0..3_usize;
    prop_oneof![
        2 => Just(Event::Connect),
        4 => peer.clone().prop_map(Event::Greet),
        1 => peer.clone().prop_map(Event::HangUp),
        5 => (0..PODS, 1..3_u64).prop_map(|(pod, netns)| Event::Want(pod, netns)),
        3 => (0..PODS).prop_map(Event::Forget),
        1 => Just(Event::Complete),
        10 => peer.clone().prop_map(Event::Deliver),
        2 => peer.clone().prop_map(Event::CannotSend),
        10 => peer.clone().prop_map(Event::Done),
        2 => peer.clone().prop_map(Event::Failed),
        1 => peer.prop_map(Event::Nonsense),
        1 => (0..7_u64).prop_map(Event::Pass),
    ]
}

fn happens(world: &mut World, event: Event) {
    // The newest ones, by their place from the end.
    let nth = |world: &World, place| world.peers.keys().rev().nth(place).copied();
    match event {
        Event::Connect => drop(world.connect()),
        Event::Want(pod, netns) => world.want(workload(pod, netns)),
        Event::Forget(pod) => world.forget(pod),
        Event::Complete => world.complete(),
        Event::Pass(seconds) => world.pass(Duration::from_secs(seconds)),
        Event::Greet(place)
        | Event::HangUp(place)
        | Event::Deliver(place)
        | Event::CannotSend(place)
        | Event::Done(place)
        | Event::Failed(place)
        | Event::Nonsense(place) => {
            let Some(id) = nth(world, place) else { return };
            happens_to(world, id, event);
        }
    }
}

fn happens_to(world: &mut World, id: ConnectionId, event: Event) {
    let peer = world.peers.get_mut(&id).unwrap();
    match event {
        Event::Greet(_) if !peer.has_greeted => world.greet(id),
        Event::HangUp(_) => world.hang_up(id),
        Event::Deliver(_) => world.deliver(id),
        Event::CannotSend(_) => world.cannot_send(id),
        Event::Done(_) => world.answer(id, DONE),
        Event::Failed(_) => world.answer(id, FAILED),
        Event::Nonsense(_) => world.say(id, b"\xff\xff"),
        Event::Greet(_)
        | Event::Connect
        | Event::Want(..)
        | Event::Forget(_)
        | Event::Complete
        | Event::Pass(_) => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn whatever_happens_each_ztunnel_has_in_the_end_what_it_should(
        events in proptest::collection::vec(event(), 0..120)
    ) {
        let mut world = World::new();
        for event in events {
            happens(&mut world, event);
        }
        world.complete();
        world.settle();
        let newest = world.newest();
        for (id, peer) in &world.peers {
            prop_assert!(peer.has_greeted, "who says nothing was disconnected");
            prop_assert_eq!(peer.snapshots, 1);
            for (uid, workload) in &peer.has {
                prop_assert_eq!(world.wanted.get(uid), Some(workload), "what has gone, has gone from {}", id);
            }
            if Some(*id) == newest {
                prop_assert_eq!(&peer.has, &world.wanted);
            }
        }
        for uid in world.wanted.keys() {
            let expected = if newest.is_some() { State::Served } else { State::NoProxy };
            prop_assert_eq!(world.protocol.state(uid), expected);
        }
        prop_assert_eq!(world.protocol.deadline(), None);
    }
}
