//! The verbs.
//!
//! Owns: for each verb, what it needs, what the agent is asked, and what an answer, or none, means.
//! Fails closed on the way in (ADD without the agent fails, the runtime tries again) and never stands in
//! the way out (DEL and GC succeed without the agent; it finds what is gone by itself when it is back).
//! Never does: decide about a pod, except that excluded namespaces start without the agent, which may be
//! waiting for one of their pods.
//! Used by: the program.

use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::process::ExitCode;
use std::time::Duration;

use veer_common::cni::{Reply, Verb, code};

use crate::client::{Agent, AgentError};
use crate::environment::{self, Attachment, Command, Netns, Variables};
use crate::log::{Level, Log};
use crate::netconf::{MAX_LENGTH, NetConf, NetConfError, Settings};
use crate::netns;
use crate::output::{self, Failure, Object, Problem, SpecVersion};

/// DEL, GC and STATUS wait no longer than this: pods must be able to go without the agent.
const SHORT_TIMEOUT: Duration = Duration::from_secs(2);

/// Runs the verb of the environment, prints its result or its error, and returns the exit code.
pub fn run(
    variables: Variables<'_>,
    input: impl Read,
    mut stdout: impl Write,
    stderr: impl Write,
) -> ExitCode {
    let mut plugin = Plugin { variables, log: Log::new(stderr), version: SpecVersion::NEWEST };
    let (printed, code) = match plugin.answer(input) {
        Ok(result) => (Ok(result), ExitCode::SUCCESS),
        Err(failure) => {
            plugin.log.line(Level::Error, &format!("{}; {}", failure.msg, failure.details));
            (output::error(plugin.version, &failure).map(Some), ExitCode::FAILURE)
        }
    };
    let written = match printed {
        Ok(Some(text)) => writeln!(stdout, "{text}").and_then(|()| stdout.flush()),
        Ok(None) => Ok(()),
        Err(error) => Err(error.into()),
    };
    if let Err(error) = written {
        plugin.log.line(Level::Error, &format!("write the result to stdout: {error}"));
        return ExitCode::FAILURE;
    }
    code
}

/// A configuration in which nothing is wrong.
struct Configuration<'c> {
    settings: Settings,
    network: String,
    previous: Option<Object<'c>>,
}

struct Plugin<'a, W> {
    variables: Variables<'a>,
    log: Log<W>,
    /// Of the configuration, once it is known.
    version: SpecVersion,
}

