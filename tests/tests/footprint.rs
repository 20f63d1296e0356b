//! What a node pays for the agent: memory, the verification of its programs, and no time at all when nothing is asked of it.

#![expect(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use aya::programs::loaded_programs;
use veer_tests::agent::Agent;
use veer_tests::dst_server::{self, DstServer};
use veer_tests::launch::Launch;
use veer_tests::mesh::{Mesh, OUTBOUND};
use veer_tests::netns::NetNs;
use veer_tests::objects::Objects;
use veer_tests::pinned::Pinned;
use veer_tests::pod::REMOTE_V4;
use veer_tests::wait;

/// How long an agent is watched that has nothing to do.
const IDLE: Duration = Duration::from_secs(3);

/// What a program may cost the verifier, in instructions that it goes through. Of more than a million a kernel takes none, one
/// counts more than another, and an agent that starts waits for all of them: 250,000 are 0.4 s.
const VERIFIED: u32 = 250_000;

/// The runtime's, the node's, and that which enters namespaces.
const LASTING_THREADS: usize = 3;

fn proc(agent: &Agent) -> PathBuf {
    Path::new("/proc").join(agent.process().pid().to_string())
}

/// A number behind a name in a status file of `/proc`.
fn number(status: &str, name: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim_start_matches(':').trim().trim_end_matches(" kB").parse().unwrap()
}

/// How many threads the agent has.
fn threads(agent: &Agent) -> usize {
    fs::read_dir(proc(agent).join("task")).unwrap().count()
}

/// How often the agent's threads were given a CPU. A thread that sleeps is given none, so this tells a
/// single wake-up, where the clock ticks of `utime` and `stime` do not.
fn switches(agent: &Agent) -> u64 {
    let tasks = fs::read_dir(proc(agent).join("task")).unwrap();
    let of_task = |task: fs::DirEntry| {
        let status = fs::read_to_string(task.path().join("status")).unwrap();
        number(&status, "voluntary_ctxt_switches") + number(&status, "nonvoluntary_ctxt_switches")
    };
    tasks.map(|task| of_task(task.unwrap())).sum()
}

/// `utime` and `stime`, in clock ticks.
fn ticks(agent: &Agent) -> u64 {
    let stat = fs::read_to_string(proc(agent).join("stat")).unwrap();
    let after_name = stat.rsplit_once(") ").unwrap().1;
    after_name.split(' ').skip(11).take(2).map(|field| field.parse::<u64>().unwrap()).sum()
}

/// What it holds itself. Beside that its pages of the program count as resident, of which an unoptimised build has
/// three times as many as one that is shipped: `cargo xtask bench` tells all of that one.
#[test]
fn with_two_pods_the_agent_holds_less_than_10_mb() {
    let mesh = Mesh::new().unwrap();
    let _second = mesh.another_pod("second").unwrap();
    let status = fs::read_to_string(proc(&mesh.agent).join("status")).unwrap();
    let (own, resident) = (number(&status, "RssAnon"), number(&status, "VmRSS"));
    eprintln!("its own: {own} kB, resident: {resident} kB");
    assert!(own < 10 << 10, "{own} kB");
}

#[test]
fn no_program_is_near_what_a_verifier_takes() {
    let mesh = Mesh::new().unwrap();
    let ours = Objects::of(&Pinned::of(&mesh.agent)).unwrap().programs;
    let programs = loaded_programs().flatten().filter(|program| ours.contains(&program.id()));
    let told = programs.map(|program| {
        let instructions = program.verified_instruction_count().expect("Linux 5.16, which tells");
        (instructions, program.name_as_str().unwrap_or_default().to_owned())
    });
    let (most, name) = told.max().expect("programs");
    eprintln!("{name}: {most} instructions");
    assert!(most < VERIFIED, "{name}: {most} instructions");
}

#[test]
fn an_agent_with_nothing_to_do_does_nothing() {
    let mut mesh = Mesh::new().unwrap();
    // A proxy that begins to listen is news to the agent, once.
    let _proxy = DstServer::start(mesh.pod.proxy(), (Ipv4Addr::UNSPECIFIED, OUTBOUND)).unwrap();
    mesh.agent.stop().unwrap();
    // In a netns of its own it does not hear of what comes and goes in those of other tests.
    let netns = NetNs::new().unwrap();
    mesh.agent.use_launch(Launch::new().in_netns(&netns));
    mesh.agent.start_again().unwrap();
    mesh.agent.wait_settled().unwrap();
    // The thread that has read the manifests ends after a while, and would be missed in the sum.
    wait::until("its helping threads to end", wait::LIMIT, || threads(&mesh.agent) == LASTING_THREADS)
        .unwrap();
    let before = (switches(&mesh.agent), ticks(&mesh.agent));
    // The pods' connections are none of its work, as long as nobody watches them.
    for port in 1..500 {
        dst_server::ask(mesh.pod.app(), SocketAddr::from((REMOTE_V4, port))).unwrap();
    }
    #[expect(clippy::disallowed_methods, reason = "that nothing happens shows only in time that passes")]
    std::thread::sleep(IDLE);
    assert_eq!((switches(&mesh.agent), ticks(&mesh.agent)), before);
    assert!(!Pinned::of(&mesh.agent).watched().unwrap());
}
