//! From what is there to what shall be there, by steps of which each is whole.

use super::Directory;
use crate::conflist::text::{self, Present};

/// A step. A file system does each of them as a whole, or not at all.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// A file gets this content: written beside it, and renamed.
    Write {
        /// The file.
        path: String,
        /// Its content.
        bytes: Vec<u8>,
        /// The file that it has mode and owner from, if there is one.
        like: Option<String>,
    },
    /// A file gets another name; one that has it is replaced.
    Move {
        /// The name that it has.
        from: String,
        /// The name that it gets.
        to: String,
    },
    /// A file goes.
    Remove {
        /// The file.
        path: String,
    },
}

impl Step {
    /// The file that is another one then.
    pub fn path(&self) -> &str {
        match self {
            Self::Write { path, .. } | Self::Remove { path } => path,
            Self::Move { to, .. } => to,
        }
    }
}

/// The steps: first what puts us in, then what takes us out, then names, and last what goes. So there is no moment
/// without us between two states that have us, and none without a configuration.
pub(super) fn between(before: &Directory, after: &Directory) -> Vec<Step> {
    let (mut entering, mut leaving, mut moves, mut removals) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut moved = Vec::new();
    for (path, file) in &after.files {
        if before.files.get(path) == Some(file) {
            continue;
        }
        // What is put aside, or comes back, is the same file under another name.
        let from = before.files.iter().find(|(from, same)| {
            !after.files.contains_key(*from) && *same == file && is_aside_of(path, from)
        });
        if let Some((from, _)) = from {
            moved.push(from.clone());
            moves.push(Step::Move { from: from.clone(), to: path.clone() });
            continue;
        }
        let Ok(bytes) = &file.content else { continue };
        let like =
            if before.files.contains_key(path) { Some(path.clone()) } else { like(before, after, path) };
        let has_us =
            str::from_utf8(bytes).is_ok_and(|text| text::present(text) != Present::No || text::is_ours(text));
        let step = Step::Write { path: path.clone(), bytes: bytes.clone(), like };
        if has_us { entering.push(step) } else { leaving.push(step) }
    }
    let gone = before.files.keys().filter(|path| !after.files.contains_key(*path) && !moved.contains(path));
    removals.extend(gone.map(|path| Step::Remove { path: path.clone() }));
    [entering, leaving, moves, removals].concat()
}

fn is_aside_of(one: &str, other: &str) -> bool {
    let aside = |name: &str, of: &str| name.strip_suffix(super::ASIDE) == Some(of);
    aside(one, other) || aside(other, one)
}

/// The vendor's file that a new file of ours stands for.
fn like(before: &Directory, after: &Directory, path: &str) -> Option<String> {
    let wrapped = before.files.keys().find(|name| {
        let original = name.strip_suffix(super::ASIDE).unwrap_or(name);
        original != path && !original.ends_with(".conflist") && super::list_beside(original) == path
    });
    let primary = || after.candidates().find(|name| *name != path).map(str::to_owned);
    wrapped.cloned().or_else(primary)
}
