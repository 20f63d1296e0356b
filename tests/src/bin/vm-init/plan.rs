//! What is to be run, as `xtask` has written it into the archive.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result};
use serde::Deserialize;

const PATH: &str = "/veer/plan.json";

/// All of it.
#[derive(Deserialize)]
pub(crate) struct Plan {
    /// Variables of every program.
    pub(crate) environment: BTreeMap<String, String>,
    /// The suites, in this order.
    pub(crate) suites: Vec<Suite>,
}

/// Programs under one heading.
#[derive(Deserialize)]
pub(crate) struct Suite {
    pub(crate) name: String,
    pub(crate) programs: Vec<Program>,
}

/// A test binary.
#[derive(Deserialize)]
pub(crate) struct Program {
    /// Its name below `/veer`.
    pub(crate) name: String,
    pub(crate) arguments: Vec<String>,
    /// Variables of this one alone.
    pub(crate) environment: BTreeMap<String, String>,
    /// After how many seconds it is ended.
    pub(crate) limit: u64,
}

impl Plan {
    pub(crate) fn read() -> Result<Self> {
        let text = fs::read(PATH).with_context(|| format!("read {PATH}"))?;
        serde_json::from_slice(&text).with_context(|| format!("decode {PATH}"))
    }
}
