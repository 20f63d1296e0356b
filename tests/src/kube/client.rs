//! Talks to the API server, from the netns where it listens.
//!
//! Synchronous, because tests are: a thread of its own has the connections, and ends with the client. Paths and
//! objects are those of Kubernetes' API as they are, so that a test says what any other client would send.

use std::error::Error;
use std::fmt::Display;
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use http::Method;
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::Value;
use tokio::sync::mpsc as channel;

use crate::netns::NetNs;
use crate::wait;

/// An answer that takes longer is an error: an API server that is gone lets connections hang.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a controller, a scheduler or a kubelet may take for something: after an outage they try again after half a
/// minute or more.
pub const LIMIT: Duration = Duration::from_mins(3);

/// A client of the API server.
#[derive(Clone, Debug)]
pub struct Client {
    requests: channel::UnboundedSender<Question>,
}

/// A request, and where its answer goes.
struct Question {
    request: http::Request<Vec<u8>>,
    answer: mpsc::Sender<kube::Result<Value>>,
}

impl Client {
    /// One that is who the kubeconfig says, in this netns or, without one, where the test is.
    pub fn new(kubeconfig: &Path, netns: Option<&NetNs>) -> Result<Self> {
        let kubeconfig = Kubeconfig::read_from(kubeconfig)
            .with_context(|| format!("read the kubeconfig {}", kubeconfig.display()))?;
        let (requests, mut queue) = channel::unbounded_channel();
        let work = move || {
            let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else {
                return;
            };
            runtime.block_on(async {
                let options = KubeConfigOptions::default();
                let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await;
                let client = match config.map(kube::Client::try_from) {
                    Ok(Ok(client)) => client,
                    Ok(Err(error)) => return eprintln!("no client of the API server: {error}"),
                    Err(error) => return eprintln!("no configuration of a client: {error}"),
                };
                while let Some(Question { request, answer }) = queue.recv().await {
                    let result = tokio::time::timeout(PATIENCE, client.request::<Value>(request)).await;
                    // Whoever asked waits for it, or has ended.
                    answer.send(result.unwrap_or_else(|_late| Err(timed_out()))).ok();
                }
            });
        };
        match netns {
            Some(netns) => netns.spawn(work)?,
            None => thread::spawn(work),
        };
        Ok(Self { requests })
    }

    /// Reads what is at `path`.
    pub fn get(&self, path: &str) -> Result<Value> {
        self.send(Method::GET, path, "application/json", Vec::new())
    }

    /// Creates an object; `path` is the collection's.
    pub fn create(&self, path: &str, object: &Value) -> Result<Value> {
        self.send(Method::POST, path, "application/json", serde_json::to_vec(object)?)
    }

    /// Changes what is there: a merge patch (RFC 7386), which takes `null` for a removal.
    pub fn patch(&self, path: &str, change: &Value) -> Result<Value> {
        self.send(Method::PATCH, path, "application/merge-patch+json", serde_json::to_vec(change)?)
    }

    /// Makes an object what it says, whether it is there or not: server-side apply, as `kubectl apply --server-side` does.
    pub fn apply(&self, path: &str, object: &Value) -> Result<Value> {
        let path = format!("{path}?fieldManager=veer-tests&force=true");
        self.send(Method::PATCH, &path, "application/apply-patch+yaml", serde_json::to_vec(object)?)
    }

    /// Deletes, with the time of grace that the object has.
    pub fn delete(&self, path: &str) -> Result<Value> {
        self.send(Method::DELETE, path, "application/json", Vec::new())
    }

    /// Waits until what is at `path` has a value that `wanted` finds in it.
    ///
    /// # Errors
    /// When that takes more than [`LIMIT`]: `what` was waited for, and what was there instead.
    pub fn wait<T>(&self, what: &str, path: &str, wanted: impl Fn(&Value) -> Option<T>) -> Result<T> {
        let mut last = None;
        let found = wait::until_some(what, LIMIT, || {
            let answer = self.get(path);
            let found = answer.as_ref().ok().and_then(&wanted);
            last = Some(answer);
            found
        });
        found.with_context(|| match last {
            Some(Ok(value)) => format!("{path} is {}", shortened(&value)),
            Some(Err(error)) => format!("{path}: {error:#}"),
            None => path.to_owned(),
        })
    }

    /// Waits until there is nothing at `path` any more.
    pub fn wait_gone(&self, path: &str) -> Result<()> {
        let is_gone = || match self.ask(Method::GET, path, "application/json", Vec::new()) {
            Ok(Err(kube::Error::Api(status))) => status.code == 404,
            Ok(_) | Err(_) => false,
        };
        wait::until(&format!("{path} to be gone"), LIMIT, is_gone)
    }

    fn send(&self, method: Method, path: &str, content: &str, body: Vec<u8>) -> Result<Value> {
        let what = format!("{method} {path}");
        match self.ask(method, path, content, body)? {
            Ok(value) => Ok(value),
            Err(error) => bail!("{what}: {}", told(&error)),
        }
    }

    fn ask(&self, method: Method, path: &str, content: &str, body: Vec<u8>) -> Result<kube::Result<Value>> {
        let request = http::Request::builder().method(method).uri(path).header("content-type", content);
        let request = request.body(body).with_context(|| format!("make a request of {path}"))?;
        let (answer, answered) = mpsc::channel();
        self.requests.send(Question { request, answer }).ok().context("the client's thread has ended")?;
        answered.recv().context("the client's thread has ended")
    }
}

fn timed_out() -> kube::Error {
    kube::Error::Service(format!("no answer in {PATIENCE:?}").into())
}

/// The API server's own words, where they are an answer.
fn told(error: &kube::Error) -> String {
    if let kube::Error::Api(status) = error {
        return format!("{} {}: {}", status.code, status.reason, status.message);
    }
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

fn shortened(value: &impl Display) -> String {
    let text = value.to_string();
    match text.char_indices().nth(4000) {
        Some((end, _)) => format!("{} …", text.get(..end).unwrap_or_default()),
        None => text,
    }
}
