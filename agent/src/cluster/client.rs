//! Requests to the API server.
//!
//! Owns: who we are to it: a service account, whose token and certificate are read anew as they are replaced, or a
//! kubeconfig; how long an answer may take; and the words for what went wrong. Never does: hold a credential in a place
//! of its own, or try again. Called by: what watches and what writes.

use std::error::Error as StdError;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use http::Request;
use kube::config::{InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Client, Config};
use serde::de::DeserializeOwned;
use tokio::time::timeout;

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(5);

/// The API server.
pub struct ApiServer {
    kubeconfig: Option<PathBuf>,
    now: Mutex<Now>,
}

/// Who we are to it, and where it is, as it was read last.
struct Now {
    client: Client,
    url: String,
}

/// Why the API server cannot be asked at all.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Not in a pod.
    #[error(
        "find the API server as a pod does: {0}; the agent's pod needs its service account's token, or, outside of a \
         pod, --kubeconfig"
    )]
    InCluster(#[source] InClusterError),
    /// The kubeconfig.
    #[error("read the kubeconfig {path}: {source}", path = path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: Box<KubeconfigError>,
    },
    /// What they say cannot be used.
    #[error("make a client of the API server: {problem}", problem = described(.0))]
    Client(#[source] Box<kube::Error>),
}

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// Refused, or not understood, or no connection.
    #[error("{problem}", problem = described(.0))]
    Request(#[source] Box<kube::Error>),
    /// Nothing has come.
    #[error("no answer within {} s", .0.as_secs())]
    Timeout(Duration),
    /// What has come is no such thing.
    #[error("the answer is not what was asked for: {0}")]
    Answer(#[source] serde_json::Error),
}

impl ApiServer {
    /// The API server of this kubeconfig, or of the pod that this runs in. Nothing is sent yet.
    pub async fn new(kubeconfig: Option<PathBuf>) -> Result<Self, ConnectError> {
        let now = Mutex::new(read(kubeconfig.clone()).await?);
        Ok(Self { kubeconfig, now })
    }

    /// Reads again who we are, and lets go of all connections: after a failure nobody knows which of these it was.
    pub async fn renew(&self) -> Result<(), ConnectError> {
        let now = read(self.kubeconfig.clone()).await?;
        *self.now.lock().unwrap_or_else(PoisonError::into_inner) = now;
        Ok(())
    }

    /// The client of now.
    pub fn client(&self) -> Client {
        self.now.lock().unwrap_or_else(PoisonError::into_inner).client.clone()
    }

    /// Where it is: `https://10.96.0.1:443/`.
    pub fn url(&self) -> String {
        self.now.lock().unwrap_or_else(PoisonError::into_inner).url.clone()
    }

    /// Sends a request, and reads the answer's object.
    pub async fn ask<T: DeserializeOwned>(
        &self,
        request: Request<Vec<u8>>,
        patience: Duration,
    ) -> Result<T, ApiError> {
        // As text: kube's own parsing logs the whole of what it cannot read.
        let answer = timeout(patience, self.client().request_text(request)).await;
        let text = answer.map_err(|_elapsed| ApiError::Timeout(patience))??;
        serde_json::from_str(&text).map_err(ApiError::Answer)
    }
}

impl fmt::Debug for ApiServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiServer").field("kubeconfig", &self.kubeconfig).finish_non_exhaustive()
    }
}

impl From<kube::Error> for ApiError {
    fn from(error: kube::Error) -> Self {
        Self::Request(Box::new(error))
    }
}

impl ApiError {
    /// The HTTP status, if the API server has answered with one.
    pub fn code(&self) -> Option<u16> {
        match self {
            Self::Request(error) => {
                if let kube::Error::Api(status) = &**error {
                    Some(status.code)
                } else {
                    None
                }
            }
            Self::Timeout(_) | Self::Answer(_) => None,
        }
    }
}

async fn read(kubeconfig: Option<PathBuf>) -> Result<Now, ConnectError> {
    let mut config = match kubeconfig {
        None => Config::incluster().map_err(ConnectError::InCluster)?,
        Some(path) => {
            let read = Kubeconfig::read_from(&path).map(|read| (read, KubeConfigOptions::default()));
            let config = match read {
                Ok((read, options)) => Config::from_custom_kubeconfig(read, &options).await,
                Err(error) => Err(error),
            };
            config.map_err(|source| ConnectError::Kubeconfig { path, source: Box::new(source) })?
        }
    };
    config.connect_timeout = Some(CONNECT);
    // Who asks knows better when, and an outage is to be seen.
    config.default_retry = false;
    let url = config.cluster_url.to_string();
    let client = Client::try_from(config).map_err(|error| ConnectError::Client(Box::new(error)))?;
    Ok(Now { client, url })
}

/// What went wrong, in one line: kube's own text has the layers of its stack, and the whole status twice.
fn described(error: &kube::Error) -> String {
    if let kube::Error::Api(status) = error {
        return format!("{} ({} {})", status.message, status.code, status.reason);
    }
    let mut deepest: &dyn StdError = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    let (outer, inner) = (error.to_string(), deepest.to_string());
    let outer = outer.strip_prefix("ServiceError: ").unwrap_or(&outer);
    if outer.contains(&inner) { outer.to_owned() } else { format!("{outer}: {inner}") }
}
