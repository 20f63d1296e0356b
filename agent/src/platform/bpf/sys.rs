//! The few commands of bpf(2) that aya 0.14 has no way to: links that can be pinned and updated for every
//! hook (its sockopt links cannot be pinned, and sk_lookup, sockops and sockopt links not updated), and
//! a sockhash whose values are 8 bytes.
//!
//! Owns: the attribute layouts, from `union bpf_attr` in `include/uapi/linux/bpf.h`. Never does: keep state.

#![expect(unsafe_code, reason = "bpf(2) takes pointers; this is the room where they are made")]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

const MAP_LOOKUP_ELEM: libc::c_int = 1;
const MAP_UPDATE_ELEM: libc::c_int = 2;
const MAP_DELETE_ELEM: libc::c_int = 3;
const MAP_GET_NEXT_KEY: libc::c_int = 4;
const OBJ_PIN: libc::c_int = 6;
const OBJ_GET: libc::c_int = 7;
const PROG_GET_FD_BY_ID: libc::c_int = 13;
const OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const PROG_QUERY: libc::c_int = 16;
const LINK_CREATE: libc::c_int = 28;
const LINK_UPDATE: libc::c_int = 29;
const LINK_DETACH: libc::c_int = 34;

/// `BPF_F_QUERY_EFFECTIVE`.
const QUERY_EFFECTIVE: u32 = 1;

/// `BPF_NOEXIST`.
const NOEXIST: u64 = 1;

/// `enum bpf_attach_type`, as far as we attach.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum AttachType {
    /// cgroup/sock_create
    SockCreate = 2,
    /// sockops
    SockOps = 3,
    /// cgroup/bind4
    Bind4 = 8,
    /// cgroup/bind6
    Bind6 = 9,
    /// cgroup/connect4
    Connect4 = 10,
    /// cgroup/connect6
    Connect6 = 11,
    /// cgroup/sendmsg4
    UdpSendMsg4 = 14,
    /// cgroup/sendmsg6
    UdpSendMsg6 = 15,
    /// cgroup/recvmsg4
    UdpRecvMsg4 = 19,
    /// cgroup/recvmsg6
    UdpRecvMsg6 = 20,
    /// cgroup/getsockopt
    GetSockOpt = 21,
    /// cgroup/setsockopt
    SetSockOpt = 22,
    /// cgroup/getpeername4
    GetPeerName4 = 29,
    /// cgroup/getpeername6
    GetPeerName6 = 30,
    /// sk_lookup
    SkLookup = 36,
}

impl AttachType {
    /// Its name in the kernel's documentation, without `cgroup/`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::SockCreate => "sock_create",
            Self::SockOps => "sockops",
            Self::Bind4 => "bind4",
            Self::Bind6 => "bind6",
            Self::Connect4 => "connect4",
            Self::Connect6 => "connect6",
            Self::GetSockOpt => "getsockopt",
            Self::SetSockOpt => "setsockopt",
            Self::GetPeerName4 => "getpeername4",
            Self::GetPeerName6 => "getpeername6",
            Self::UdpSendMsg4 => "sendmsg4",
            Self::UdpSendMsg6 => "sendmsg6",
            Self::UdpRecvMsg4 => "recvmsg4",
            Self::UdpRecvMsg6 => "recvmsg6",
            Self::SkLookup => "sk_lookup",
        }
    }
}

/// What a link hangs on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LinkTarget {
    /// Id of the program that runs.
    pub program_id: u32,
    /// Cgroup id or netns inode; 0 once that is gone.
    pub object: u64,
}

