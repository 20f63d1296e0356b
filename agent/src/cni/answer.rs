//! What a request leads to: the pod is looked up, decided on, and given to the node.

use std::os::fd::OwnedFd;
use std::time::Instant;

use veer_common::cni::{Attachment, PROTOCOL_VERSION, PodReference, Reply, Request, Verb, code};

use crate::admin::Metrics;
use crate::cluster::notice::{NoticeKind, Notices};
use crate::enrol::node::{Enrolling, NodeHandle};
use crate::enrol::past_mesh::PastMesh;
use crate::enrol::{EnrolError, Node};
use crate::model::{Capture, Decision, Driver, NodeSettings, Origins, PodErrors, decide, surprise};
use crate::proxy::driver::{Drivers, ProxiedPod, ProxyDriver};
use crate::source::{PodSource, SourceError};

/// What requests are answered from.
#[derive(Debug)]
pub struct Answerer<S> {
    /// Where pods are read from.
    pub source: S,
    /// What holds for all pods of the node.
    pub settings: NodeSettings,
    /// The node.
    pub node: NodeHandle,
    /// Where pods are told what has become of them.
    pub notices: Notices,
    /// Who drives the pods' proxies.
    pub drivers: Drivers,
    /// How long its answers take.
    pub metrics: Metrics,
}

/// When a pod is enrolled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Occasion {
    /// Before its first process starts.
    Start,
    /// While it runs.
    Running,
}

impl Occasion {
    /// What an enrolled pod is told.
    const fn told(self) -> &'static str {
        match self {
            Self::Start => "its connections go through its proxy",
            Self::Running => {
                "it was running without redirection; its connections go through its proxy from here on, those that are open \
                 stay what they are"
            }
        }
    }
}

/// How a pod is captured.
struct Decided {
    capture: Capture,
    /// What says so.
    origins: Box<Origins>,
    service_account: String,
    /// Its `metadata.uid`, as the source has it.
    uid: Option<String>,
}

/// Why a pod is not captured.
struct Refusal {
    reply: Reply,
    /// What it is told, where that is more than the runtime tells it, or nobody else does.
    told: Option<(NoticeKind, String)>,
}

impl<S: PodSource> Answerer<S> {
    /// Answers one request. `netns` is what came with it, `is_gone` tells whether nobody waits for the answer any
    /// more.
    pub async fn answer(
        &self,
        request: Request,
        netns: Option<OwnedFd>,
        is_gone: impl Fn() -> bool,
    ) -> Reply {
        if request.version != PROTOCOL_VERSION {
            let (theirs, ours) = (request.version, PROTOCOL_VERSION);
            return failed(
                code::PROTOCOL,
                format!("plugin speaks version {theirs} of the agent's protocol, this agent {ours}"),
                "veer-cni and veer are of different releases: install the plugin of the agent's release",
            );
        }
        let done = match request.verb {
            Verb::Add(attachment) => {
                let begun = Instant::now();
                let reply = self.add(attachment, netns, is_gone, Occasion::Start).await;
                self.metrics.added(result(&reply), begun.elapsed());
                return reply;
            }
            Verb::Check(attachment) => {
                match self.node.run(move |node| node.check(&attachment)).await.and_then(|checked| checked) {
                    Ok(()) => Ok(()),
                    Err(error) => return enrolment_failed("check", None, &error),
                }
            }
            Verb::Del(attachment) => {
                let del = move |node: &mut Node| {
                    node.del(&attachment);
                    node.gone_past_mesh()
                };
                match self.node.run(del).await {
                    Ok(gone) => {
                        self.tell_past_mesh(gone).await;
                        Ok(())
                    }
                    Err(error) => Err(error),
                }
            }
            Verb::Gc { network, valid } => self.node.run(move |node| node.keep_only(&network, &valid)).await,
            Verb::Status => self.node.run(|_node| ()).await,
        };
        match done {
            Ok(()) => Reply::Done,
            Err(error) => failed(code::NOT_AVAILABLE, error.to_string(), "the agent is stopping or broken"),
        }
    }

