//! The rounds: every case gets a short slice of each, one after the other, over and over.
//!
//! Slices are short and rounds many, so that what the machine does besides meets all three cases, and a
//! ratio compares what ran within the same tenth of a second. Who begins changes from round to round.

use anyhow::Result;

use crate::order::{Slice, Workload};
use crate::progress::Progress;
use crate::report::{PathResult, Round};
use crate::run::Extent;
use crate::scene::{Case, Direction, Scene};

/// Rounds that are not counted: sockets, caches and the kernel's own tables find their size.
const WARM_UP: usize = 3;

/// What is measured, and operations of one slice: some ten milliseconds. Few enough connections that the ports of a
/// client, which rest for a minute after use, do not run out within the run.
const WORKLOADS: [(Workload, u32); 4] =
    [(Workload::Connect, 100), (Workload::Life, 100), (Workload::Request, 1000), (Workload::Bulk, 6)];

/// Measures every workload in both directions.
pub(crate) fn measure(scene: &mut Scene, extent: Extent, progress: &Progress) -> Result<Vec<PathResult>> {
    let mut results = Vec::new();
    for direction in Direction::ALL {
        for (workload, operations) in WORKLOADS {
            progress.say(&format!("{} {}: {} rounds", direction.name(), workload.name(), extent.rounds));
            let rounds = rounds(scene, direction, (workload, operations), extent.rounds)?;
            results.push(PathResult::of(direction, workload, rounds)?);
        }
    }
    Ok(results)
}

fn rounds(
    scene: &mut Scene,
    direction: Direction,
    (workload, operations): (Workload, u32),
    wanted: usize,
) -> Result<Vec<Round>> {
    let mut rounds = Vec::new();
    for number in 0..WARM_UP + wanted {
        let mut slices: [Option<Slice>; 3] = [None; 3];
        for turn in 0..Case::ALL.len() {
            let index = (number + turn) % Case::ALL.len();
            if let (Some(case), Some(slice)) = (Case::ALL.get(index), slices.get_mut(index)) {
                *slice = Some(scene.measure(*case, direction, workload, operations)?);
            }
        }
        if let (true, [Some(direct), Some(iptables), Some(veer)]) = (number >= WARM_UP, slices) {
            rounds.push(Round { direct, iptables, veer });
        }
    }
    Ok(rounds)
}
