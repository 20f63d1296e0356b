//! The processes of a pod that talk to each other, held by guards.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail};
use veer_tests::launch::Launch;

use crate::order::{Order, Slice};

/// A server, until it is dropped.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    _said: BufReader<ChildStdout>,
}

/// A client, until it is dropped.
#[derive(Debug)]
pub(crate) struct Client {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Server {
    /// Starts one and waits until it listens.
    pub(crate) fn start(launch: &Launch, cpu: usize, ports: &[u16]) -> Result<Self> {
        Self::begin(launch, cpu, ports, &[])
    }

    /// The same for one that is behind a proxy, which keeps several connections.
    pub(crate) fn start_for_many(launch: &Launch, cpu: usize, ports: &[u16]) -> Result<Self> {
        Self::begin(launch, cpu, ports, &["--many"])
    }

    fn begin(launch: &Launch, cpu: usize, ports: &[u16], flags: &[&str]) -> Result<Self> {
        let mut command = this_program(launch)?;
        command.args(["server", "--cpu", &cpu.to_string()]).args(flags);
        command.args(ports.iter().map(ToString::to_string));
        let mut child = spawn(command.stdin(Stdio::null())).context("start the server")?;
        let mut said = BufReader::new(child.stdout.take().context("the server's output")?);
        if said.read_line(&mut String::new()).context("wait for the server")? == 0 {
            bail!("the server ended: {}", child.wait()?);
        }
        Ok(Self { child, _said: said })
    }
}

impl Client {
    /// Starts one.
    pub(crate) fn start(launch: &Launch, cpu: usize) -> Result<Self> {
        let mut command = this_program(launch)?;
        command.args(["client", "--cpu", &cpu.to_string()]);
        let mut child = spawn(command.stdin(Stdio::piped())).context("start the client")?;
        let orders = child.stdin.take().context("the client's input")?;
        let answers = BufReader::new(child.stdout.take().context("the client's output")?);
        Ok(Self { child, orders, answers })
    }

    /// Gives an order and waits until it is carried out.
    pub(crate) fn carry_out(&mut self, order: &Order) -> Result<Slice> {
        let line = format!("{}\n", serde_json::to_string(order)?);
        self.orders.write_all(line.as_bytes()).context("give an order")?;
        let mut answer = String::new();
        if self.answers.read_line(&mut answer).context("wait for an answer")? == 0 {
            bail!("the client ended at {order:?}: {}", self.child.wait()?);
        }
        serde_json::from_str(&answer).with_context(|| format!("read the answer {answer:?}"))
    }
}

fn this_program(launch: &Launch) -> Result<Command> {
    launch.command(std::env::current_exe().context("find the running executable")?)
}

fn spawn(command: &mut Command) -> Result<Child> {
    Ok(command.stdout(Stdio::piped()).spawn()?)
}

fn end(child: &mut Child) {
    // It may have ended already, which is what is wanted here.
    child
        .kill()
        .and_then(|()| child.wait())
        .map_or_else(|error| eprintln!("bench: end a process: {error}"), drop);
}

impl Drop for Server {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}
