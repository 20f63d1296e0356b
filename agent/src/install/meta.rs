//! Multus: the list that it delegates to.

use super::{Directory, Note, PlanError};
use crate::conflist::{Delegate, Network, VEER, text};

/// Puts our entry into the list that Multus delegates to, and never into Multus's own: it takes the first other file as
/// its primary network, so a list that has Multus in it would make it call itself.
pub(super) fn patch(
    directory: &Directory,
    after: &mut Directory,
    multus: &str,
    network: &Network,
    entry: &str,
    notes: &mut Vec<Note>,
) -> Result<String, PlanError> {
    let delegate = network.delegates.first();
    let (wanted, copied) = match delegate {
        Some(Delegate::Named(named)) => (named.clone(), None),
        Some(Delegate::Copy { name, plugins }) => {
            (name.clone().unwrap_or_else(|| plugins.join(", ")), Some(plugins))
        }
        None => ("nothing".to_owned(), None),
    };
    let file = find(after, multus, &wanted).ok_or_else(|| {
        // Its directory would not help.
        if wanted.rsplit_once('.').is_some_and(|(_, ending)| ending == "conf") {
            PlanError::PlainDelegate { file: wanted.clone() }
        } else {
            PlanError::Elsewhere { file: multus.to_owned(), delegate: wanted.clone() }
        }
    })?;
    if !file.ends_with(".conflist") {
        return Err(PlanError::PlainDelegate { file });
    }
    let now = directory.text(&file).or_else(|| after.text(&file)).unwrap_or_default();
    let with = text::with(now, entry).map_err(|source| PlanError::Text { file: file.clone(), source })?;
    after.write(&file, with);
    if copied.is_some_and(|plugins| !plugins.iter().any(|plugin| plugin == VEER)) {
        notes.push(Note::MultusCopy { file: multus.to_owned() });
    }
    Ok(file)
}

/// The file that is meant by a path on the host, a file's name, or a network's.
fn find(directory: &Directory, multus: &str, wanted: &str) -> Option<String> {
    let last = wanted.rsplit('/').next().unwrap_or(wanted);
    let others = || directory.candidates().filter(|name| *name != multus);
    let by_file = others().find(|name| *name == last);
    let is_named = |name: &&str| {
        let network = directory.network(name).and_then(Result::ok);
        network.is_some_and(|network| network.name.as_deref() == Some(wanted))
    };
    by_file.or_else(|| others().find(is_named)).map(str::to_owned)
}
