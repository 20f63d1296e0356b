//! A list of plugins as text: our entry comes in, and goes out again, and no other byte changes.
//!
//! Owns: where an entry stands in the text, and which entries are ours. Never does: print JSON anew; what a vendor
//! wrote stays as it was written, its order, its spaces and the digits of its numbers.
//!
//! An entry is ours if it says so by [`MARK`]. One without the mark was written by the node's operator: it does what
//! ours would, so it is left alone, and so is the file.

use std::collections::BTreeMap;
use std::iter;
use std::ops::Range;

use serde_json::Value;
use serde_json::value::RawValue;

use super::VEER;

/// The key and value by which an entry is known to be ours.
pub const MARK: (&str, &str) = ("installedBy", "veer");

/// Why a text cannot be changed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TextError {
    /// It is not what its name says.
    #[error("is no JSON object: {0}")]
    NotJson(String),
    /// There is nothing to put an entry behind.
    #[error("has no list \"plugins\" with a plugin in it")]
    NoPlugins,
    /// Pods' addresses are kept by the name.
    #[error("has no \"name\", which a network has")]
    NoName,
}

/// The keys of an object; of one that is there twice the last counts, as in the runtimes.
type Keys<'a> = BTreeMap<String, &'a RawValue>;

/// Whose an entry is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Whose {
    /// Written by this program.
    Ours,
    /// Of our type, written by somebody else.
    Operators,
    /// Another plugin.
    Others,
}

/// An entry of the list.
struct Entry {
    span: Range<usize>,
    whose: Whose,
}

/// Whether our entry, or the operator's, is in the list, and whose it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Present {
    /// Neither.
    No,
    /// Ours.
    Ours,
    /// The operator's, and perhaps ours.
    Operators,
}

/// Whether our plugin is in a list. What is no list has it not.
pub fn present(text: &str) -> Present {
    let entries = entries(text).unwrap_or_default();
    let any = |whose| entries.iter().any(|entry| entry.whose == whose);
    match (any(Whose::Operators), any(Whose::Ours)) {
        (true, _) => Present::Operators,
        (false, true) => Present::Ours,
        (false, false) => Present::No,
    }
}

/// Whether a text is an entry of ours by itself, as in libcni's directory.
pub fn is_ours(text: &str) -> bool {
    whose(text) == Whose::Ours
}

/// Whether a list was made by [`wrap`], and so is ours as a whole.
pub fn is_wrap(text: &str) -> bool {
    let mark =
        |keys: Keys<'_>| keys.get(MARK.0).is_some_and(|value| value.get() == format!("\"{}\"", MARK.1));
    keys(text).is_ok_and(mark)
}

/// The list with `entry` in it, once: where it already is, else as the last plugin. A list that the operator has put
/// an entry into gets none.
///
/// # Errors
/// If it is no list.
pub fn with(text: &str, entry: &str) -> Result<String, TextError> {
    let entries = entries(text)?;
    let ours: Vec<usize> = places(&entries, Whose::Ours);
    if !places(&entries, Whose::Operators).is_empty() {
        return Ok(without(text)?.unwrap_or_else(|| text.to_owned()));
    }
    if let [place] = *ours.as_slice()
        && place > 0
        && let Some(there) = entries.get(place)
    {
        let is_same = slice(text, &there.span) == entry || same(slice(text, &there.span), entry);
        return Ok(if is_same { text.to_owned() } else { replaced(text, &there.span, entry) });
    }
    let base = without(text)?;
    append(base.as_deref().unwrap_or(text), entry)
}

/// The list without our entry; `None` if there is none in it, or nothing else.
///
/// # Errors
/// If it is no list.
pub fn without(text: &str) -> Result<Option<String>, TextError> {
    let entries = entries(text)?;
    let ours = places(&entries, Whose::Ours);
    if ours.is_empty() || ours.len() == entries.len() {
        return Ok(None);
    }
    let leading = entries.iter().take_while(|entry| entry.whose == Whose::Ours).count();
    let span = |place: usize| entries.get(place).map_or(0..0, |entry| entry.span.clone());
    // The first go with what separates them from the next, all others with what separates them from the one before.
    let first = span(0).start..span(leading).start;
    let behind = ours.into_iter().filter(|place| *place > leading);
    let behind = behind.map(|place| span(place.saturating_sub(1)).end..span(place).end);
    let gone: Vec<_> = iter::once(first).chain(behind).collect();
    let mut rest = text.to_owned();
    for range in gone.into_iter().rev() {
        rest = replaced(&rest, &range, "");
    }
    Ok(Some(rest))
}

