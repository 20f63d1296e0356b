//! A CNI directory as bytes, and what it is without us.

use std::collections::BTreeMap;
use std::fmt;

use super::{ASIDE, DROPIN, Note, OWNED, Step, list_beside};
use crate::conflist::text::{self, Present};
use crate::conflist::{ENDINGS, MOVED_BY_CILIUM, Network, VEER, parse};

/// The files that matter, by their paths below the directory: those that end as runtimes want it, what Cilium has moved,
/// what we have put aside, and `.conf` files one directory below.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Directory {
    /// The files.
    pub files: BTreeMap<String, File>,
}

/// A file.
#[derive(Clone, PartialEq, Eq)]
pub struct File {
    /// What is in it; or why that cannot be told.
    pub content: Result<Vec<u8>, String>,
    /// Whether its name is a symbolic link.
    pub is_link: bool,
}

impl fmt::Debug for File {
    /// As text, which it is.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let content = self.content.as_ref().map(|bytes| String::from_utf8_lossy(bytes));
        f.debug_struct("File").field("content", &content).field("is_link", &self.is_link).finish()
    }
}

impl File {
    /// A regular file.
    pub const fn new(bytes: Vec<u8>) -> Self {
        Self { content: Ok(bytes), is_link: false }
    }

    fn text(&self) -> Option<&str> {
        str::from_utf8(self.content.as_deref().ok()?).ok()
    }
}

impl Directory {
    /// Whether a file with this path below the directory is read.
    pub fn reads(path: &str) -> bool {
        let ends = |endings: &[&str]| endings.iter().any(|ending| path.ends_with(ending));
        match path.split_once('/') {
            Some((_, below)) => !below.contains('/') && ends(&[".conf"]),
            None => ends(&ENDINGS) || ends(&[MOVED_BY_CILIUM, ASIDE]),
        }
    }

    /// The names that a runtime looks at, in its order.
    pub fn candidates(&self) -> impl Iterator<Item = &str> {
        let counts = |name: &&str| !name.contains('/') && ENDINGS.iter().any(|ending| name.ends_with(ending));
        self.files.keys().map(String::as_str).filter(counts)
    }

    /// What a file says; `None` if it is not there.
    pub fn network(&self, name: &str) -> Option<Result<Network, String>> {
        let file = self.files.get(name)?;
        let read = |bytes: &Vec<u8>| {
            let text = str::from_utf8(bytes).map_err(|_not_text| "is no UTF-8".to_owned())?;
            if text.trim().is_empty() {
                return Err("is empty".to_owned());
            }
            parse(name, text)
        };
        Some(file.content.as_ref().map_err(Clone::clone).and_then(read))
    }

