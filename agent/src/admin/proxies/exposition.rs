//! Prometheus' text form, line by line: what a proxy has said becomes lines that harm nobody. Pure.
//!
//! A pod may answer whatever it likes. One line that Prometheus cannot read costs it all that a node has to say, so a line
//! is passed on only if it was understood, and written anew: a sample with a name, labels of different names, and a value.
//! Whose it is stands in labels that begin with `veer_`, as ours do and a pod's own may not.
//! Never does: read from anywhere. Called by: `admin::proxies`.

use std::borrow::Cow;
use std::collections::HashSet;

/// What all of our names begin with.
const OURS: &str = "veer_";
/// Longest line that is looked at, in bytes; Envoy's are of some hundred.
pub(super) const MAX_LINE: usize = 16 << 10;
/// Longest name of a metric, in bytes.
const MAX_NAME: usize = 512;
/// Most labels of a sample.
const MAX_LABELS: usize = 64;
/// What a metric can be.
const KINDS: [&str; 5] = ["counter", "gauge", "histogram", "summary", "untyped"];
/// What of a histogram or a summary a sample can be.
const PARTS: [&str; 3] = ["_bucket", "_sum", "_count"];
/// Most metrics whose type is told: then a hostile pod can make us remember so many names, and no more.
const MAX_TYPED: usize = 8192;

/// Who says it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Origin {
    /// An Envoy of the node, which says itself which pod a sample is of. The text is its part of a socket's name, if there
    /// may be several: `2` in `admin-2.sock`.
    Node {
        /// To tell one from the other.
        number: Option<String>,
        /// The only pod that is asked about.
        only: Option<(String, String)>,
    },
    /// The proxy in a pod.
    Pod {
        /// Kubernetes namespace.
        namespace: String,
        /// Pod name.
        name: String,
    },
    /// A ztunnel of the node, which names pods in Istio's labels.
    Ztunnel {
        /// To tell one from the other: the inode number of its netns.
        inode: u64,
    },
}

/// What one proxy says.
#[derive(Debug)]
pub(super) struct Exposition {
    origin: Origin,
    /// The labels that are put before its own, with a comma behind each.
    labels: String,
    /// The metric that was last said to be coming.
    family: Family,
    /// The line that is not complete yet, and whether it has been too long already.
    rest: Vec<u8>,
    is_too_long: bool,
    dropped: u64,
}

/// A metric, whose samples are to come.
#[derive(Debug, Default)]
struct Family {
    name: String,
    kind: &'static str,
    is_told: bool,
}

/// A sample, taken apart.
struct Sample<'a> {
    name: &'a str,
    labels: Vec<(&'a str, &'a str)>,
    value: Cow<'a, str>,
}

impl Exposition {
    /// Of which nothing was heard yet. Namespace and name must be those of a pod: they are not quoted.
    pub(super) fn of(origin: Origin) -> Self {
        let labels = match &origin {
            Origin::Node { number, .. } => {
                number.as_ref().map(|number| format!("{OURS}envoy=\"{number}\",")).unwrap_or_default()
            }
            Origin::Pod { namespace, name } => {
                format!("{OURS}namespace=\"{namespace}\",{OURS}pod=\"{name}\",")
            }
            Origin::Ztunnel { inode } => format!("{OURS}ztunnel=\"{inode}\","),
        };
        Self { origin, labels, family: Family::default(), rest: Vec::new(), is_too_long: false, dropped: 0 }
    }

