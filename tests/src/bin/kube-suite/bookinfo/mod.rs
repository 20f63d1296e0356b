//! Bookinfo behind an ingress gateway, as it is when Istio's injector has seen it: Deployments, Services of kube-proxy,
//! sidecars of either shape.
//!
//! Owns: the application, how it comes and goes, and how it is asked. What is shown with it is in the rooms below. There is
//! no DNS in this cluster: services find each other by the variables that Istio's own Bookinfo has for that, which hold
//! the addresses of the Services.

pub(crate) mod apart;
pub(crate) mod asked;
pub(crate) mod lasting;
mod stream;
pub(crate) mod traffic;

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use veer_tests::bookinfo::{self, Answer, HEALTH, PORT, Service};
use veer_tests::envoy::{Direction, Entry, MARK};
use veer_tests::http::{self, Headers};
use veer_tests::kube::client::{Client, LIMIT};
use veer_tests::kube::injector::{self, Kind, NAMESPACE_LABEL, REWRITE_PROBES, unprivileged};
use veer_tests::kube::node::{self, IMAGE};
use veer_tests::kube::pods::{self, Running};
use veer_tests::wait;

use crate::stage::Stage;

/// Its namespace.
pub(crate) const NAMESPACE: &str = "bookinfo";
/// The gateway's.
const INGRESS: &str = "istio-ingress";
const GATEWAY: &str = "istio-ingressgateway";

/// What Envoy adds to a request on its way out of a pod.
const PASSED_OUT: &str = "x-envoy-attempt-count";

/// Who runs, in which version and with which shape of a sidecar.
const WORKLOADS: [(Service, &str, Kind); 6] = [
    (Service::Ratings, "v1", Kind::Native),
    (Service::Details, "v1", Kind::Classic),
    (Service::Reviews, "v1", Kind::Classic),
    (Service::Reviews, "v2", Kind::Native),
    (Service::Reviews, "v3", Kind::Native),
    (Service::Productpage, "v1", Kind::Classic),
];

/// The application on the node.
pub(crate) struct Bookinfo {
    /// Where it is reached from outside: the node, and the gateway's port there.
    entrance: SocketAddr,
    gateway: Running,
    /// The address of each Service.
    services: Vec<(Service, IpAddr)>,
    workloads: Vec<Workload>,
}

/// A pod of it.
struct Workload {
    service: Service,
    version: &'static str,
    pod: Running,
}

impl Bookinfo {
    /// Deploys it and waits until a page comes.
    pub(crate) fn deploy(stage: &Stage) -> Result<Self> {
        let client = stage.client();
        make_namespace(client, NAMESPACE, Some("enabled"))?;
        make_namespace(client, INGRESS, None)?;
        let names = [Service::Ratings, Service::Details, Service::Reviews, Service::Productpage];
        let services = names.into_iter().map(|service| Ok((service, make_service(client, service)?)));
        let services = services.collect::<Result<Vec<_>>>()?;
        for (service, version, kind) in WORKLOADS {
            deploy(client, NAMESPACE, &workload(service, version, kind, &services)?)?;
        }
        let page = services.iter().find(|(service, _)| *service == Service::Productpage);
        let page = page.map(|(_, address)| SocketAddr::new(*address, PORT)).context("there is a page")?;
        let entrance = make_gateway(client, page)?;
        let pod = |(service, version, _): &(Service, &'static str, Kind)| {
            let pod = pod_of(client, NAMESPACE, service.name(), version)?;
            Ok(Workload { service: *service, version, pod })
        };
        let workloads = WORKLOADS.iter().map(pod).collect::<Result<_>>()?;
        let gateway = pod_of(client, INGRESS, GATEWAY, "v1")?;
        let bookinfo = Self { entrance, gateway, services, workloads };
        // One with ratings: the last Service of the way, of which kube-proxy may hear last, too.
        wait::until_ok("a page with ratings", LIMIT, || {
            let page = bookinfo.visit(stage, "first")?;
            page.of(Service::Ratings).map(drop).with_context(|| format!("{page:?}"))
        })?;
        Ok(bookinfo)
    }

    /// Asks for a page from outside of the cluster.
    pub(crate) fn visit(&self, stage: &Stage, mark: &str) -> Result<Answer> {
        stage.node.outside().run(|| bookinfo::ask(Service::Productpage, self.entrance, &marked(mark)))?
    }

