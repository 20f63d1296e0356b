//! How all proxies of the node stand, for whoever asks, and for the pods that have to be told.
//!
//! Owns: what is looked at when (news of a proxy, a full pass, a question), and telling that one died or is back; when that is said is
//! `said`'s. Never does:
//! poll: programs tell of sidecars' listeners, Envoy's stream of its own end. Called by: the reconciler at each full pass,
//! the control socket and the metrics.

mod said;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use veer_common::cni::PodReference;
use veer_common::event::PROXY_QUIET_NS;
use veer_common::maps::NetnsCookie;

use self::said::{Said, TOLD_AFTER, Word};
use super::driver::{Depth, ProxyDriver};
use super::state::ProxyHealth;
use crate::cluster::notice::NoticeKind;
use crate::cni::answer::Answerer;
use crate::model::Driver;
use crate::source::PodSource;
use crate::wall_clock;

/// How long news is gathered: a proxy's listeners come and go together, and programs do not tell of each.
const SETTLED: Duration = Duration::from_millis(250);
const _: () = assert!(SETTLED.as_nanos() > PROXY_QUIET_NS as u128);
/// Pods that are read at once, so that an ADD waits for those alone.
const AT_ONCE: usize = 32;

/// A pod's proxy.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodProxy {
    /// The pod's netns.
    pub netns_cookie: NetnsCookie,
    /// Kubernetes namespace.
    pub namespace: String,
    /// Pod name.
    pub name: String,
    /// Who drives it.
    pub driver: Driver,
    /// How it stands.
    pub proxy: ProxyHealth,
}

/// Whose proxy has changed: from those who see it to the one who looks.
#[derive(Clone, Debug, Default)]
pub struct ProxyNews(Arc<Unread>);

#[derive(Debug, Default)]
struct Unread {
    pods: Mutex<BTreeSet<NetnsCookie>>,
    some: Notify,
}

impl ProxyNews {
    /// A pod's has.
    pub fn of_pod(&self, cookie: NetnsCookie) {
        self.0.pods.lock().unwrap_or_else(PoisonError::into_inner).insert(cookie);
        self.0.some.notify_one();
    }

    /// Waits until some have, and takes them.
    async fn next(&self) -> BTreeSet<NetnsCookie> {
        loop {
            let pods = std::mem::take(&mut *self.0.pods.lock().unwrap_or_else(PoisonError::into_inner));
            if !pods.is_empty() {
                return pods;
            }
            self.0.some.notified().await;
        }
    }
}

/// Who looks.
#[derive(Debug)]
pub struct ProxyWatch<S> {
    answerer: Arc<Answerer<S>>,
    news: ProxyNews,
    said: Mutex<Said>,
}

