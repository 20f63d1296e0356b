//! Whether this kernel takes the datapath: everything is loaded and attached as the agent would, beside the pods.
//!
//! Owns: maps, programs and links of its own for the time of the trial, and a cgroup without processes. Never
//! does: pin, or touch what an agent has attached; the descriptors are closed, and all of it is gone.
//! Called by: `probe`.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use aya::maps::{MapType, SkStorage};
use aya::{Ebpf, EbpfLoader};
use veer_common::maps::{SocketRecord, name};

use super::cookie::{self, COOKIE_PROGRAM};
use super::instance::{NETNS_OBJECT, NETNS_PROGRAM, READS_INTERFACE};
use super::load::{CGROUP_PROGRAMS, INBOUND_PROGRAM, NODE_OBJECT, cookie_program, load_program};
use super::sys::{self, AttachType};
use super::{BpfError, chain};
use crate::doctor::facts::{CookieFrom, Ebpf as Facts, Tried};
use crate::platform::netns::{self, NetnsError, NetnsThread};

/// The kinds of map that the objects have.
const MAP_KINDS: [(&str, MapType); 8] = [
    ("hash", MapType::Hash),
    ("array", MapType::Array),
    ("percpu_array", MapType::PerCpuArray),
    ("prog_array", MapType::ProgramArray),
    ("lpm_trie", MapType::LpmTrie),
    ("ringbuf", MapType::RingBuf),
    ("sockhash", MapType::SockHash),
    ("sk_storage", MapType::SkStorage),
];

/// What the scratch cgroup's name begins with; the process id follows.
const PREFIX: &str = "veer-doctor-";

/// Tries all of it: programs hang on a new cgroup below `cgroup` and on `netns` for a moment.
pub fn run(
    cgroup: Option<&Path>,
    thread: &Result<NetnsThread, String>,
    netns: Result<BorrowedFd<'_>, &str>,
) -> Facts {
    let mut facts = Facts::default();
    let mut node = load(NODE_OBJECT);
    facts.maps = Some(match &node {
        // Those with a dot are the sections of its constants.
        Ok(ebpf) => Ok(ebpf.maps().filter(|(name, _)| !name.starts_with('.')).count()),
        Err(error) => Err(chain(error)),
    });
    let inside = thread.as_ref().map_err(String::as_str).and_then(|thread| Ok((thread, netns?)));
    facts.netns_cookie = Some(match inside {
        Ok((thread, netns)) => cookie(node.as_mut().ok(), thread, netns),
        Err(words) => Err(words.to_owned()),
    });
    let Ok(node) = &mut node else {
        facts.map_kinds = MAP_KINDS.into_iter().map(kind).collect();
        return facts;
    };
    let programs: Vec<_> =
        CGROUP_PROGRAMS.into_iter().map(|(name, hook)| (name, hook, load_program(node, name))).collect();
    let inbound = load_program(node, INBOUND_PROGRAM);
    let instance = instance(&mut loader());
    if instance.is_ok() {
        let reads = instance_that_reads_the_interface();
        facts.arrival_interface = Some(tried(NETNS_PROGRAM, &reads).outcome);
    }

    facts.programs = programs.iter().map(|(name, _, loaded)| tried(name, loaded)).collect();
    facts.programs.push(tried(INBOUND_PROGRAM, &inbound));
    facts.programs.push(tried(NETNS_PROGRAM, &instance));
    let loaded = programs.iter().filter_map(|(_, hook, loaded)| Some((*hook, loaded.as_ref().ok()?)));
    facts.hooks = on_cgroup(cgroup, &loaded.collect::<Vec<_>>());
    if let Ok(instance) = &instance {
        let attached = netns.map_err(str::to_owned).and_then(|netns| {
            attach(instance, netns, AttachType::SkLookup).map_err(|error| error.to_string())
        });
        facts.hooks.push(Tried { name: AttachType::SkLookup.name().to_owned(), outcome: attached });
    }
    facts
}