    /// Where a service is for those who ask it.
    fn address(&self, service: Service) -> Result<SocketAddr> {
        let found = self.services.iter().find(|(known, _)| *known == service);
        let (_, address) = found.with_context(|| format!("there is no {}", service.name()))?;
        Ok(SocketAddr::new(*address, PORT))
    }

    /// The pod of a service in a version.
    fn pod(&self, service: Service, version: &str) -> Result<&Running> {
        let is_it = |workload: &&Workload| workload.service == service && workload.version == version;
        let found = self.workloads.iter().find(is_it).map(|workload| &workload.pod);
        found.with_context(|| format!("there is no {} {version}", service.name()))
    }
}

/// Takes it away and waits until nothing of it is left.
pub(crate) fn remove(stage: &Stage) -> Result<()> {
    for namespace in [INGRESS, NAMESPACE] {
        remove_namespace(stage.client(), namespace)?;
    }
    stage.wait_nobody_enrolled()
}

/// Headers of a request that is recognised in access logs.
fn marked(mark: &str) -> Headers {
    Headers::from([(MARK.to_owned(), mark.to_owned())])
}

/// The one entry of a request that was dialled so.
fn entry(
    stage: &Stage,
    pod: &Running,
    direction: Direction,
    mark: &str,
    dialled: SocketAddr,
) -> Result<Entry> {
    let is_it = |entry: &Entry| {
        entry.direction == direction
            && entry.mark.as_deref() == Some(mark)
            && entry.original_destination == Some(dialled)
    };
    let log = || pod.access_log(stage.node.directory());
    let what = format!("an {direction} entry of {mark} to {dialled} in the proxy of {}", pod.path);
    let found = wait::until_some(&what, wait::LIMIT, || {
        let found: Vec<Entry> = log().ok()?.into_iter().filter(is_it).collect();
        (!found.is_empty()).then_some(found)
    });
    let found = found.with_context(|| format!("its entries: {:?}", entries(stage, pod, mark)))?;
    match <[Entry; 1]>::try_from(found) {
        Ok([entry]) => Ok(entry),
        Err(several) => anyhow::bail!("{} saw {mark} more than once: {several:?}", pod.path),
    }
}

/// All of a request.
fn entries(stage: &Stage, pod: &Running, mark: &str) -> Result<Vec<Entry>> {
    let log = pod.access_log(stage.node.directory())?;
    Ok(log.into_iter().filter(|entry| entry.mark.as_deref() == Some(mark)).collect())
}

/// Has an echo app of a pod ask a service of Bookinfo.
fn ask_through(
    stage: &Stage,
    from: &Running,
    service: Service,
    at: SocketAddr,
    mark: &str,
) -> Result<Answer> {
    let path = format!("/to/{at}{}", service.path());
    let from = SocketAddr::new(from.address, pods::PORT);
    let response = stage.node.outside().run(|| http::get_from(from, &path, &marked(mark)))??;
    let text = String::from_utf8_lossy(&response.body);
    ensure!(response.status == 200, "{from}{path} answered {}: {text}", response.status);
    serde_json::from_slice(&response.body).with_context(|| format!("{from}{path} answered {text}"))
}

/// One with a label that says whether its pods are injected, and with the account that pods need.
fn make_namespace(client: &Client, name: &str, injection: Option<&str>) -> Result<Value> {
    let labels = injection.map(|injection| json!({(NAMESPACE_LABEL): injection}));
    client.create("/api/v1/namespaces", &json!({"metadata": {"name": name, "labels": labels}}))?;
    let account = format!("/api/v1/namespaces/{name}/serviceaccounts/default");
    client.wait("a namespace's account", &account, |_account| Some(()))?;
    client.get(&format!("/api/v1/namespaces/{name}"))
}

fn remove_namespace(client: &Client, name: &str) -> Result<()> {
    let path = format!("/api/v1/namespaces/{name}");
    client.delete(&path)?;
    client.wait_gone(&path)
}

