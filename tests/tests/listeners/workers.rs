//! Workers: several listeners of one port, by `SO_REUSEPORT`, as Envoy has one for each thread.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use veer_tests::mesh::{APP, INBOUND, Listeners, Mesh, dial_from_world};
use veer_tests::wait;

use crate::{assert_inbound, refused, registered, v4, v6, wait_registered, worker};

const WORKERS: [&str; 4] = ["first", "second", "third", "fourth"];

/// Four workers on the inbound port.
fn four_workers(mesh: &Mesh) -> Listeners {
    let mut listeners = Listeners::default();
    for label in WORKERS {
        let socket = worker(&mesh.pod, v4(Ipv4Addr::UNSPECIFIED, INBOUND));
        listeners.take(label, socket).unwrap();
    }
    listeners
}

/// Dials so often that each live worker gets something, and wants exactly these to.
#[track_caller]
fn assert_spread(mesh: &Mesh, listeners: &Listeners, live: &[&str]) {
    let mut counts = BTreeMap::new();
    for _ in 0..64 {
        let to = v4(mesh.pod.v4(), APP);
        let (arrival, ..) = dial_from_world(&mesh.world, to, listeners).unwrap();
        assert_eq!(arrival.original, Some(to));
        *counts.entry(arrival.at).or_insert(0) += 1;
    }
    // One of four is left out by chance once in 25 million runs.
    let mut live = live.to_vec();
    live.sort_unstable();
    assert_eq!(counts.keys().copied().collect::<Vec<_>>(), live, "{counts:?}");
}

/// Closes the workers with these indices, the later first, and waits until they are gone.
fn close(mesh: &Mesh, listeners: &mut Listeners, indices: &[usize]) {
    let left = registered(mesh, &mesh.pod)[1] - indices.len() as u64;
    for index in indices {
        drop(listeners.remove(*index));
    }
    wait_registered(mesh, &mesh.pod, [0, left]);
}

#[test]
fn connections_spread_over_all_workers() {
    let mesh = Mesh::new().unwrap();
    let listeners = four_workers(&mesh);
    assert_eq!(registered(&mesh, &mesh.pod), [0, 4]);
    assert_spread(&mesh, &listeners, &WORKERS);
}

#[test]
fn connections_spread_over_the_workers_that_live() {
    let rows: [(&str, &[usize], &[&str]); 5] = [
        ("newest closed", &[3], &["first", "second", "third"]),
        ("oldest closed", &[0], &["second", "third", "fourth"]),
        ("the middle closed", &[2, 1], &["first", "fourth"]),
        ("all but the newest closed", &[2, 1, 0], &["fourth"]),
        ("all but the oldest closed", &[3, 2, 1], &["first"]),
    ];
    let mesh = Mesh::new().unwrap();
    for (what, closed, live) in rows {
        eprintln!("{what}");
        let mut listeners = four_workers(&mesh);
        close(&mesh, &mut listeners, closed);
        assert_spread(&mesh, &listeners, live);
        let mut rest: Vec<usize> = (0..live.len()).collect();
        rest.reverse();
        close(&mesh, &mut listeners, &rest);
    }
}

#[test]
fn with_all_workers_closed_clients_are_refused_until_there_are_new_ones() {
    let mesh = Mesh::new().unwrap();
    let to = v4(mesh.pod.v4(), APP);
    let mut app = Listeners::default();
    app.add("app", mesh.pod.app(), v4(Ipv4Addr::UNSPECIFIED, APP)).unwrap();
    for _generation in 0..3 {
        assert!(refused(&mesh.world, to), "without a listener the client is told at once");
        let mut listeners = four_workers(&mesh);
        assert_spread(&mesh, &listeners, &WORKERS);
        close(&mesh, &mut listeners, &[3, 2, 1, 0]);
    }
    assert!(refused(&mesh.world, to));
    assert!(refused(&mesh.world, v6(mesh.pod.v6(), APP)));
    assert!(app.is_idle().unwrap(), "nothing reaches the app past its proxy");
    assert!(mesh.counter("reasons", "no-listener").unwrap() >= 5);
}

#[test]
fn a_new_generation_of_workers_takes_over_from_the_old_one() {
    // A hot restart: for a while both listen, then the old ones close.
    let mesh = Mesh::new().unwrap();
    let mut listeners = four_workers(&mesh);
    for label in ["fifth", "sixth"] {
        listeners.take(label, worker(&mesh.pod, v4(Ipv4Addr::UNSPECIFIED, INBOUND))).unwrap();
    }
    close(&mesh, &mut listeners, &[3, 2, 1, 0]);
    assert_spread(&mesh, &listeners, &["fifth", "sixth"]);
}

#[test]
fn forty_workers_are_forty_workers() {
    let mesh = Mesh::new().unwrap();
    let mut listeners = Listeners::default();
    for _ in 0..40 {
        listeners.take("inbound", worker(&mesh.pod, v4(Ipv4Addr::UNSPECIFIED, INBOUND))).unwrap();
    }
    assert_eq!(registered(&mesh, &mesh.pod), [0, 40]);
    let to = v4(mesh.pod.v4(), APP);
    assert_inbound(&mesh.world, to, &listeners);
    // Only the one that came last is left, then.
    let all_but_one: Vec<usize> = (0..39).rev().collect();
    close(&mesh, &mut listeners, &all_but_one);
    assert_inbound(&mesh.world, to, &listeners);
    assert_eq!(mesh.counter("faults", "listener-not-registered").unwrap(), 0);
}

#[test]
fn the_workers_of_a_large_machine_leave_room_for_those_of_ipv6() {
    // Envoy listens with a worker for each core, and on IPv4 with all of them before it comes to IPv6.
    let mesh = Mesh::new().unwrap();
    let mut listeners = Listeners::default();
    for at in [v4(Ipv4Addr::UNSPECIFIED, INBOUND), v6(Ipv6Addr::UNSPECIFIED, INBOUND)] {
        for _ in 0..192 {
            listeners.take("inbound", worker(&mesh.pod, at)).unwrap();
        }
    }
    assert_inbound(&mesh.world, v4(mesh.pod.v4(), APP), &listeners);
    assert_inbound(&mesh.world, v6(mesh.pod.v6(), APP), &listeners);
}

#[test]
fn a_worker_that_never_listens_is_none() {
    let mesh = Mesh::new().unwrap();
    let bound = worker(&mesh.pod, v4(Ipv4Addr::UNSPECIFIED, INBOUND));
    assert_eq!(registered(&mesh, &mesh.pod), [0, 0]);
    assert!(refused(&mesh.world, v4(mesh.pod.v4(), APP)));
    let mut listeners = Listeners::default();
    listeners.take("inbound", bound).unwrap();
    wait::until("the worker to be registered", wait::LIMIT, || registered(&mesh, &mesh.pod) == [0, 1])
        .unwrap();
    assert_inbound(&mesh.world, v4(mesh.pod.v4(), APP), &listeners);
}
