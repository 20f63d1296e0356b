//! What a pod is told, and how often. Pure but for the queue that it goes into.
//!
//! Owns: the reasons, the texts, and the limits: a queue that never makes an ADD wait, the same thing said once in a while,
//! and a pace. Never does: write to the API server; [`events`](super::events) does. Called by: whoever enrols.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use veer_common::cni::PodReference;

/// Notices that may wait, as while the API server is away; further ones are dropped and counted.
const QUEUE: usize = 256;
/// The same is not said again for so long: a runtime tries each 15 s.
const SILENCE: Duration = Duration::from_mins(10);
/// What has been said is remembered of so many.
const REMEMBERED: usize = 1024;
/// Notices at once: those of a node full of pods that starts.
const BURST: f64 = 100.0;
/// Notices a second after that.
const PACE: f64 = 5.0;

/// Something that a pod is told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Notice {
    /// Whom, with its uid.
    pub pod: PodReference,
    /// What.
    pub kind: NoticeKind,
    /// In words: what, why and what to do.
    pub text: String,
}

/// What has become of a pod.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum NoticeKind {
    /// Its connections are redirected.
    Enrolled,
    /// They are not, and somebody may have expected it.
    Skipped,
    /// It could not be enrolled.
    Failed,
    /// Connections went past the mesh before its proxy listened.
    BeforeProxy,
    /// Its proxy listened, and has not for a while.
    ProxyDead,
    /// It does again.
    ProxyBack,
}

impl NoticeKind {
    /// The Event's reason.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Enrolled => "VeerEnrolled",
            Self::Skipped => "VeerSkipped",
            Self::Failed => "VeerFailed",
            Self::BeforeProxy => "VeerBeforeProxy",
            Self::ProxyDead => "VeerProxyDead",
            Self::ProxyBack => "VeerProxyBack",
        }
    }

    /// Whether a pod is told so only once in its life, whoever tells it: an agent that starts anew does not know.
    pub const fn is_said_once(self) -> bool {
        matches!(self, Self::BeforeProxy)
    }

    /// Whether somebody should look.
    pub const fn is_warning(self) -> bool {
        !matches!(self, Self::Enrolled | Self::ProxyBack)
    }
}

/// What has become of notices, since the start.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NoticeCounts {
    /// Written to the API server.
    pub written: u64,
    /// Not written, because the same was written a while ago.
    pub repeated: u64,
    /// Lost: the queue was full, or the API server did not take them.
    pub dropped: u64,
}

/// Where notices go.
#[derive(Clone, Debug)]
pub struct Notices {
    queue: Option<mpsc::Sender<Notice>>,
    counts: Arc<Counts>,
}

/// The same, for two.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) written: AtomicU64,
    pub(super) repeated: AtomicU64,
    pub(super) dropped: AtomicU64,
}

impl Notices {
    /// Nobody is told: there is no API server.
    pub fn nowhere() -> Self {
        Self { queue: None, counts: Arc::default() }
    }

    /// The queue, and its other end.
    pub(super) fn queue() -> (Self, mpsc::Receiver<Notice>, Arc<Counts>) {
        let (queue, receiver) = mpsc::channel(QUEUE);
        let counts = Arc::<Counts>::default();
        (Self { queue: Some(queue), counts: Arc::clone(&counts) }, receiver, counts)
    }