#[repr(C)]
#[derive(Default)]
struct LinkCreate {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct LinkUpdate {
    link: u32,
    program: u32,
    flags: u32,
    old_program: u32,
}

#[repr(C)]
#[derive(Default)]
struct LinkDetach {
    link: u32,
}

#[repr(C)]
#[derive(Default)]
struct Object {
    path: u64,
    fd: u32,
    flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct ObjectInfo {
    fd: u32,
    length: u32,
    info: u64,
}

/// Whole, up to what is never asked for: some kernels (6.18) write the revision whatever length they were told.
#[repr(C)]
#[derive(Default)]
struct ProgramQuery {
    target: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    ids: u64,
    count: u32,
    _padding: u32,
    _program_flags: u64,
    _link_ids: u64,
    _link_flags: u64,
    _revision: u64,
}

const _: () = assert!(std::mem::offset_of!(ProgramQuery, _revision) == 56 && size_of::<ProgramQuery>() == 64);

#[repr(C)]
#[derive(Default)]
struct MapElement {
    map: u32,
    _padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// `struct bpf_link_info`, for cgroup and netns links.
#[repr(C)]
#[derive(Default)]
struct LinkInfo {
    kind: u32,
    id: u32,
    program_id: u32,
    _padding: u32,
    object: [u32; 2],
    attach_type: u32,
    _rest: [u32; 9],
}

/// The beginning of `struct bpf_prog_info`.
#[repr(C)]
#[derive(Default)]
struct ProgramInfo {
    kind: u32,
    id: u32,
    _tag: [u8; 8],
}

#[repr(C)]
#[derive(Default)]
struct ById {
    id: u32,
    _next: u32,
    flags: u32,
}

/// `BPF_LINK_TYPE_NETNS`: its object is an inode of 32 bits, a cgroup's an id of 64.
const LINK_TYPE_NETNS: u32 = 5;

/// Calls bpf(2) with an attribute that is one of the structures above.
fn bpf<T>(command: libc::c_int, attribute: &mut T) -> io::Result<RawFd> {
    let attribute: *mut T = attribute;
    // SAFETY: `attribute` points to a live structure of the size given, laid out as the command wants it,
    // and every pointer inside of it is live for the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attribute, size_of::<T>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // A descriptor or 0: it fits.
    #[expect(clippy::cast_possible_truncation, reason = "bpf(2) returns an int")]
    Ok(result as RawFd)
}

fn owned(fd: RawFd) -> OwnedFd {
    // SAFETY: the kernel just gave us this descriptor, and nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn number(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().unsigned_abs()
}

fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

/// Attaches a program to a cgroup or netns. The link detaches when its last descriptor and pin are gone.
///
/// # Errors
/// As the kernel says.
pub fn link_create(program: BorrowedFd<'_>, target: BorrowedFd<'_>, to: AttachType) -> io::Result<OwnedFd> {
    let mut attribute = LinkCreate {
        program: number(program),
        target: number(target),
        attach_type: to as u32,
        // For a cgroup, a link always lets others attach beside it.
        flags: 0,
    };
    bpf(LINK_CREATE, &mut attribute).map(owned)
}

/// Replaces the program of a link, without a moment between.
///
/// # Errors
/// ENOLINK once the cgroup or netns is gone.
pub fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attribute = LinkUpdate { link: number(link), program: number(program), ..LinkUpdate::default() };
    bpf(LINK_UPDATE, &mut attribute).map(drop)
}

/// Takes a link off what it hangs on, whoever holds it.
///
/// # Errors
/// EINVAL before Linux 5.9.
pub fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attribute = LinkDetach { link: number(link) };
    bpf(LINK_DETACH, &mut attribute).map(drop)
}

/// What a link hangs on now.
///
/// # Errors
/// As the kernel says.
pub fn link_target(link: BorrowedFd<'_>) -> io::Result<LinkTarget> {
    let mut info = LinkInfo::default();
    let mut attribute = ObjectInfo {
        fd: number(link),
        length: u32::try_from(size_of::<LinkInfo>()).unwrap_or(0),
        info: (&raw mut info).expose_provenance() as u64,
    };
    bpf(OBJ_GET_INFO_BY_FD, &mut attribute)?;
    let [low, high] = info.object.map(u64::from);
    let object = if info.kind == LINK_TYPE_NETNS { low } else { low | high << 32 };
    Ok(LinkTarget { program_id: info.program_id, object })
}

/// Id of a program.
///
/// # Errors
/// As the kernel says.
pub fn program_id(program: BorrowedFd<'_>) -> io::Result<u32> {
    let mut info = ProgramInfo::default();
    let mut attribute = ObjectInfo {
        fd: number(program),
        length: u32::try_from(size_of::<ProgramInfo>()).unwrap_or(0),
        info: (&raw mut info).expose_provenance() as u64,
    };
    bpf(OBJ_GET_INFO_BY_FD, &mut attribute)?;
    Ok(info.id)
}

/// The program with this id. Takes CAP_SYS_ADMIN.
///
/// # Errors
/// ENOENT when it is gone.
pub fn program_of(id: u32) -> io::Result<OwnedFd> {
    let mut attribute = ById { id, ..ById::default() };
    bpf(PROG_GET_FD_BY_ID, &mut attribute).map(owned)
}

/// Which programs of a cgroup a query asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Programs {
    /// Those that hang on the cgroup itself.
    Own,
    /// Those that run for the processes in it, its ancestors' included, in the order of their running.
    Effective,
}

/// Ids of the programs at a hook of a cgroup.
///
/// # Errors
/// As the kernel says; EINVAL for a hook that it does not have.
pub fn programs_at(cgroup: BorrowedFd<'_>, hook: AttachType, which: Programs) -> io::Result<Vec<u32>> {
    // A cgroup has 64 at the most, and so have its ancestors.
    let mut ids = vec![0_u32; 64];
    loop {
        let mut attribute = ProgramQuery {
            target: number(cgroup),
            attach_type: hook as u32,
            query_flags: if which == Programs::Effective { QUERY_EFFECTIVE } else { 0 },
            ids: ids.as_mut_ptr().expose_provenance() as u64,
            count: u32::try_from(ids.len()).unwrap_or(u32::MAX),
            ..ProgramQuery::default()
        };
        match bpf(PROG_QUERY, &mut attribute) {
            // Then it has said how many there are.
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => {
                ids.resize((attribute.count as usize).max(ids.len() * 2), 0);
            }
            outcome => {
                outcome?;
                ids.truncate(attribute.count as usize);
                return Ok(ids);
            }
        }
    }
}

