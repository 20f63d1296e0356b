//! The objects: into the kernel, onto their hooks, and pinned there.
//!
//! Owns: the node's object and its programs. How they take the place of others is `replace`; the pods' own are
//! `instance`'s.
//! Never does: leave a moment without a program. A link that exists is updated in place; a new one is
//! attached before an old one goes.

use std::collections::HashMap;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::LazyLock;

use aya::programs::Program;
use aya::{Ebpf, EbpfLoader, include_bytes_aligned};
use nix::errno::Errno;
use veer_common::maps::{NetnsCookie, name};

use super::BpfError;
use super::cookie::{self, COOKIE_PROGRAM, CookieProgram};
use super::held::{self, Held};
pub use super::instance::{Instance, Reads};
use super::instance::{Instances, NETNS_OBJECT, NETNS_PROGRAM};
use super::maps::Maps;
use super::pins::{Pins, unpin};
use super::replace::{self, Target};
use super::restore;
use super::sys::{self, AttachType};
use crate::platform::netns::{self, NetnsError, NetnsThread};

pub(super) static NODE_OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/veer-node"));

/// The program that those of the pods' jump to.
pub(super) const INBOUND_PROGRAM: &str = "veer_inbound";

/// The programs of the cgroup, in the order in which they are attached: identity and hand-off are there
/// before anything is redirected.
pub const CGROUP_PROGRAMS: [(&str, AttachType); 14] = [
    ("veer_sock_new", AttachType::SockCreate),
    ("veer_setsockopt", AttachType::SetSockOpt),
    ("veer_bind4", AttachType::Bind4),
    ("veer_bind6", AttachType::Bind6),
    ("veer_sockops", AttachType::SockOps),
    ("veer_getsockopt", AttachType::GetSockOpt),
    ("veer_peername4", AttachType::GetPeerName4),
    ("veer_peername6", AttachType::GetPeerName6),
    ("veer_recvmsg4", AttachType::UdpRecvMsg4),
    ("veer_recvmsg6", AttachType::UdpRecvMsg6),
    ("veer_sendmsg4", AttachType::UdpSendMsg4),
    ("veer_sendmsg6", AttachType::UdpSendMsg6),
    ("veer_connect4", AttachType::Connect4),
    ("veer_connect6", AttachType::Connect6),
];

pub(super) const SHARED_MAPS: [&str; 20] = [
    name::PODS,
    name::ENROLMENTS,
    name::COUNTERS,
    name::PORTS,
    name::RANGES,
    name::OWN_ADDRESSES,
    name::LISTENERS,
    name::HAND_OFFS,
    name::PROXIES,
    name::BEFORE_PROXY,
    name::NODE_ADDRESSES,
    name::SOCKETS,
    name::DATAGRAMS,
    name::INBOUND,
    name::ARRIVAL,
    name::INTERFACES,
    name::INTERFACE_NAMES,
    name::ROUTES,
    name::SETTINGS,
    name::EVENTS,
];

/// The node's datapath, loaded and attached.
pub struct Datapath {
    pins: Pins,
    /// The maps that all programs share.
    pub maps: Maps,
    instances: Instances,
    /// Where the kernel does not tell a netns' cookie by itself.
    cookies: Option<CookieProgram>,
    /// Once it was tried, see [`Self::tells_interfaces`].
    tells_interfaces: Option<bool>,
    origin: Origin,
    /// Whether each pod that was taken over has this build's program.
    is_whole: bool,
    held: Held,
    /// The links of the pods' namespaces, which would be gone with their pins else.
    links: HashMap<NetnsCookie, OwnedFd>,
}

/// Where the programs are from that an agent finds attached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// This build: they are left as they are.
    Same,
    /// Another build, or this one without all being in its place; replaced. 0: its replacing was interrupted.
    Other(u64),
    /// There were none.
    Nobody,
}

/// Tells the embedded programs from those of other builds.
///
/// Another compiler may hash otherwise; then its programs are taken for another build's, and replaced by their like.
pub fn build_id() -> u64 {
    static ID: LazyLock<u64> = LazyLock::new(|| {
        let mut hasher = DefaultHasher::new();
        (NODE_OBJECT, NETNS_OBJECT).hash(&mut hasher);
        // 0 is no build.
        hasher.finish().max(1)
    });
    *ID
}

/// A build as it is shown.
pub fn build_text(build: u64) -> String {
    format!("{build:016x}")
}

