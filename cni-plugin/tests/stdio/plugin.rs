//! The real binary as a runtime runs it: environment, stdin, stdout, stderr, exit code.

use std::io::{ErrorKind, Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// Far above every timeout that a test configures; only a hanging plugin gets here.
const LIMIT: Duration = Duration::from_mins(1);

/// What a run of the plugin left.
#[derive(PartialEq, Eq, Debug)]
pub(crate) struct Outcome {
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) exit: i32,
}

/// The binary with these variables and no others.
pub(crate) fn command(variables: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_veer-cni"));
    command.env_clear().envs(variables.iter().copied());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs the plugin with that stdin.
pub(crate) fn run(variables: &[(&str, &str)], stdin: &[u8]) -> Outcome {
    feed(command(variables).spawn().unwrap(), stdin)
}

/// Writes stdin, as far as the plugin reads it, and waits for the plugin's end.
pub(crate) fn feed(mut child: Child, stdin: &[u8]) -> Outcome {
    let mut pipe = child.stdin.take().unwrap();
    let write = move |bytes: &[u8]| match pipe.write_all(bytes) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
        written => written.unwrap(),
    };
    thread::scope(|scope| {
        scope.spawn(|| { write }(stdin));
        wait(child)
    })
}

/// Waits for the plugin's end.
pub(crate) fn wait(mut child: Child) -> Outcome {
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let (sender, receiver) = mpsc::channel();
    thread::scope(|scope| {
        let stderr = scope.spawn(|| text(stderr));
        scope.spawn(move || sender.send(text(stdout)));
        // The plugin's stdout ends when the plugin does.
        let Ok(stdout) = receiver.recv_timeout(LIMIT) else {
            child.kill().unwrap();
            panic!("the plugin runs longer than {LIMIT:?}");
        };
        let status = child.wait().unwrap();
        let exit = status.code().unwrap_or_else(|| panic!("the plugin ended by {status}"));
        Outcome { stdout, stderr: stderr.join().unwrap(), exit }
    })
}

fn text(pipe: Option<impl Read>) -> String {
    let mut text = String::new();
    if let Some(mut pipe) = pipe {
        pipe.read_to_string(&mut text).unwrap();
    }
    text
}
