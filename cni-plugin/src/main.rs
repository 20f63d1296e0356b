//! The program: what the runtime gives and takes, and nothing else. See the library.

#![forbid(unsafe_code)]

use std::io::{self, IsTerminal, Read};
use std::process::ExitCode;

fn main() -> ExitCode {
    let stdin = io::stdin();
    // By hand nobody types a configuration: do not wait for one.
    let input: Box<dyn Read> =
        if stdin.is_terminal() { Box::new(io::empty()) } else { Box::new(stdin.lock()) };
    veer_cni::run(&|name| std::env::var_os(name), input, io::stdout().lock(), io::stderr().lock())
}
