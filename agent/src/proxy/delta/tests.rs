//! Against Envoys that are made up: they take what they are sent, or refuse it, and are gone at any time.

use proptest::prelude::*;

use super::super::config::UserConfig;
use super::super::driver::ProxiedPod;
use super::super::resources::{Direction, resource_name};
use super::*;
use crate::platform::netns::NetnsId;

/// An Envoy: what it has, and whom it refuses.
#[derive(Clone, Debug, Default)]
struct Envoy {
    has: BTreeMap<Kind, BTreeMap<String, String>>,
    refuses: Option<Owner>,
}

impl Envoy {
    /// Connects, tells what it has, and answers everything until nothing is sent any more.
    fn connect(&mut self, delta: &mut Delta) -> StreamId {
        self.connect_as(delta, None)
    }

    fn connect_as(&mut self, delta: &mut Delta, started: Option<u64>) -> StreamId {
        let stream = delta.open(started);
        for kind in Kind::ALL {
            let has = self.has.get(&kind).cloned().unwrap_or_default();
            let request = Request { kind, nonce: String::new(), refused: None, has };
            let sent = delta.request(stream, request);
            self.converse(delta, sent);
        }
        stream
    }

    fn converse(&mut self, delta: &mut Delta, mut queue: Vec<Response>) {
        while let Some(response) = (!queue.is_empty()).then(|| queue.remove(0)) {
            let answer = self.take(&response);
            queue.extend(delta.request(response.stream, answer));
        }
    }

    fn take(&mut self, response: &Response) -> Request {
        let refuses = |resource: &Resource| Some(owner_of(&resource.name)) == self.refuses.as_deref();
        let refused = response.resources.iter().any(refuses).then(|| "no, thank you".to_owned());
        if response.kind == Kind::Listener && refused.is_none() {
            for resource in &response.resources {
                let clusters = self.has.get(&Kind::Cluster).expect("clusters are sent first");
                assert!(clusters.contains_key(&resource.name), "{} names no cluster", resource.name);
            }
        }
        let has = self.has.entry(response.kind).or_default();
        if refused.is_none() {
            has.extend(response.resources.iter().map(|one| (one.name.clone(), one.version.clone())));
            for name in &response.removed {
                has.remove(name);
            }
        }
        if response.kind == Kind::Cluster {
            let listeners = self.has.get(&Kind::Listener).cloned().unwrap_or_default();
            let orphan = listeners.keys().find(|name| response.removed.contains(name));
            assert_eq!(orphan, None, "its cluster is taken from a listener");
        }
        let nonce = response.nonce.clone();
        Request { kind: response.kind, nonce, refused, has: BTreeMap::new() }
    }

    fn names(&self) -> BTreeSet<Owner> {
        self.has.values().flat_map(BTreeMap::keys).map(|name| owner_of(name).to_owned()).collect()
    }
}

fn pod(number: u64) -> ProxiedPod {
    ProxiedPod {
        cookie: number,
        namespace: "shop".to_owned(),
        name: format!("cart-{number}"),
        netns_path: format!("/run/netns/{number}"),
        uid: None,
        container_id: String::new(),
        service_account: None,
        netns: NetnsId { device: 4, inode: 5 },
        has_v6: number.is_multiple_of(2),
        driver: crate::model::Driver::Node,
    }
}

fn owner(number: u64) -> Owner {
    owner_of(&resource_name(Direction::Inbound, &pod(number))).to_owned()
}

fn want(delta: &mut Delta, number: u64) -> Vec<Response> {
    delta.want(&owner(number), Resources::of(&pod(number), &UserConfig::default()))
}

#[test]
fn a_pod_is_served_once_envoy_has_taken_its_clusters_and_then_its_listeners() {
    let (mut delta, mut envoy) = (Delta::default(), Envoy::default());
    assert_eq!(want(&mut delta, 1), []);
    assert_eq!(delta.state(&owner(1)), State::NoProxy);
    envoy.connect(&mut delta);
    assert_eq!(delta.state(&owner(1)), State::Served);

    let clusters = want(&mut delta, 2);
    assert_eq!(clusters.iter().map(|sent| sent.kind).collect::<Vec<_>>(), [Kind::Cluster]);
    assert_eq!(delta.state(&owner(2)), State::Pending);
    let first = clusters.into_iter().next().expect("a response");
    let listeners = delta.request(first.stream, envoy.take(&first));
    assert_eq!(listeners.iter().map(|sent| sent.kind).collect::<Vec<_>>(), [Kind::Listener]);
    assert_eq!(delta.state(&owner(2)), State::Pending);
    envoy.converse(&mut delta, listeners);
    assert_eq!(delta.state(&owner(2)), State::Served);
}