/// Whether a netns' cookie can be learnt, and from whom.
fn cookie(
    node: Option<&mut Ebpf>,
    thread: &NetnsThread,
    netns: BorrowedFd<'_>,
) -> Result<CookieFrom, String> {
    let told = thread.run(netns, netns::current_cookie).map_err(NetnsError::into_io).flatten();
    match (told, node) {
        (Ok(_), _) => Ok(CookieFrom::Kernel),
        (Err(error), Some(node)) if cookie::is_unknown(&error) => {
            let program = cookie_program(node).map_err(|error| words(COOKIE_PROGRAM, &error))?;
            let sockets = node.map(name::SOCKETS).ok_or("the object has no map of sockets")?;
            let sockets: SkStorage<_, SocketRecord> =
                SkStorage::try_from(sockets).map_err(|error| chain(&error))?;
            let record = |socket: BorrowedFd<'_>| sockets.get(&socket.as_raw_fd(), 0).ok();
            program.read(thread, netns, record).map_err(|error| error.to_string())?;
            Ok(CookieFrom::Program)
        }
        (Err(error), _) => Err(error.to_string()),
    }
}

/// Loads an object with maps of its own.
fn load(object: &[u8]) -> Result<Ebpf, aya::EbpfError> {
    loader().load(object)
}

fn loader() -> EbpfLoader<'static> {
    let mut loader = EbpfLoader::new();
    loader.btf(None);
    loader
}

/// A pod's own program.
fn instance(loader: &mut EbpfLoader<'static>) -> Result<OwnedFd, BpfError> {
    let mut ebpf =
        loader.load(NETNS_OBJECT).map_err(|source| BpfError::Object { object: "netns", source })?;
    load_program(&mut ebpf, NETNS_PROGRAM)
}

/// That of a pod that excludes interfaces.
fn instance_that_reads_the_interface() -> Result<OwnedFd, BpfError> {
    static YES: u32 = 1;
    let mut loader = loader();
    loader.override_global(READS_INTERFACE, &YES, true);
    instance(&mut loader)
}

fn kind((name, kind): (&str, MapType)) -> Tried {
    let outcome = match aya::sys::is_map_supported(kind) {
        Ok(true) => Ok(()),
        Ok(false) => Err("the kernel does not know it".to_owned()),
        // Whether it knows it was not the question that it answered.
        Err(_refused) => Ok(()),
    };
    Tried { name: name.to_owned(), outcome }
}

fn tried<T>(name: &str, result: &Result<T, BpfError>) -> Tried {
    let outcome = result.as_ref().map(drop).map_err(|error| words(name, error));
    Tried { name: name.to_owned(), outcome }
}

/// The kernel's words, without the name of the program, which the finding has.
fn words(name: &str, error: &BpfError) -> String {
    let text = error.to_string();
    text.strip_prefix(&format!("load eBPF program {name}: ")).unwrap_or(&text).to_owned()
}

fn on_cgroup(below: Option<&Path>, programs: &[(AttachType, &OwnedFd)]) -> Vec<Tried> {
    let scratch = below.map(Scratch::new);
    let one = |(hook, program): &(AttachType, &OwnedFd)| {
        let outcome = match &scratch {
            Some(Ok(scratch)) => {
                attach(program, scratch.directory.as_fd(), *hook).map_err(|error| error.to_string())
            }
            Some(Err(error)) => Err(format!("make a cgroup to try it in: {error}")),
            None => Err("there is no cgroup v2 to try it in".to_owned()),
        };
        Tried { name: hook.name().to_owned(), outcome }
    };
    programs.iter().map(one).collect()
}

/// Attaches, and lets go at once.
fn attach(program: &OwnedFd, target: BorrowedFd<'_>, hook: AttachType) -> io::Result<()> {
    sys::link_create(program.as_fd(), target, hook).map(drop)
}

/// A cgroup that no process is ever in.
struct Scratch {
    path: PathBuf,
    directory: fs::File,
}

impl Scratch {
    fn new(below: &Path) -> io::Result<Self> {
        remove_leftovers(below);
        let path = below.join(format!("{PREFIX}{}", std::process::id()));
        fs::create_dir(&path)?;
        match fs::File::open(&path) {
            Ok(directory) => Ok(Self { path, directory }),
            Err(error) => {
                fs::remove_dir(&path)?;
                Err(error)
            }
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.path) {
            tracing::warn!(cgroup = %self.path.display(), %error, "remove the cgroup of the trial");
        }
    }
}

/// What one that was killed has left. No process is in it, so its removal cannot hurt, nor one of a process id
/// that another pid namespace has.
fn remove_leftovers(below: &Path) {
    let Ok(entries) = fs::read_dir(below) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists()) {
            // The next one tries again.
            drop(fs::remove_dir(entry.path()));
        }
    }
}
