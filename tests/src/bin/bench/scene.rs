//! The three pods, what redirects each, and the ends that talk.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use serde::Serialize;
use veer_tests::agent::Agent;
use veer_tests::cgroup::Cgroup;
use veer_tests::istio_init;
use veer_tests::launch::{Identity, Launch};
use veer_tests::mesh::{APP, INBOUND, OUTBOUND};
use veer_tests::pod::{REMOTE_V4, TestPod, World};

use crate::end::{Client, Server};
use crate::order::{Cpus, Order, Slice, Workload};

/// What is between the two ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Case {
    /// Nothing: the client dials where the others are redirected to.
    Direct,
    /// istio-init's rules.
    Iptables,
    /// The agent's programs.
    Veer,
}

/// Which way the connection goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Direction {
    /// From an app in the pod to the world, as it believes.
    Outbound,
    /// From the world to an app in the pod, as it believes.
    Inbound,
}

impl Case {
    /// All of them.
    pub(crate) const ALL: [Self; 3] = [Self::Direct, Self::Iptables, Self::Veer];

    /// What a reader calls it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Iptables => "iptables",
            Self::Veer => "veer",
        }
    }
}

impl Direction {
    /// Both.
    pub(crate) const ALL: [Self; 2] = [Self::Outbound, Self::Inbound];

    /// What a reader calls it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::Inbound => "inbound",
        }
    }
}

/// One pod and its ends. Fields are in the order of taking down.
#[derive(Debug)]
struct Contender {
    case: Case,
    app: Client,
    peer: Client,
    _proxy: Server,
    pod: TestPod,
}

/// Everything that a connection needs. Fields are in the order of taking down.
#[derive(Debug)]
pub(crate) struct Scene {
    contenders: Vec<Contender>,
    _agent: Agent,
    _world: World,
    _enrolled: Cgroup,
    _others: Cgroup,
}

impl Scene {
    /// Sets it: all three pods on one bridge, only `veer` below the cgroup that the agent has.
    pub(crate) fn set(cpus: Cpus) -> Result<Self> {
        let (enrolled, others) = (Cgroup::new()?, Cgroup::new()?);
        let agent = Agent::start(&enrolled)?;
        let world = World::new()?;
        let outside = Launch::new().in_netns(world.netns()).in_cgroup(&others);
        let outside = outside.with_identity(Identity::app());
        let mut contenders = Vec::new();
        for case in Case::ALL {
            let cgroup = if case == Case::Veer { &enrolled } else { &others };
            let pod = TestPod::new(&world, cgroup, case.name())?;
            match case {
                Case::Direct => {}
                Case::Iptables => istio_init::apply(pod.netns())?,
                Case::Veer => agent.enrol(&pod)?,
            }
            let proxy = Server::start(&pod.launch(Identity::proxy()), cpus.server, &[OUTBOUND, INBOUND])?;
            let app = Client::start(&pod.launch(Identity::app()), cpus.client)?;
            let peer = Client::start(&outside, cpus.client)?;
            contenders.push(Contender { case, app, peer, _proxy: proxy, pod });
        }
        Ok(Self { contenders, _agent: agent, _world: world, _enrolled: enrolled, _others: others })
    }

    /// Measures a slice.
    pub(crate) fn measure(
        &mut self,
        case: Case,
        direction: Direction,
        workload: Workload,
        operations: u32,
    ) -> Result<Slice> {
        let contender = self.contenders.iter_mut().find(|contender| contender.case == case);
        let contender = contender.context("a case without a pod")?;
        let to = contender.address(direction);
        let end = match direction {
            Direction::Outbound => &mut contender.app,
            Direction::Inbound => &mut contender.peer,
        };
        end.carry_out(&Order { workload, to, operations })
            .with_context(|| format!("{} {} in pod {}", direction.name(), workload.name(), case.name()))
    }
}

impl Contender {
    /// What the client dials. Only the proxy's ports have a listener, so an answer from anywhere else
    /// proves the redirection.
    fn address(&self, direction: Direction) -> SocketAddr {
        match (self.case, direction) {
            (Case::Direct, Direction::Outbound) => SocketAddr::from(([127, 0, 0, 1], OUTBOUND)),
            (Case::Direct, Direction::Inbound) => SocketAddr::new(self.pod.v4().into(), INBOUND),
            (Case::Iptables | Case::Veer, Direction::Outbound) => SocketAddr::new(REMOTE_V4.into(), APP),
            (Case::Iptables | Case::Veer, Direction::Inbound) => SocketAddr::new(self.pod.v4().into(), APP),
        }
    }
}