    /// Answers an ADD: that of a runtime, or that of a pod that runs already. Nothing is done once it `is_gone`. The pod is
    /// told that it is done, or why not.
    pub async fn add(
        &self,
        attachment: Attachment,
        netns: Option<OwnedFd>,
        is_gone: impl Fn() -> bool,
        occasion: Occasion,
    ) -> Reply {
        let Some(pod) = attachment.pod.clone() else {
            // Podman, CNI's own tools: whatever this is, it is not a pod of the mesh.
            return Reply::Passed { reason: "no-kubernetes-pod".to_owned() };
        };
        let Some(netns) = netns else {
            return failed(
                code::PROTOCOL,
                "ADD came without the pod's netns".to_owned(),
                "a bug of veer-cni",
            );
        };
        let Decided { capture, origins, service_account, uid } = match self.decide(&pod).await {
            Ok(decided) => decided,
            Err(Refusal { reply, told }) => {
                if let Some((kind, text)) = told {
                    self.notices.tell(&pod, kind, text);
                }
                return reply;
            }
        };
        for warning in &capture.warnings {
            tracing::warn!(pod = %full_name(&pod), %warning, "taken as unset");
        }
        // Not every runtime says it, and the next agent knows it by the source alone.
        let pod = PodReference { uid: pod.uid.or(uid), ..pod };
        let (name, told) = (full_name(&pod), pod.clone());
        let enrolling = Enrolling { attachment, pod, capture, origins, service_account, netns };
        // A runtime that loses its patience kills the plugin and sends DEL, which may have come by while the pod
        // was looked up. From here on this ADD is in the queue before any DEL of who is alive now.
        if is_gone() {
            tracing::warn!(pod = %name, "its plugin has gone, so it is not enrolled");
            return failed(
                code::TRY_AGAIN,
                format!("the plugin of pod {name} has gone"),
                "nobody reads this",
            );
        }
        let enrolled = match occasion {
            Occasion::Start => self.enrol(enrolling).await,
            Occasion::Running => self.enrol_running(enrolling).await,
        };
        match enrolled {
            Ok(()) => {
                self.notices.tell(&told, NoticeKind::Enrolled, occasion.told());
                Reply::Done
            }
            Err(error) => {
                tracing::error!(pod = %name, %error, "enrolment failed");
                let reply = enrolment_failed("enrol", Some(&name), &error);
                if let Reply::Failed { msg, .. } = &reply {
                    self.notices.tell(&told, NoticeKind::Failed, msg);
                }
                reply
            }
        }
    }

    /// Tells pods what they have sent past the mesh.
    pub async fn tell_past_mesh(&self, news: Vec<PastMesh>) {
        for mut past in news {
            let (pod, connections, cookie) = (full_name(&past.pod), past.connections, past.cookie);
            if past.pod.uid.is_none() {
                let known = self.source.pods().await.unwrap_or_default();
                let known = known.into_iter().find(|known| known.full_name() == pod);
                past.pod.uid = known.and_then(|known| known.metadata.uid);
            }
            // An agent that has just started may not know yet who its pods are.
            if past.pod.uid.is_none() && past.is_over && self.notices.counts().is_some() {
                drop(self.node.run(move |node| node.tell_again(cookie)).await);
                continue;
            }
            tracing::warn!(%pod, connections, over = past.is_over, "went past the mesh before the proxy listened");
            self.notices.tell(&past.pod, NoticeKind::BeforeProxy, past.text());
        }
    }

    /// Enrols a pod, and has its driver serve it: redirected first, so that nothing of it goes past its proxy. One that is
    /// not served is not enrolled, unless it was before.
    pub(super) async fn enrol(&self, enrolling: Enrolling) -> Result<(), EnrolError> {
        let attachment = enrolling.attachment.clone();
        let (container, account) = (attachment.container_id.clone(), enrolling.service_account.clone());
        let added = self.node.run(move |node| {
            let is_known = node.registry().of_container(&container).is_some();
            node.add(&enrolling).map(|()| (is_known, node.proxied(Some(&container))))
        });
        let (is_known, proxied) = added.await??;
        for pod in proxied {
            let pod = ProxiedPod { service_account: Some(account.clone()), ..pod };
            let served = self.drivers.serve(&pod).await;
            self.forget_if_gone(&pod).await;
            if let Err(error) = served {
                if !is_known {
                    self.node.run(move |node| node.del(&attachment)).await?;
                }
                return Err(EnrolError::Proxy(error));
            }
        }
        Ok(())
    }

    /// Has its driver take on a pod that was enrolled when it was asked about.
    pub async fn begin(&self, pod: &ProxiedPod) {
        self.drivers.begin(pod).await;
        self.forget_if_gone(pod).await;
    }

    /// Takes a pod from its driver that has gone, or to another one, before its driver heard of it: then nobody else does.
    pub(super) async fn forget_if_gone(&self, pod: &ProxiedPod) {
        let (pod, drivers) = (pod.clone(), self.drivers.clone());
        let looked = self.node.run(move |node| {
            let now = node.registry().get(pod.cookie);
            if now.is_none_or(|now| now.driver != pod.driver) {
                drivers.forget(&pod);
            }
        });
        // Without the node's thread all else ends, too.
        drop(looked.await);
    }

    /// A pod with its service account, where its driver tells others, and with its uid, by which it tells them: an agent that has
    /// started knows neither. One that the source does not know, because it has gone meanwhile, is as it was.
    ///
    /// # Errors
    /// If the source cannot be asked.
    pub async fn with_account(&self, pod: ProxiedPod) -> Result<ProxiedPod, SourceError> {
        if pod.driver != Driver::Ztunnel {
            return Ok(pod);
        }
        let ProxiedPod { cookie, namespace, name, uid, .. } = pod.clone();
        let Some(found) = self.source.pod(&PodReference { namespace, name, uid }).await? else {
            return Ok(ProxiedPod { service_account: None, ..pod });
        };
        let service_account = Some(found.service_account().to_owned());
        let uid = pod.uid.clone().or(found.metadata.uid);
        if let (None, Some(uid)) = (&pod.uid, uid.clone()) {
            // Its end is told by the same. Without the node's thread all else ends, too.
            drop(self.node.run(move |node| node.keep_uid(cookie, uid)).await);
        }
        Ok(ProxiedPod { uid, service_account, ..pod })
    }