impl fmt::Debug for Datapath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Datapath").field("pins", &self.pins).finish_non_exhaustive()
    }
}

impl Datapath {
    /// Takes over what this build has attached before, or loads the node's programs and attaches them in place
    /// of another build's. Pods have their own part, so it is done with [`taken_over`](Self::taken_over).
    ///
    /// # Errors
    /// Whatever the kernel refuses; what was attached before stays attached, all of it.
    pub fn start(pins: Pins, cgroup: BorrowedFd<'_>, cgroup_id: u64) -> Result<Self, BpfError> {
        pins.create()?;
        for name in restore::lost_maps(&pins)? {
            tracing::warn!("the pin of map {name} was gone, and is back: a program had it");
        }
        let target = Target { cgroup, id: cgroup_id };
        let build = build_id();
        let (maps, origin) = match replace::found(&pins, build, &target)? {
            Some(maps) => (maps, Origin::Same),
            None => replace::node_programs(&pins, &target)?,
        };
        let instances = Instances::new(&pins)?;
        let cookies =
            if cookie::kernel_tells() { None } else { Some(cookie_program(&mut node_object(&pins)?)?) };
        let held = Held::open(&pins, cgroup, cgroup_id)?;
        Ok(Self {
            pins,
            maps,
            instances,
            cookies,
            origin,
            is_whole: true,
            held,
            links: HashMap::new(),
            tells_interfaces: None,
        })
    }

    /// Where the programs are from that were attached when this agent came.
    pub fn origin(&self) -> Origin {
        self.origin
    }

    /// Says that every pod has been taken over. If that is so, the next agent of this build need not do it again.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn taken_over(&mut self) -> Result<(), BpfError> {
        if self.origin != Origin::Same && self.is_whole {
            self.maps.set_build(build_id())?;
        }
        Ok(())
    }

    /// The cookie of a netns.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn cookie_of(&self, thread: &NetnsThread, netns: BorrowedFd<'_>) -> io::Result<NetnsCookie> {
        match &self.cookies {
            None => thread.run(netns, netns::current_cookie).map_err(NetnsError::into_io)?,
            Some(program) => program.read(thread, netns, |socket| self.maps.socket_record(socket)),
        }
    }

    /// Brings back what is not pinned, or not attached to the cgroup, any more; says what that was.
    ///
    /// # Errors
    /// What cannot be brought back.
    pub fn heal(&mut self) -> Result<Vec<String>, BpfError> {
        self.held.heal(&self.pins)
    }

    /// Where everything is pinned.
    pub fn pins(&self) -> &Pins {
        &self.pins
    }

    /// Gives a netns its instance of the inbound program, in place of an earlier one.
    ///
    /// # Errors
    /// Whatever the kernel refuses; an instance that was there stays.
    pub fn attach_netns(&mut self, instance: Instance, netns: BorrowedFd<'_>) -> Result<(), BpfError> {
        let cookie = instance.cookie;
        let program = self.instances.load(instance)?;
        let pin = self.pins.netns(cookie);
        let before = self.links.remove(&cookie).or_else(|| sys::get(&pin).ok());
        if let Some(link) = before
            && sys::link_update(link.as_fd(), program.as_fd()).is_ok()
        {
            if !held::is_there(&pin) {
                self.pins.replace(&pin, link.as_fd())?;
            }
            self.links.insert(cookie, link);
            return Ok(());
        }
        let target = || format!("the netns with cookie {cookie}");
        let link = sys::link_create(program.as_fd(), netns, AttachType::SkLookup)
            .map_err(|source| BpfError::Attach { program: NETNS_PROGRAM, target: target(), source })?;
        self.pins.replace(&pin, link.as_fd())?;
        self.links.insert(cookie, link);
        Ok(())
    }

    /// Replaces the program of a netns that has a link already; false when the netns is gone.
    ///
    /// # Errors
    /// Whatever the kernel refuses.
    pub fn refresh_netns(&mut self, instance: Instance) -> Result<bool, BpfError> {
        let cookie = instance.cookie;
        let path = self.pins.netns(cookie);
        let pin_error = |attempt, source| BpfError::Pin { attempt, path: path.clone(), source };
        let link = sys::get(&path).map_err(|source| pin_error("open", source))?;
        if sys::link_target(link.as_fd()).map_err(|source| pin_error("ask", source))?.object == 0 {
            return Ok(false);
        }
        if self.origin == Origin::Same {
            self.links.insert(cookie, link);
            return Ok(true);
        }
        // Whatever goes wrong from here on, another agent is to try it again.
        let was_whole = std::mem::replace(&mut self.is_whole, false);
        let program = self.instances.load(instance)?;
        let outcome = match sys::link_update(link.as_fd(), program.as_fd()) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(Errno::ENOLINK as i32) => Ok(false),
            Err(source) => Err(pin_error("update", source)),
        };
        self.is_whole = was_whole && outcome.is_ok();
        if matches!(outcome, Ok(true)) {
            self.links.insert(cookie, link);
        }
        outcome
    }

    /// Takes the inbound program off a netns; one that is gone is fine.
    ///
    /// # Errors
    /// As the file system says.
    pub fn detach_netns(&mut self, cookie: NetnsCookie) -> Result<(), BpfError> {
        self.links.remove(&cookie);
        unpin(&self.pins.netns(cookie))
    }

    /// The inode of the netns that a pod's link hangs on; `None` without a link, 0 once the netns is gone.
    pub fn netns_of_link(&self, cookie: NetnsCookie) -> Option<u64> {
        let target = |link: BorrowedFd<'_>| Some(sys::link_target(link).ok()?.object);
        match self.links.get(&cookie) {
            Some(link) => target(link.as_fd()),
            None => target(sys::get(&self.pins.netns(cookie)).ok()?.as_fd()),
        }
    }

    /// Whether the link of a netns outlives the agent.
    pub fn is_pinned(&self, cookie: NetnsCookie) -> bool {
        held::is_there(&self.pins.netns(cookie))
    }

    /// Whether this kernel tells an sk_lookup program the interface of what arrives. It is tried out until there is an
    /// answer: what the kernel refuses of every program, as without memory, is none.
    pub fn tells_interfaces(&mut self) -> bool {
        if let Some(known) = self.tells_interfaces {
            return known;
        }
        let mut instance = |reads_interface| self.instances.load(Instance { cookie: 0, reads_interface });
        let refused = match instance(Reads::Yes) {
            Ok(_) => None,
            Err(BpfError::NoIngressInterface { source }) if instance(Reads::No).is_ok() => Some(source),
            Err(_) => return true,
        };
        if let Some(error) = &refused {
            tracing::warn!(%error, "this kernel tells no program the interface of what arrives (5.17 does): pods that exclude interfaces are redirected by nftables");
        }
        *self.tells_interfaces.insert(refused.is_none())
    }
}

