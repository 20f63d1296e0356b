//! Log lines on stderr, which the runtime keeps or drops as it likes.
//!
//! Owns: the level and the form of a line. Never does: fail; a closed stderr loses lines and nothing else.
//! Used by: [`crate::plugin`].

use std::io::Write;

/// How much is logged: everything up to and including this level.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Level {
    /// Nothing.
    Off,
    /// The verb failed.
    Error,
    /// The verb succeeded, and something is wrong on the node or in the configuration.
    Warn,
    /// What became of a pod when it is not the usual.
    Info,
    /// Everything else.
    Debug,
}

impl Level {
    /// All of them, the quietest first.
    pub(crate) const ALL: [Self; 5] = [Self::Off, Self::Error, Self::Warn, Self::Info, Self::Debug];

    /// Its name in `logLevel` and in a line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
        }
    }
}

/// Where lines go.
pub(crate) struct Log<W> {
    writer: W,
    level: Level,
    subject: String,
}

impl<W: Write> Log<W> {
    /// A log at `info`, until the configuration is known.
    pub(crate) fn new(writer: W) -> Self {
        Self { writer, level: Level::Info, subject: String::new() }
    }

    /// Sets the level.
    pub(crate) fn set_level(&mut self, level: Level) {
        self.level = level;
    }

    /// Adds to what every line is about: the verb, then the container and the pod.
    pub(crate) fn about(&mut self, subject: &str) {
        if !self.subject.is_empty() {
            self.subject.push(' ');
        }
        self.subject.push_str(subject);
    }

    /// Writes one line if the level allows it.
    pub(crate) fn line(&mut self, level: Level, text: &str) {
        if level > self.level {
            return;
        }
        let mut line = format!("veer-cni: {}: ", level.name());
        if !self.subject.is_empty() {
            line.push_str(&escape(&self.subject));
            line.push_str(": ");
        }
        line.push_str(&escape(text));
        self.plain(&line);
    }

    /// Writes one line for the person at a terminal.
    pub(crate) fn plain(&mut self, line: &str) {
        if writeln!(self.writer, "{line}").is_err() {
            // Nowhere is left to say it, and the verb's result does not depend on it.
        }
    }
}

/// One line stays one line, whatever a variable or the agent put into it.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() {
            escaped.extend(character.escape_default());
        } else {
            escaped.push(character);
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_stays_one_line() {
        let mut written = Vec::new();
        let mut log = Log::new(&mut written);
        log.about("ADD");
        log.about("a\nb");
        log.line(Level::Warn, "first\nsecond\u{1b}[31m");
        assert_eq!(
            String::from_utf8(written).unwrap(),
            "veer-cni: warn: ADD a\\nb: first\\nsecond\\u{1b}[31m\n"
        );
    }

    #[test]
    fn a_level_lets_through_itself_and_what_is_graver() {
        for (level, lines) in Level::ALL.into_iter().zip(0..) {
            let mut written = Vec::new();
            let mut log = Log::new(&mut written);
            log.set_level(level);
            for graver in [Level::Error, Level::Warn, Level::Info, Level::Debug] {
                log.line(graver, "text");
            }
            assert_eq!(String::from_utf8(written).unwrap().lines().count(), lines, "{level:?}");
        }
    }
}
