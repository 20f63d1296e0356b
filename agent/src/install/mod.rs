//! What has to change in a runtime's CNI configuration so that veer is called for each pod, and how all of it goes
//! away again. Pure: bytes of files in, steps out.
//!
//! Owns: which file is changed, in which way, and in which order. Never does: open a file; the installer
//! reads the directory and takes the steps. Called by: `installer`.
//!
//! A plan is made from what the vendors wrote: everything of ours is taken out of a copy of the directory first
//! ([`Directory::cleaned`]), the wanted state is made from that, and the steps are the difference. So a plan for a
//! directory in which nothing is to be done is empty, a change of the mode undoes the one before, and taking all away is
//! the plan for nothing. Each step is one that a file system does as a whole, and after each of them the runtime finds
//! a configuration that works, with veer in it if it was there before and shall be there afterwards.

mod directory;
mod entry;
mod error;
mod meta;
mod placed;
mod steps;

pub use directory::{Directory, File};
pub use entry::Entry;
pub use error::PlanError;
pub use placed::{Note, Placed};
pub use steps::Step;

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::conflist::text::{self, Present};
use crate::conflist::{MOVED_BY_CILIUM, Network, VEER, vendor};

/// The file of mode `owned`. It sorts before `00-multus.conf`, which is Tencent's first.
pub const OWNED: &str = "00-00-veer.conflist";
/// Our file in the directory that libcni reads beside a list.
pub const DROPIN: &str = "90-veer.conf";
/// Put behind the name of a file that a list has taken the place of.
pub const ASIDE: &str = ".veer-original";
/// Versions of the specification that the plugin speaks.
const SPOKEN: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// Where our entry goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Into the list of the primary network; one plugin becomes a list, and its file is put aside.
    Chained,
    /// Into a copy of the primary network's file that sorts before it, and follows it.
    Owned,
    /// Into the list that Multus delegates to.
    Multus,
    /// Into a file of its own in a directory beside the list, which libcni 1.3 and newer read.
    Dropin,
}

impl Mode {
    /// As flags and outputs name it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Chained => "chained",
            Self::Owned => "owned",
            Self::Multus => "multus",
            Self::Dropin => "dropin",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What is wanted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Wish {
    /// The mode; `None` chooses by what is there.
    pub mode: Option<Mode>,
    /// Our entry.
    pub entry: Entry,
    /// The file of the primary network; `None` takes the one that the runtime uses.
    pub primary: Option<String>,
    /// Whether the runtime is known to read the directory beside a list.
    pub reads_dropins: bool,
    /// Whether a first file that is broken is passed over, as CRI-O does; it may be in the middle of being written.
    pub passes_broken: bool,
}

/// What is to be done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plan {
    /// In this order.
    pub steps: Vec<Step>,
    /// What will be so then.
    pub placed: Placed,
}

/// What has to be done so that the wish comes true.
///
/// # Errors
/// Why it cannot, or not yet.
pub fn plan(directory: &Directory, wish: &Wish) -> Result<Plan, PlanError> {
    let clean = directory.cleaned();
    let mut notes = Vec::new();
    let primary = primary(&clean, wish, &mut notes)?;
    let network = primary.network;
    let name = network.name.clone().ok_or_else(|| PlanError::Unnamed { file: primary.file.clone() })?;
    speaks(&primary.file, &network)?;
    let mode = mode(&clean, &primary.file, &network, wish)?;
    let mut after = clean.clone();
    let entry = wish.entry.to_json();
    let file = match mode {
        Mode::Chained => chain(directory, &mut after, &primary.file, &network, &entry)?,
        Mode::Owned => own(&mut after, &primary.file, &network, &entry)?,
        Mode::Multus => meta::patch(directory, &mut after, &primary.file, &network, &entry, &mut notes)?,
        Mode::Dropin => drop_in(&mut after, &primary.file, &network, &name, &entry)?,
    };
    if mode == Mode::Dropin && !wish.reads_dropins {
        notes.push(Note::DropinsUnknown);
    }
    let who = vendor(&network);
    notes.extend(after.notes(&file, &primary.file));
    let mut placed =
        Placed { mode, file, primary: primary.file, network: name, vendor: who.map(str::to_owned), notes };
    placed.is_first(&after, wish)?;
    Ok(Plan { steps: steps::between(directory, &after), placed })
}

/// What has to be done so that nothing of ours is left.
pub fn removal(directory: &Directory) -> Vec<Step> {
    steps::between(directory, &directory.cleaned())
}

/// The file that is chained to.
struct Primary {
    file: String,
    network: Network,
}

