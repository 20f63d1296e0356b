//! What a connection costs on a node with one enrolled pod and on one with very many, in turns.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use serde::Serialize;
use veer_tests::agent::Agent;
use veer_tests::cgroup::Cgroup;
use veer_tests::launch::{Identity, Launch};
use veer_tests::mesh::{APP, INBOUND, OUTBOUND};
use veer_tests::pod::{REMOTE_V4, TestPod, World};

use crate::end::{Client, Server};
use crate::order::{Cpus, Order, Workload};
use crate::progress::Progress;
use crate::scene::Direction;
use crate::statistics::Spread;

/// Rounds that are not counted.
const WARM_UP: usize = 3;
/// Connections of a slice.
const OPERATIONS: u32 = 100;

/// The two nodes, which share a world.
#[derive(Debug)]
pub(crate) struct Nodes<'a> {
    pub(crate) world: &'a World,
    pub(crate) few: (&'a Agent, &'a Cgroup),
    pub(crate) many: (&'a Agent, &'a Cgroup),
}

/// A direction on both.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Comparison {
    pub(crate) direction: Direction,
    /// Nanoseconds of a connection and its first byte.
    pub(crate) few_ns: Spread,
    pub(crate) many_ns: Spread,
    /// Of the rounds' ratios of many to few.
    pub(crate) ratio: Spread,
}

/// A pod that is measured, and its ends. Fields are in the order of taking down.
#[derive(Debug)]
struct Measured {
    app: Client,
    peer: Client,
    _proxy: Server,
    pod: TestPod,
}

impl Measured {
    fn start(world: &World, (agent, cgroup): (&Agent, &Cgroup), name: &str, cpus: Cpus) -> Result<Self> {
        let pod = TestPod::new(world, cgroup, name)?;
        agent.enrol(&pod)?;
        let proxy = Server::start(&pod.launch(Identity::proxy()), cpus.server, &[OUTBOUND, INBOUND])?;
        let app = Client::start(&pod.launch(Identity::app()), cpus.client)?;
        let outside = Launch::new().in_netns(world.netns()).with_identity(Identity::app());
        let peer = Client::start(&outside, cpus.client)?;
        Ok(Self { app, peer, _proxy: proxy, pod })
    }

    /// Nanoseconds of a connection, the median of a slice.
    fn slice(&mut self, direction: Direction) -> Result<f64> {
        let (end, to) = match direction {
            Direction::Outbound => (&mut self.app, SocketAddr::new(REMOTE_V4.into(), APP)),
            Direction::Inbound => (&mut self.peer, SocketAddr::new(self.pod.v4().into(), APP)),
        };
        Ok(end.carry_out(&Order { workload: Workload::Connect, to, operations: OPERATIONS })?.median_ns)
    }
}

/// Measures both directions. The pods are enrolled last and unenrolled at the end.
pub(crate) fn measure(
    nodes: &Nodes<'_>,
    cpus: Cpus,
    rounds: usize,
    progress: &Progress,
) -> Result<Vec<Comparison>> {
    let mut few = Measured::start(nodes.world, nodes.few, "alone", cpus)?;
    let mut many = Measured::start(nodes.world, nodes.many, "one-of-many", cpus)?;
    let mut results = Vec::new();
    for direction in Direction::ALL {
        progress.say(&format!("{} connections: {rounds} rounds", direction.name()));
        results.push(compare(&mut few, &mut many, direction, rounds)?);
    }
    nodes.few.0.unenrol(&few.pod)?;
    nodes.many.0.unenrol(&many.pod)?;
    Ok(results)
}

fn compare(
    few: &mut Measured,
    many: &mut Measured,
    direction: Direction,
    rounds: usize,
) -> Result<Comparison> {
    let mut pairs = Vec::new();
    for number in 0..WARM_UP + rounds {
        let (of_few, of_many) = if number % 2 == 0 {
            let of_few = few.slice(direction)?;
            (of_few, many.slice(direction)?)
        } else {
            let of_many = many.slice(direction)?;
            (few.slice(direction)?, of_many)
        };
        if number >= WARM_UP {
            pairs.push((of_few, of_many));
        }
    }
    let spread = |of: fn(&(f64, f64)) -> f64| {
        Spread::of(&pairs.iter().map(of).collect::<Vec<_>>()).context("no round was measured")
    };
    Ok(Comparison {
        direction,
        few_ns: spread(|pair| pair.0)?,
        many_ns: spread(|pair| pair.1)?,
        ratio: spread(|pair| pair.1 / pair.0)?,
    })
}
