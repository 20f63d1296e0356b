//! What a pod's annotation says of its redirection to ztunnel: by it Istio's control plane knows whether its peers may tunnel to it.
//!
//! Owns: `ambient.istio.io/redirection`, with the values that Istio's node agent gives it; and that the last word is written, whatever came
//! before it. Never does: write anything else on a pod, or make anybody wait: who has news leaves it here, one for each
//! pod. Called by: `proxy::zds`, which knows; `app`.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use kube::core::Request;
use kube::core::params::{Patch, PatchParams};
use serde::de::IgnoredAny;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use veer_common::cni::PodReference;

use super::client::{ApiError, ApiServer};
use super::notice::Pace;

const ANNOTATION: &str = "ambient.istio.io/redirection";
/// How long the API server may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two attempts while it is away.
const AGAIN: Duration = Duration::from_secs(5);
/// Pods with news: several times what a node has. Further ones are lost until the next agent tells of them.
const MOST: usize = 4096;

/// How a pod's redirection stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Redirection {
    /// ztunnel serves it.
    Enabled,
    /// It is redirected, and ztunnel does not serve it yet.
    Pending,
}

impl Redirection {
    /// The annotation's value.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Enabled => "enabled",
            Self::Pending => "pending",
        }
    }
}

/// News of pods, by their uids.
#[derive(Debug, Default)]
struct News {
    of: Mutex<BTreeMap<String, (PodReference, Option<Redirection>)>>,
    come: Notify,
}

/// Where news goes.
#[derive(Clone, Debug)]
pub struct Redirections {
    news: Option<Arc<News>>,
}

/// Writes it.
#[derive(Debug)]
pub struct Writer {
    server: Arc<ApiServer>,
    news: Arc<News>,
}

/// Where news goes, and who writes it.
pub fn writer(server: Arc<ApiServer>) -> (Redirections, Writer) {
    let news = Arc::<News>::default();
    (Redirections { news: Some(Arc::clone(&news)) }, Writer { server, news })
}

impl Redirections {
    /// Nobody is told: there is no API server.
    pub fn nowhere() -> Self {
        Self { news: None }
    }

    /// Tells a pod, at some time; never waits. `None` takes the annotation away. A pod without a uid cannot be told.
    pub fn tell(&self, pod: &PodReference, redirection: Option<Redirection>) {
        let (Some(news), Some(uid)) = (&self.news, &pod.uid) else { return };
        let mut of = news.of.lock().unwrap_or_else(PoisonError::into_inner);
        if of.len() < MOST || of.contains_key(uid) {
            of.insert(uid.clone(), (pod.clone(), redirection));
            news.come.notify_one();
        }
    }
}

impl News {
    /// The next one's behind this uid, from the first again behind the last: nobody is waited for by all others.
    fn take(&self, behind: &str) -> Option<(PodReference, Option<Redirection>)> {
        let mut of = self.of.lock().unwrap_or_else(PoisonError::into_inner);
        let next = of.range::<str, _>((Bound::Excluded(behind), Bound::Unbounded)).next();
        let uid = next.or_else(|| of.first_key_value())?.0.clone();
        of.remove(&uid)
    }

    /// How many have news that is not written.
    fn count(&self) -> usize {
        self.of.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Puts back what could not be written, unless there is something newer.
    fn put_back(&self, pod: PodReference, redirection: Option<Redirection>) {
        let mut of = self.of.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(uid) = pod.uid.clone() {
            of.entry(uid).or_insert((pod, redirection));
        }
    }
}

impl Writer {
    /// Writes until `stop`.
    pub async fn serve(self, stop: CancellationToken) {
        stop.run_until_cancelled(self.write_all()).await;
    }

