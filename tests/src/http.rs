//! HTTP/1.1 as far as the tests need it: one request for each connection.
//!
//! The app ([`serve`]) tells in its answer what it knows of the connection, or asks another one (`/to/ADDRESS/…`); the client ([`get`]) takes any
//! stream, one whose socket was made in a pod too.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::unistd::{getegid, geteuid};
use serde::{Deserialize, Serialize};

use crate::wait;

/// Longest head of a request or an answer.
const MAX_HEAD: usize = 16 << 10;
/// No peer of ours takes longer on purpose.
const PATIENCE: Duration = Duration::from_secs(10);

/// Headers, their names in lower case.
pub type Headers = BTreeMap<String, String>;

/// What the app says of a request.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Echo {
    /// Which app.
    pub app: String,
    /// User that it runs as.
    pub uid: u32,
    /// Primary group that it runs as.
    pub gid: u32,
    /// Who is at the other end of its connection.
    pub peer: SocketAddr,
    /// Its own end: what was dialled, as far as it can tell.
    pub local: SocketAddr,
    /// First line of the request.
    pub request: String,
    /// Headers of the request.
    pub headers: Headers,
}

/// An answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Response {
    /// Status code.
    pub status: u16,
    /// Headers.
    pub headers: Headers,
    /// Body.
    pub body: Vec<u8>,
}

/// Connects from where the thread is, asks, and reads the answer to its end.
pub fn get_from(address: SocketAddr, path: &str, headers: &Headers) -> Result<Response> {
    request_from(address, "GET", path, headers)
}

/// Connects from where the thread is, and sends a request with another method.
pub fn request_from(address: SocketAddr, method: &str, path: &str, headers: &Headers) -> Result<Response> {
    let mut stream = TcpStream::connect_timeout(&address, wait::scaled(PATIENCE))
        .with_context(|| format!("connect to {address}"))?;
    limit(&stream).context("limit the wait for the peer")?;
    request(&mut stream, method, &address.to_string(), path, headers)
}

/// Asks for `path` and reads the answer to its end.
pub fn get(stream: &mut (impl Read + Write), host: &str, path: &str, headers: &Headers) -> Result<Response> {
    request(stream, "GET", host, path, headers)
}

fn request(
    stream: &mut (impl Read + Write),
    method: &str,
    host: &str,
    path: &str,
    headers: &Headers,
) -> Result<Response> {
    let mut text = format!("{method} {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n");
    for (name, value) in headers {
        write!(text, "{name}: {value}\r\n").context("write a header")?;
    }
    text.push_str("\r\n");
    stream.write_all(text.as_bytes()).context("send the request")?;
    let mut head = read_head(stream).context("read the answer")?;
    let status = head.first_line.split(' ').nth(1).and_then(|code| code.parse().ok());
    let Some(status) = status else { bail!("not a status line of HTTP: {:?}", head.first_line) };
    stream.read_to_end(&mut head.rest).context("read the answer's body")?;
    let chunked = head.headers.get("transfer-encoding").is_some_and(|encoding| encoding == "chunked");
    let body =
        if chunked { join_chunks(&head.rest).context("the answer's chunks are broken")? } else { head.rest };
    Ok(Response { status, headers: head.headers, body })
}

/// Answers every request with an [`Echo`], for ever.
pub fn serve(listener: &TcpListener, app: &str) -> Result<()> {
    loop {
        let (stream, _) = listener.accept().context("accept a connection")?;
        let app = app.to_owned();
        // A peer that breaks off is the peer's business; the app goes on.
        thread::spawn(move || answer(stream, &app).unwrap_or_else(|error| eprintln!("{error:#}")));
    }
}

/// A request as an app of its own kind sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Request {
    /// What is asked for.
    pub path: String,
    /// Headers, without those that are about this connection alone.
    pub headers: Headers,
    /// Who is at the other end of the connection.
    pub peer: SocketAddr,
    /// This end of it.
    pub local: SocketAddr,
}

/// Answers every request with the status and the body that `reply` has for it, for ever.
pub fn serve_with(
    listener: &TcpListener,
    reply: impl Fn(&Request) -> (u16, Vec<u8>) + Clone + Send + 'static,
) -> Result<()> {
    loop {
        let (stream, _) = listener.accept().context("accept a connection")?;
        let reply = reply.clone();
        thread::spawn(move || answer_with(stream, reply).unwrap_or_else(|error| eprintln!("{error:#}")));
    }
}

fn answer_with(mut stream: TcpStream, reply: impl Fn(&Request) -> (u16, Vec<u8>)) -> Result<()> {
    limit(&stream).context("limit the wait for the peer")?;
    let head = read_head(&mut stream).context("read a request")?;
    let request = Request {
        path: head.first_line.split(' ').nth(1).unwrap_or_default().to_owned(),
        headers: onward_headers(&head.headers),
        peer: plain(stream.peer_addr()?),
        local: plain(stream.local_addr()?),
    };
    let (status, body) = reply(&request);
    let length = body.len();
    write!(stream, "HTTP/1.1 {status} Answered\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n")
        .and_then(|()| stream.write_all(&body))
        .context("send the answer")
}

/// What goes along when an app asks another one for a request's sake.
fn onward_headers(headers: &Headers) -> Headers {
    let own = ["host", "connection"];
    let further = headers.iter().filter(|(name, _)| !own.contains(&name.as_str()));
    further.map(|(name, value)| (name.clone(), value.clone())).collect()
}

