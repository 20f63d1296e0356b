//! The kit itself, on the real kernel: what the other tests take for granted.

#![expect(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Stdio;

use socket2::{Domain, Socket, Type};
use veer_tests::cgroup::{self, Cgroup};
use veer_tests::credentials::Credentials;
use veer_tests::launch::Identity;
use veer_tests::netns::NetNs;
use veer_tests::pod::{REMOTE_V4, REMOTE_V6, ROUTER_V4, TestPod, World};
use veer_tests::{netns, scratch, wait};

struct Fixture {
    pod: TestPod,
    world: World,
    cgroup: Cgroup,
}

fn fixture() -> Fixture {
    let cgroup = Cgroup::new().unwrap();
    let world = World::new().unwrap();
    let pod = TestPod::new(&world, &cgroup, "pod").unwrap();
    Fixture { pod, world, cgroup }
}

fn listen(socket: &Socket, address: SocketAddr) {
    socket.set_reuse_address(true).unwrap();
    socket.bind(&address.into()).unwrap();
    socket.listen(8).unwrap();
}

fn peer(socket: &Socket) -> IpAddr {
    socket.peer_addr().unwrap().as_socket().unwrap().ip()
}

#[test]
fn a_socket_of_a_maker_lives_in_the_pod_and_talks_to_the_world() {
    let fixture = fixture();
    let (pod, world) = (&fixture.pod, &fixture.world);
    for (remote, own) in [(REMOTE_V4.into(), IpAddr::V4(pod.v4())), (REMOTE_V6.into(), pod.v6().into())] {
        let address = SocketAddr::new(remote, 7000);
        let domain = Domain::for_address(address);
        let listener = world.socket(domain, Type::STREAM, None).unwrap();
        listen(&listener, address);
        let mut client = pod.app().socket(domain, Type::STREAM, None).unwrap();
        client.connect(&address.into()).unwrap();
        let (mut accepted, from) = listener.accept().unwrap();
        assert_eq!(from.as_socket().unwrap().ip(), own);
        client.write_all(b"x").unwrap();
        let mut byte = [0];
        accepted.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"x");
    }
}

#[test]
fn the_world_reaches_a_listener_in_the_pod() {
    let fixture = fixture();
    let (pod, world) = (&fixture.pod, &fixture.world);
    let listener = pod.app().tcp4().unwrap();
    listen(&listener, (pod.v4(), 7001).into());
    let client = world.tcp4().unwrap();
    client.connect(&SocketAddr::from((pod.v4(), 7001)).into()).unwrap();
    let (accepted, _) = listener.accept().unwrap();
    assert_eq!(peer(&accepted), IpAddr::V4(ROUTER_V4));
}

#[test]
fn two_worlds_have_pods_of_the_same_address() {
    let one = fixture();
    let two = fixture();
    assert_eq!(one.pod.v4(), two.pod.v4());
    for Fixture { pod, world, .. } in [&one, &two] {
        let listener = world.tcp4().unwrap();
        listen(&listener, (REMOTE_V4, 7002).into());
        let client = pod.app().tcp4().unwrap();
        client.connect(&SocketAddr::from((REMOTE_V4, 7002)).into()).unwrap();
        listener.accept().unwrap();
    }
}

#[test]
fn a_maker_is_who_it_should_be_and_has_no_capability() {
    let fixture = fixture();
    let pod = &fixture.pod;
    let maker = pod.maker(Identity::new(1234, 5678).with_groups(&[99, 1337])).unwrap();
    // Its first answer says that it has become who it should be.
    maker.tcp4().unwrap();
    pod.root().tcp4().unwrap();
    for (maker, uid, gid, groups) in [(&maker, 1234, 5678, vec![99, 1337]), (pod.root(), 0, 0, vec![])] {
        let is = Credentials::of(maker.pid()).unwrap();
        assert_eq!((is.uid, is.gid, &is.groups, is.no_new_privs), (uid, gid, &groups, true));
        assert!(is.capabilities.none(), "{is:?}");
        assert!(pod.cgroup().processes().unwrap().contains(&maker.pid()));
        let netns = std::fs::metadata(format!("/proc/{}/ns/net", maker.pid())).unwrap();
        assert_eq!(netns.ino(), std::fs::metadata(pod.netns().path()).unwrap().ino());
    }
}

