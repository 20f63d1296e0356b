//! What everybody on a request's way saw of it, and whether that is what it should be. Pure.

use std::fmt::Debug;
use std::net::{IpAddr, SocketAddr};

use serde::Serialize;
use veer_tests::dial::Dialled;
use veer_tests::envoy::Entry;

use crate::report::Route;

/// Users of the app and of the client.
const APP_UID: u32 = 1000;
/// Where a proxy's connection to its own app comes from.
const PASSTHROUGH: [IpAddr; 2] = [
    IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 6)),
    IpAddr::V6(std::net::Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6)),
];

/// One request: every connection of it, seen from both ends.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Trace {
    /// The client; its `echo` is what the app said.
    pub(crate) client: Dialled,
    /// The client's proxy, if it goes through it.
    pub(crate) outbound: Option<Entry>,
    /// The app's proxy, if it goes through it.
    pub(crate) inbound: Option<Entry>,
}

/// What must be true of a request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Expected<'a> {
    pub(crate) route: Route,
    /// Address of the client's host or pod.
    pub(crate) from: IpAddr,
    /// What is dialled.
    pub(crate) to: SocketAddr,
    /// Name of the app that must answer.
    pub(crate) app: &'a str,
}

/// Collects what is not as it must be.
struct Judge(Vec<String>);

impl Judge {
    fn same<T: PartialEq + Debug + Copy>(&mut self, what: &str, seen: T, expected: T) {
        if seen != expected {
            self.0.push(format!("{what} is {seen:?}, not {expected:?}"));
        }
    }

    fn holds(&mut self, what: &str, holds: bool) {
        if !holds {
            self.0.push(format!("not true: {what}"));
        }
    }
}

impl Trace {
    /// Everything about the request that is not as it must be.
    pub(crate) fn faults(&self, expected: &Expected<'_>) -> Vec<String> {
        let mut judge = Judge(Vec::new());
        let client = &self.client;
        judge.same("the client's getpeername", client.peername, expected.to);
        judge.same("the client's own address", client.local.ip(), expected.from);
        judge.same("the client's uid", client.client.uid, APP_UID);
        judge.holds("the client has no capability", client.client.capabilities.none());
        judge.same("the status", client.status, 200);

        // Each hop must have got the very connection that the one before opened, port included.
        let mut source = Some(client.local);
        judge.same("passing the client's proxy", self.outbound.is_some(), expected.route.leaves_a_pod());
        if let Some(entry) = &self.outbound {
            source = hop(&mut judge, entry, source, expected.to);
            judge.same("the source of the client's proxy", source.map(|it| it.ip()), Some(expected.from));
        }
        judge.same("passing the app's proxy", self.inbound.is_some(), expected.route.enters_a_pod());
        if let Some(entry) = &self.inbound {
            source = hop(&mut judge, entry, source, expected.to);
            let passthrough = source.is_some_and(|it| PASSTHROUGH.contains(&it.ip()));
            judge.holds("the app's proxy calls it from 127.0.0.6 or ::6", passthrough);
        }
        match &client.echo {
            Some(echo) => {
                judge.same("the app that answered", echo.app.as_str(), expected.app);
                judge.same("the app's uid", echo.uid, APP_UID);
                judge.same("the app's peer", Some(echo.peer), source);
                judge.same("the app's own address", echo.local, expected.to);
            }
            None => judge.holds("an app answered", false),
        }
        judge.0
    }
}

/// Judges a proxy's entry; gives back where its own connection comes from.
fn hop(judge: &mut Judge, entry: &Entry, source: Option<SocketAddr>, to: SocketAddr) -> Option<SocketAddr> {
    let who = |what: &str| format!("{} {what}", entry.direction);
    judge.same(&who("client"), entry.client, source);
    judge.same(&who("original destination"), entry.original_destination, Some(to));
    judge.same(&who("upstream"), entry.upstream, Some(to));
    judge.same(&who("status"), entry.status, 200);
    entry.upstream_source
}

#[cfg(test)]
pub(crate) mod tests {
    use veer_tests::credentials::{Capabilities, Credentials};
    use veer_tests::envoy::Direction;
    use veer_tests::http::{Echo, Headers};

    use super::*;

    const CART: &str = "10.88.0.2:40000";
    const CART_ENVOY: &str = "10.88.0.2:40001";
    const ORDERS: &str = "10.88.0.3:8080";
    const PASSED: &str = "127.0.0.6:40002";

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn entry(direction: Direction, client: &str, upstream_source: &str) -> Entry {
        Entry {
            direction,
            mark: None,
            status: 200,
            flags: None,
            client: Some(at(client)),
            original_destination: Some(at(ORDERS)),
            cluster: None,
            upstream: Some(at(ORDERS)),
            upstream_source: Some(at(upstream_source)),
        }
    }

    /// From pod to pod, as it must be.
    pub(crate) fn trace() -> Trace {
        let none = || "0000000000000000".to_owned();
        let capabilities = Capabilities {
            inheritable: none(),
            permitted: none(),
            effective: none(),
            bounding: none(),
            ambient: none(),
        };
        let client = Credentials {
            pid: 1,
            program: "dial".into(),
            uid: 1000,
            gid: 1000,
            groups: vec![],
            capabilities,
            no_new_privs: true,
        };
        let echo = Echo {
            app: "orders".into(),
            uid: 1000,
            gid: 1000,
            peer: at(PASSED),
            local: at(ORDERS),
            request: "GET / HTTP/1.1".into(),
            headers: Headers::new(),
        };
        let (to, local) = (at(ORDERS), at(CART));
        Trace {
            client: Dialled { client, to, local, peername: to, status: 200, echo: Some(echo) },
            outbound: Some(entry(Direction::Outbound, CART, CART_ENVOY)),
            inbound: Some(entry(Direction::Inbound, CART_ENVOY, PASSED)),
        }
    }

    fn faults(route: Route, trace: &Trace) -> Vec<String> {
        let expected = Expected { route, from: at(CART).ip(), to: at(ORDERS), app: "orders" };
        trace.faults(&expected)
    }

    #[test]
    fn a_request_through_both_proxies_has_no_fault() {
        assert_eq!(faults(Route::PodToPod, &trace()), [""; 0]);
    }

    #[test]
    fn a_request_that_passed_a_proxy_by_is_a_fault() {
        let mut by = trace();
        by.inbound = None;
        by.client.echo.as_mut().unwrap().peer = at(CART_ENVOY);
        assert_eq!(faults(Route::PodToPod, &by), ["passing the app's proxy is false, not true"]);
        assert_eq!(faults(Route::PodToOutside, &trace()), ["passing the app's proxy is true, not false"]);
    }

    #[test]
    fn a_source_port_that_is_anothers_is_a_fault() {
        let mut other = trace();
        other.inbound.as_mut().unwrap().client = Some(at("10.88.0.2:40009"));
        let expected = "inbound client is Some(10.88.0.2:40009), not Some(10.88.0.2:40001)";
        assert_eq!(faults(Route::PodToPod, &other), [expected]);
    }

    #[test]
    fn a_capability_a_wrong_peername_and_no_answer_are_faults() {
        let mut wrong = trace();
        wrong.client.client.capabilities.bounding = "1".into();
        wrong.client.peername = at("127.0.0.1:15001");
        wrong.client.echo = None;
        assert_eq!(faults(Route::PodToPod, &wrong).len(), 3);
    }
}
