//! A socket load balancer as Cilium and Calico have one: a program in connect() that rewrites a service's address
//! to a backend's.
//!
//! Theirs look the service up in a map; this one knows a single service, in its instructions. It is loaded by
//! bpf(2) itself, as nothing of an object is needed. Owns: those instructions. Never does: reverse translation
//! (getpeername), which nothing asks for here.

use std::ffi::c_int;
use std::fs::File;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::{Context, Result, bail};
use rustix::process::{Resource, Rlimit, setrlimit};

use crate::bpf;
use crate::cgroup::Cgroup;

const PROG_LOAD: c_int = 5;
const LINK_CREATE: c_int = 28;
const PROG_TYPE_CGROUP_SOCK_ADDR: u32 = 18;
const CONNECT4: u32 = 10;
const CONNECT6: u32 = 11;

/// A service with one backend, translated for all processes below a cgroup as long as the guard lives.
#[derive(Debug)]
pub struct SocketLb {
    _link: OwnedFd,
}

impl SocketLb {
    /// Attaches to `cgroup`, behind what hangs there already. `name` has 15 characters at the most; both
    /// addresses are of one family.
    pub fn attach(cgroup: &Cgroup, name: &str, service: SocketAddr, backend: SocketAddr) -> Result<Self> {
        lock_all_memory();
        let hook = if service.is_ipv4() { CONNECT4 } else { CONNECT6 };
        let program = load(name, hook, &translation(service, backend)?)?;
        let cgroup = File::open(cgroup.path()).context("open a cgroup")?;
        let mut attribute =
            LinkCreate { program: number(&program), target: number(&cgroup), attach_type: hook, flags: 0 };
        let link = bpf::open(LINK_CREATE, &mut attribute).context("attach the load balancer")?;
        Ok(Self { _link: link })
    }
}

/// Before Linux 5.11 a program counts as memory that is locked, of which root has 64 KB by default; those whom this one
/// stands for ask for more as well. Later kernels count it as a cgroup's, and let nobody but the privileged ask.
fn lock_all_memory() {
    let all = Rlimit { current: None, maximum: None };
    if let Err(error) = setrlimit(Resource::Memlock, all) {
        // If it was needed, loading says so.
        eprintln!("lock all memory: {error}");
    }
}

/// `union bpf_attr` for BPF_PROG_LOAD.
#[repr(C)]
#[derive(Default)]
struct ProgramLoad {
    kind: u32,
    instructions: u32,
    first: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    expected_attach_type: u32,
}

#[repr(C)]
struct LinkCreate {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
}

/// One instruction: `struct bpf_insn`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Instruction {
    code: u8,
    /// Source in the upper half, destination in the lower.
    registers: u8,
    offset: i16,
    immediate: u32,
}

/// Registers: the context comes in 1.
const CONTEXT: u8 = 1;
const VALUE: u8 = 2;

impl Instruction {
    /// `value = *(u32 *)(context + offset)`
    const fn load(offset: i16) -> Self {
        Self { code: 0x61, registers: CONTEXT << 4 | VALUE, offset, immediate: 0 }
    }

    /// `*(u32 *)(context + offset) = value`
    const fn store(offset: i16) -> Self {
        Self { code: 0x63, registers: VALUE << 4 | CONTEXT, offset, immediate: 0 }
    }

    /// `if (u32)value != immediate`, skip so many instructions.
    const fn skip_unless(immediate: u32, skip: i16) -> Self {
        Self { code: 0x56, registers: VALUE, offset: skip, immediate }
    }

    /// `register = immediate`, in 32 bits.
    const fn set(register: u8, immediate: u32) -> Self {
        Self { code: 0xb4, registers: register, offset: 0, immediate }
    }

    const EXIT: Self = Self { code: 0x95, registers: 0, offset: 0, immediate: 0 };
}

/// The words of an address and of its port as `struct bpf_sock_addr` has them, each with its offset there.
fn words(of: SocketAddr) -> Vec<(i16, u32)> {
    const USER_IP4: i16 = 4;
    const USER_IP6: i16 = 8;
    const USER_PORT: i16 = 24;
    let mut words = match of.ip() {
        IpAddr::V4(ip) => vec![(USER_IP4, u32::from_ne_bytes(ip.octets()))],
        IpAddr::V6(ip) => {
            let octets = ip.octets();
            let (words, _rest) = octets.as_chunks::<4>();
            (USER_IP6..).step_by(4).zip(words.iter().map(|word| u32::from_ne_bytes(*word))).collect()
        }
    };
    words.push((USER_PORT, u32::from(of.port().to_be())));
    words
}

/// Compares what is dialled with the service, word for word, and if all is equal writes the backend.
fn translation(service: SocketAddr, backend: SocketAddr) -> Result<Vec<Instruction>> {
    if service.is_ipv4() != backend.is_ipv4() {
        bail!("service {service} and backend {backend} are of two families");
    }
    let (service, backend) = (words(service), words(backend));
    let write: Vec<_> = backend
        .into_iter()
        .flat_map(|(offset, word)| [Instruction::set(VALUE, word), Instruction::store(offset)])
        .collect();
    let mut program = Vec::new();
    for (index, (offset, word)) in service.iter().enumerate() {
        // What is left of the comparisons, two instructions each, and all of the writing.
        let skip = (service.len() - index - 1) * 2 + write.len();
        program.push(Instruction::load(*offset));
        program.push(Instruction::skip_unless(*word, i16::try_from(skip)?));
    }
    program.extend(write);
    // 1 lets connect() go on.
    program.extend([Instruction::set(0, 1), Instruction::EXIT]);
    Ok(program)
}

fn load(name: &str, hook: u32, program: &[Instruction]) -> Result<OwnedFd> {
    let mut attribute = ProgramLoad {
        kind: PROG_TYPE_CGROUP_SOCK_ADDR,
        instructions: u32::try_from(program.len())?,
        first: program.as_ptr().expose_provenance() as u64,
        license: c"Apache-2.0".as_ptr().expose_provenance() as u64,
        expected_attach_type: hook,
        ..ProgramLoad::default()
    };
    for (to, from) in attribute.name.iter_mut().take(15).zip(name.bytes()) {
        *to = from;
    }
    bpf::open(PROG_LOAD, &mut attribute).with_context(|| format!("load the load balancer {name}"))
}

fn number(fd: &impl AsRawFd) -> u32 {
    fd.as_raw_fd().unsigned_abs()
}
