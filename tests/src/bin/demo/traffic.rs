//! The requests: sent as the app would send them, then found again in everybody's records.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};
use veer_tests::envoy::Direction;
use veer_tests::{dial, wait};

use crate::node::{Node, OUTSIDE_V4, OUTSIDE_V6};
use crate::pod::{APP_PORT, Pod};
use crate::report::{Family, Journey, Route};
use crate::trace::{Expected, Trace};

/// Requests on each route and family: enough for each worker of a proxy to get some.
pub(crate) const ROUNDS: usize = 5;

/// Envoy writes its access log every 100 ms.
const LOGGED: Duration = Duration::from_secs(2);

/// Who is on the stage.
#[derive(Clone, Copy)]
pub(crate) struct Cast<'a> {
    pub(crate) node: &'a Node,
    /// The client of the two pods.
    pub(crate) cart: &'a Pod,
    /// The server of the two pods.
    pub(crate) orders: &'a Pod,
}

/// Sends the requests of a route in a family and judges each.
pub(crate) fn travel(cast: Cast<'_>, route: Route, family: Family) -> Result<Journey> {
    let expected = expected(cast, route, family);
    let launch = match route {
        Route::PodToPod | Route::PodToOutside => cast.cart.launch(cast.node),
        Route::OutsideToPod => cast.node.outside_launch(),
    };
    let marks: Vec<_> = (0..ROUNDS).map(|round| format!("{} {family} {round}", route.name())).collect();
    let dialled = marks.iter().map(|mark| dial::run(&launch, expected.to, (cast.node.mark(), mark)));
    let dialled = dialled.collect::<Result<Vec<_>>>()?;

    // Only now: Envoy writes its log every 100 ms.
    let mut faults = Vec::new();
    let mut traces = Vec::new();
    for (mark, client) in marks.iter().zip(dialled) {
        let expected_entry = |takes_part: bool, pod: &Pod, direction| {
            if !takes_part {
                return pod.find_entry(cast.node, direction, mark);
            }
            // One that does not come is a fault of the journey, not the end of the demo.
            let found = || pod.find_entry(cast.node, direction, mark).transpose();
            wait::until_some("the access log", LOGGED, found).map_or(Ok(None), |entry| entry.map(Some))
        };
        let outbound = expected_entry(route.leaves_a_pod(), cast.cart, Direction::Outbound)?;
        let inbound = expected_entry(route.enters_a_pod(), cast.orders, Direction::Inbound)?;
        let trace = Trace { client, outbound, inbound };
        faults.extend(trace.faults(&expected).into_iter().map(|fault| format!("{mark}: {fault}")));
        traces.push(trace);
    }
    let example = traces.first().cloned().context("no request was sent")?;
    Ok(Journey { route, family, requests: traces.len(), example, faults })
}

fn expected(cast: Cast<'_>, route: Route, family: Family) -> Expected<'_> {
    let of_pod = |pod: &Pod| match family {
        Family::V4 => pod.v4,
        Family::V6 => pod.v6,
    };
    let outside = match family {
        Family::V4 => OUTSIDE_V4,
        Family::V6 => OUTSIDE_V6,
    };
    let at = |ip: IpAddr| SocketAddr::new(ip, APP_PORT);
    let (cart, orders) = (of_pod(cast.cart), of_pod(cast.orders));
    match route {
        Route::PodToPod => Expected { route, from: cart, to: at(orders), app: cast.orders.name },
        Route::OutsideToPod => Expected { route, from: outside, to: at(orders), app: cast.orders.name },
        Route::PodToOutside => Expected { route, from: cart, to: at(outside), app: "outside" },
    }
}
