//! Where a page's requests go: through which proxies, as dialled where, and by whom.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use veer_tests::bookinfo::{Answer, Service};
use veer_tests::envoy::Direction;
use veer_tests::kube::injector::VALIDATION;
use veer_tests::kube::node::OUTSIDE;
use veer_tests::kube::pilot_agent::PASSTHROUGH;
use veer_tests::kube::pods;
use veer_tests::wait;

use super::{Bookinfo, entries, entry};
use crate::stage::Stage;

const VERSIONS: [&str; 3] = ["v1", "v2", "v3"];

/// Istio's own program has listened and dialled in each pod before anything else was there.
pub(crate) fn validated(stage: &mut Stage, bookinfo: &Bookinfo) -> Result<String> {
    for workload in &bookinfo.workloads {
        let pod = stage.client().get(&workload.pod.path)?;
        let init = pod.pointer("/status/initContainerStatuses").and_then(Value::as_array);
        let found = init.into_iter().flatten().find(|one| one["name"] == VALIDATION);
        let ended = found.and_then(|one| one.pointer("/state/terminated/exitCode"));
        ensure!(ended == Some(&0.into()), "{VALIDATION} of {} is {found:?}", workload.pod.path);
    }
    Ok(format!("{} pods", bookinfo.workloads.len()))
}

/// Through gateway, Services and sidecars.
pub(crate) fn reached(stage: &mut Stage, bookinfo: &Bookinfo) -> Result<String> {
    let pages = pages(stage, bookinfo)?;
    let mut asked = 0;
    for (version, (_, page)) in &pages {
        page.of(Service::Details).with_context(|| format!("no details: {page:?}"))?;
        let ratings = page.of(Service::Ratings).is_some();
        ensure!(ratings == (version != "v1"), "reviews {version}: {page:?}");
        asked += 1 + u32::from(ratings);
    }
    Ok(format!("reviews {}; ratings asked by {} of them", VERSIONS.join(", "), asked - 3))
}

/// For each version of reviews a page, by its mark. No page is lost meanwhile; but kube-proxy takes a moment to know of all.
fn pages(stage: &mut Stage, bookinfo: &Bookinfo) -> Result<BTreeMap<String, (String, Answer)>> {
    let mut pages = BTreeMap::new();
    let mut visit = || -> Result<bool> {
        let mark = stage.mark();
        let page = bookinfo.visit(stage, &mark)?;
        let version = page.of(Service::Reviews).context("a page has reviews")?.version.clone();
        pages.entry(version).or_insert((mark, page));
        Ok(pages.len() == VERSIONS.len())
    };
    let found = wait::until_some("a page with each version of reviews", wait::LIMIT, || match visit() {
        Ok(is_all) => is_all.then_some(Ok(())),
        Err(error) => Some(Err(error)),
    });
    found.with_context(|| format!("seen were {:?}", pages.keys().collect::<Vec<_>>()))??;
    Ok(pages)
}

/// Out of a pod as its Service was dialled, into the other one as its own address was; each once.
pub(crate) fn hops(stage: &mut Stage, bookinfo: &Bookinfo) -> Result<String> {
    let mut count = 0;
    for (version, (mark, _)) in pages(stage, bookinfo)? {
        let page = (Service::Productpage, "v1");
        let reviews = (Service::Reviews, version.as_str());
        let mut hops = vec![(page, (Service::Details, "v1")), (page, reviews)];
        hops.extend((version != "v1").then_some((reviews, (Service::Ratings, "v1"))));
        for (from, to) in &hops {
            hop(stage, bookinfo, *from, *to, &mark)?;
        }
        // The page itself comes from the gateway and is told of last; nothing goes through a proxy that nobody has asked.
        stage.entry(bookinfo.pod(Service::Productpage, "v1")?, Direction::Inbound, &mark)?;
        let all = bookinfo.workloads.iter().map(|workload| entries(stage, &workload.pod, &mark));
        let all = all.collect::<Result<Vec<_>>>()?.concat();
        ensure!(all.len() == 1 + 2 * hops.len(), "{} entries of {mark}: {all:?}", all.len());
        count += hops.len();
    }
    Ok(format!("{count} hops: out as ClusterIP:9080, in as podIP:9080, each once"))
}

type Who<'a> = (Service, &'a str);

fn hop(stage: &Stage, bookinfo: &Bookinfo, from: Who<'_>, to: Who<'_>, mark: &str) -> Result<()> {
    let (sender, receiver) = (bookinfo.pod(from.0, from.1)?, bookinfo.pod(to.0, to.1)?);
    let cluster = bookinfo.address(to.0)?;
    let sent = entry(stage, sender, Direction::Outbound, mark, cluster)?;
    ensure!(sent.client.map(|client| client.ip()) == Some(sender.address), "{sent:?}");
    let own = SocketAddr::new(receiver.address, cluster.port());
    let received = entry(stage, receiver, Direction::Inbound, mark, own)?;
    ensure!(received.client.map(|client| client.ip()) == Some(sender.address), "{received:?}");
    ensure!(sent.status == 200 && received.status == 200, "{sent:?} {received:?}");
    Ok(())
}

/// `proxy router`: what it listens on is reached as it is.
pub(crate) fn gateway(stage: &mut Stage, bookinfo: &Bookinfo) -> Result<String> {
    let enrolled = stage.enrolled()?;
    for workload in &bookinfo.workloads {
        let name = workload.pod.path.rsplit('/').next().unwrap_or_default();
        ensure!(enrolled.iter().any(|found| found == name), "{name} is not enrolled: {enrolled:?}");
    }
    ensure!(!enrolled.iter().any(|name| name.contains("gateway")), "enrolled: {enrolled:?}");
    let mark = stage.mark();
    let page = bookinfo.visit(stage, &mark)?;
    ensure!(page.peer.ip() == IpAddr::V4(PASSTHROUGH), "the page was asked by {}", page.peer);
    let came = stage.entry(&bookinfo.gateway, Direction::Inbound, &mark)?;
    ensure!(came.client.map(|client| client.ip()) == Some(OUTSIDE.into()), "{came:?}");
    // The port that it listens on, and not one of a redirection.
    let own = SocketAddr::new(bookinfo.gateway.address, pods::PORT);
    ensure!(came.original_destination == Some(own), "{came:?}");
    let page = stage.entry(bookinfo.pod(Service::Productpage, "v1")?, Direction::Inbound, &mark)?;
    ensure!(page.client.map(|client| client.ip()) == Some(bookinfo.gateway.address), "{page:?}");
    Ok(format!("its client is {OUTSIDE}, the page's is {}", bookinfo.gateway.address))
}