    /// What becomes of the next bytes, as far as lines are complete.
    pub(super) fn take(&mut self, bytes: &[u8], out: &mut String) {
        let mut rest = bytes;
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let (line, behind) = rest.split_at(end);
            rest = behind.get(1..).unwrap_or_default();
            self.keep(line);
            let line = std::mem::take(&mut self.rest);
            if std::mem::take(&mut self.is_too_long) {
                self.dropped += 1;
            } else {
                self.line(&line, out);
            }
            // Its room is used again.
            self.rest = line;
            self.rest.clear();
        }
        self.keep(rest);
    }

    /// How many lines were not passed on since the last call. A line that has not ended counts as one.
    pub(super) fn end(&mut self) -> u64 {
        let unfinished = u64::from(self.is_too_long || !self.rest.is_empty());
        self.rest.clear();
        std::mem::take(&mut self.dropped) + unfinished
    }

    fn keep(&mut self, part: &[u8]) {
        self.is_too_long |= self.rest.len() + part.len() > MAX_LINE;
        if !self.is_too_long {
            self.rest.extend_from_slice(part);
        }
    }

    fn line(&mut self, line: &[u8], out: &mut String) {
        let Ok(line) = std::str::from_utf8(line) else {
            self.dropped += 1;
            return;
        };
        let line = line.trim_end_matches('\r');
        if line.is_empty() {
            return;
        }
        if let Some(comment) = line.strip_prefix('#') {
            self.comment(comment);
            return;
        }
        match Sample::parse(line).filter(|sample| self.may_say(sample)) {
            Some(sample) => self.sample(&sample, out),
            None => self.dropped += 1,
        }
    }

    /// A type is passed on with its first sample, everything else that stands in a comment is for people.
    fn comment(&mut self, comment: &str) {
        let mut words = comment.split_ascii_whitespace();
        if words.next() != Some("TYPE") {
            return;
        }
        let (name, kind) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let kind = KINDS.into_iter().find(|known| *known == kind);
        match kind.filter(|_| is_name(name) && self.may_name(name) && words.next().is_none()) {
            Some(kind) => self.family = Family { name: name.to_owned(), kind, is_told: false },
            None => self.dropped += 1,
        }
    }

    fn only(&self) -> Option<&(String, String)> {
        match &self.origin {
            Origin::Node { only, .. } => only.as_ref(),
            Origin::Pod { .. } | Origin::Ztunnel { .. } => None,
        }
    }

    fn may_name(&self, name: &str) -> bool {
        matches!(self.origin, Origin::Node { .. }) || !name.starts_with(OURS)
    }

    fn may_say(&self, sample: &Sample<'_>) -> bool {
        self.may_name(sample.name) && sample.labels.iter().all(|(label, _)| self.may_name(label))
    }

    fn sample(&mut self, sample: &Sample<'_>, out: &mut String) {
        if let Some((namespace, name)) = self.only() {
            let is_its = |label: &str, value: &str| sample.labels.contains(&(label, value));
            if !is_its("veer_namespace", namespace) || !is_its("veer_pod", name) {
                return;
            }
        }
        if !self.family.has(sample.name) {
            // So that nobody else says later what it is: a type comes before its samples, or never.
            let kind = if self.family.is_total(sample.name) { "counter" } else { "untyped" };
            self.family = Family { name: sample.name.to_owned(), kind, is_told: false };
        }
        self.family.tell(out);
        out.push_str(sample.name);
        let all = self.labels.len() + sample.labels.len();
        if all > 0 {
            out.push('{');
            out.push_str(&self.labels);
            for (label, value) in &sample.labels {
                for piece in [*label, "=\"", value, "\","] {
                    out.push_str(piece);
                }
            }
            // A comma at the end is fine, and one less is finer.
            out.pop();
            out.push('}');
        }
        out.push(' ');
        out.push_str(&sample.value);
        out.push('\n');
    }
}

impl Family {
    fn has(&self, name: &str) -> bool {
        let is_in_parts = ["histogram", "summary"].contains(&self.kind);
        let part = name.strip_prefix(&self.name);
        part.is_some_and(|part| part.is_empty() || is_in_parts && PARTS.contains(&part))
    }

    /// Whether these are its samples in OpenMetrics, where a counter's name is without their `_total`. ztunnel speaks that unasked;
    /// Prometheus' own form has the whole name, and so have sidecars, of the same metrics of Istio's.
    fn is_total(&self, name: &str) -> bool {
        self.kind == "counter" && name.strip_suffix("_total") == Some(&self.name)
    }