    /// Tells a pod, at some time, if it can; never waits. A pod whose uid the runtime does not say cannot be told.
    pub fn tell(&self, pod: &PodReference, kind: NoticeKind, text: impl Into<String>) {
        let Some(queue) = self.queue.as_ref().filter(|_| pod.uid.is_some()) else { return };
        if queue.try_send(Notice { pod: pod.clone(), kind, text: text.into() }).is_err() {
            self.counts.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// What has become of them; `None` if nobody is told.
    pub fn counts(&self) -> Option<NoticeCounts> {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        self.queue.as_ref().map(|_queue| NoticeCounts {
            written: count(&self.counts.written),
            repeated: count(&self.counts.repeated),
            dropped: count(&self.counts.dropped),
        })
    }
}

/// What was said lately.
#[derive(Debug, Default)]
pub(super) struct Said(HashMap<Key, Instant>);

/// The pod's uid, what, and in which words.
type Key = (Option<String>, NoticeKind, String);

impl Said {
    /// Whether this is to be said now; from now on it was.
    pub(super) fn is_news(&mut self, notice: &Notice, now: Instant) -> bool {
        let is_recent = |at: &Instant| now.duration_since(*at) < SILENCE;
        let key = (notice.pod.uid.clone(), notice.kind, notice.text.clone());
        if self.0.get(&key).is_some_and(is_recent) {
            return false;
        }
        if self.0.len() >= REMEMBERED {
            self.0.retain(|_, at| is_recent(at));
        }
        // So many different ones within the time: to say one of them twice is the lesser evil.
        if self.0.len() >= REMEMBERED
            && let Some(oldest) = self.0.iter().min_by_key(|(_, at)| **at).map(|(key, _)| key.clone())
        {
            self.0.remove(&oldest);
        }
        self.0.insert(key, now);
        true
    }
}

/// How fast notices are written: a bucket of tokens.
#[derive(Debug)]
pub(super) struct Pace {
    tokens: f64,
    at: Instant,
}

impl Pace {
    /// A full bucket.
    pub(super) const fn new(now: Instant) -> Self {
        Self { tokens: BURST, at: now }
    }

    /// Takes a token; gives back how long to wait first.
    pub(super) fn take(&mut self, now: Instant) -> Duration {
        let filled = now.saturating_duration_since(self.at).as_secs_f64() * PACE;
        self.tokens = (self.tokens + filled).min(BURST) - 1.0;
        self.at = now;
        Duration::from_secs_f64((-self.tokens / PACE).max(0.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(uid: Option<&str>) -> PodReference {
        PodReference { namespace: "shop".to_owned(), name: "cart".to_owned(), uid: uid.map(str::to_owned) }
    }

    fn notice(text: &str) -> Notice {
        Notice { pod: pod(Some("u")), kind: NoticeKind::Failed, text: text.to_owned() }
    }

    #[test]
    fn the_same_is_said_again_after_a_while_and_something_else_at_once() {
        let (mut said, now) = (Said::default(), Instant::now());
        assert!(said.is_news(&notice("a"), now));
        assert!(!said.is_news(&notice("a"), now + Duration::from_secs(15)));
        assert!(said.is_news(&notice("b"), now + Duration::from_secs(15)));
        assert!(said.is_news(&notice("a"), now + SILENCE));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let (mut said, now) = (Said::default(), Instant::now());
        for number in 0..2000_u16 {
            assert!(said.is_news(&notice(&number.to_string()), now + Duration::from_millis(number.into())));
        }
        assert_eq!(said.0.len(), REMEMBERED);
        assert!(!said.is_news(&notice("1999"), now + Duration::from_secs(3)), "the oldest was forgotten");
    }

    #[test]
    fn a_burst_goes_at_once_and_the_rest_at_a_pace() {
        let now = Instant::now();
        let mut pace = Pace::new(now);
        let waits: Vec<Duration> = (0..102).map(|_| pace.take(now)).collect();
        assert!(waits[..100].iter().all(Duration::is_zero));
        assert_eq!((waits[100], waits[101]), (Duration::from_millis(200), Duration::from_millis(400)));
        assert_eq!(pace.take(now + Duration::from_mins(1)), Duration::ZERO);
    }

    #[test]
    fn a_full_queue_drops_and_counts_and_never_waits() {
        let (notices, _receiver, _) = Notices::queue();
        for _ in 0..QUEUE + 3 {
            notices.tell(&pod(Some("u")), NoticeKind::Enrolled, "text");
        }
        notices.tell(&pod(None), NoticeKind::Enrolled, "nobody knows whom");
        assert_eq!(notices.counts(), Some(NoticeCounts { written: 0, repeated: 0, dropped: 3 }));
        Notices::nowhere().tell(&pod(Some("u")), NoticeKind::Enrolled, "text");
        assert_eq!(Notices::nowhere().counts(), None);
    }
}
