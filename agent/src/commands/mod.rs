//! The operator's commands, one file each, and what they share.
//!
//! Owns: what is printed. Never does: change anything; `uninstall`, `install-cni` and `uninstall-cni` have that done by
//! the rooms `uninstall` and `installer`.

pub mod check;
pub mod doctor;
pub mod explain;
pub mod install_cni;
pub mod monitor;
pub mod pods;
pub mod status;
mod table;
pub mod uninstall;
pub mod view;

use std::io::{self, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde::Serialize;

use crate::cli::PlaceFlags;
use crate::config::Place;
use crate::control::Question;
use crate::platform::bpf::BpfError;
use crate::platform::bpf::maps::Maps;
use crate::platform::bpf::pins::Pins;
use crate::platform::netns::NetnsError;
use crate::platform::records::{RecordError, Records};

/// How long the agent may take to say something: it takes milliseconds, or it is stuck.
const PATIENCE: Duration = Duration::from_secs(5);

/// How a command ends when it does not succeed.
#[derive(Debug)]
pub enum Failure {
    /// Its flags or arguments are wrong.
    Usage(String),
    /// There is no agent or no datapath.
    Unavailable(String),
    /// What was looked for is not there.
    Missing(String),
    /// Somebody has to end first.
    Busy(String),
    /// Something else went wrong.
    Failed(String),
    /// Nobody reads what it prints.
    ClosedOutput,
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            Self::ClosedOutput
        } else {
            Self::Failed(error.to_string())
        }
    }
}

impl From<BpfError> for Failure {
    fn from(error: BpfError) -> Self {
        Self::Failed(error.to_string())
    }
}

impl From<RecordError> for Failure {
    fn from(error: RecordError) -> Self {
        Self::Failed(error.to_string())
    }
}

impl From<NetnsError> for Failure {
    fn from(error: NetnsError) -> Self {
        Self::Failed(error.to_string())
    }
}

fn place(flags: &PlaceFlags) -> Result<Place, Failure> {
    Place::parse(flags).map_err(|errors| Failure::Usage(errors.to_string()))
}

/// What is enrolled on this node, in either way, as it can be read without an agent.
struct Enrolments {
    /// Where the pins are, if there are any.
    pins: Pins,
    /// What is pinned.
    maps: Option<Maps>,
    /// The records of the pods that nftables redirects.
    records: Records,
}

fn enrolments(place: &Place) -> Result<Enrolments, Failure> {
    if !nix::unistd::geteuid().is_root() {
        return Err(Failure::Failed("only root can read the datapath's maps".to_owned()));
    }
    let (pins, records) = (Pins::new(&place.bpffs), Records::new(&place.records()));
    let has_maps = pins.root().exists();
    if !has_maps && !records.exist() {
        return Err(Failure::Unavailable(format!(
            "no datapath in {} and no pods of nftables in {}: no agent of this release has run here since the \
             node started; start `veer agent`, or name its directories with --bpffs and --run-dir",
            pins.root().display(),
            place.records().display()
        )));
    }
    let maps = if has_maps { Some(Maps::open(&pins)?) } else { None };
    Ok(Enrolments { pins, maps, records })
}

/// Asks the running agent, which must begin its answer within [`PATIENCE`].
fn ask(place: &Place, question: &Question) -> Result<BufReader<UnixStream>, Failure> {
    let path = place.control_socket();
    let unavailable = |error: io::Error| {
        Failure::Unavailable(format!(
            "no agent answers on {}: {error}; is `veer agent` running?",
            path.display()
        ))
    };
    let mut stream = UnixStream::connect(&path).map_err(unavailable)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut line = serde_json::to_vec(question).map_err(|error| Failure::Failed(error.to_string()))?;
    line.push(b'\n');
    // It hangs up on whoever is not root, who must not take that for the end of his own output.
    stream.write_all(&line).map_err(unavailable)?;
    Ok(BufReader::new(stream))
}

/// What it means that the answer cannot be read.
fn broken_off(error: &io::Error) -> Failure {
    let text = if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) {
        format!("the agent says nothing for {} s: it is stuck, or stopped", PATIENCE.as_secs())
    } else {
        format!("the agent broke off: {error}")
    };
    Failure::Unavailable(text)
}

fn print_json<T: Serialize>(value: &T) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, value).map_err(io::Error::from)?;
    writeln!(out)?;
    Ok(())
}
