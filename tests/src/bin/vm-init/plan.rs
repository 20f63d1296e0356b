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
    /// What tests need that a kernel may lack.
    pub(crate) needs: Vec<Need>,
    /// The suites, in this order.
    pub(crate) suites: Vec<Suite>,
}

/// Tests that are about something which a kernel may lack.
#[derive(Deserialize)]
pub(crate) struct Need {
    /// What it is; `ability` can tell.
    pub(crate) ability: String,
    pub(crate) program: String,
    /// What the tests' names begin with: of all of them, if it is empty.
    pub(crate) tests: String,
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
    /// Only tests with this in their name; all of them, if absent.
    pub(crate) test: Option<String>,
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
