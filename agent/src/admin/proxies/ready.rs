//! Whether one pod's proxy takes connections, for whoever probes it: `/readyz?pod=NAMESPACE/NAME`.
//!
//! Of a pod that the node's Envoy serves, Envoy has said so; a sidecar is asked as the kubelet asks it, on 15021.
//! Called by: `admin`.

use std::time::Duration;

use tokio::time::timeout;

use super::{Proxies, fetch};
use crate::model::Driver;
use crate::proxy::delta::State;

/// Where Istio's sidecar says whether it is ready.
const STATUS: u16 = 15021;
const PATH: &str = "/healthz/ready";
/// A kubelet's own probes wait for one second, unless told otherwise.
const PATIENCE: Duration = Duration::from_secs(1);

/// Why a pod's proxy is not ready.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::admin) enum NotReady {
    /// There is no such pod.
    Unknown(String),
    /// It is not, for this reason.
    Not(String),
}

impl Proxies {
    /// Whether a pod's proxy takes connections.
    ///
    /// # Errors
    /// Why not.
    pub(in crate::admin) async fn ready(&self, namespace: &str, name: &str) -> Result<(), NotReady> {
        let unknown = || NotReady::Unknown(format!("no pod {namespace}/{name} is enrolled"));
        let wanted = (namespace.to_owned(), name.to_owned());
        let pod = self.node.run(move |node| node.proxied_of(&wanted.0, &wanted.1)).await;
        let pod = pod.map_err(|error| NotReady::Not(error.to_string()))?.ok_or_else(unknown)?;
        match pod.driver {
            Driver::Node => match self.ads.state(pod.owner()).await {
                State::Served => Ok(()),
                State::NoProxy => Err(NotReady::Not("the node's proxy is not connected".to_owned())),
                State::Pending => Err(NotReady::Not("the node's proxy has not answered yet".to_owned())),
                State::Refused(words) => Err(NotReady::Not(format!("the node's proxy refuses it: {words}"))),
            },
            Driver::Ztunnel => Err(NotReady::Unknown(
                "ztunnel serves it: the annotation ambient.istio.io/redirection tells how it stands"
                    .to_owned(),
            )),
            Driver::Sidecar => {
                let asked =
                    async { fetch::get(self.connect(pod.cookie, STATUS).await?, "sidecar", PATH).await };
                match timeout(PATIENCE, asked).await {
                    Ok(Ok(_answer)) => Ok(()),
                    Ok(Err(error)) => Err(NotReady::Not(error.to_string())),
                    Err(_elapsed) => Err(NotReady::Not(format!("no answer within {} s", PATIENCE.as_secs()))),
                }
            }
        }
    }
}
