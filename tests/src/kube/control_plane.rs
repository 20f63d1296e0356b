//! etcd and the API server.
//!
//! Cold start: three seconds. What controllers and a scheduler would do, the test does, unless it asks for them.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::certificates::{Authority, MASTERS, Pair};
use super::client::Client;
use super::programs;
use crate::launch::Launch;
use crate::netns::NetNs;
use crate::process::Process;
use crate::scratch;

/// Services' addresses.
pub const SERVICES: &str = "10.96.0.0/16";
/// The first of them: the API server itself.
const API_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
/// The audit log's file.
const AUDIT: &str = "audit.log";
/// How tokens of service accounts name their issuer.
const ISSUER: &str = "https://kubernetes.default.svc";

/// A running control plane. Its processes, its data and its certificates go with the guard.
#[derive(Debug)]
pub struct ControlPlane {
    client: Client,
    kubeconfig: PathBuf,
    // In this order: the API server is not to lose its memory before it ends.
    controllers: Vec<Process>,
    api_server: Process,
    _etcd: Process,
    setup: Setup,
    authority: Authority,
    _scratch: TempDir,
}

/// How the API server is started.
#[derive(Debug)]
struct Setup {
    launch: Launch,
    directory: PathBuf,
    address: IpAddr,
    port: u16,
    etcd_port: u16,
    arguments: Vec<String>,
}

impl ControlPlane {
    /// Starts one on this machine's loopback and waits until it is ready. A pod needs no service account there.
    pub fn start() -> Result<Self> {
        let arguments = ["--endpoint-reconciler-type=none", "--disable-admission-plugins=ServiceAccount"];
        Self::start_at(None, Ipv4Addr::LOCALHOST, [free_port()?, free_port()?, free_port()?], &arguments)
    }

    /// Starts one in the netns of a node, with controllers and scheduler; `address` is the node's own.
    pub fn start_in(netns: &NetNs, address: Ipv4Addr) -> Result<Self> {
        let advertised = format!("--advertise-address={address}");
        let mut control_plane = Self::start_at(Some(netns), address, [6443, 2379, 2380], &[&advertised])?;
        control_plane.start_controllers()?;
        Ok(control_plane)
    }

    fn start_at(netns: Option<&NetNs>, address: Ipv4Addr, ports: [u16; 3], further: &[&str]) -> Result<Self> {
        let scratch = scratch::directory()?;
        let directory = scratch.path().to_owned();
        let certificates = directory.join("certificates");
        fs::create_dir(&certificates).context("make the certificates' directory")?;
        let authority = Authority::new(&certificates)?;
        let launch = netns.map_or_else(Launch::new, |netns| Launch::new().in_netns(netns));
        let [port, etcd_port, peer_port] = ports;
        let etcd = start_etcd(&launch, &directory, etcd_port, peer_port)?;
        let address = IpAddr::V4(address);
        let mut setup = Setup { launch, directory, address, port, etcd_port, arguments: Vec::new() };
        setup.arguments = setup.arguments_with(&authority, further)?;
        setup.arguments.extend(setup.audit()?);
        let kubeconfig = authority.kubeconfig(&setup.url(), "admin", "veer-test-admin", Some(MASTERS))?;
        let client = Client::new(&kubeconfig, netns)?;
        let mut api_server = setup.start_api_server()?;
        api_server.wait_ready(|| is_ready(&client))?;
        let controllers = Vec::new();
        Ok(Self {
            client,
            kubeconfig,
            controllers,
            api_server,
            _etcd: etcd,
            setup,
            authority,
            _scratch: scratch,
        })
    }

    /// A client that may do everything.
    pub const fn client(&self) -> &Client {
        &self.client
    }

    /// Its kubeconfig.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// A kubeconfig for somebody else, who may do what RBAC allows: `system:serviceaccount:veer-system:veer`.
    pub fn kubeconfig_of(&self, file: &str, user: &str, group: Option<&str>) -> Result<PathBuf> {
        self.authority.kubeconfig(&self.url(), file, user, group)
    }

    /// Where it listens, `https://…`.
    pub fn url(&self) -> String {
        self.setup.url()
    }

    /// The authority that signs its members.
    pub const fn authority(&self) -> &Authority {
        &self.authority
    }

    /// Everything that the API server logged so far.
    pub fn log(&self) -> String {
        self.api_server.log()
    }

    /// Requests that this user has sent so far, each `VERB RESOURCE NAME`; a watch is in here once it has begun.
    pub fn requests_of(&self, user: &str) -> Result<Vec<String>> {
        let path = self.setup.directory.join(AUDIT);
        let log = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let text =
            |event: &Value, at: &str| event.pointer(at).and_then(Value::as_str).unwrap_or("").to_owned();
        let events = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let begun = events.filter(|event| {
            // A watch ends late, and anything else is told of when it does.
            let stage = if event["verb"] == "watch" { "ResponseStarted" } else { "ResponseComplete" };
            event["stage"] == stage && event.pointer("/user/username").is_some_and(|name| name == user)
        });
        let request = |event: Value| {
            [text(&event, "/verb"), text(&event, "/objectRef/resource"), text(&event, "/objectRef/name")]
                .join(" ")
        };
        Ok(begun.map(request).collect())
    }

