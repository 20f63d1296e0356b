//! `bookinfo-app`: one of the services of Bookinfo, by its argument.

use std::net::{Ipv6Addr, TcpListener};

use anyhow::{Context, Result};
use clap::Parser;
use veer_tests::bookinfo::{App, PORT, Service};
use veer_tests::http;

/// Be a service of Bookinfo.
#[derive(Parser)]
struct Options {
    /// Which
    #[arg(value_enum)]
    service: Service,
    /// In which version
    #[arg(default_value = "v1")]
    version: String,
}

fn main() -> Result<()> {
    let Options { service, version } = Options::parse();
    let app = App::new(service, &version)?;
    let listener =
        TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT)).with_context(|| format!("listen on {PORT}"))?;
    http::serve_with(&listener, move |request| app.reply(request))
}
