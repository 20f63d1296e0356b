//! The dialling end: carries out orders from standard input and says how long they took.

use std::io::{BufRead, Read, Write, stdin, stdout};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::unistd::alarm;

use crate::order::{BLOCK, BUFFER, BULK, END, Order, PING, REQUEST, Slice, Workload, pin};
use crate::statistics::{Spread, mean};

/// Longest that an order may take, in seconds. The kernel ends the process then: a watch inside of the
/// measured loop would be measured, too.
const PATIENCE: u32 = 30;

/// How to dial.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// CPU to stay on
    #[arg(long)]
    cpu: usize,
}

/// Carries out one order per line, until the lines end.
pub(crate) fn obey(options: &Options) -> Result<()> {
    pin(options.cpu)?;
    for line in stdin().lock().lines() {
        let order: Order = serde_json::from_str(&line.context("hear an order")?).context("read an order")?;
        alarm::set(PATIENCE);
        let slice =
            carry_out(&order).with_context(|| format!("{} to {}", order.workload.name(), order.to))?;
        alarm::cancel();
        let answer = format!("{}\n", serde_json::to_string(&slice)?);
        stdout().write_all(answer.as_bytes()).context("answer an order")?;
    }
    Ok(())
}

fn carry_out(order: &Order) -> Result<Slice> {
    let took = match order.workload {
        Workload::Connect => repeat(order, || {
            let start = Instant::now();
            let stream = open(order.to)?;
            let took = start.elapsed();
            close(stream)?;
            Ok(took)
        })?,
        Workload::Life => repeat(order, || time(|| close(open(order.to)?)))?,
        Workload::Request => {
            let mut stream = TcpStream::connect(order.to)?;
            repeat(order, || time(|| say(&mut stream, PING)))?
        }
        Workload::HttpRequest => {
            let mut stream = TcpStream::connect(order.to)?;
            repeat(order, || time(|| request(&mut stream)))?
        }
        Workload::HttpConnect => repeat(order, || {
            let start = Instant::now();
            let mut stream = TcpStream::connect(order.to)?;
            request(&mut stream)?;
            Ok(start.elapsed())
        })?,
        Workload::Bulk => {
            let mut stream = TcpStream::connect(order.to)?;
            // Else the last part of a block would wait for the acknowledgement of what is before it.
            stream.set_nodelay(true)?;
            say(&mut stream, BULK)?;
            let buffer = vec![0; BUFFER];
            repeat(order, || time(|| send_block(&mut stream, &buffer)))?
        }
    };
    let median_ns = Spread::of(&took).context("an order without operations")?.median;
    Ok(Slice { median_ns, mean_ns: mean(&took) })
}

/// Nanoseconds of each operation.
fn repeat(order: &Order, mut operation: impl FnMut() -> Result<Duration>) -> Result<Vec<f64>> {
    (0..order.operations).map(|_| Ok(operation()?.as_secs_f64() * 1e9)).collect()
}

fn time(operation: impl FnOnce() -> Result<()>) -> Result<Duration> {
    let start = Instant::now();
    operation()?;
    Ok(start.elapsed())
}

/// A connection that has carried a byte.
fn open(to: SocketAddr) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(to)?;
    say(&mut stream, PING)?;
    Ok(stream)
}

/// Closes a connection and waits until the server has, too: else its work would be a part of the next
/// operation, or not, as the scheduler pleases.
fn close(mut stream: TcpStream) -> Result<()> {
    stream.shutdown(Shutdown::Write)?;
    ensure!(stream.read(&mut [0])? == 0, "the server said more than it was asked");
    Ok(())
}

/// Sends a byte and waits until it comes back.
fn say(stream: &mut TcpStream, byte: u8) -> Result<()> {
    stream.write_all(&[byte])?;
    hear(stream, byte)
}

fn hear(stream: &mut TcpStream, expected: u8) -> Result<()> {
    let mut answer = [0];
    stream.read_exact(&mut answer)?;
    ensure!(answer == [expected], "the server answered {answer:?} to {expected}");
    Ok(())
}

/// Sends a request and reads its answer, which may come in parts.
fn request(stream: &mut TcpStream) -> Result<()> {
    stream.write_all(REQUEST)?;
    let (mut answer, mut length) = ([0; 1024], 0);
    loop {
        let read = stream.read(answer.get_mut(length..).unwrap_or_default())?;
        length += read;
        let answer = answer.get(..length).unwrap_or_default();
        ensure!(read > 0, "the answer is not whole: {:?}", String::from_utf8_lossy(answer));
        if let Some(head) = answer.strip_suffix(&[PING]).and_then(|answer| answer.strip_suffix(END)) {
            ensure!(head.starts_with(b"HTTP/1.1 200"), "{:?}", String::from_utf8_lossy(answer));
            return Ok(());
        }
    }
}

fn send_block(stream: &mut TcpStream, buffer: &[u8]) -> Result<()> {
    let mut left = usize::try_from(BLOCK)?;
    while left > 0 {
        let part = buffer.get(..left.min(buffer.len())).unwrap_or_default();
        stream.write_all(part)?;
        left -= part.len();
    }
    hear(stream, BULK)
}