fn make_service(client: &Client, service: Service) -> Result<IpAddr> {
    let name = service.name();
    let object = json!({"metadata": {"name": name, "labels": {"app": name}}, "spec": {
        "selector": {"app": name}, "ports": [{"name": "http", "port": PORT}]}});
    let made = client.create(&format!("/api/v1/namespaces/{NAMESPACE}/services"), &object)?;
    let address =
        made.pointer("/spec/clusterIP").and_then(Value::as_str).context("a Service has an address")?;
    address.parse().with_context(|| format!("a Service has the address {address}"))
}

/// Traffic from outside stays on the node that it comes to, so that the gateway sees the client's address.
fn make_gateway(client: &Client, upstream: SocketAddr) -> Result<SocketAddr> {
    let labels = json!({"app": GATEWAY, "version": "v1", "istio": "ingressgateway"});
    let mut template = json!({"metadata": {"labels": labels}, "spec": {"terminationGracePeriodSeconds": 0}});
    injector::inject(&mut template, Kind::Gateway(pods::PORT, upstream), true)?;
    let deployment = json!({"metadata": {"name": GATEWAY},
        "spec": {"selector": {"matchLabels": {"app": GATEWAY}}, "template": template}});
    deploy(client, INGRESS, &deployment)?;
    let object = json!({"metadata": {"name": GATEWAY}, "spec": {
        "type": "NodePort", "externalTrafficPolicy": "Local", "selector": {"app": GATEWAY},
        "ports": [{"name": "http2", "port": 80, "targetPort": pods::PORT}]}});
    let made = client.create(&format!("/api/v1/namespaces/{INGRESS}/services"), &object)?;
    let port =
        made.pointer("/spec/ports/0/nodePort").and_then(Value::as_u64).context("it has a node port")?;
    Ok(SocketAddr::new(node::ADDRESS.into(), u16::try_from(port)?))
}

fn deploy(client: &Client, namespace: &str, deployment: &Value) -> Result<()> {
    client.create(&format!("/apis/apps/v1/namespaces/{namespace}/deployments"), deployment).map(drop)
}

/// The probes of details go to the app, through its sidecar; those of the others to Istio's agent, as is the default.
fn workload(service: Service, version: &str, kind: Kind, services: &[(Service, IpAddr)]) -> Result<Value> {
    let name = service.name();
    let asked = services.iter().filter(|(asked, _)| service.asks(version).contains(asked));
    let env: Vec<Value> = asked
        .map(|(asked, address)| json!({"name": asked.variable(), "value": address.to_string()}))
        .collect();
    let labels = json!({"app": name, "version": version});
    let annotations =
        if service == Service::Details { json!({(REWRITE_PROBES): "false"}) } else { json!({}) };
    let mut template = json!({
        "metadata": {"labels": labels, "annotations": annotations},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [{
                "name": name, "image": IMAGE, "imagePullPolicy": "Never",
                "command": ["/bookinfo-app", name, version], "env": env,
                "ports": [{"containerPort": PORT}], "securityContext": unprivileged(1000),
                "readinessProbe": {"httpGet": {"path": HEALTH, "port": PORT}, "periodSeconds": 1, "failureThreshold": 2},
            }],
        },
    });
    injector::inject(&mut template, kind, true)?;
    Ok(json!({"metadata": {"name": format!("{name}-{version}"), "labels": labels}, "spec": {
        "selector": {"matchLabels": labels}, "template": template}}))
}

/// The pod of a Deployment, once it is ready.
fn pod_of(client: &Client, namespace: &str, app: &str, version: &str) -> Result<Running> {
    let collection = format!("/api/v1/namespaces/{namespace}/pods");
    let path = format!("{collection}?labelSelector=app%3D{app}%2Cversion%3D{version}");
    client.wait(&format!("{app} {version} to be ready"), &path, |pods| {
        let [pod] = pods.get("items")?.as_array()?.as_slice() else { return None };
        let conditions = pod.pointer("/status/conditions")?.as_array()?;
        conditions.iter().find(|one| one["type"] == "Ready" && one["status"] == "True")?;
        let text = |pointer: &str| pod.pointer(pointer).and_then(Value::as_str);
        Some(Running {
            path: format!("{collection}/{}", text("/metadata/name")?),
            address: text("/status/podIP")?.parse().ok()?,
            uid: text("/metadata/uid")?.to_owned(),
        })
    })
}
