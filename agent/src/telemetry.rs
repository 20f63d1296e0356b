//! The log: lines on stderr, for people or for machines.

use tracing_subscriber::{EnvFilter, fmt};

use crate::config::{LogConfig, LogFormat};

/// Starts logging; later calls change nothing.
pub fn start(config: LogConfig) {
    // What libraries have to say comes back as an error, and is told once, in our words.
    let filter = EnvFilter::new(format!("off,veer={}", config.level));
    let builder = fmt().with_writer(std::io::stderr).with_env_filter(filter);
    // On a full disk a line is lost. To say so on the same stderr, as the default is, ends the agent: eprintln panics.
    let builder = builder.log_internal_errors(false);
    let started = match config.format {
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
        LogFormat::Text => {
            let colour = std::io::IsTerminal::is_terminal(&std::io::stderr())
                && std::env::var_os("NO_COLOR").is_none();
            builder.with_ansi(colour).with_target(false).try_init()
        }
    };
    // Only tests start it twice.
    drop(started);
}