    /// What stands in a file, if that is text.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.files.get(name)?.text()
    }

    /// The files beside the lists of a network.
    pub(super) fn dropins(&self, network: &str) -> impl Iterator<Item = (&str, &str)> {
        let of = move |path: &str| path.split_once('/').is_some_and(|(directory, _)| directory == network);
        self.files
            .iter()
            .filter(move |(path, _)| of(path))
            .filter_map(|(path, file)| Some((path.as_str(), file.text()?)))
    }

    /// Whether a list does nothing but bring up `lo`: it has nothing beside it that the runtime reads, either.
    pub(super) fn is_only_loopback(&self, network: &Network, reads_dropins: bool) -> bool {
        let reads = reads_dropins && network.is_list && !network.only_inlined;
        let name = network.name.as_deref().unwrap_or_default();
        let is_ours = |text: &str| text.contains(&format!("\"{VEER}\""));
        let mut beside = self.dropins(name).filter(|(_, text)| reads && !is_ours(text));
        network.plugins == ["loopback"] && beside.next().is_none()
    }

    pub(super) fn write(&mut self, name: &str, text: String) {
        self.files.insert(name.to_owned(), File::new(text.into_bytes()));
    }

    /// What it would be if we had never been here.
    #[must_use]
    pub fn cleaned(&self) -> Self {
        let mut clean = Self::default();
        let is_ours = |name: &str, file: &File| is_ours(name, file) || self.is_wrap(name, file);
        for (name, file) in self.files.iter().filter(|(name, file)| !is_ours(name, file)) {
            let vendors = name.strip_suffix(MOVED_BY_CILIUM).unwrap_or(name);
            let without = file.text().filter(|_text| vendors.ends_with(".conflist"));
            let without = without.and_then(|text| text::without(text).ok().flatten());
            let file = without
                .map_or_else(|| file.clone(), |text| File { content: Ok(text.into_bytes()), ..file.clone() });
            clean.files.insert(name.clone(), file);
        }
        for (aside, original) in &self.files {
            let Some(name) = aside.strip_suffix(ASIDE) else { continue };
            let list = list_beside(name);
            let is_wrapped = self.files.get(&list).is_some_and(|file| self.is_wrap(&list, file));
            if clean.files.contains_key(name) {
                // Its vendor has written it anew.
                clean.files.remove(aside);
            } else if is_wrapped || !clean.files.contains_key(&list) {
                clean.files.remove(aside);
                clean.files.insert(name.to_owned(), original.clone());
            }
            // Else somebody has put a list of his own in the place of ours. What we have put aside is not thrown away.
        }
        clean
    }

    /// Whether a list stands for one plugin, of which there is the file, in its place or put aside.
    fn is_wrap(&self, name: &str, file: &File) -> bool {
        let Some(stem) = name.strip_suffix(".conflist") else { return false };
        let originals = [".conf", ".json"].map(|ending| format!("{stem}{ending}"));
        let is_there = |original: &String| {
            self.files.contains_key(original) || self.files.contains_key(&format!("{original}{ASIDE}"))
        };
        file.text().is_some_and(text::is_wrap) && originals.iter().any(is_there)
    }

    /// The files that name our plugin, wherever in them.
    pub fn mentions(&self) -> Vec<&str> {
        let quoted = format!("\"{VEER}\"");
        let names = |file: &File| file.text().is_some_and(|text| text.contains(&quoted));
        self.files.iter().filter(|(_, file)| names(file)).map(|(name, _)| name.as_str()).collect()
    }

    /// What whoever reads of the installation should know.
    pub(super) fn notes(&self, file: &str, primary: &str) -> Vec<Note> {
        let mut notes = Vec::new();
        if self.text(file).is_some_and(|text| text::present(text) == Present::Operators) {
            notes.push(Note::Operators { file: file.to_owned() });
        }
        if primary.starts_with("05-cilium.conf") {
            notes.push(Note::Cilium);
        }
        let left = self.files.keys().filter(|name| name.ends_with(ASIDE) && !file.ends_with(".conflist"));
        notes.extend(left.map(|name| Note::LeftAside { file: name.clone() }));
        notes
    }

    /// Takes a step as a file system does.
    pub fn take(&mut self, step: &Step) {
        match step {
            Step::Write { path, bytes, .. } => {
                self.files.insert(path.clone(), File::new(bytes.clone()));
            }
            Step::Move { from, to } => {
                if let Some(file) = self.files.remove(from) {
                    self.files.insert(to.clone(), file);
                }
            }
            Step::Remove { path } => {
                self.files.remove(path);
            }
        }
    }
}

/// Whether a file is ours as a whole.
fn is_ours(name: &str, file: &File) -> bool {
    let vendors = name.strip_suffix(MOVED_BY_CILIUM).unwrap_or(name);
    if vendors == OWNED {
        return file.text().is_some_and(|text| text::present(text) == Present::Ours);
    }
    let is_dropin = name.split_once('/').is_some_and(|(_, file)| file == DROPIN);
    is_dropin && file.text().is_some_and(text::is_ours)
}