#[test]
fn what_a_maker_cannot_create_is_an_error_with_the_reason() {
    let fixture = fixture();
    let pod = &fixture.pod;
    let error = pod.root().socket(Domain::IPV4, Type::RAW, Some(socket2::Protocol::ICMPV4)).unwrap_err();
    assert!(format!("{error:#}").contains("not permitted"), "{error:#}");
    pod.root().tcp4().unwrap();
}

#[test]
fn a_kept_socket_listens_on_after_the_test_closed_it() {
    let fixture = fixture();
    let (pod, world) = (&fixture.pod, &fixture.world);
    let listener = pod.app().kept_socket(Domain::IPV4, Type::STREAM, None).unwrap();
    listen(&listener, (pod.v4(), 7003).into());
    drop(listener);
    let client = world.tcp4().unwrap();
    client.connect(&SocketAddr::from((pod.v4(), 7003)).into()).unwrap();

    let gone = pod.app().tcp4().unwrap();
    listen(&gone, (pod.v4(), 7004).into());
    drop(gone);
    wait::until("the closed listener to refuse", wait::LIMIT, || {
        let client = world.tcp4().unwrap();
        let outcome = client.connect(&SocketAddr::from((pod.v4(), 7004)).into());
        outcome.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
    })
    .unwrap();
}

#[test]
fn guards_leave_nothing_behind_after_a_panic() {
    let names = std::sync::Mutex::new((String::new(), Path::new("").to_owned(), Path::new("").to_owned()));
    let panicking = std::thread::scope(|scope| {
        scope
            .spawn(|| {
                let fixture = fixture();
                let scratch = scratch::directory().unwrap();
                let bpffs = scratch::BpfFs::mount(&scratch.path().join("bpf")).unwrap();
                assert!(bpffs.path().is_dir());
                *names.lock().unwrap() =
                    (fixture.pod.netns().name().into(), fixture.cgroup.path().into(), scratch.path().into());
                std::panic::resume_unwind(Box::new("on purpose"));
            })
            .join()
    });
    assert!(panicking.is_err());
    let (netns, cgroup, scratch) = names.into_inner().unwrap();
    assert!(!netns.is_empty() && !netns::names().contains(&netns));
    assert!(!cgroup.exists(), "{}", cgroup.display());
    assert!(!scratch.exists(), "{}", scratch.display());
}

#[test]
fn a_cgroup_goes_with_the_processes_in_it() {
    let cgroup = Cgroup::new().unwrap();
    let inner = cgroup.child("inner").unwrap();
    let launch = veer_tests::launch::Launch::new().in_cgroup(&inner);
    let mut child =
        launch.command("sleep").unwrap().arg("600").stdin(Stdio::null()).spawn().expect("start sleep");
    wait::until("sleep to join", wait::LIMIT, || inner.processes().unwrap().contains(&child.id())).unwrap();
    cgroup::remove(cgroup.path()).unwrap();
    assert!(!child.wait().unwrap().success());
    assert!(!cgroup.path().exists());
}

#[test]
fn a_process_dies_with_the_thread_that_started_it() {
    let cgroup = Cgroup::new().unwrap();
    let netns = NetNs::new().unwrap();
    let launch = veer_tests::launch::Launch::new().in_netns(&netns).in_cgroup(&cgroup);
    let launch = launch.with_identity(Identity::app());
    let mut child = std::thread::scope(|scope| {
        let start = || {
            let child = launch.command("sleep").unwrap().arg("600").spawn().unwrap();
            // Only a program that runs as the app has asked to die.
            wait::until("sleep to run", wait::LIMIT, || {
                std::fs::read_to_string(format!("/proc/{}/comm", child.id())).unwrap() == "sleep\n"
            })
            .unwrap();
            child
        };
        scope.spawn(start).join().unwrap()
    });
    assert!(!child.wait().unwrap().success());
}