impl<W: Write> Plugin<'_, W> {
    fn answer(&mut self, input: impl Read) -> Result<Option<String>, Failure> {
        let Some(command) = environment::command(self.variables)? else {
            self.log.plain(&usage());
            return Err(environment::no_command());
        };
        self.log.about(command.name());
        let bytes = read(input)?;
        match command {
            Command::Add => self.add(&bytes).map(Some),
            Command::Check => self.check(&bytes).map(|()| None),
            Command::Del => self.del(&bytes).map(|()| None),
            Command::Gc => self.gc(&bytes).map(|()| None),
            Command::Status => self.status(&bytes).map(|()| None),
            Command::Version => versions(&bytes).map(Some),
        }
    }

    fn add(&mut self, bytes: &[u8]) -> Result<String, Failure> {
        let netconf = self.netconf(bytes)?;
        let attachment = self.attachment(Netns::Required)?;
        let Configuration { settings, network, previous } = self.configuration(&netconf)?;
        let result = output::result(self.version, previous.as_ref()).map_err(|error| unprintable(&error))?;
        if self.is_excluded(&attachment, &settings) {
            return Ok(result);
        }
        let netns = netns::open(&attachment.netns)?;
        let verb = Verb::Add(attachment.message(network));
        self.require(&settings, settings.timeout, verb, Some(netns.as_fd()), code::TRY_AGAIN)?;
        Ok(result)
    }

    fn check(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let netconf = self.netconf(bytes)?;
        self.since(SpecVersion::V0_4_0, Command::Check)?;
        let attachment = self.attachment(Netns::Required)?;
        let Configuration { settings, network, .. } = self.configuration(&netconf)?;
        if self.is_excluded(&attachment, &settings) {
            return Ok(());
        }
        netns::open(&attachment.netns)?;
        let verb = Verb::Check(attachment.message(network));
        self.require(&settings, settings.timeout, verb, None, code::TRY_AGAIN)
    }

    fn del(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let netconf = self.netconf(bytes)?;
        let attachment = self.attachment(Netns::Optional)?;
        let settings = self.lenient_settings(&netconf);
        let network = self.lenient_network(&netconf);
        // Also for excluded namespaces: the list may be younger than the pod.
        self.tolerate(&settings, Verb::Del(attachment.message(network)))
    }

    fn gc(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let netconf = self.netconf(bytes)?;
        self.since(SpecVersion::V1_1_0, Command::Gc)?;
        let settings = self.lenient_settings(&netconf);
        // Without one of them the agent would have to guess who goes.
        let verb = match (netconf.network(), netconf.valid_attachments()) {
            (Ok(network), Ok(valid)) => Verb::Gc { network, valid },
            (network, valid) => {
                let problems: Vec<Problem> = network.err().into_iter().chain(valid.err()).collect();
                return Err(Failure::of_problems(code::INVALID_CONFIG, CONFIGURATION, &problems));
            }
        };
        self.tolerate(&settings, verb)
    }

    fn status(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let netconf = self.netconf(bytes)?;
        self.since(SpecVersion::V1_1_0, Command::Status)?;
        let Configuration { settings, .. } = self.configuration(&netconf)?;
        let timeout = settings.timeout.min(SHORT_TIMEOUT);
        self.require(&settings, timeout, Verb::Status, None, code::NOT_AVAILABLE)
    }

    fn netconf<'c>(&mut self, bytes: &'c [u8]) -> Result<NetConf<'c>, Failure> {
        let netconf = NetConf::parse(bytes)?;
        self.version = netconf.version()?;
        Ok(netconf)
    }

    /// Fails for configurations that are older than the verb.
    fn since(&self, first: SpecVersion, command: Command) -> Result<(), Failure> {
        if self.version >= first {
            return Ok(());
        }
        let (verb, first, given) = (command.name(), first.name(), self.version.name());
        Err(Failure {
            code: code::INCOMPATIBLE_VERSION,
            msg: format!("CNI version {given} has no {verb}"),
            details: format!("{verb} came with CNI version {first}; the network configuration is of {given}"),
        })
    }

    fn attachment(&mut self, netns: Netns) -> Result<Attachment, Failure> {
        let attachment = environment::attachment(self.variables, netns)?;
        self.log.about(&attachment.container_id);
        if let Some(pod) = attachment.pod.clone().reference() {
            self.log.about(&format!("{}/{}", pod.namespace, pod.name));
        }
        Ok(attachment)
    }

    /// The whole configuration, or everything that is wrong with it.
    fn configuration<'c>(&mut self, netconf: &NetConf<'c>) -> Result<Configuration<'c>, Failure> {
        let (settings, mut problems) = netconf.settings();
        self.log.set_level(settings.log_level);
        match (netconf.network(), netconf.prev_result()) {
            (Ok(network), Ok(previous)) if problems.is_empty() => {
                return Ok(Configuration { settings, network, previous });
            }
            (network, previous) => problems.extend(network.err().into_iter().chain(previous.err())),
        }
        Err(Failure::of_problems(code::INVALID_CONFIG, CONFIGURATION, &problems))
    }

    /// The settings with defaults for what is wrong: a typing error in a conflist must not keep pods from
    /// going. ADD refuses the same configuration loudly.
    fn lenient_settings(&mut self, netconf: &NetConf<'_>) -> Settings {
        let (settings, problems) = netconf.settings();
        self.log.set_level(settings.log_level);
        for problem in problems {
            self.log.line(Level::Warn, &format!("invalid {CONFIGURATION}: {problem}; using the default"));
        }
        settings
    }

    /// The network, or none: DEL finds the pod by its container and interface.
    fn lenient_network(&mut self, netconf: &NetConf<'_>) -> String {
        netconf.network().unwrap_or_else(|problem| {
            self.log.line(Level::Warn, &format!("invalid {CONFIGURATION}: {problem}; going on without it"));
            String::new()
        })
    }

    fn is_excluded(&mut self, attachment: &Attachment, settings: &Settings) -> bool {
        let namespace = attachment.pod.namespace.as_ref();
        let excluded = namespace.filter(|namespace| settings.exclude_namespaces.contains(namespace));
        if let Some(namespace) = excluded {
            self.log.line(Level::Info, &format!("left alone: namespace {namespace} is excluded"));
        }
        excluded.is_some()
    }

    /// A question that only the agent can answer; `absent` is the error code when it does not.
    fn require(
        &mut self,
        settings: &Settings,
        timeout: Duration,
        verb: Verb,
        netns: Option<BorrowedFd<'_>>,
        absent: u32,
    ) -> Result<(), Failure> {
        match Agent::new(&settings.run_dir, timeout).ask(verb, netns) {
            Ok(reply) => self.reply(reply),
            Err(error) => Err(no_answer(&error, absent)),
        }
    }

    /// News that the agent can also find out later by itself.
    fn tolerate(&mut self, settings: &Settings, verb: Verb) -> Result<(), Failure> {
        match Agent::new(&settings.run_dir, settings.timeout.min(SHORT_TIMEOUT)).ask(verb, None) {
            Ok(reply) => self.reply(reply),
            Err(error @ AgentError::TooLong(_)) => Err(no_answer(&error, code::INVALID_CONFIG)),
            Err(error) => {
                let text = format!("{error}; it will find what is gone when it is back");
                self.log.line(Level::Warn, &text);
                Ok(())
            }
        }
    }

    fn reply(&mut self, reply: Reply) -> Result<(), Failure> {
        match reply {
            Reply::Done => self.log.line(Level::Debug, "done"),
            Reply::Passed { reason } => self.log.line(Level::Info, &format!("left alone: {reason}")),
            Reply::Failed { code, msg, details } => return Err(Failure { code, msg, details }),
        }
        Ok(())
    }
}

