//! `echo-app`: an app that answers each request with what it knows of the connection.

use std::net::{SocketAddr, TcpListener};

use anyhow::{Context, Result};
use clap::Parser;
use veer_tests::http;

/// Answer every HTTP request with what this process sees of it.
#[derive(Parser)]
struct Options {
    /// What the app is called in its answers
    #[arg(long)]
    name: String,
    /// Address and port to listen on; `[::]` serves IPv4, too
    #[arg(long, default_value = "[::]:8080")]
    listen: SocketAddr,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let listener =
        TcpListener::bind(options.listen).with_context(|| format!("listen on {}", options.listen))?;
    http::serve(&listener, &options.name)
}
