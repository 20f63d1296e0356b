//! What users add to the node's Envoy (`--proxy-config`), with the real one: seen by requests, followed when it changes, and
//! harmless when it is wrong.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "helpers of tests panic as tests do")]

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use socket2::{Domain, Type};
use tempfile::TempDir;
use veer_common::cni::Reply;
use veer_tests::dial::{self, Dialled};
use veer_tests::http::{self, Echo, Headers};
use veer_tests::launch::{Identity, Launch, kit_binary};
use veer_tests::load;
use veer_tests::mesh::APP;
use veer_tests::pod::{ROUTER_V4, TestPod};
use veer_tests::process::Process;
use veer_tests::prometheus;
use veer_tests::proxied_node::ProxiedNode;
use veer_tests::socket_maker::Maker;
use veer_tests::streams::{self, Stream};
use veer_tests::{scratch, wait};

const HTTP_FILTER: &str =
    "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpFilter";
const LUA: &str = "type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua";
const ROUTE: &str = "type.googleapis.com/envoy.config.route.v3.Route";
const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";

/// A node with users' resources, and two pods; what goes first stands first.
struct Node {
    _app: Process,
    a: TestPod,
    b: TestPod,
    proxied: ProxiedNode,
    directory: TempDir,
}

impl Node {
    fn start(files: &[(&str, Value)]) -> Self {
        let directory = scratch::directory().unwrap();
        for (name, content) in files {
            write(directory.path(), name, content);
        }
        let proxied = ProxiedNode::start_with(&[&flag(&directory)]).unwrap();
        let (a, b) = (proxied.pod("a").unwrap(), proxied.pod("b.v1").unwrap());
        let app = proxied.app(&b).unwrap();
        Self { _app: app, a, b, proxied, directory }
    }

    fn write(&self, name: &str, content: &Value) {
        write(self.directory.path(), name, content);
    }

    #[track_caller]
    fn ask_from(&self, from: &TestPod, mark: &str) -> Dialled {
        dial::run(&from.launch(Identity::app()), (self.b.v4(), APP).into(), ("x-mark", mark)).unwrap()
    }

    /// The headers that the app sees of a request.
    #[track_caller]
    fn headers(&self) -> Headers {
        let dialled = self.ask_from(&self.a, "1");
        assert_eq!(dialled.status, 200);
        dialled.echo.unwrap().headers
    }

    fn problem(&self) -> Option<String> {
        let status = self.proxied.agent.json(&["status"]).unwrap();
        status["agent"]["nodeProxy"]["configProblem"].as_str().map(str::to_owned)
    }

    #[track_caller]
    fn wait_problem(&self, part: &str) {
        let what = format!("the agent to tell of {part}");
        wait::until_ok(&what, wait::LIMIT, || match self.problem() {
            Some(problem) if problem.contains(part) => Ok(()),
            other => Err(other),
        })
        .unwrap();
    }
}

fn flag(directory: &TempDir) -> String {
    format!("--proxy-config={}", directory.path().display())
}

/// As an editor writes a file, and as `kubectl` does: never half of it.
fn write(directory: &Path, name: &str, content: &Value) {
    let draft = directory.join(".draft");
    fs::write(&draft, serde_json::to_vec_pretty(content).unwrap()).unwrap();
    fs::rename(&draft, directory.join(name)).unwrap();
}

/// A filter that runs this code for each request.
fn lua(direction: Option<&str>, code: &str) -> Value {
    let code = format!("function envoy_on_request(handle)\n{code}\nend");
    json!({"direction": direction, "resources": [{
        "@type": HTTP_FILTER,
        "name": "envoy.filters.http.lua",
        "typed_config": {"@type": LUA, "default_source_code": {"inline_string": code}},
    }]})
}

/// A filter that adds a header.
fn header(direction: Option<&str>, name: &str, value: &str) -> Value {
    lua(direction, &format!("handle:headers():add('{name}', '{value}')"))
}

fn generation(number: u32) -> Value {
    header(Some("inbound"), "x-generation", &number.to_string())
}

/// A request on a connection of its own, as the app saw it.
fn request(client: &Maker, to: SocketAddr) -> Result<Echo> {
    let mut stream = client.socket(Domain::IPV4, Type::STREAM, None)?;
    stream.set_read_timeout(Some(wait::LIMIT))?;
    stream.connect_timeout(&to.into(), wait::LIMIT)?;
    let response = http::get(&mut stream, "b", "/", &Headers::new())?;
    ensure!(response.status == 200, "status {}", response.status);
    serde_json::from_slice(&response.body).context("what the app tells")
}

