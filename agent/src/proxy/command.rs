//! The command that the agent starts the node's Envoy with, and what it adds to it. Pure.
//!
//! Owns: the form of `--proxy-command`, and which of Envoy's flags are the agent's. Never does: start anything, or have a
//! shell read the command. Called by: `config`, `proxy::supervise`.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// What `--proxy-command` is to be.
pub const ACCEPTED: &str = "the absolute path of an Envoy, and flags of it, separated by blanks (no quotes: no shell reads it), without those \
     that the agent gives it (--config-path, --base-id, --restart-epoch, --socket-path, --socket-mode), \
     and without --disable-hot-restart";

/// Flags of Envoy that are the agent's alone.
const OURS: [&str; 9] = [
    "-c",
    "--config-path",
    "--config-yaml",
    "--base-id",
    "--use-dynamic-base-id",
    "--restart-epoch",
    "--socket-path",
    "--socket-mode",
    "--disable-hot-restart",
];
/// What Envoy is given unless the command says otherwise: connections of a pod that goes, and those of an Envoy that is
/// replaced, have this long to end; of the latter those that are open for good have longer. In seconds.
const DEFAULTS: [(&str, &str); 3] =
    [("--drain-strategy", "immediate"), ("--drain-time-s", "45"), ("--parent-shutdown-time-s", "600")];

/// A program, and its arguments.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ProxyCommand {
    /// Its path, from the root.
    pub program: PathBuf,
    /// What it is given, besides what the agent adds.
    pub arguments: Vec<String>,
}

/// Where one Envoy after the other is started, and which of them this is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place<'a> {
    /// Its bootstrap.
    pub bootstrap: &'a Path,
    /// The directory in which one Envoy hands its listeners to the next, by sockets that are the proxy's alone.
    pub directory: &'a Path,
    /// Of how many that have taken over from each other it is the last: 0 for one that takes over from nobody.
    pub epoch: u32,
}

impl ProxyCommand {
    /// Parses it; `None` if it is not [`ACCEPTED`].
    pub fn parse(text: &str) -> Option<Self> {
        let mut words = text.split_ascii_whitespace();
        let program = PathBuf::from(words.next()?);
        let arguments: Vec<String> = words.map(str::to_owned).collect();
        let name = |argument: &String| argument.split('=').next().map(str::to_owned).unwrap_or_default();
        let is_ours = arguments.iter().map(name).any(|name| OURS.contains(&name.as_str()));
        (program.is_absolute() && !is_ours).then_some(Self { program, arguments })
    }

    /// All arguments of one that is started.
    pub fn arguments(&self, place: Place<'_>) -> Vec<String> {
        let Place { bootstrap, directory, epoch } = place;
        let sockets = directory.join("hot-restart");
        let own = [
            ("--config-path", bootstrap.display().to_string()),
            ("--base-id", base_id(directory).to_string()),
            ("--restart-epoch", epoch.to_string()),
            ("--socket-path", sockets.display().to_string()),
            ("--socket-mode", "600".to_owned()),
        ];
        let said =
            |flag: &str| self.arguments.iter().any(|argument| argument.split('=').next() == Some(flag));
        let defaults = DEFAULTS.into_iter().filter(|(flag, _)| !said(flag));
        let defaults = defaults.map(|(flag, value)| (flag, value.to_owned()));
        let ours = own.into_iter().chain(defaults).flat_map(|(flag, value)| [flag.to_owned(), value]);
        self.arguments.iter().cloned().chain(ours).collect()
    }
}

impl fmt::Display for ProxyCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.program.display())?;
        self.arguments.iter().try_for_each(|argument| write!(f, " {argument}"))
    }
}

/// The number by which Envoys that take over from each other find their shared memory: the same for the same directory, so
/// that no more than one is left behind. Envoy puts a digit behind it, and takes 31 bits.
pub fn base_id(directory: &Path) -> u32 {
    let digest = Sha256::digest(directory.as_os_str().as_encoded_bytes());
    let number = digest.first_chunk().copied().map(u32::from_be_bytes).unwrap_or_default();
    number >> 5
}

/// The file that Envoy's shared memory is, for [`base_id`].
pub fn shared_memory(directory: &Path) -> PathBuf {
    PathBuf::from(format!("/dev/shm/envoy_shared_memory_{}0", base_id(directory)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_words_and_nothing_of_a_shell() {
        let command = ProxyCommand::parse("/usr/bin/envoy  --concurrency 2 $HOME;id").unwrap();
        assert_eq!(command.program, Path::new("/usr/bin/envoy"));
        assert_eq!(command.arguments, ["--concurrency", "2", "$HOME;id"]);
        assert_eq!(command.to_string(), "/usr/bin/envoy --concurrency 2 $HOME;id");
        for wrong in
            ["", "   ", "envoy", "bin/envoy", "/envoy -c x", "/envoy --base-id=7", "/e --config-yaml {}"]
        {
            assert_eq!(ProxyCommand::parse(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn what_the_command_says_is_not_said_again() {
        let command = ProxyCommand::parse("/envoy --drain-time-s=5 --parent-shutdown-time-s 9").unwrap();
        let (bootstrap, directory) = (Path::new("/p/envoy.json"), Path::new("/p/envoy"));
        let arguments = command.arguments(Place { bootstrap, directory, epoch: 3 }).join(" ");
        let id = base_id(directory);
        assert_eq!(
            arguments,
            format!(
                "--drain-time-s=5 --parent-shutdown-time-s 9 --config-path /p/envoy.json --base-id {id} \
                 --restart-epoch 3 --socket-path /p/envoy/hot-restart --socket-mode 600 --drain-strategy immediate"
            )
        );
    }

    #[test]
    fn places_have_numbers_of_their_own_that_envoy_takes() {
        let ids: Vec<u32> = (0..100).map(|number| base_id(Path::new(&format!("/p/{number}")))).collect();
        assert!(ids.iter().all(|id| i64::from(*id) * 10 + 2 < i64::from(i32::MAX)));
        let distinct: std::collections::BTreeSet<_> = ids.iter().collect();
        assert_eq!(distinct.len(), ids.len());
    }
}