#[test]
fn a_pod_that_envoy_refuses_harms_no_other_and_its_words_are_kept() {
    let (mut delta, mut envoy) = (Delta::default(), Envoy::default());
    envoy.refuses = Some(owner(2));
    envoy.connect(&mut delta);
    for number in 1..=3 {
        let sent = want(&mut delta, number);
        envoy.converse(&mut delta, sent);
    }
    assert_eq!(delta.state(&owner(2)), State::Refused("no, thank you".to_owned()));
    assert_eq!(delta.state(&owner(1)), State::Served);
    assert_eq!(delta.state(&owner(3)), State::Served);

    // It is tried again when it is wanted again, and not before.
    envoy.refuses = None;
    let sent = want(&mut delta, 2);
    envoy.converse(&mut delta, sent);
    assert_eq!(delta.state(&owner(2)), State::Served);
}

#[test]
fn a_refusal_of_what_is_not_wanted_any_more_says_nothing_of_what_is() {
    let (mut delta, mut envoy) = (Delta::default(), Envoy::default());
    envoy.connect(&mut delta);
    let first = want(&mut delta, 1).into_iter().next().expect("clusters");
    // It is another one before Envoy has answered.
    let changed = ProxiedPod { netns_path: "/run/netns/other".to_owned(), ..pod(1) };
    assert_eq!(delta.want(&owner(1), Resources::of(&changed, &UserConfig::default())), []);
    let refused = Some("no, thank you".to_owned());
    let refusal = Request { kind: first.kind, nonce: first.nonce, refused, has: BTreeMap::new() };
    let sent = delta.request(first.stream, refusal);
    assert_eq!(delta.state(&owner(1)), State::Pending);
    envoy.converse(&mut delta, sent);
    assert_eq!(delta.state(&owner(1)), State::Served);
}

#[test]
fn what_was_refused_is_taken_away_as_well() {
    let (mut delta, mut envoy) = (Delta::default(), Envoy::default());
    delta.complete();
    envoy.connect(&mut delta);
    let sent = want(&mut delta, 1);
    // It takes the one and refuses the other, which for us is a refusal of both.
    let first = sent.first().expect("clusters").clone();
    envoy.take(&first);
    let refusal = Request {
        kind: first.kind,
        nonce: first.nonce,
        refused: Some("half of it".to_owned()),
        has: BTreeMap::new(),
    };
    assert_eq!(delta.request(first.stream, refusal), []);
    let sent = delta.forget(&owner(1));
    envoy.converse(&mut delta, sent);
    assert_eq!(envoy.names(), BTreeSet::new());
}

#[test]
fn an_envoy_that_was_there_before_gets_what_differs_and_loses_nothing_too_early() {
    let (mut before, mut envoy) = (Delta::default(), Envoy::default());
    for number in 1..=3 {
        want(&mut before, number);
    }
    envoy.connect(&mut before);

    // Another agent: it knows two of them at first.
    let mut delta = Delta::default();
    want(&mut delta, 1);
    want(&mut delta, 2);
    let stream = delta.open(None);
    let has = |kind| envoy.has.get(&kind).cloned().unwrap_or_default();
    for kind in Kind::ALL {
        let sent =
            delta.request(stream, Request { kind, nonce: String::new(), refused: None, has: has(kind) });
        assert!(sent.iter().all(|one| one.resources.is_empty() && one.removed.is_empty()), "{sent:?}");
    }
    assert_eq!(delta.state(&owner(1)), State::Served);
    let sent = delta.complete();
    envoy.converse(&mut delta, sent);
    assert_eq!(envoy.names(), BTreeSet::from([owner(1), owner(2)]));
}