    /// How a pod is to be captured.
    ///
    /// # Errors
    /// Why it is not, in words.
    pub async fn capture(&self, reference: &PodReference) -> Result<Capture, String> {
        self.decide(reference).await.map(|decided| decided.capture).map_err(|refusal| match refusal.reply {
            Reply::Passed { reason } => reason,
            Reply::Failed { msg, .. } => msg,
            Reply::Done => String::new(),
        })
    }

    /// How a pod is to be captured, or the reply that ends its ADD.
    async fn decide(&self, reference: &PodReference) -> Result<Decided, Refusal> {
        let name = full_name(reference);
        let excluded = &self.settings.excluded_namespaces;
        if excluded.contains(&reference.namespace) {
            return Err(Reply::Passed { reason: "namespace-excluded".to_owned() }.into());
        }
        let pod = match self.source.pod(reference).await {
            Ok(Some(pod)) => pod,
            Ok(None) => {
                return Err(failed(
                    code::TRY_AGAIN,
                    format!("pod {name} is not known in {}", self.source.name()),
                    "the runtime tries again; if it stays like this, look whether the manifest is there",
                )
                .into());
            }
            Err(error) => {
                return Err(failed(
                    code::TRY_AGAIN,
                    format!("look up pod {name}: {error}"),
                    "the runtime tries again",
                )
                .into());
            }
        };
        match decide(&pod, &self.settings) {
            Ok(Decision::Capture(capture)) => {
                let origins = Box::new(Origins::of(&pod, &self.settings));
                let (service_account, uid) = (pod.service_account().to_owned(), pod.metadata.uid.clone());
                Ok(Decided { capture: *capture, origins, service_account, uid })
            }
            Ok(Decision::Pass(reason)) => {
                tracing::info!(pod = %name, reason = reason.name(), "left alone");
                let reply = Reply::Passed { reason: reason.name().to_owned() };
                let told = surprise(reason, &pod).map(|text| (NoticeKind::Skipped, text.to_owned()));
                Err(Refusal { reply, told })
            }
            Err(errors) => {
                let told = Some((NoticeKind::Failed, errors.to_string()));
                Err(Refusal { reply: invalid_annotations(&errors), told })
            }
        }
    }
}

impl From<Reply> for Refusal {
    fn from(reply: Reply) -> Self {
        Self { reply, told: None }
    }
}

/// How an ADD has ended, for metrics.
const fn result(reply: &Reply) -> &'static str {
    match reply {
        Reply::Done => "enrolled",
        Reply::Passed { .. } => "passed",
        Reply::Failed { .. } => "failed",
    }
}

fn invalid_annotations(errors: &PodErrors) -> Reply {
    tracing::warn!(pod = %errors.pod, %errors, "refused");
    let lines: Vec<String> = errors.errors.iter().map(ToString::to_string).collect();
    failed(code::INVALID_ANNOTATIONS, errors.to_string(), &lines.join("\n"))
}

fn enrolment_failed(attempt: &str, pod: Option<&str>, error: &EnrolError) -> Reply {
    let code = match error {
        EnrolError::NotEnrolled(_) => code::NOT_ENROLLED,
        EnrolError::Netns(_) => code::INVALID_ENVIRONMENT,
        EnrolError::Stopping | EnrolError::Proxy(_) => code::TRY_AGAIN,
        EnrolError::Bpf(_)
        | EnrolError::Nft(_)
        | EnrolError::Record(_)
        | EnrolError::Change { .. }
        | EnrolError::TooLong(_)
        | EnrolError::Unmapped(_)
        | EnrolError::NoUserNamespace
        | EnrolError::Inspect { .. }
        | EnrolError::NetnsTaken { .. }
        | EnrolError::NeedsRules(_)
        | EnrolError::NeedsPrograms => code::ENROLMENT_FAILED,
    };
    let subject = pod.map_or_else(String::new, |pod| format!(" pod {pod}"));
    let details = if matches!(error, EnrolError::NotEnrolled(_)) {
        "another ADD of the pod repairs it"
    } else {
        "the agent's log has more; nothing was left behind"
    };
    failed(code, format!("{attempt}{subject}: {error}"), details)
}

fn failed(code: u32, msg: String, details: &str) -> Reply {
    Reply::Failed { code, msg, details: details.to_owned() }
}

fn full_name(pod: &PodReference) -> String {
    format!("{}/{}", pod.namespace, pod.name)
}
