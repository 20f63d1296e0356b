//! Against an Envoy that is made up: it refuses what has a word in it that it does not like.

use super::super::super::config::read_one;
use super::super::super::delta::{Request, StreamId};
use super::super::super::resources::Kind;
use super::*;
use crate::model::Driver;
use crate::platform::netns::NetnsId;

struct Envoy {
    stream: StreamId,
    has: BTreeMap<(Kind, String), Vec<u8>>,
}

impl Envoy {
    fn connect(served: &mut Served) -> Self {
        let mut envoy = Self { stream: served.delta.open(None), has: BTreeMap::new() };
        for kind in Kind::ALL {
            let request = Request { kind, nonce: String::new(), refused: None, has: BTreeMap::new() };
            let sent = served.delta.request(envoy.stream, request);
            envoy.converse(served, sent);
        }
        envoy
    }

    /// Takes what it is sent, or refuses it, until nothing is sent any more.
    fn converse(&mut self, served: &mut Served, mut queue: Vec<Response>) {
        queue.extend(served.judge());
        while let Some(response) = (!queue.is_empty()).then(|| queue.remove(0)) {
            let has =
                |content: &[u8], word: &str| content.windows(word.len()).any(|at| at == word.as_bytes());
            let is_bad = response.resources.iter().any(|one| has(&one.content.value, "bad"));
            if !is_bad {
                let taken = response.resources.into_iter();
                self.has.extend(taken.map(|one| ((response.kind, one.name), one.content.value)));
                self.has.retain(|(kind, name), _| *kind != response.kind || !response.removed.contains(name));
            }
            let refused = is_bad.then(|| "I do not like it".to_owned());
            let request =
                Request { kind: response.kind, nonce: response.nonce, refused, has: BTreeMap::new() };
            queue.extend(served.delta.request(self.stream, request));
            queue.extend(served.judge());
        }
    }

    /// How many of its listeners have the word in them.
    fn listeners_with(&self, word: &str) -> usize {
        let listeners = self.has.iter().filter(|((kind, _), _)| *kind == Kind::Listener);
        listeners.filter(|(_, content)| content.windows(word.len()).any(|at| at == word.as_bytes())).count()
    }

    fn has_cluster(&self, name: &str) -> bool {
        self.has.contains_key(&(Kind::Cluster, name.to_owned()))
    }
}

fn pod(number: u64) -> ProxiedPod {
    ProxiedPod {
        cookie: number,
        namespace: "shop".to_owned(),
        name: format!("cart-{number}"),
        netns_path: format!("/run/netns/{number}"),
        has_v6: false,
        uid: None,
        container_id: String::new(),
        service_account: None,
        netns: NetnsId { device: 4, inode: 5 },
        driver: Driver::Node,
    }
}

/// A filter with this name, and a cluster with that one.
fn config(filter: &str, cluster: &str) -> Arc<UserConfig> {
    let text = format!(
        "resources:\n- '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpFilter\n  name: {filter}\n\
         - '@type': type.googleapis.com/envoy.config.cluster.v3.Cluster\n  name: {cluster}\n"
    );
    Arc::new(read_one(&text).unwrap())
}

#[test]
fn nobody_is_served_before_it_is_known_what_users_add() {
    let mut served = Served::new(true);
    let mut envoy = Envoy::connect(&mut served);
    let sent = [served.serve(pod(1)), served.complete()].concat();
    assert_eq!(sent, []);
    assert!(!served.is_without_config());
    served.problem = Some("there is a comma".to_owned());
    assert!(served.is_without_config());
    let sent = served.configure(&config("one", "x"));
    envoy.converse(&mut served, sent);
    assert_eq!(served.delta.state(&pod(1).owner()), State::Served);
    assert_eq!((envoy.listeners_with("one"), envoy.has_cluster("x")), (2, true));
    assert_eq!(served.problem, None);
}