    fn tell(&mut self, out: &mut String) {
        if !std::mem::replace(&mut self.is_told, true) {
            for piece in ["# TYPE ", &self.name, " ", self.kind, "\n"] {
                out.push_str(piece);
            }
        }
    }
}

impl<'a> Sample<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let end = line.find(['{', ' '])?;
        let (name, rest) = line.split_at_checked(end)?;
        if !is_name(name) {
            return None;
        }
        let (labels, rest) = match rest.strip_prefix('{') {
            Some(rest) => labels(rest)?,
            None => (Vec::new(), rest),
        };
        let mut words = rest.split_ascii_whitespace();
        let value = value(words.next()?)?;
        // Whenever a proxy has counted it, it is asked now.
        let timestamp = words.next();
        let is_whole = words.next().is_none() && timestamp.is_none_or(|time| time.parse::<i64>().is_ok());
        is_whole.then_some(Self { name, labels, value })
    }
}

/// A value as whoever scrapes reads it: who cannot read one takes none of all the others. In Go `-nan` is no number, and
/// 1e999 is an error.
fn value(text: &str) -> Option<Cow<'_, str>> {
    let number: f64 = text.parse().ok()?;
    Some(match number {
        _ if number.is_nan() => "NaN".into(),
        f64::INFINITY => "+Inf".into(),
        f64::NEG_INFINITY => "-Inf".into(),
        _ => text.into(),
    })
}

/// Labels up to the brace that closes them, with their values as they are escaped, and what is behind.
fn labels(text: &str) -> Option<(Vec<(&str, &str)>, &str)> {
    let mut labels: Vec<(&str, &str)> = Vec::new();
    let mut rest = text;
    loop {
        if let Some(behind) = rest.strip_prefix('}') {
            return Some((labels, behind));
        }
        let (label, quoted) = rest.split_once("=\"")?;
        let is_new = labels.iter().all(|(other, _)| *other != label);
        if !is_label(label) || !is_new || labels.len() == MAX_LABELS {
            return None;
        }
        let end = end_of_value(quoted)?;
        labels.push((label, quoted.get(..end)?));
        let behind = quoted.get(end + 1..)?;
        rest = match behind.strip_prefix(',') {
            Some(next) => next,
            None if behind.starts_with('}') => behind,
            None => return None,
        };
    }
}

/// Where the quote is that ends a value. What is escaped in it must be what may be.
fn end_of_value(quoted: &str) -> Option<usize> {
    let mut bytes = quoted.bytes().enumerate();
    while let Some((at, byte)) = bytes.next() {
        match byte {
            b'"' => return Some(at),
            b'\\' => {
                let (_, escaped) = bytes.next()?;
                if !matches!(escaped, b'\\' | b'"' | b'n') {
                    return None;
                }
            }
            0..0x20 | 0x7f => return None,
            _ => {}
        }
    }
    None
}

fn is_name(name: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b':');
    (1..=MAX_NAME).contains(&name.len())
        && name.bytes().all(word)
        && !name.starts_with(|first: char| first.is_ascii_digit())
}

/// Those that begin with two underscores are Prometheus' own, `__name__` among them.
fn is_label(label: &str) -> bool {
    is_name(label) && !label.contains(':') && !label.starts_with("__")
}

/// Of which metrics the type was told: it may be once.
#[derive(Debug, Default)]
pub(super) struct Types(HashSet<String>);

impl Types {
    /// The same lines without types that were told before. Nobody else looks into lines that are not comments.
    pub(super) fn once(&mut self, lines: &str) -> String {
        let mut kept = String::with_capacity(lines.len());
        for line in lines.split_inclusive('\n') {
            let is_kept = line.strip_prefix("# TYPE ").is_none_or(|typed| {
                let name = typed.split(' ').next().unwrap_or_default();
                self.0.len() < MAX_TYPED && self.0.insert(name.to_owned())
            });
            if is_kept {
                kept.push_str(line);
            }
        }
        kept
    }
}

#[cfg(test)]
mod tests;
