//! What stays without the agent, comes back when it is lost, and goes with the enrolment.

use std::net::SocketAddr;

use veer_common::cni::Reply;
use veer_tests::mesh::{APP, dial};
use veer_tests::pod::REMOTE_V4;
use veer_tests::veth::ip;
use veer_tests::wait;

use super::{REMOTE, Scene, exchange, ways};

#[test]
fn all_of_it_goes_on_without_the_agent_and_under_the_next_one() {
    let mut scene = Scene::new();
    let works = |scene: &Scene| {
        let to = SocketAddr::from((REMOTE_V4, REMOTE));
        assert_eq!(dial(scene.pod.app(), to, &scene.listeners).unwrap().0.at, "outbound");
        for (own, client) in scene.families() {
            assert_eq!(dial(scene.client.app(), (own, APP), &scene.listeners).unwrap().0.at, "inbound");
            let to_app = scene.ztunnel.hand_on(client, (own, APP).into()).unwrap();
            let (arrival, accepted) = scene.listeners.accept().unwrap();
            assert_eq!(arrival.at, "app");
            exchange(&to_app, &accepted);
        }
    };
    scene.agent.kill().unwrap();
    works(&scene);
    scene.agent.start_again().unwrap();
    works(&scene);
    let pods = scene.agent.json(&["pods"]).unwrap();
    assert_eq!(pods.pointer("/0/driver").and_then(|driver| driver.as_str()), Some("ztunnel"), "{pods}");
}

#[test]
fn what_is_taken_from_the_pods_netns_comes_back() {
    let scene = Scene::with(|pod| pod, &["--reconcile-interval=1"]);
    assert_eq!(ways(&scene.pod), 2);
    ip(scene.pod.netns(), ["rule del table 100"]).unwrap();
    wait::until("the rules to come back", wait::LIMIT, || ways(&scene.pod) == 2).unwrap();
    ip(scene.pod.netns(), ["route flush table 100"]).unwrap();
    let works = || {
        let (own, client) = (scene.pod.v4(), scene.client.v4());
        let dialled = scene.ztunnel.as_client(client.into()).unwrap();
        let limit = wait::scaled(std::time::Duration::from_millis(500));
        dialled.connect_timeout(&SocketAddr::from((own, APP)).into(), limit).is_ok()
    };
    wait::until("the route to come back", wait::LIMIT, works).unwrap();
}

#[test]
fn del_takes_all_of_it_and_no_answer_from_a_connection_that_is_open() {
    let scene = Scene::new();
    assert_eq!(ways(&scene.pod), 2);
    let (own, client) = (scene.pod.v4(), scene.client.v4());
    let to_app = scene.ztunnel.hand_on(client.into(), (own, APP).into()).unwrap();
    let (_, accepted) = scene.listeners.accept().unwrap();
    assert_eq!(scene.agent.del(&scene.pod).unwrap(), Reply::Done);
    exchange(&to_app, &accepted);
    assert_eq!(ways(&scene.pod), 2);
    let (arrival, ..) = dial(scene.client.app(), (own, APP), &scene.listeners).unwrap();
    assert_eq!(arrival.at, "app");

    let idle = Scene::new();
    assert_eq!(idle.agent.del(&idle.pod).unwrap(), Reply::Done);
    assert_eq!(ways(&idle.pod), 0);
}