#[test]
fn what_envoy_refuses_is_taken_back_for_all_and_later_pods_are_served() {
    let mut served = Served::new(true);
    let mut envoy = Envoy::connect(&mut served);
    let sent = [served.configure(&config("one", "x")), served.serve(pod(1)), served.serve(pod(2))].concat();
    envoy.converse(&mut served, sent);
    let sent = served.configure(&config("bad", "x"));
    envoy.converse(&mut served, sent);
    assert_eq!(served.problem.as_deref(), Some("Envoy refuses it: I do not like it"));
    let sent = served.serve(pod(3));
    envoy.converse(&mut served, sent);
    for number in 1..=3 {
        assert_eq!(served.delta.state(&pod(number).owner()), State::Served);
    }
    assert_eq!(envoy.listeners_with("one"), 6);

    let sent = served.configure(&config("two", "bad"));
    envoy.converse(&mut served, sent);
    assert_eq!((envoy.listeners_with("one"), served.problem.is_some()), (6, true));
    let sent = served.configure(&config("two", "y"));
    envoy.converse(&mut served, sent);
    assert_eq!((envoy.listeners_with("two"), envoy.listeners_with("one")), (6, 0));
    // Nobody names the cluster of before any more.
    assert!(envoy.has_cluster("y") && !envoy.has_cluster("x") && !envoy.has_cluster("bad"));
    assert_eq!(served.problem, None);
}

#[test]
fn with_nothing_that_was_ever_taken_a_pod_is_refused_rather_than_served_without() {
    let mut served = Served::new(true);
    let mut envoy = Envoy::connect(&mut served);
    let sent = [served.configure(&config("bad", "x")), served.serve(pod(1))].concat();
    envoy.converse(&mut served, sent);
    let words = "I do not like it".to_owned();
    assert_eq!(served.delta.state(&pod(1).owner()), State::Refused(words));
    assert_eq!(envoy.listeners_with("cart"), 0);
    let sent = served.configure(&config("one", "x"));
    envoy.converse(&mut served, sent);
    assert_eq!(envoy.listeners_with("one"), 2);
}

/// It refuses what the pod has itself.
fn bad_pod() -> ProxiedPod {
    ProxiedPod { name: "bad".to_owned(), ..pod(9) }
}

#[test]
fn a_pod_that_is_refused_for_itself_takes_nothing_from_the_others() {
    let mut served = Served::new(true);
    let mut envoy = Envoy::connect(&mut served);
    let sent = [served.configure(&config("one", "x")), served.serve(pod(1))].concat();
    envoy.converse(&mut served, sent);
    let sent = served.forget(&pod(1).owner());
    envoy.converse(&mut served, sent);
    // It is the only one when something new is tried.
    let sent = served.configure(&config("two", "x"));
    envoy.converse(&mut served, sent);
    let sent = served.serve(bad_pod());
    envoy.converse(&mut served, sent);
    assert_eq!(served.problem, None);
    let sent = served.serve(pod(2));
    envoy.converse(&mut served, sent);
    assert_eq!((envoy.listeners_with("two"), envoy.listeners_with("one")), (2, 0));
    // What was taken with it there is what is gone back to.
    let sent = served.configure(&config("bad", "x"));
    envoy.converse(&mut served, sent);
    assert_eq!(served.delta.state(&pod(2).owner()), State::Served);
    assert_eq!((envoy.listeners_with("two"), served.problem.is_some()), (2, true));
}

#[test]
fn what_is_tried_first_is_taken_though_a_pod_is_refused_for_itself() {
    let mut served = Served::new(true);
    let mut envoy = Envoy::connect(&mut served);
    let sent =
        [served.configure(&config("one", "x")), served.serve(bad_pod()), served.serve(pod(1))].concat();
    envoy.converse(&mut served, sent);
    assert_eq!(envoy.listeners_with("one"), 2);
    let sent = served.configure(&config("bad", "x"));
    envoy.converse(&mut served, sent);
    let sent = served.serve(pod(2));
    envoy.converse(&mut served, sent);
    assert_eq!((envoy.listeners_with("one"), served.problem.is_some()), (4, true));
}
