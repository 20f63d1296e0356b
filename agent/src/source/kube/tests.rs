use tempfile::NamedTempFile;

use super::*;
use crate::model::NamespaceLabels;
use crate::model::manifest::{Metadata, Spec};
use crate::readiness::Readiness;

/// A source whose API server nobody has asked yet, and that nobody could ask: who does gets an error.
async fn source() -> Kube {
    let kubeconfig = NamedTempFile::new().unwrap();
    let text = "{apiVersion: v1, kind: Config, current-context: a, clusters: [{name: a, cluster: {server: 'http://127.0.0.1:1'}}], \
                users: [{name: a, user: {}}], contexts: [{name: a, context: {cluster: a, user: a}}]}";
    std::fs::write(kubeconfig.path(), text).unwrap();
    let server = ApiServer::new(Some(kubeconfig.path().to_owned())).await.unwrap();
    let condition = |name| Readiness::default().condition(name, "not yet");
    let current = Current { pods: condition("pods"), namespaces: Some(condition("namespaces")) };
    Kube::new("node".to_owned(), Arc::new(server), current, || ())
}

fn insert(source: &Kube, name: &str) -> PodReference {
    let metadata = Metadata { name: name.to_owned(), namespace: "shop".to_owned(), ..Metadata::default() };
    let pod = Pod::observed(metadata, Spec::default());
    source.0.store.insert(wire::Seen { pod, has_started: false });
    PodReference { namespace: "shop".to_owned(), name: name.to_owned(), uid: None }
}

#[tokio::test]
async fn an_add_waits_for_the_namespace_of_its_pod_and_asks_nobody() {
    let source = source().await;
    let reference = insert(&source, "cart");
    let tell = async {
        tokio::task::yield_now().await;
        source.0.store.insert_namespace("other", NamespaceLabels::default());
        tokio::task::yield_now().await;
        source.0.store.insert_namespace("shop", NamespaceLabels { ambient: true, node_proxy: false });
    };
    let (found, ()) = tokio::join!(source.pod(&reference), tell);
    assert!(found.unwrap().unwrap().namespace_labels.ambient);
    assert_eq!(source.health().unwrap().namespaces.unwrap().lookups, 0);
}

#[tokio::test]
async fn an_add_whose_namespace_cannot_be_asked_for_fails_and_says_so() {
    let source = source().await;
    let reference = insert(&source, "cart");
    source.0.pods.succeeded();
    source.0.namespaces.as_ref().unwrap().failed("gone".to_owned());
    let error = source.pod(&reference).await.unwrap_err().to_string();
    assert!(error.contains("for namespace shop, by which pod shop/cart is decided on: "), "{error}");
    assert!(error.ends_with("(the watch fails: gone)"), "{error}");
    let health = source.health().unwrap();
    assert_eq!((health.state, health.lookups), (SourceState::Starting, 0), "the pods alone are not enough");
    assert_eq!(health.namespaces.unwrap().lookups, 1);
}