/// The one that the runtime uses; one that does nothing but bring up `lo` is no network.
fn primary(clean: &Directory, wish: &Wish, notes: &mut Vec<Note>) -> Result<Primary, PlanError> {
    if let Some(name) = &wish.primary {
        let network = clean.network(name).ok_or_else(|| PlanError::Missing { file: name.clone() })?;
        let network =
            network.map_err(|problem| PlanError::Broken { file: name.clone(), problem, next: None })?;
        return Ok(Primary { file: name.clone(), network });
    }
    let mut candidates = clean.candidates().peekable();
    while let Some(name) = candidates.next() {
        match clean.network(name).unwrap_or_else(|| Err("is not there".to_owned())) {
            Ok(network) if clean.is_only_loopback(&network, wish.reads_dropins) => {}
            Ok(network) => return Ok(Primary { file: name.to_owned(), network }),
            Err(problem) if wish.passes_broken => {
                notes.push(Note::BrokenBefore { file: name.to_owned(), problem });
            }
            Err(problem) => {
                let next = candidates.peek().map(ToString::to_string);
                return Err(PlanError::Broken { file: name.to_owned(), problem, next });
            }
        }
    }
    let moved = clean.files.keys().filter(|name| name.ends_with(MOVED_BY_CILIUM)).cloned().collect();
    Err(PlanError::NoPrimary { moved })
}

/// A plugin that does not speak the network's version fails each ADD.
fn speaks(file: &str, network: &Network) -> Result<(), PlanError> {
    if network.versions.iter().any(|version| SPOKEN.contains(&version.as_str())) {
        return Ok(());
    }
    let version =
        network.versions.first().cloned().unwrap_or_else(|| "0.1.0, because it names none".to_owned());
    Err(PlanError::Version { file: file.to_owned(), version, spoken: SPOKEN.join(", ") })
}

fn mode(clean: &Directory, file: &str, network: &Network, wish: &Wish) -> Result<Mode, PlanError> {
    let is_link = clean.files.get(file).is_some_and(|file| file.is_link);
    let file = || file.to_owned();
    let Some(mode) = wish.mode else {
        return Ok(if network.is_upstream_multus() {
            Mode::Multus
        } else if !network.is_list || is_link {
            Mode::Owned
        } else if wish.reads_dropins && !network.only_inlined {
            Mode::Dropin
        } else {
            Mode::Chained
        });
    };
    match mode {
        Mode::Chained | Mode::Owned if network.is_upstream_multus() => {
            Err(PlanError::WrapsMultus { file: file(), mode })
        }
        Mode::Chained if is_link => Err(PlanError::Link { file: file() }),
        Mode::Multus if !network.is_upstream_multus() => Err(PlanError::NoMultus { file: file() }),
        Mode::Dropin if !network.is_list => Err(PlanError::NoList { file: file() }),
        Mode::Dropin if network.only_inlined => Err(PlanError::OnlyInlined { file: file() }),
        Mode::Chained | Mode::Owned | Mode::Multus | Mode::Dropin => Ok(mode),
    }
}

/// Our entry in the list, or a list in the place of the one plugin.
fn chain(
    directory: &Directory,
    after: &mut Directory,
    file: &str,
    network: &Network,
    entry: &str,
) -> Result<String, PlanError> {
    let failed = |source| PlanError::Text { file: file.to_owned(), source };
    if network.is_list {
        // As it is now and not without our entry: where it stands, it stays.
        let now = directory.text(file).or_else(|| after.text(file)).unwrap_or_default();
        let with = text::with(now, entry).map_err(failed)?;
        after.write(file, with);
        return Ok(file.to_owned());
    }
    let list = list_beside(file);
    if after.files.contains_key(&list) {
        return Err(PlanError::Collision { file: file.to_owned(), list });
    }
    let wrapped = text::wrap(after.text(file).unwrap_or_default(), entry).map_err(failed)?;
    after.write(&list, wrapped);
    if let Some(original) = after.files.remove(file) {
        after.files.insert(format!("{file}{ASIDE}"), original);
    }
    Ok(list)
}

/// A copy that sorts first.
fn own(after: &mut Directory, file: &str, network: &Network, entry: &str) -> Result<String, PlanError> {
    let original = after.text(file).unwrap_or_default();
    // The operator's entry is in there: nothing is missing.
    if text::present(original) == Present::Operators {
        return Ok(file.to_owned());
    }
    let copy = if network.is_list { text::with(original, entry) } else { text::wrap(original, entry) };
    let copy = copy.map_err(|source| PlanError::Text { file: file.to_owned(), source })?;
    after.write(OWNED, copy);
    Ok(OWNED.to_owned())
}

/// A file in the directory of the network's name.
fn drop_in(
    after: &mut Directory,
    file: &str,
    network: &Network,
    name: &str,
    entry: &str,
) -> Result<String, PlanError> {
    if network.places() > 0 {
        return Ok(file.to_owned());
    }
    if name.contains('/') || name.starts_with('.') {
        return Err(PlanError::Unnamed { file: file.to_owned() });
    }
    let operators = after.dropins(name).find(|(_, text)| {
        let plugin: Option<serde_json::Value> = serde_json::from_str(text).ok();
        plugin.is_some_and(|plugin| plugin.get("type").is_some_and(|kind| kind == VEER))
    });
    if let Some((path, _)) = operators {
        return Ok(path.to_owned());
    }
    let path = format!("{name}/{DROPIN}");
    after.write(&path, format!("{entry}\n"));
    Ok(path)
}

/// The list that takes the place of a file with one plugin.
fn list_beside(file: &str) -> String {
    let stem = [".conf", ".json"].iter().find_map(|ending| file.strip_suffix(ending)).unwrap_or(file);
    format!("{stem}.conflist")
}

#[cfg(test)]
mod tests;