#[test]
fn an_envoy_hears_of_all_pods_at_once_and_again_one_by_one_if_it_refuses_any() {
    let mut delta = Delta::default();
    for number in 1..=3 {
        want(&mut delta, number);
    }
    let stream = delta.open(None);
    let first = |kind| Request { kind, nonce: String::new(), refused: None, has: BTreeMap::new() };
    let mut envoy = Envoy { refuses: Some(owner(2)), ..Envoy::default() };
    let sent = delta.request(stream, first(Kind::Cluster));
    assert_eq!(sent.iter().map(|one| one.resources.len()).collect::<Vec<_>>(), [6]);
    let again: Vec<Response> = sent.iter().flat_map(|one| delta.request(stream, envoy.take(one))).collect();
    assert_eq!(again.iter().map(|one| one.resources.len()).collect::<Vec<_>>(), [2, 2, 2]);
    envoy.converse(&mut delta, again);
    // Of a pod that it has refused, it does not hear again.
    let sent = delta.request(stream, first(Kind::Listener));
    assert_eq!(sent.iter().map(|one| one.resources.len()).collect::<Vec<_>>(), [4]);
    envoy.converse(&mut delta, sent);
    assert_eq!(delta.state(&owner(1)), State::Served);
    assert_eq!(delta.state(&owner(2)), State::Refused("no, thank you".to_owned()));
    assert_eq!(delta.state(&owner(3)), State::Served);
}

#[test]
fn a_pod_waits_for_the_envoy_that_was_started_last_whichever_connects_last() {
    let mut delta = Delta::default();
    want(&mut delta, 1);
    let (mut draining, mut newest) = (Envoy::default(), Envoy::default());
    newest.refuses = Some(owner(1));
    let refused = State::Refused("no, thank you".to_owned());
    newest.connect_as(&mut delta, Some(200));
    draining.connect_as(&mut delta, Some(100));
    assert_eq!(delta.state(&owner(1)), refused);
    // One that is known to have been there says more than one of which nothing is known.
    let unknown = draining.connect(&mut delta);
    assert_eq!(delta.state(&owner(1)), refused);
    // It has connected anew, before its last connection was missed.
    newest.refuses = None;
    let again = newest.connect_as(&mut delta, Some(200));
    assert_eq!(delta.state(&owner(1)), State::Served);
    delta.close(again);
    delta.close(unknown);
    assert_eq!(delta.state(&owner(1)), refused);
}

#[test]
fn a_pod_is_busy_until_all_that_was_sent_about_it_is_answered() {
    let (mut delta, mut envoy) = (Delta::default(), Envoy::default());
    want(&mut delta, 1);
    let stream = delta.open(None);
    let first = |kind| Request { kind, nonce: String::new(), refused: None, has: BTreeMap::new() };
    // It asks for listeners before it answers of clusters, as Envoy does.
    let clusters = delta.request(stream, first(Kind::Cluster));
    let listeners = delta.request(stream, first(Kind::Listener));
    envoy.converse(&mut delta, clusters);
    assert_eq!(delta.state(&owner(1)), State::Pending);
    envoy.converse(&mut delta, listeners);
    assert_eq!(delta.state(&owner(1)), State::Served);
}

/// What happens to a node.
#[derive(Clone, Debug)]
enum Event {
    Want(u64),
    Forget(u64),
    Complete,
    /// Envoy is another one, which has nothing.
    Restart,
    /// The connection breaks, and Envoy has what it had.
    Reconnect,
    /// The agent is another one.
    NewAgent,
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        4 => (0_u64..6).prop_map(Event::Want),
        2 => (0_u64..6).prop_map(Event::Forget),
        1 => Just(Event::Complete),
        1 => Just(Event::Restart),
        1 => Just(Event::Reconnect),
        1 => Just(Event::NewAgent),
    ];
    prop::collection::vec(event, 0..40)
}

proptest! {
    #[test]
    fn envoy_has_in_the_end_who_is_wanted_and_nobody_else(events in events()) {
        let (mut delta, mut envoy) = (Delta::default(), Envoy::default());
        let mut wanted = BTreeSet::new();
        let mut stream = envoy.connect(&mut delta);
        for event in events {
            let sent = match event {
                Event::Want(number) => {
                    wanted.insert(number);
                    want(&mut delta, number)
                }
                Event::Forget(number) => {
                    wanted.remove(&number);
                    delta.forget(&owner(number))
                }
                Event::Complete => delta.complete(),
                Event::Restart | Event::Reconnect | Event::NewAgent => {
                    delta.close(stream);
                    if matches!(event, Event::Restart) {
                        envoy = Envoy::default();
                    }
                    if matches!(event, Event::NewAgent) {
                        delta = Delta::default();
                        for number in &wanted {
                            want(&mut delta, *number);
                        }
                    }
                    stream = envoy.connect(&mut delta);
                    Vec::new()
                }
            };
            envoy.converse(&mut delta, sent);
            for number in &wanted {
                prop_assert_eq!(delta.state(&owner(*number)), State::Served);
            }
        }
        let sent = delta.complete();
        envoy.converse(&mut delta, sent);
        prop_assert_eq!(envoy.names(), wanted.into_iter().map(owner).collect());
    }
}
