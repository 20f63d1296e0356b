//! What happens to a node: the agent dies, the API server is away, the machine boots, veer comes later than pods.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use veer_tests::kube::client::Client;
use veer_tests::kube::pods::{PORT, Running, Shape, Sidecar, events};
use veer_tests::kube::recorder;
use veer_tests::wait;

use crate::mesh;
use crate::stage::Stage;

/// As long as the issue of a control plane's upgrade.
const OUTAGE: Duration = Duration::from_mins(1);

/// Pods go on as they were; who comes meanwhile waits for the agent and is enrolled.
pub(crate) fn agent_killed(stage: &mut Stage) -> Result<String> {
    let client = stage.client().clone();
    let one = Shape::new("one", Sidecar::Classic).run(&client)?;
    let other = Shape::new("other", Sidecar::Native).run(&client)?;
    stage.kill_agent()?;
    stage.prove_redirected(&one, &other)?;
    let late = Shape::new("late", Sidecar::Classic);
    late.create(&client)?;
    // kubelet tries again every ten seconds or so.
    let refused = wait::until_some("an ADD that fails without an agent", Duration::from_mins(1), || {
        let events = events(&client, "default", "late");
        events
            .lines()
            .find(|line| line.starts_with("\"FailedCreatePodSandBox\"") && line.contains("veer"))
            .map(str::to_owned)
    })?;
    stage.start_agent()?;
    let late = late.wait_ready(&client)?;
    stage.prove_redirected(&late, &one)?;
    stage.prove_redirected(&one, &late)?;
    for pod in [one, other, late] {
        pod.delete(&client)?;
    }
    stage.wait_nobody_enrolled()?;
    Ok(format!("meanwhile: {:.90}…", refused.split_once("veer").map_or("", |(_, rest)| rest)))
}

/// kubelet hears of new pods from the API server alone, but those that it has come and go without it.
pub(crate) fn api_server_away(stage: &mut Stage) -> Result<String> {
    let client = stage.client().clone();
    let one = Shape::new("before", Sidecar::Classic).run(&client)?;
    let other = Shape::new("beside", Sidecar::Classic).run(&client)?;
    let started = Instant::now();
    stage.node.control_plane_mut().stop_api_server()?;
    stage.prove_redirected(&one, &other)?;
    // The first process of a pod dies, and kubelet makes the pod anew: with DEL and ADD.
    stage.kill_sandbox(&other, "beside")?;
    let other = Running { address: stage.wait_new_sandbox("beside")?, ..other };
    stage.prove_redirected(&one, &other)?;
    stage.prove_redirected(&other, &one)?;
    // What is known needs no API server, an agent that starts anew included.
    stage.kill_agent()?;
    stage.start_agent()?;
    let mut proofs = 0;
    while started.elapsed() < OUTAGE {
        stage.prove_redirected(&other, &one)?;
        proofs += 1;
        let next = started.elapsed() + Duration::from_secs(5);
        wait::until("the outage to go on", Duration::from_secs(10), || started.elapsed() > next)?;
    }
    let lasted = started.elapsed();
    let enrolled = stage.enrolled()?;
    ensure!(enrolled.len() == 2, "after the outage enrolled: {enrolled:?}");
    stage.node.control_plane_mut().start_api_server()?;
    let after = Shape::new("after", Sidecar::Classic).run(&client)?;
    stage.prove_redirected(&after, &one)?;
    for pod in [one, other, after] {
        pod.delete(&client)?;
    }
    stage.wait_nobody_enrolled()?;
    Ok(format!("{} s: {proofs} proofs on a new agent that has never heard of it", lasted.as_secs()))
}

/// Nothing of processes, `/run` and bpffs is left; kubelet makes the pods' sandboxes anew, at other addresses.
pub(crate) fn rebooted(stage: &mut Stage) -> Result<String> {
    let client = stage.client().clone();
    let shapes = ["early", "bird"].map(|name| Shape::new(name, Sidecar::Native));
    let before = [shapes[0].run(&client)?, shapes[1].run(&client)?];
    let started = Instant::now();
    stage.node.reboot()?;
    stage.start_agent()?;
    let mut after = Vec::new();
    for pod in &before {
        after.push(wait_again(&client, pod)?);
    }
    let took = started.elapsed();
    if let [one, other] = after.as_slice() {
        stage.prove_redirected(one, other)?;
        stage.prove_redirected(other, one)?;
    }
    for pod in &after {
        pod.delete(&client)?;
    }
    stage.wait_nobody_enrolled()?;
    Ok(format!("two pods redirected again {} s after the boot", took.as_secs()))
}