    async fn write_all(&self) {
        let (mut pace, mut last_problem) = (Pace::new(Instant::now()), String::new());
        let (mut last, mut in_vain) = (String::new(), 0);
        loop {
            let Some((pod, redirection)) = self.news.take(&last) else {
                self.news.come.notified().await;
                continue;
            };
            last = pod.uid.clone().unwrap_or_default();
            sleep(pace.take(Instant::now())).await;
            let Err(error) = self.write(&pod, redirection).await else {
                last_problem.clear();
                continue;
            };
            // It has gone, and another one may have its name.
            let is_over = matches!(error.code(), Some(404 | 409 | 422));
            let problem = error.to_string();
            if !is_over && problem != last_problem {
                tracing::warn!(%problem, "write a pod's annotation {ANNOTATION}");
            }
            last_problem = problem;
            if is_over {
                continue;
            }
            let is_away = error.code().is_none();
            self.news.put_back(pod, redirection);
            in_vain += 1;
            // What a policy refuses for one pod may be fine for the others.
            if is_away || in_vain >= self.news.count() {
                in_vain = 0;
                sleep(AGAIN).await;
            }
        }
    }

    async fn write(&self, pod: &PodReference, redirection: Option<Redirection>) -> Result<(), ApiError> {
        let pods = format!("/api/v1/namespaces/{}/pods", pod.namespace);
        let patch = Patch::Merge(patch(pod, redirection));
        // The status has the same metadata, and who may write that may not write what a pod runs.
        let request =
            Request::new(pods).patch_subresource("status", &pod.name, &PatchParams::default(), &patch);
        let request = request.map_err(|error| ApiError::from(kube::Error::BuildRequest(error)))?;
        self.server.ask::<IgnoredAny>(request, PATIENCE).await.map(|_pod| ())
    }
}

/// A uid in it is compared, not written.
fn patch(pod: &PodReference, redirection: Option<Redirection>) -> Value {
    json!({"metadata": {"uid": pod.uid, "annotations": {ANNOTATION: redirection.map(Redirection::name)}}})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(uid: &str) -> PodReference {
        PodReference { namespace: "shop".to_owned(), name: "cart".to_owned(), uid: Some(uid.to_owned()) }
    }

    #[test]
    fn of_each_pod_the_last_word_is_written_and_what_could_not_be_is_put_back_behind_it() {
        let news = Arc::<News>::default();
        let redirections = Redirections { news: Some(Arc::clone(&news)) };
        redirections.tell(&pod("u-1"), Some(Redirection::Pending));
        redirections.tell(&pod("u-1"), Some(Redirection::Enabled));
        assert_eq!(news.take(""), Some((pod("u-1"), Some(Redirection::Enabled))));
        redirections.tell(&pod("u-1"), None);
        news.put_back(pod("u-1"), Some(Redirection::Enabled));
        assert_eq!((news.take(""), news.take("")), (Some((pod("u-1"), None)), None));
        redirections.tell(&PodReference { uid: None, ..pod("") }, None);
        assert_eq!(news.take(""), None);
    }

    #[test]
    fn one_that_is_put_back_again_and_again_holds_up_nobody() {
        let news = Arc::<News>::default();
        let redirections = Redirections { news: Some(Arc::clone(&news)) };
        for uid in ["u-2", "u-1", "u-3"] {
            redirections.tell(&pod(uid), None);
        }
        let mut behind = String::new();
        let mut taken = Vec::new();
        for _ in 0..4 {
            let (pod, redirection) = news.take(&behind).unwrap();
            behind = pod.uid.clone().unwrap();
            taken.push(behind.clone());
            if behind == "u-1" {
                news.put_back(pod, redirection);
            }
        }
        assert_eq!(taken, ["u-1", "u-2", "u-3", "u-1"]);
    }

    #[test]
    fn news_is_bounded() {
        let news = Arc::<News>::default();
        let redirections = Redirections { news: Some(Arc::clone(&news)) };
        for number in 0..MOST + 3 {
            redirections.tell(&pod(&number.to_string()), None);
        }
        assert_eq!(news.of.lock().unwrap().len(), MOST);
    }

    #[test]
    fn the_annotation_is_written_on_the_pod_of_that_uid_alone_and_taken_away_by_null() {
        let expected = json!({"metadata": {"uid": "u-1", "annotations": {ANNOTATION: "pending"}}});
        assert_eq!(patch(&pod("u-1"), Some(Redirection::Pending)), expected);
        assert_eq!(patch(&pod("u-1"), None)["metadata"]["annotations"], json!({ANNOTATION: null}));
    }
}