#[test]
fn filters_and_routes_of_users_know_the_pod_and_the_direction() {
    let elsewhere = SocketAddr::from((ROUTER_V4, 9999));
    let endpoint =
        json!({"address": {"socket_address": {"address": elsewhere.ip(), "port_value": elsewhere.port()}}});
    let marked =
        |mark: &str| json!({"prefix": "/", "headers": [{"name": "x-mark", "string_match": {"exact": mark}}]});
    let routes = json!({"direction": "outbound", "resources": [
        {"@type": ROUTE, "match": marked("tea"), "direct_response": {"status": 418}},
        {"@type": ROUTE, "match": marked("away"), "route": {"cluster": "elsewhere"}},
        {"@type": ROUTE, "match": marked("same"), "route": {"cluster": "${POD_CLUSTER}", "timeout": "5s"}},
        {
            "@type": CLUSTER, "name": "elsewhere", "type": "STATIC",
            "load_assignment": {
                "cluster_name": "elsewhere",
                "endpoints": [{"lb_endpoints": [{"endpoint": endpoint}]}],
            },
        },
    ]});
    let node = Node::start(&[
        ("20-to.json", header(Some("inbound"), "x-to", "${POD_NAMESPACE}/${POD_NAME} $${POD_NAME}")),
        ("10-from.yaml", header(Some("outbound"), "x-from", "${POD_NAMESPACE}/${POD_NAME}")),
        ("30-both.yml", lua(None, "handle:headers():add('x-way', '${DIRECTION}')")),
        ("40-routes.yaml", routes),
        ("README", json!("not one of them")),
    ]);
    let headers = node.headers();
    let of = |name: &str| headers.get(name).map(String::as_str);
    assert_eq!(of("x-from"), Some("test/a"));
    assert_eq!(of("x-to"), Some("test/b.v1 ${POD_NAME}"));
    assert!(headers.contains_key("x-way"));
    assert_eq!(node.ask_from(&node.a, "tea").status, 418);
    let same = node.ask_from(&node.a, "same").echo.unwrap();
    assert_eq!(same.app, "b.v1");

    let mut command =
        Launch::new().in_netns(node.proxied.world.netns()).command(kit_binary("echo-app").unwrap()).unwrap();
    command.args(["--name", "elsewhere", "--listen", &elsewhere.to_string()]);
    let _other = Process::start("elsewhere", command, &node.directory.path().join("app.log")).unwrap();
    wait::until_ok("the other app to answer", wait::LIMIT, || {
        let dialled = node.ask_from(&node.a, "away");
        let app = dialled.echo.map(|echo| echo.app);
        if app.as_deref() == Some("elsewhere") { Ok(()) } else { Err((dialled.status, app)) }
    })
    .unwrap();
    assert_eq!(node.problem(), None);
}

#[test]
fn a_change_is_picked_up_and_no_request_is_lost() {
    let node = Node::start(&[("filter.yaml", generation(1))]);
    assert_eq!(node.headers()["x-generation"], "1");
    let to = SocketAddr::from((node.b.v4(), APP));
    let clients = [node.a.maker(Identity::app()).unwrap(), node.a.maker(Identity::app()).unwrap()];
    let mut seen = Ok(());
    let made = load::during(
        &clients,
        |client, _turn| {
            request(client, to)?.headers.get("x-generation").context("it went past the filter").map(drop)
        },
        |progress| {
            seen = progress.wait_for(5).and_then(|()| {
                (2..=4).try_for_each(|number| {
                    node.write("filter.yaml", &generation(number));
                    wait::until("the change to be seen", wait::LIMIT, || {
                        node.headers()["x-generation"] == number.to_string()
                    })?;
                    progress.wait_for(5)
                })
            });
        },
    );
    assert!(made.unwrap() > 20);
    seen.unwrap();
    // Taken away, they are gone.
    fs::remove_file(node.directory.path().join("filter.yaml")).unwrap();
    wait::until("the filter to go", wait::LIMIT, || !node.headers().contains_key("x-generation")).unwrap();
}

/// With the first one Envoy has another listener take over the socket, and without the last one another.
#[test]
fn the_first_filter_comes_and_the_last_one_goes_and_no_request_is_lost() {
    let node = Node::start(&[]);
    let to = SocketAddr::from((node.b.v4(), APP));
    let clients = [node.a.maker(Identity::app()).unwrap(), node.a.maker(Identity::app()).unwrap()];
    let mut seen = Ok(());
    let made = load::during(
        &clients,
        |client, _turn| request(client, to).map(drop),
        |progress| {
            seen = (1..=3).try_for_each(|number| {
                progress.wait_for(5)?;
                node.write("filter.yaml", &generation(number));
                wait::until("the filter to be seen", wait::LIMIT, || {
                    node.headers().get("x-generation") == Some(&number.to_string())
                })?;
                progress.wait_for(5)?;
                fs::remove_file(node.directory.path().join("filter.yaml"))?;
                wait::until("the filter to go", wait::LIMIT, || !node.headers().contains_key("x-generation"))
            });
        },
    );
    assert!(made.unwrap() > 20);
    seen.unwrap();
}

