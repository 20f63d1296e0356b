//! What a request from pod to pod costs on the two nodes, in turns.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use serde::Serialize;
use veer_tests::mesh::APP;

use super::side::{BYTES, Side};
use crate::order::{Order, Slice, Workload};
use crate::progress::Progress;
use crate::statistics::Spread;

/// Rounds that are not counted.
const WARM_UP: usize = 2;
/// What is compared, and how often in a slice.
const WORKLOADS: [(Workload, u32); 4] = [
    (Workload::HttpRequest, 200),
    (Workload::HttpConnect, 100),
    (Workload::Request, 200),
    (Workload::Bulk, 20),
];

/// A workload on both nodes.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Comparison {
    pub(crate) workload: Workload,
    /// Nanoseconds of an operation.
    pub(crate) sidecars_ns: Spread,
    pub(crate) node_ns: Spread,
    /// Of the rounds' ratios of the node's Envoy to sidecars.
    pub(crate) ratio: Spread,
    /// What all Envoys of a node have run for an operation, in nanoseconds.
    pub(crate) sidecars_cpu_ns: Spread,
    pub(crate) node_cpu_ns: Spread,
}

/// A slice on one node.
#[derive(Clone, Copy, Debug)]
struct Measured {
    slice: Slice,
    cpu_ns: f64,
}

/// Measures everything.
pub(super) fn measure(
    sidecars: &mut Side,
    node: &mut Side,
    rounds: usize,
    progress: &Progress,
) -> Result<Vec<Comparison>> {
    let mut results = Vec::new();
    for (workload, operations) in WORKLOADS {
        progress.say(&format!("{}: {rounds} rounds", workload.name()));
        results.push(compare(sidecars, node, (workload, operations), rounds)?);
    }
    Ok(results)
}

fn compare(
    sidecars: &mut Side,
    node: &mut Side,
    (workload, operations): (Workload, u32),
    rounds: usize,
) -> Result<Comparison> {
    let mut pairs = Vec::new();
    for number in 0..WARM_UP + rounds {
        let pair = if number % 2 == 0 {
            let first = slice(sidecars, workload, operations)?;
            (first, slice(node, workload, operations)?)
        } else {
            let first = slice(node, workload, operations)?;
            (slice(sidecars, workload, operations)?, first)
        };
        if number >= WARM_UP {
            pairs.push(pair);
        }
    }
    let spread = |of: fn(&(Measured, Measured)) -> f64| {
        Spread::of(&pairs.iter().map(of).collect::<Vec<_>>()).context("no round was measured")
    };
    Ok(Comparison {
        workload,
        sidecars_ns: spread(|(sidecars, _)| sidecars.slice.median_ns)?,
        node_ns: spread(|(_, node)| node.slice.median_ns)?,
        ratio: spread(|(sidecars, node)| node.slice.median_ns / sidecars.slice.median_ns)?,
        sidecars_cpu_ns: spread(|(sidecars, _)| sidecars.cpu_ns)?,
        node_cpu_ns: spread(|(_, node)| node.cpu_ns)?,
    })
}

#[expect(clippy::cast_precision_loss, reason = "nanoseconds of a second or so")]
fn slice(side: &mut Side, workload: Workload, operations: u32) -> Result<Measured> {
    let port = if workload.is_http() { APP } else { BYTES };
    let to = SocketAddr::new(side.called.v4().into(), port);
    let before = side.ran()?;
    let slice = side.client.carry_out(&Order { workload, to, operations })?;
    let ran = side.ran()?.saturating_sub(before);
    Ok(Measured { slice, cpu_ns: ran.as_nanos() as f64 / f64::from(operations) })
}