fn answer(mut stream: TcpStream, app: &str) -> Result<()> {
    limit(&stream).context("limit the wait for the peer")?;
    let head = read_head(&mut stream).context("read a request")?;
    if let Some(onward) = onward(&head.first_line) {
        return relay(&mut stream, onward, &head.headers);
    }
    let echo = Echo {
        app: app.to_owned(),
        uid: geteuid().as_raw(),
        gid: getegid().as_raw(),
        peer: plain(stream.peer_addr()?),
        local: plain(stream.local_addr()?),
        request: head.first_line,
        headers: head.headers,
    };
    let body = serde_json::to_string(&echo)?;
    let length = body.len();
    let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n";
    write!(stream, "{head}content-length: {length}\r\n\r\n{body}").context("send the answer")
}

/// Where `GET /to/ADDRESS:PORT/…` asks the app to ask.
fn onward(request: &str) -> Option<(SocketAddr, &str)> {
    let rest = request.split(' ').nth(1)?.strip_prefix("/to/")?;
    let (address, _) = rest.split_once('/')?;
    Some((address.parse().ok()?, rest.get(address.len()..)?))
}

/// Asks there, as an app asks another one, and passes the answer on; the request's own headers go along.
fn relay(stream: &mut TcpStream, (address, path): (SocketAddr, &str), headers: &Headers) -> Result<()> {
    let (status, body) = match get_from(address, path, &onward_headers(headers)) {
        Ok(response) => (response.status, response.body),
        Err(error) => (502, format!("{error:#}").into_bytes()),
    };
    let length = body.len();
    write!(stream, "HTTP/1.1 {status} Passed on\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n")
        .and_then(|()| stream.write_all(&body))
        .context("pass an answer on")
}

/// `::ffff:a.b.c.d` as `a.b.c.d`: a dual-stack listener's view of IPv4.
pub fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn limit(stream: &TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(wait::scaled(PATIENCE)))?;
    stream.set_write_timeout(Some(wait::scaled(PATIENCE)))
}

struct Head {
    first_line: String,
    headers: Headers,
    /// What was read beyond the head.
    rest: Vec<u8>,
}

fn read_head(stream: &mut impl Read) -> Result<Head> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    let end = loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break end;
        }
        let count = stream.read(&mut buffer)?;
        bytes.extend_from_slice(buffer.get(..count).unwrap_or_default());
        if count == 0 || bytes.len() > MAX_HEAD {
            bail!("{} bytes without an end of the head", bytes.len());
        }
    };
    let rest = bytes.split_off(end + 4);
    let text = String::from_utf8(bytes).context("the head is not UTF-8")?;
    let mut lines = text.trim_end().split("\r\n");
    let first_line = lines.next().unwrap_or_default().to_owned();
    let headers = lines.filter_map(|line| line.split_once(':'));
    let headers = headers.map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned())).collect();
    Ok(Head { first_line, headers, rest })
}

/// The body of a chunked answer; `None` if it is not whole.
fn join_chunks(mut bytes: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end = bytes.windows(2).position(|window| window == b"\r\n")?;
        let size = std::str::from_utf8(bytes.get(..end)?).ok()?;
        let size = usize::from_str_radix(size.split(';').next()?.trim(), 16).ok()?;
        if size == 0 {
            return Some(body);
        }
        let start = end + 2;
        body.extend_from_slice(bytes.get(start..start + size)?);
        bytes = bytes.get(start + size + 2..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Script {
        answer: io::Cursor<Vec<u8>>,
        sent: Vec<u8>,
    }

    impl Read for Script {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            // As slowly as a network may be.
            let short = buffer.len().min(1);
            self.answer.read(&mut buffer[..short])
        }
    }

    impl Write for Script {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.sent.write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn ask(answer: &str) -> (Result<Response>, String) {
        let mut script = Script { answer: io::Cursor::new(answer.into()), sent: Vec::new() };
        let headers = Headers::from([("x-a".to_owned(), "b".to_owned())]);
        let response = get(&mut script, "h:1", "/p", &headers);
        (response, String::from_utf8(script.sent).unwrap())
    }

    #[test]
    fn an_answer_is_read_whole() {
        let (response, sent) = ask("HTTP/1.1 200 OK\r\nX-B: c\r\n\r\nbody");
        assert_eq!(sent, "GET /p HTTP/1.1\r\nhost: h:1\r\nconnection: close\r\nx-a: b\r\n\r\n");
        let headers = Headers::from([("x-b".to_owned(), "c".to_owned())]);
        assert_eq!(response.unwrap(), Response { status: 200, headers, body: b"body".to_vec() });
    }

    #[test]
    fn chunks_are_joined_and_broken_ones_are_an_error() {
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        let (response, _) = ask(&format!("{head}3\r\nabc\r\na\r\n0123456789\r\n0\r\n\r\n"));
        assert_eq!(response.unwrap().body, b"abc0123456789");
        for broken in ["", "3\r\nab", "z\r\n", "3\r\nabc\r\n"] {
            let (response, _) = ask(&format!("{head}{broken}"));
            assert!(response.is_err(), "{broken:?}");
        }
    }

    #[test]
    fn what_is_not_http_is_an_error() {
        for answer in ["", "hello", "hello\r\n\r\n", "HTTP/1.1 abc\r\n\r\n"] {
            assert!(ask(answer).0.is_err(), "{answer:?}");
        }
    }
}
