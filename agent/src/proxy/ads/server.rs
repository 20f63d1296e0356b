//! gRPC: connections to streams, and xDS' messages to what [`Delta`](super::super::delta::Delta) speaks of.

use std::io;
use std::pin::Pin;

use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
};
use futures_util::stream::{self, Stream, StreamExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::UdsConnectInfo;
use tonic::{Status, Streaming};

use super::super::delta::{Request, Response, StreamId};
use super::super::resources::Kind;
use super::{Ads, Command};
use crate::accept;
use crate::platform::proxy;

/// Connections that wait to be served; there is one Envoy, or two while one takes over.
const BACKLOG: usize = 4;

type Outgoing<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Serves Envoys until `stop`. `uid` is the proxy's: besides root, nobody else is talked to.
pub async fn serve(listener: UnixListener, uid: u32, ads: Ads, stop: CancellationToken) {
    let (welcome, accepted) = mpsc::channel::<io::Result<UnixStream>>(BACKLOG);
    let accept = || listener.accept();
    let accepting = accept::serve("proxy", &stop, accept, |(stream, _address)| {
        let welcome = welcome.clone();
        async move {
            if !is_welcome(&stream, uid) {
                tracing::warn!("refused a connection: the peer is neither root nor the node's proxy");
            } else if welcome.send(Ok(stream)).await.is_err() {
                tracing::warn!("nobody serves the node's proxy any more");
            }
        }
    });
    let connections = stream::unfold(accepted, |mut accepted| async move {
        let connection = accepted.recv().await?;
        Some((connection, accepted))
    });
    let service = AggregatedDiscoveryServiceServer::new(Service { ads, stop: stop.clone() });
    let ended = stop.clone().cancelled_owned();
    let serving = Server::builder().serve_with_incoming_shutdown(service, connections, ended);
    let ((), served) = tokio::join!(accepting, serving);
    if let Err(error) = served {
        tracing::error!(%error, "the server of the node's proxy has ended");
    }
}

fn is_welcome(stream: &UnixStream, uid: u32) -> bool {
    stream.peer_cred().is_ok_and(|peer| peer.uid() == 0 || peer.uid() == uid)
}

struct Service {
    ads: Ads,
    stop: CancellationToken,
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Service {
    type StreamAggregatedResourcesStream = Outgoing<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Outgoing<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        _request: tonic::Request<Streaming<DiscoveryRequest>>,
    ) -> Result<tonic::Response<Self::StreamAggregatedResourcesStream>, Status> {
        Err(Status::unimplemented("veer speaks incremental xDS: api_type is DELTA_GRPC"))
    }

    async fn delta_aggregated_resources(
        &self,
        request: tonic::Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<tonic::Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let (opened, opening) = oneshot::channel();
        let stopping = |()| Status::unavailable("the agent is stopping");
        let started = started(&request);
        self.ads.commands.send(Command::Open { started, opened }).await.map_err(|_closed| stopping(()))?;
        let (number, responses) = opening.await.map_err(|_closed| stopping(()))?;
        tracing::info!(stream = number, "the node's proxy has connected");
        let (ads, stop) = (self.ads.clone(), self.stop.clone());
        tokio::spawn(async move {
            listen_to(request.into_inner(), number, &ads, &stop).await;
            drop(ads.commands.send(Command::Close { stream: number }).await);
            tracing::info!(stream = number, "the node's proxy has gone");
        });
        let outgoing = stream::unfold(responses, |mut responses| async move {
            let response = responses.recv().await?;
            Some((Ok(message(response)), responses))
        });
        Ok(tonic::Response::new(Box::pin(outgoing)))
    }
}

/// When the Envoy was started that asks, as far as that is known, in the kernel's clock ticks since the boot.
fn started<T>(request: &tonic::Request<T>) -> Option<u64> {
    let peer = request.extensions().get::<UdsConnectInfo>()?.peer_cred?;
    proxy::started(u32::try_from(peer.pid()?).ok()?)
}

/// Hands on what an Envoy says, until it says no more.
async fn listen_to(
    mut said: Streaming<DeltaDiscoveryRequest>,
    stream: StreamId,
    ads: &Ads,
    stop: &CancellationToken,
) {
    loop {
        let message = tokio::select! {
            () = stop.cancelled() => return,
            message = said.next() => message,
        };
        match message {
            None => return,
            Some(Err(status)) => {
                tracing::warn!(stream, %status, "the node's proxy broke off");
                return;
            }
            Some(Ok(message)) => {
                let Some(request) = request(message) else { continue };
                if ads.commands.send(Command::Said { stream, request }).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// What is said of kinds that it has none of is passed over: Envoy waits for none of them.
fn request(message: DeltaDiscoveryRequest) -> Option<Request> {
    let Some(kind) = Kind::of(&message.type_url) else {
        tracing::warn!(kind = message.type_url, "the node's proxy asks for what there is none of");
        return None;
    };
    Some(Request {
        kind,
        nonce: message.response_nonce,
        refused: message.error_detail.map(|status| status.message),
        has: message.initial_resource_versions.into_iter().collect(),
    })
}

fn message(response: Response) -> DeltaDiscoveryResponse {
    let resource = |one: super::super::resources::Resource| Resource {
        name: one.name,
        version: one.version,
        resource: Some(one.content),
        ..Resource::default()
    };
    DeltaDiscoveryResponse {
        type_url: response.kind.type_url().to_owned(),
        nonce: response.nonce,
        resources: response.resources.into_iter().map(resource).collect(),
        removed_resources: response.removed,
        ..DeltaDiscoveryResponse::default()
    }
}