/// Waits until all of its containers have been started anew and it is ready; its address is another one.
pub(crate) fn wait_again(client: &Client, pod: &Running) -> Result<Running> {
    client.wait("a pod to be there again", &pod.path, |object| {
        let status = object.get("status")?;
        let apps = status.get("containerStatuses")?.as_array()?;
        let restarted = apps.iter().all(|one| one["restartCount"].as_u64() > Some(0) && one["ready"] == true);
        let conditions = status.get("conditions")?.as_array()?;
        let is_ready = conditions.iter().any(|one| one["type"] == "Ready" && one["status"] == "True");
        let address = status.get("podIP")?.as_str()?.parse().ok()?;
        (restarted && is_ready).then(|| Running { address, ..pod.clone() })
    })
}

/// Without plugin and agent a pod of the mesh starts as if there were no mesh; veer brings it in while it runs.
pub(crate) fn repaired(stage: &mut Stage) -> Result<String> {
    let client = stage.client().clone();
    let member = Shape::new("member", Sidecar::Classic).run(&client)?;
    stage.unchain()?;
    stage.kill_agent()?;
    let missed = ["missed", "too"].map(|name| Shape::new(name, Sidecar::Classic));
    let missed = [missed[0].run(&client)?, missed[1].run(&client)?];
    for pod in &missed {
        mesh::prove_left_alone(stage, pod, &member)?;
    }
    stage.chain()?;
    let started = Instant::now();
    stage.start_agent()?;
    wait::until_ok("the pods to be repaired", wait::LIMIT, || {
        let enrolled = stage.enrolled()?;
        ensure!(enrolled.len() == 3, "enrolled: {enrolled:?}");
        Ok::<_, anyhow::Error>(())
    })?;
    let took = started.elapsed();
    for pod in &missed {
        stage.prove_redirected(pod, &member)?;
        pod.delete(&client)?;
    }
    member.delete(&client)?;
    stage.wait_nobody_enrolled()?;
    Ok(format!("two pods, {:.1} s after the agent's start", took.as_secs_f64()))
}

/// Pods that run go on as if there had never been a mesh, and nothing is left on the node.
pub(crate) fn uninstalled(stage: &mut Stage) -> Result<String> {
    let client = stage.client().clone();
    let one = Shape::new("stays", Sidecar::Classic).run(&client)?;
    let other = Shape::new("as-well", Sidecar::None).run(&client)?;
    stage.prove_redirected(&one, &other)?;
    stage.unchain()?;
    stage.kill_agent()?;
    let output = stage.command(&["uninstall"])?.output().context("run veer uninstall")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mark = stage.mark();
    let echo = stage.ask_through(&one, other.address, PORT, &mark)?;
    ensure!(echo.peer.ip() == one.address, "the other app was reached by {}", echo.peer);
    // Its own proxy would have written by now: the request has come back through it.
    let again = stage.mark();
    stage.ask(&one, &again)?;
    ensure!(!stage.has_entry(&one, &mark)?, "the proxy still sees the traffic");
    let left = stage.command(&["status"])?.output().context("run veer status")?;
    ensure!(left.status.code() == Some(69), "veer status still finds something: {left:?}");
    for pod in [one, other] {
        pod.delete(&client)?;
    }
    // As the next check wants it.
    stage.chain()?;
    stage.start_agent()?;
    Ok("traffic is direct, and veer status finds nothing".to_owned())
}

const CROWD: usize = 100;

/// Each pod has its app and the injector's mark; what is measured is the plugin's process, of which the runtime waits.
pub(crate) fn crowd(stage: &mut Stage) -> Result<String> {
    let client = stage.client().clone();
    let shapes: Vec<_> =
        (0..CROWD).map(|number| Shape::new(&format!("crowd-{number}"), Sidecar::Idle)).collect();
    let started = Instant::now();
    for shape in &shapes {
        shape.create(&client)?;
    }
    let mut pods = Vec::new();
    for shape in &shapes {
        pods.push(shape.wait_ready(&client)?);
    }
    let took = started.elapsed();
    ensure!(stage.enrolled()?.len() == CROWD, "{} pods are enrolled", stage.enrolled()?.len());
    let records = recorder::records(&stage.node)?;
    let adds = records.iter().filter(|record| record.adds("crowd-")).map(|record| record.microseconds);
    let mut adds: Vec<u64> = adds.collect();
    ensure!(adds.len() >= CROWD, "{} ADDs of {} records", adds.len(), records.len());
    adds.sort_unstable();
    let part = |hundredths: usize| adds.get((adds.len() - 1) * hundredths / 100).copied().unwrap_or(0) / 1000;
    for pod in &pods {
        client.delete(&pod.path)?;
    }
    for pod in &pods {
        client.wait_gone(&pod.path)?;
    }
    stage.wait_nobody_enrolled()?;
    Ok(format!("ready in {} s; ADD of veer p50 {} ms, p99 {} ms", took.as_secs(), part(50), part(99)))
}
