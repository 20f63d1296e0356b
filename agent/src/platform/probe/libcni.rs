//! Which libcni the node's container runtimes have: from 1.3 on it reads plugins from a directory beside a list.
//!
//! A runtime's program tells: Go puts the versions of the modules that a program is made of into it (`go version -m`
//! shows them). Programs that were built without modules, as Debian's, tell nothing, and then nothing is assumed.
//! Never does: ask a runtime, or run one. Called by: `installer`.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use memchr::memmem;

/// The runtimes, as their processes are called; k3s and RKE2 have a containerd of their own.
const RUNTIMES: [&str; 4] = ["containerd", "crio", "cri-o", "dockerd"];
/// What stands before libcni's version in a program.
const MODULE: &[u8] = b"github.com/containernetworking/cni\tv";
/// The first with the directory.
const FIRST: (u32, u32) = (1, 3);
/// Of a program in one piece.
const PIECE: usize = 1 << 20;

/// Whether every runtime of this node reads the directory; without one that can be seen, no.
pub fn reads_dropins() -> bool {
    let Ok(processes) = fs::read_dir("/proc") else { return false };
    let paths = processes.flatten().map(|entry| entry.path());
    let is_runtime = |path: &Path| {
        let name = fs::read_to_string(path.join("comm")).unwrap_or_default();
        RUNTIMES.contains(&name.trim_end())
    };
    let mut runtimes = paths.filter(|path| is_runtime(path)).peekable();
    runtimes.peek().is_some()
        && runtimes.all(|path| {
            let version = File::open(path.join("exe")).and_then(version);
            matches!(version, Ok(Some(version)) if version >= FIRST)
        })
}

/// The version of libcni that a program has: major and minor.
///
/// # Errors
/// If it cannot be read.
pub fn version(mut program: impl Read) -> io::Result<Option<(u32, u32)>> {
    let mut window = Vec::with_capacity(2 * PIECE);
    loop {
        let kept = window.len();
        program.by_ref().take(PIECE as u64).read_to_end(&mut window)?;
        if window.len() == kept {
            return Ok(None);
        }
        let mut found = memmem::find_iter(&window, MODULE);
        if let Some(version) = found.find_map(|at| parse(window.get(at + MODULE.len()..)?)) {
            return Ok(Some(version));
        }
        // What began at the end of this piece is found in the next.
        let begun = window.len().saturating_sub(MODULE.len() + 16);
        window.drain(..begun);
    }
}

/// `1.3.0\t…`
fn parse(text: &[u8]) -> Option<(u32, u32)> {
    let end = text.iter().take(16).position(u8::is_ascii_whitespace)?;
    let mut numbers = str::from_utf8(text.get(..end)?).ok()?.split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_found_wherever_it_stands_in_a_program() {
        let line = b"\tdep\tgithub.com/containernetworking/cni\tv1.3.0\th1:x=\n";
        for before in [0, PIECE - 60, PIECE - 30, PIECE - 1, PIECE + 5] {
            let program = [vec![b'x'; before], line.to_vec(), vec![b'y'; PIECE]].concat();
            assert_eq!(version(program.as_slice()).unwrap(), Some((1, 3)), "{before}");
        }
        assert_eq!(version(&b"github.com/containernetworking/cni\tv0.8.1\n"[..]).unwrap(), Some((0, 8)));
        assert_eq!(version(&b"github.com/containernetworking/cni\tvendor\n"[..]).unwrap(), None);
        assert_eq!(version(&b"github.com/containernetworking/cni/libcni"[..]).unwrap(), None);
    }
}
