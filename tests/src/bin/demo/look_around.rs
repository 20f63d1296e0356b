//! What to type while the demo is kept up.

use std::fmt::Write;
use std::net::SocketAddr;

use anyhow::{Context, Result};
use veer_tests::launch::{kit_binary, veer_binary};

use crate::node::Node;
use crate::place;
use crate::pod::{APP_PORT, Pod};
use crate::proxy::Driver;

/// The commands, ready to be copied.
pub(crate) fn commands(node: &Node, cart: &Pod, orders: &Pod) -> Result<String> {
    let veer = veer_binary("VEER_BIN", "veer")?;
    let (run_dir, bpffs) = (node.agent.run_dir(), node.agent.bpffs());
    let place = format!("--run-dir {} --bpffs {}", run_dir.display(), bpffs.display());
    let veer = |verb: &str| format!("{} {verb} {place}", veer.display());
    let dial = kit_binary("dial")?;
    let to = SocketAddr::new(orders.v4, APP_PORT);
    let own = std::env::current_exe().context("find the running executable")?;
    let enter = |netns: &str| format!("nsenter --net={}/{netns}", veer_tests::netns::DIRECTORY);
    let cart_netns = cart.netns.name();
    let from_app = cart.launch(node).command(&dial)?;
    let from_app: Vec<_> = std::iter::once(from_app.get_program())
        .chain(from_app.get_args())
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    let (log, stats) = match node.driver() {
        Driver::Sidecar => (
            place::path("cart/access.log"),
            format!("{} curl -s http://127.0.0.1:15000/stats", enter(cart_netns)),
        ),
        Driver::Node => {
            let admin = place::path("proxy/admin.sock");
            let ask = format!("curl -s --unix-socket {}", admin.display());
            (place::path("proxy/envoy.log"), format!("{ask} http://envoy/stats/prometheus?usedonly"))
        }
    };
    let rows = [
        ("enrolled pods and their counters", veer("pods")),
        ("decisions as they are made", veer("monitor")),
        ("a request from cart's app to orders", format!("{} {to}", from_app.join(" "))),
        ("a request from outside", format!("{} {} {to}", enter(node.outside.name()), dial.display())),
        ("the access log of cart's proxy", format!("tail -f {}", log.display())),
        ("the statistics of cart's Envoy", stats),
        ("rules in cart's netns", format!("{} nft list ruleset", enter(cart_netns))),
        ("cart's processes", format!("cat {}/cgroup.procs", cart.cgroup.path().display())),
        ("the agent's log", format!("tail -f {}", place::path("agent.log").display())),
        ("take it down", format!("{} --down", own.display())),
    ];
    let mut text = "\nIt stays up. To look around:\n".to_owned();
    for (what, command) in rows {
        writeln!(text, "  # {what}\n  {command}").context("write a line")?;
    }
    Ok(text)
}