/// `a`'s Envoy gives up on first bytes after a moment; `b`'s may not, as a filter is to see them.
#[test]
fn a_client_that_is_quiet_at_first_does_not_come_past_a_filter() {
    let node = Node::start(&[("filter.yaml", generation(1))]);
    let client = node.a.maker(Identity::app()).unwrap();
    let of_a = [("veer_pod", "a"), ("veer_direction", "outbound")];
    // Each is with `b` for at least as long as those behind it wait in `a`.
    let mut quiet = [1, 2, 3].map(|number| {
        let stream = client.tcp4().unwrap();
        stream.set_read_timeout(Some(wait::LIMIT)).unwrap();
        stream.connect(&SocketAddr::from((node.b.v4(), APP)).into()).unwrap();
        wait::until("the connection to go on without a byte", wait::LIMIT, || {
            let samples = node.proxied.proxy.counted().unwrap();
            prometheus::count(&samples, "envoy_listener_downstream_pre_cx_timeout", &of_a) == number
        })
        .unwrap();
        stream
    });
    let response = http::get(&mut quiet[0], "b", "/", &Headers::new()).unwrap();
    let echo: Echo = serde_json::from_slice(&response.body).unwrap();
    assert_eq!(echo.headers.get("x-generation").map(String::as_str), Some("1"));

    // Where the server is known to speak first, nobody waits for the client.
    for port in [25, 3306] {
        let to = SocketAddr::from((node.b.v4(), port));
        let listener = streams::listen(&node.b, port).unwrap();
        Stream::open(&node.a, &listener, to).unwrap().answer().unwrap();
    }
}

#[test]
fn what_is_wrong_harms_nobody_and_is_told() {
    let node = Node::start(&[("filter.yaml", generation(1))]);
    let mut unknown = generation(2);
    unknown["resources"][0]["typed_config"]["inline_cod"] = json!("x");
    node.write("filter.yaml", &unknown);
    node.wait_problem("filter.yaml: resources[0].typed_config: unrecognized field name 'inline_cod'");
    let c = node.proxied.pod("c").unwrap();
    assert_eq!(node.ask_from(&c, "1").echo.unwrap().headers["x-generation"], "1");

    // Envoy's types allow it, and Envoy does not.
    node.write("filter.yaml", &lua(Some("inbound"), "this is no Lua"));
    node.wait_problem("Envoy refuses it: ");
    assert!(node.problem().unwrap().contains("script load error"), "{:?}", node.problem());
    assert_eq!(node.headers()["x-generation"], "1");
    let d = node.proxied.pod("d").unwrap();
    assert_eq!(node.ask_from(&d, "1").echo.unwrap().headers["x-generation"], "1");
    let status = node.proxied.agent.json(&["status"]).unwrap();
    assert_eq!(status["agent"]["nodeProxy"]["served"], 4, "{status}");

    node.write("filter.yaml", &generation(3));
    wait::until("the filter to be Envoy's", wait::LIMIT, || node.headers()["x-generation"] == "3").unwrap();
    wait::until("the problem to be over", wait::LIMIT, || node.problem().is_none()).unwrap();
}

#[test]
fn an_agent_that_starts_with_what_is_wrong_serves_nobody_new_and_takes_nothing_from_the_others() {
    let mut node = Node::start(&[("filter.yaml", generation(1))]);
    node.write("filter.yaml", &json!({"resources": [{"@type": HTTP_FILTER, "name": "x", "namee": "x"}]}));
    node.wait_problem("resources[0]: unrecognized field name 'namee'");
    node.proxied.agent.kill().unwrap();
    node.proxied.agent.start_again().unwrap();
    node.wait_problem("resources[0]: unrecognized field name 'namee'");
    assert_eq!(node.headers()["x-generation"], "1");
    // A filter may be what guards the pod.
    let c = TestPod::new(&node.proxied.world, &node.proxied.cgroup, "c").unwrap();
    let manifest = c.manifest().with_node_proxy();
    node.proxied.agent.write_manifest(&manifest).unwrap();
    let Reply::Failed { code, msg, .. } = node.proxied.agent.add(&c).unwrap() else {
        panic!("it was enrolled")
    };
    assert_eq!(code, 11);
    assert!(msg.contains("--proxy-config: filter.yaml: resources[0]: unrecognized field name"), "{msg}");

    node.write("filter.yaml", &generation(2));
    wait::until("the filter to be Envoy's", wait::LIMIT, || node.headers()["x-generation"] == "2").unwrap();
    node.proxied.agent.enrol_as(&c, &manifest).unwrap();
    assert_eq!(node.ask_from(&c, "1").echo.unwrap().headers["x-generation"], "2");
}