/// Gives a program or link a name on a bpffs.
///
/// # Errors
/// EEXIST when there is one.
pub fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let mut attribute =
        Object { path: path.as_ptr().expose_provenance() as u64, fd: number(object), flags: 0 };
    bpf(OBJ_PIN, &mut attribute).map(drop)
}

/// Opens what was pinned.
///
/// # Errors
/// ENOENT when there is none.
pub fn get(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let mut attribute = Object { path: path.as_ptr().expose_provenance() as u64, ..Object::default() };
    bpf(OBJ_GET, &mut attribute).map(owned)
}

/// Looks up the 8 bytes of a map's value.
///
/// # Errors
/// ENOENT when there is none.
pub fn lookup_u64<K: zerocopy::IntoBytes + zerocopy::Immutable>(
    map: BorrowedFd<'_>,
    key: &K,
) -> io::Result<u64> {
    let mut value = 0_u64;
    let mut attribute = MapElement {
        map: number(map),
        key: key.as_bytes().as_ptr().expose_provenance() as u64,
        value: (&raw mut value).expose_provenance() as u64,
        ..MapElement::default()
    };
    bpf(MAP_LOOKUP_ELEM, &mut attribute)?;
    Ok(value)
}

/// Id of the program in a program array.
///
/// # Errors
/// ENOENT when there is none.
pub fn program_in(map: BorrowedFd<'_>, index: u32) -> io::Result<u32> {
    let mut id = 0_u32;
    let mut attribute = MapElement {
        map: number(map),
        key: (&raw const index).expose_provenance() as u64,
        value: (&raw mut id).expose_provenance() as u64,
        ..MapElement::default()
    };
    bpf(MAP_LOOKUP_ELEM, &mut attribute)?;
    Ok(id)
}

/// Puts a socket into a sockhash, where the key is free. The value is the descriptor in 8 bytes.
///
/// # Errors
/// EEXIST when it is not.
pub fn insert_socket<K: zerocopy::IntoBytes + zerocopy::Immutable>(
    map: BorrowedFd<'_>,
    key: &K,
    socket: BorrowedFd<'_>,
) -> io::Result<()> {
    let value = u64::from(number(socket));
    update(map, key.as_bytes(), (&raw const value).expose_provenance() as u64, NOEXIST)
}

/// Puts a program into a program array. The value is the descriptor in 4 bytes.
///
/// # Errors
/// As the kernel says.
pub fn set_program(map: BorrowedFd<'_>, index: u32, program: BorrowedFd<'_>) -> io::Result<()> {
    let value = number(program);
    update(map, &index.to_ne_bytes(), (&raw const value).expose_provenance() as u64, 0)
}

fn update(map: BorrowedFd<'_>, key: &[u8], value: u64, flags: u64) -> io::Result<()> {
    let mut attribute = MapElement {
        map: number(map),
        key: key.as_ptr().expose_provenance() as u64,
        value,
        flags,
        ..MapElement::default()
    };
    bpf(MAP_UPDATE_ELEM, &mut attribute).map(drop)
}

/// Steps to the key after `key`, or with `known` false to the first one; false where there is none.
///
/// # Errors
/// As the kernel says. `key` must have the size of the map's keys.
pub fn next_key(map: BorrowedFd<'_>, known: bool, key: &mut [u8]) -> io::Result<bool> {
    let before = key.to_vec();
    let mut attribute = MapElement {
        map: number(map),
        key: if known { before.as_ptr().expose_provenance() as u64 } else { 0 },
        value: key.as_mut_ptr().expose_provenance() as u64,
        ..MapElement::default()
    };
    match bpf(MAP_GET_NEXT_KEY, &mut attribute) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        other => other.map(|_zero| true),
    }
}

/// Deletes an entry of a map.
///
/// # Errors
/// ENOENT when there is none.
pub fn delete<K: zerocopy::IntoBytes + zerocopy::Immutable + ?Sized>(
    map: BorrowedFd<'_>,
    key: &K,
) -> io::Result<()> {
    let mut attribute = MapElement {
        map: number(map),
        key: key.as_bytes().as_ptr().expose_provenance() as u64,
        ..MapElement::default()
    };
    bpf(MAP_DELETE_ELEM, &mut attribute).map(drop)
}
