//! The node's proxy: where it and the agent meet, and what it is started with.
//!
//! Owns: the accepted forms. Never does: stop at the first error. Called by: `config`.

use std::path::PathBuf;

use super::{ABSOLUTE, ConfigError, ConfigErrors, Setting, absolute};
use crate::cli::AgentFlags;
use crate::proxy::command::{self, ProxyCommand};

const DIRECTORY: Setting = Setting("--proxy-dir", "VEER_PROXY_DIR", ABSOLUTE);
const COMMAND: Setting = Setting("--proxy-command", "VEER_PROXY_COMMAND", command::ACCEPTED);

/// Where they have met, for who takes it away.
///
/// # Errors
/// If that is no absolute path.
pub fn proxy_dir(text: Option<&str>) -> Result<Option<PathBuf>, ConfigErrors> {
    let mut errors = Vec::new();
    let path = text.map(|path| absolute(&DIRECTORY, path, &mut errors));
    if errors.is_empty() { Ok(path) } else { Err(ConfigErrors(errors)) }
}

/// Where they meet.
pub(super) fn directory(flags: &AgentFlags, errors: &mut Vec<ConfigError>) -> Option<PathBuf> {
    flags.proxy_dir.as_deref().map(|path| absolute(&DIRECTORY, path, errors))
}

/// What it is started with; that takes a place.
pub(super) fn command(flags: &AgentFlags, errors: &mut Vec<ConfigError>) -> Option<ProxyCommand> {
    let text = flags.proxy_command.as_deref()?;
    let command = ProxyCommand::parse(text);
    if command.is_none() {
        errors.push(COMMAND.invalid(text));
    }
    if flags.proxy_dir.is_none() {
        errors.push(DIRECTORY.missing());
    }
    command
}

#[cfg(test)]
mod tests {
    use super::super::tests::flags;
    use super::super::{AgentConfig, AgentFlags};

    #[test]
    fn a_command_takes_a_directory() {
        let with = |proxy_dir: Option<&str>| AgentFlags {
            proxy_command: Some("/usr/bin/envoy --concurrency 2".to_owned()),
            proxy_dir: proxy_dir.map(str::to_owned),
            ..flags()
        };
        let config = AgentConfig::parse(&with(Some("/run/veer-proxy"))).unwrap();
        assert_eq!(config.proxy_command.unwrap().to_string(), "/usr/bin/envoy --concurrency 2");
        let error = AgentConfig::parse(&with(None)).unwrap_err().to_string();
        assert_eq!(error, "--proxy-dir (or VEER_PROXY_DIR) is missing: an absolute path");
    }
}