/// The node's object, its maps those that are pinned.
pub(super) fn node_object(pins: &Pins) -> Result<Ebpf, BpfError> {
    loader(pins).load(NODE_OBJECT).map_err(|source| BpfError::Object { object: "node", source })
}

pub(super) fn loader(pins: &Pins) -> EbpfLoader<'static> {
    let mut loader = EbpfLoader::new();
    // Our programs have no CO-RE relocations, and the kernel's own types take 20 MB once parsed.
    loader.btf(None);
    for name in SHARED_MAPS {
        loader.map_pin_path(name, pins.map(name));
    }
    loader
}

pub(super) fn cookie_program(ebpf: &mut Ebpf) -> Result<CookieProgram, BpfError> {
    let program = load_program(ebpf, COOKIE_PROGRAM)?;
    CookieProgram::new(program).map_err(|source| BpfError::Attach {
        program: COOKIE_PROGRAM,
        target: "the root of cgroup v2".to_owned(),
        source,
    })
}

/// Loads one program and keeps nothing but its descriptor.
pub(super) fn load_program(ebpf: &mut Ebpf, name: &'static str) -> Result<OwnedFd, BpfError> {
    let program = ebpf.program_mut(name).ok_or(BpfError::Incomplete { what: name })?;
    let refused = |source| BpfError::Program { program: name.to_owned(), source };
    #[expect(clippy::wildcard_enum_match_arm, reason = "the kinds of program that we have none of")]
    match program {
        Program::CgroupSock(program) => program.load(),
        Program::CgroupSockAddr(program) => program.load(),
        Program::CgroupSockopt(program) => program.load(),
        Program::SockOps(program) => program.load(),
        Program::SkLookup(program) => program.load(),
        _ => return Err(BpfError::Incomplete { what: name }),
    }
    .map_err(refused)?;
    let fd = ebpf.program(name).ok_or(BpfError::Incomplete { what: name })?.fd().map_err(refused)?;
    fd.as_fd().try_clone_to_owned().map_err(|source| BpfError::Attach {
        program: name,
        target: "a descriptor".to_owned(),
        source,
    })
}