impl<S: PodSource + Send + Sync + 'static> ProxyWatch<S> {
    /// Nothing is known yet.
    pub fn new(answerer: Arc<Answerer<S>>, news: ProxyNews) -> Self {
        Self { answerer, news, said: Mutex::default() }
    }

    /// Who knows the pods, and tells them.
    pub const fn answerer(&self) -> &Arc<Answerer<S>> {
        &self.answerer
    }

    /// Where news goes.
    pub const fn news(&self) -> &ProxyNews {
        &self.news
    }

    /// Looks when there is news, and at a proxy that died when its pod is to be told, until `stop`.
    pub async fn serve(self: Arc<Self>, stop: CancellationToken) {
        let look = async {
            loop {
                let (due, wait) = self.said().next(wall_clock::seconds());
                tokio::select! {
                    pods = self.news.next() => {
                        // Each pod's news is that old when it is looked at: what comes meanwhile waits as long.
                        sleep(SETTLED).await;
                        self.look(Some(&pods), Depth::Seen).await;
                    }
                    () = some_time(wait) => {
                        self.look(Some(&due), Depth::Seen).await;
                    }
                }
            }
        };
        stop.run_until_cancelled(look).await;
    }

    /// How the proxies of these pods stand, or of all.
    pub async fn look(&self, pods: Option<&BTreeSet<NetnsCookie>>, depth: Depth) -> Vec<PodProxy> {
        let cookies = self.answerer.node.run(|node| {
            let cookies = node.registry().iter().map(|pod| pod.cookie);
            cookies.collect::<BTreeSet<_>>()
        });
        let Ok(all) = cookies.await else { return Vec::new() };
        self.said().keep_only(&all);
        let wanted: Vec<_> =
            all.into_iter().filter(|cookie| pods.is_none_or(|pods| pods.contains(cookie))).collect();
        let mut looked = Vec::new();
        for some in wanted.chunks(AT_ONCE) {
            let some = some.to_vec();
            let Ok(seen) = self.answerer.node.run(move |node| node.seen_proxies(&some)).await else { break };
            let whose: BTreeMap<_, _> = seen.iter().map(|seen| (seen.pod.cookie, seen.pod.clone())).collect();
            for (netns_cookie, proxy) in self.answerer.drivers.health(seen, depth).await {
                let Some(pod) = whose.get(&netns_cookie) else { continue };
                let (namespace, name) = (pod.namespace.clone(), pod.name.clone());
                looked.push(PodProxy { netns_cookie, namespace, name, driver: pod.driver, proxy });
            }
        }
        looked.sort_by_key(|one| one.netns_cookie);
        for one in &looked {
            self.say(one).await;
        }
        looked
    }

    fn said(&self) -> MutexGuard<'_, Said> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says what is new: to the log, and to the pod when it has lasted.
    async fn say(&self, one: &PodProxy) {
        let ProxyHealth { state, since, words } = &one.proxy;
        let to_say = self.said().hear(one.netns_cookie, *state, *since, wall_clock::seconds());
        let pod = format!("{}/{}", one.namespace, one.name);
        let (driver, state, words) = (one.driver.name(), state.name(), words.as_deref().unwrap_or_default());
        for word in to_say {
            match word {
                Word::First => tracing::debug!(%pod, driver, words, "its proxy is {state}"),
                Word::Changed { is_wrong: true, changes } => {
                    tracing::warn!(%pod, driver, words, changes, "its proxy is {state}");
                }
                Word::Changed { is_wrong: false, changes } => {
                    tracing::info!(%pod, driver, words, changes, "its proxy is {state}");
                }
                Word::Dead => {
                    tracing::warn!(%pod, driver, "its proxy has been dead for {TOLD_AFTER} s");
                    self.tell(one, NoticeKind::ProxyDead, dead(one.driver)).await;
                }
                Word::Back => {
                    self.tell(one, NoticeKind::ProxyBack, "its proxy takes connections again").await;
                }
            }
        }
    }

    async fn tell(&self, one: &PodProxy, kind: NoticeKind, text: &str) {
        let name = format!("{}/{}", one.namespace, one.name);
        let known = self.answerer.source.pods().await.unwrap_or_default();
        let uid = known.into_iter().find(|pod| pod.full_name() == name).and_then(|pod| pod.metadata.uid);
        let pod = PodReference { namespace: one.namespace.clone(), name: one.name.clone(), uid };
        self.answerer.notices.tell(&pod, kind, text);
    }
}

/// For ever, without a time.
async fn some_time(time: Option<Duration>) {
    match time {
        Some(time) => sleep(time).await,
        None => std::future::pending().await,
    }
}

/// What a pod is told whose proxy is dead.
const fn dead(driver: Driver) -> &'static str {
    match driver {
        Driver::Sidecar => {
            "its proxy has listened and does not any more, for 30 s by now: what it dials and what is sent to it is refused \
             until it does; see the container istio-proxy and its last state"
        }
        Driver::Node | Driver::Ztunnel => {
            "the node's proxy, which serves it, has been away for 30 s by now: what the pod dials and what is sent to it is \
             refused until it is back; `veer status` on the node tells of it"
        }
    }
}