/// A list of the one plugin that `text` is, and `entry`. Its name and its version are the list's; the plugin stands in
/// it as it was written. libcni 1.3 reads plugins from a directory beside a list, and did not for the one plugin:
/// that stays so.
///
/// # Errors
/// If it is no configuration of a plugin, or has no name.
pub fn wrap(text: &str, entry: &str) -> Result<String, TextError> {
    let keys = keys(text)?;
    let raw = |key: &str| keys.get(key).map(|value| value.get()).filter(|value| value.starts_with('"'));
    let name = raw("name").ok_or(TextError::NoName)?;
    let version = raw("cniVersion").map(|raw| format!("  \"cniVersion\": {raw},\n")).unwrap_or_default();
    let plugin = text.trim_matches([' ', '\t', '\r', '\n']);
    Ok(format!(
        "{{\n  \"name\": {name},\n{version}  \"loadOnlyInlinedPlugins\": true,\n  \"{}\": \"{}\",\n  \"plugins\": [\n{plugin},\n    {entry}\n  ]\n}}\n",
        MARK.0, MARK.1
    ))
}

fn append(text: &str, entry: &str) -> Result<String, TextError> {
    let entries = entries(text)?;
    let last = entries.last().ok_or(TextError::NoPlugins)?;
    let before = text.get(..last.span.start).unwrap_or_default();
    let space = before.trim_end_matches([' ', '\t', '\r', '\n']).len();
    // As far in as the plugin before.
    let indent = before.get(space..).unwrap_or_default();
    let end = last.span.end;
    Ok(replaced(text, &(end..end), &format!(",{indent}{entry}")))
}

fn entries(text: &str) -> Result<Vec<Entry>, TextError> {
    let keys = keys(text)?;
    let list = keys.get("plugins").ok_or(TextError::NoPlugins)?;
    let plugins: Vec<&RawValue> =
        serde_json::from_str(list.get()).map_err(|_no_list| TextError::NoPlugins)?;
    if plugins.is_empty() {
        return Err(TextError::NoPlugins);
    }
    let entry = |raw: &RawValue| Entry { span: span(text, raw.get()), whose: whose(raw.get()) };
    Ok(plugins.into_iter().map(entry).collect())
}

fn keys(text: &str) -> Result<Keys<'_>, TextError> {
    serde_json::from_str(text).map_err(|error| TextError::NotJson(error.to_string()))
}

fn whose(plugin: &str) -> Whose {
    let Ok(value) = serde_json::from_str::<Value>(plugin) else { return Whose::Others };
    let is = |key: &str, text: &str| value.get(key).and_then(Value::as_str) == Some(text);
    match (is("type", VEER), is(MARK.0, MARK.1)) {
        (true, true) => Whose::Ours,
        (true, false) => Whose::Operators,
        (false, _) => Whose::Others,
    }
}

fn places(entries: &[Entry], whose: Whose) -> Vec<usize> {
    let of = entries.iter().enumerate().filter(|(_, entry)| entry.whose == whose);
    of.map(|(place, _)| place).collect()
}

/// Where `part`, which is borrowed from `text`, stands in it.
fn span(text: &str, part: &str) -> Range<usize> {
    let start = part.as_ptr().addr().saturating_sub(text.as_ptr().addr());
    start..start.saturating_add(part.len())
}

fn slice<'a>(text: &'a str, span: &Range<usize>) -> &'a str {
    text.get(span.clone()).unwrap_or_default()
}

fn same(one: &str, other: &str) -> bool {
    let value = |text| serde_json::from_str::<Value>(text).ok();
    value(one) == value(other)
}

fn replaced(text: &str, span: &Range<usize>, by: &str) -> String {
    let (before, after) = (text.get(..span.start), text.get(span.end..));
    [before.unwrap_or_default(), by, after.unwrap_or_default()].concat()
}

#[cfg(test)]
mod tests;