const CONFIGURATION: &str = "network configuration";

/// All of stdin, up to one byte more than a configuration may have.
fn read(input: impl Read) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let limit = u64::try_from(MAX_LENGTH).unwrap_or(u64::MAX).saturating_add(1);
    input.take(limit).read_to_end(&mut bytes).map_err(|error| Failure {
        code: code::IO,
        msg: format!("read the network configuration from stdin: {error}"),
        details: "the runtime writes it to the plugin's stdin".into(),
    })?;
    Ok(bytes)
}

/// VERSION must work for runtimes of any version, so nothing but a document without end is wrong here.
fn versions(bytes: &[u8]) -> Result<String, Failure> {
    let given = match NetConf::parse(bytes) {
        Ok(netconf) => netconf.given_version(),
        Err(NetConfError::Empty) => None,
        Err(error) => return Err(error.into()),
    };
    let given = given.as_deref().unwrap_or(SpecVersion::NEWEST.name());
    output::versions(given).map_err(|error| unprintable(&error))
}

fn no_answer(error: &AgentError, absent: u32) -> Failure {
    let (code, details) = match error {
        AgentError::NoAnswer { .. } => (
            absent,
            "is `veer agent` running on this node, and what does its log say? Pods that \
             must start without it belong into a namespace of excludeNamespaces, in the veer-cni entry of \
             the CNI configuration",
        ),
        AgentError::Unreadable { .. } => (
            code::PROTOCOL,
            "veer-cni and veer are of different releases: install the plugin of the agent's release",
        ),
        AgentError::TooLong(_) => {
            (code::INVALID_CONFIG, "what the runtime sent is longer than any pod needs")
        }
    };
    Failure { code, msg: error.to_string(), details: details.into() }
}

fn unprintable(error: &serde_json::Error) -> Failure {
    Failure { code: code::IO, msg: format!("encode the result: {error}"), details: String::new() }
}

fn usage() -> String {
    format!(
        "veer-cni {}, the CNI plugin of veer: a container runtime runs it, with CNI_COMMAND ({}) and a network \
         configuration on stdin; it speaks CNI {}",
        env!("CARGO_PKG_VERSION"),
        environment::commands(),
        SpecVersion::list(),
    )
}