    /// An outage: the API server is killed; connections to it are refused from then on.
    pub fn stop_api_server(&mut self) -> Result<()> {
        self.api_server.kill().map(drop)
    }

    /// The end of the outage, at the same address and with the same data.
    pub fn start_api_server(&mut self) -> Result<()> {
        self.api_server = self.setup.start_api_server()?;
        let client = &self.client;
        self.api_server.wait_ready(|| is_ready(client))
    }

    fn start_controllers(&mut self) -> Result<()> {
        let directory = self.setup.directory.join("certificates");
        let key = directory.join("service-accounts.key");
        let members: [(&str, &[String]); 2] = [
            (
                "kube-controller-manager",
                &[
                    format!("--service-account-private-key-file={}", key.display()),
                    format!("--root-ca-file={}", self.authority.certificate().display()),
                    "--use-service-account-credentials=true".to_owned(),
                ],
            ),
            ("kube-scheduler", &[]),
        ];
        for (name, arguments) in members {
            let kubeconfig = self.kubeconfig_of(name, &format!("system:{name}"), None)?;
            let mut command = self.setup.launch.command(programs::kubernetes(name)?)?;
            command.arg(format!("--kubeconfig={}", kubeconfig.display()));
            // Nobody asks them anything, and there is one of each.
            command.args(["--secure-port=0", "--leader-elect=false"]).args(arguments);
            self.controllers.push(Process::start(name, command, &self.setup.log(name))?);
        }
        // A pod needs it, and it is the first thing that the controllers make.
        let account = "/api/v1/namespaces/default/serviceaccounts/default";
        self.client.wait("the default service account", account, |_account| Some(()))
    }
}

impl Setup {
    fn url(&self) -> String {
        format!("https://{}:{}", self.address, self.port)
    }

    fn log(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}.log"))
    }

    fn arguments_with(&self, authority: &Authority, further: &[&str]) -> Result<Vec<String>> {
        let names = [
            "localhost",
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "kubernetes.default.svc.cluster.local",
        ];
        let addresses = [self.address, IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V4(API_SERVICE)];
        let own = authority.server("kube-apiserver", &names, &addresses)?;
        let kubelets = authority.client("apiserver-kubelet-client", "kube-apiserver", Some(MASTERS))?;
        let (public, accounts) = authority.bare_key("service-accounts")?;
        let Pair { certificate, key } = own;
        let file = |flag: &str, path: &Path| format!("--{flag}={}", path.display());
        let mut arguments = vec![
            format!("--etcd-servers=http://127.0.0.1:{}", self.etcd_port),
            format!("--bind-address={}", self.address),
            format!("--secure-port={}", self.port),
            format!("--service-account-issuer={ISSUER}"),
            format!("--service-cluster-ip-range={SERVICES}"),
            "--authorization-mode=Node,RBAC".to_owned(),
            "--allow-privileged=true".to_owned(),
            "--watch-cache=true".to_owned(),
            file("tls-cert-file", &certificate),
            file("tls-private-key-file", &key),
            file("client-ca-file", &authority.certificate()),
            file("kubelet-client-certificate", &kubelets.certificate),
            file("kubelet-client-key", &kubelets.key),
            file("service-account-key-file", &public),
            file("service-account-signing-key-file", &accounts),
        ];
        arguments.extend(further.iter().map(ToString::to_string));
        Ok(arguments)
    }

    /// Each request is noted, by whom and of what.
    fn audit(&self) -> Result<[String; 2]> {
        let policy = self.directory.join("audit-policy.json");
        let rules =
            json!({"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "rules": [{"level": "Metadata"}]});
        fs::write(&policy, rules.to_string()).context("write the audit policy")?;
        let log = self.directory.join(AUDIT);
        Ok([
            format!("--audit-policy-file={}", policy.display()),
            format!("--audit-log-path={}", log.display()),
        ])
    }

    fn start_api_server(&self) -> Result<Process> {
        let mut command = self.launch.command(programs::control_plane("kube-apiserver")?)?;
        command.args(&self.arguments);
        Process::start("kube-apiserver", command, &self.log("kube-apiserver"))
    }
}

/// Nothing of it has to survive this machine.
fn start_etcd(launch: &Launch, directory: &Path, port: u16, peer_port: u16) -> Result<Process> {
    let mut command: Command = launch.command(programs::control_plane("etcd")?)?;
    let (own, peers) = (format!("http://127.0.0.1:{port}"), format!("http://127.0.0.1:{peer_port}"));
    command.arg("--unsafe-no-fsync").arg("--data-dir").arg(directory.join("etcd"));
    command.args(["--listen-client-urls", &own, "--advertise-client-urls", &own]);
    command.args(["--listen-peer-urls", &peers, "--initial-advertise-peer-urls", &peers]);
    command.args(["--initial-cluster", &format!("default={peers}")]);
    // The API server waits for it.
    Process::start("etcd", command, &directory.join("etcd.log"))
}

fn is_ready(client: &Client) -> Result<()> {
    // Its `/readyz` is no JSON. This is there once the server's own set-up has run.
    client.get("/apis/scheduling.k8s.io/v1/priorityclasses/system-node-critical")?;
    client.get("/api/v1/namespaces/default").map(drop)
}

/// One that is free now.
fn free_port() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("find a free port")?;
    Ok(listener.local_addr().context("ask for a port")?.port())
}
